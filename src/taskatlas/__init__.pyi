from .errors import BadInput, MissingExtra, TaskAtlasError, WorkFailed
from .store import Receipt, Store

__all__ = [
    "BadInput",
    "MissingExtra",
    "Receipt",
    "Store",
    "TaskAtlasError",
    "WorkFailed",
]
