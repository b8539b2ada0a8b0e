"""Learning: several small networks at once in memory, or one of any size from a stream."""

from .networks import mlp, small_cnn
from .pictures import Preparation
from .recipe import Recipe
from .run import Network, new_network, read_log, train_to_folder, trained
from .stacked import IGNORED, accuracy, train
from .stream import Stream
from .streamed import Epoch, train_streamed

__all__ = [
    "IGNORED",
    "Epoch",
    "Network",
    "Preparation",
    "Recipe",
    "Stream",
    "accuracy",
    "mlp",
    "new_network",
    "read_log",
    "small_cnn",
    "train",
    "train_streamed",
    "train_to_folder",
    "trained",
]
