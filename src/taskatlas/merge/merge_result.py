"""What a merge into a folder leaves behind."""

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Adaptation:
    """How merging coefficients were learned, and what a reader of the result has to know.

    Attributes:
        samples: ``held-out``, or ``transductive``: the scored samples themselves.
        coefficients: their number.
        dead: how many of them change nothing.
        dropped: experts that equal the base.
        collapsed: tasks whose predictions became alike.

    Example:
        >>> str(Adaptation("held-out", 24, 5, ("b",), ()))
        'learned on held-out samples; 5 of 24 coefficients dead; equal to the base: b'
    """

    samples: str
    coefficients: int
    dead: int
    dropped: tuple[str, ...]
    collapsed: tuple[str, ...]

    @classmethod
    def of(
        cls,
        samples: str,
        level: str,
        dead: np.ndarray,
        dropped: Iterable[str],
        collapsed: Iterable[str],
    ) -> "Adaptation":
        """From where a coefficient changes nothing, (N, T); a task-wise one is dead where all of an expert's are."""
        counted = dead if level == "layer" else dead.all(1)
        return cls(samples, counted.size, int(counted.sum()), tuple(dropped), tuple(collapsed))

    def __str__(self) -> str:
        notes = [
            f"learned on {self.samples} samples",
            f"{self.dead} of {self.coefficients} coefficients dead" if self.dead else "",
            f"equal to the base: {', '.join(self.dropped)}" if self.dropped else "",
            f"predictions collapsed: {', '.join(self.collapsed)}" if self.collapsed else "",
        ]
        return "; ".join(note for note in notes if note)


@dataclass(frozen=True)
class MergeResult:
    """What a merge left behind.

    Attributes:
        out: the folder.
        tensors: their number.
        bytes_read: of weights, each as often as it was needed; none where an earlier run had finished.
        bytes_written: of all weights.
        peak_bytes: of memory that the process has held at most, mapped files included.
        seconds: from the reading of the recipe on.
        kept: shards that an earlier run had finished.
        adaptation: how coefficients were learned, where they were.
    """

    out: Path
    tensors: int
    bytes_read: int
    bytes_written: int
    peak_bytes: int
    seconds: float
    kept: int = 0
    adaptation: Adaptation | None = None

    def __repr__(self) -> str:
        return (
            f"MergeResult({str(self.out)!r}, {self.tensors} tensors, {self.bytes_written / 1e6:.1f} MB, "
            f"{self.seconds:.1f} s{'' if self.adaptation is None else f'; {self.adaptation}'})"
        )


def peak_memory() -> int:
    """Bytes of memory that this process has held at most; 0 where the system does not say."""
    status = Path("/proc/self/status")
    if status.is_file():
        found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text(encoding="ascii", errors="replace"))
        if found:
            return 1024 * int(found[1])
    try:
        import resource
    except ImportError:
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
