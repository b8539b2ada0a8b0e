"""The one family of errors: each says what is wrong, where, and what to try.

The command line turns ``BadInput`` into exit status 2 and ``WorkFailed`` into exit status 1; everything else that
escapes is a defect of taskatlas. A place that cannot be written, a full disk included, is ``BadInput``: the user has to
name another or make room.
"""


class TaskAtlasError(Exception):
    """Any failure that taskatlas foresees; its message is one or two sentences for a person."""


class BadInput(TaskAtlasError, ValueError):
    """What was given cannot be used: a file, a shape, a name, a setting."""


class MissingExtra(BadInput, ImportError):
    """An optional dependency is needed and not installed; the message names the command that installs it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed. "
            f"Install it with: pip install 'taskatlas[{extra}]'"
        )
        self._arguments = (package, extra, purpose)

    def __reduce__(self) -> tuple[type["MissingExtra"], tuple[str, str, str]]:
        """Pickled by what made it, so that a worker process can hand it back."""
        return type(self), self._arguments


class WorkFailed(TaskAtlasError, RuntimeError):
    """The input was good and the work failed: a lost worker, a loss that is NaN."""
