"""Features of single samples in batches, kept under the digest of what a sample holds, so as to be computed once.

A shuffled loader puts the same samples into other batches, so features are kept by sample: in memory, and in a file of
the store that the extractor's digest names. Hashing a sample takes little beside a pass of the extractor.
"""

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from taskatlas.errors import BadInput
from taskatlas.merge.extractor import Extractor
from taskatlas.merge.unlabelled import LABELS, Batch, batch_length
from taskatlas.store import Store, digest

_REMEMBERED = 2**26  # numbers: what an augmented loader gives is new for ever, and only the first of it is kept
_WRITTEN_AT_ONCE = 1024  # samples: a run that is killed loses no more
_ASKED_AT_ONCE = 500  # digests: SQLite takes so many values in one question, whatever its version
_TABLE = "CREATE TABLE IF NOT EXISTS samples (digest TEXT PRIMARY KEY, features BLOB) WITHOUT ROWID"
_PLACES = "features-of-samples"

T = TypeVar("T")


@dataclass(eq=False)
class KeptFeatures:
    """The features that an extractor gives to samples in batches.

    The store is a convenience here: where it cannot be written, features are kept in memory alone.

    Attributes:
        extractor: makes them.
        store: where they are kept; None: the user's store.

    Example:
        >>> import tempfile
        >>> net, x = torch.nn.Linear(4, 3), torch.randn(5, 4)
        >>> calls = net.register_forward_hook(lambda *_: print("computed"))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     first = KeptFeatures(Extractor.of(net, tap=""), Store(Path(folder)))
        ...     values = first.of(x)
        ...     first.write()
        ...     again = KeptFeatures(Extractor.of(net, tap=""), Store(Path(folder)))
        ...     torch.equal(again.of(x.flip(0)), values.flip(0))
        computed
        True
    """

    extractor: Extractor
    store: Store | None = None
    _known: dict[str, Tensor] = field(default_factory=dict, repr=False)
    _unwritten: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def of(self, batch: Batch) -> Float[Tensor, "batch d"]:
        """The features of a batch, computed where one of its samples is new.

        Raises:
            BadInput: as the extractor, or the file in the store is damaged.
        """
        names = sample_digests(batch)
        found = self._remembered(names)
        if found is not None:
            return found
        features = self.extractor(batch).cpu()
        if names and (len(self._known) + len(names)) * features.shape[1] <= _REMEMBERED:
            new = dict(zip(names, features, strict=True))
            self._known |= new
            self._unwritten |= new
        if len(self._unwritten) >= _WRITTEN_AT_ONCE:
            self.write()
        return features

    def write(self) -> None:
        """Puts what is new into the store, all of it or nothing.

        Raises:
            BadInput: the file in the store is damaged.
        """
        rows = [(name, value.numpy().tobytes()) for name, value in self._unwritten.items()]
        self._unwritten = {}

        def insert(table: sqlite3.Connection) -> None:
            table.execute(_TABLE)
            table.executemany("INSERT OR IGNORE INTO samples VALUES (?, ?)", rows)

        if rows and self._file is not None:
            with suppress(OSError):
                self._file.parent.mkdir(parents=True, exist_ok=True)
            _asked(self._file, insert)

    def _remembered(self, names: Sequence[str]) -> Tensor | None:
        """The features of these samples, if all are known."""
        missing = [name for name in names if name not in self._known]
        read = self._read(missing) if missing else {}
        if (len(self._known) + len(read)) * next(map(len, read.values()), 0) <= _REMEMBERED:
            self._known |= read
        if not names or len(read) < len(missing):
            return None
        return torch.stack([read[name] if name in read else self._known[name] for name in names])

    def _read(self, names: Sequence[str]) -> dict[str, Tensor]:
        def select(table: sqlite3.Connection) -> list[tuple[str, bytes]]:
            rows: list[tuple[str, bytes]] = []
            for start in range(0, len(names), _ASKED_AT_ONCE):
                some = names[start : start + _ASKED_AT_ONCE]
                rows += table.execute(f"SELECT * FROM samples WHERE digest IN ({', '.join('?' * len(some))})", some)
            return rows

        if self._file is None or not self._file.is_file():
            return {}
        rows = _asked(self._file, select) or []
        return {name: torch.from_numpy(np.frombuffer(content, "<f4").copy()) for name, content in rows}

    @cached_property
    def _file(self) -> Path | None:
        f = self.extractor
        try:
            name = digest("features of samples", f.digest, f.tap, f.pool)
        except BadInput:  # a module whose tensors have no plain bytes
            return None
        return (self.store or Store.default()).root / _PLACES / f"{name[:40]}.sqlite"


def sample_digests(batch: Batch) -> list[str]:
    """A digest for each sample of a batch: of all that a network is given of it, labels left out.

    What has no sample axis goes into every digest. None where something has no digest, as an object of the user's.

    Example:
        >>> ids = torch.tensor([[3, 4], [5, 6], [3, 4]])
        >>> a, b, c = sample_digests({"ids": ids, "texts": ["x", "y", "x"], "labels": torch.arange(3)})
        >>> a == c != b
        True
        >>> sample_digests({"ids": ids, "texts": ["x", "y", "x"], "language": "en"})[0] == a
        False
    """
    inputs = batch[0] if isinstance(batch, tuple | list) and batch else batch
    given = {"": inputs} if isinstance(inputs, Tensor) else dict(inputs) if isinstance(inputs, Mapping) else {}
    given = {str(name): value for name, value in given.items() if name not in LABELS}
    count = batch_length(given)
    try:
        parts = {name: _plain(value) for name, value in given.items()}
        each = {name: value for name, value in parts.items() if _has_samples(value, count)}
        shared = digest({name: value for name, value in parts.items() if name not in each})
        return [digest(shared, {name: value[row] for name, value in each.items()}) for row in range(count)]
    except TypeError:
        return []


def _has_samples(value: Any, count: int) -> bool:
    """Whether the samples are on the first axis."""
    listed = isinstance(value, list) or (isinstance(value, np.ndarray) and value.ndim > 0)
    return listed and len(value) == count


def _plain(value: Any) -> Any:
    """A tensor as an array, also in a list."""
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if not isinstance(value, Tensor):
        return value
    plain = value.detach().cpu()
    return (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()


def _asked(file: Path, ask: Callable[[sqlite3.Connection], T]) -> T | None:
    """What a file's table answers, in one transaction; None where it is locked, out of space, or not there."""
    try:
        with closing(sqlite3.connect(file, timeout=10)) as table, table:
            return ask(table)
    except sqlite3.OperationalError:
        return None
    except sqlite3.DatabaseError as error:
        raise BadInput(f"the stored features in {file} are damaged ({error}). Remove that file.") from error
