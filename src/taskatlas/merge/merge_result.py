"""What a merge into a folder leaves behind."""

import re
import sys
from dataclasses import dataclass
from pathlib import Path


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
    """

    out: Path
    tensors: int
    bytes_read: int
    bytes_written: int
    peak_bytes: int
    seconds: float
    kept: int = 0

    def __repr__(self) -> str:
        return (
            f"MergeResult({str(self.out)!r}, {self.tensors} tensors, {self.bytes_written / 1e6:.1f} MB, "
            f"{self.seconds:.1f} s)"
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
