"""Results kept under the digest of what made them, written whole or not at all.

Four ideas, smallest first: ``digest`` names a value by its content; ``atomic_write`` replaces a file in one step;
``Receipt`` says what made a folder of results and can be verified later; ``Store`` keeps the result of a job under the
digest of its inputs and settings, so that running again is resuming.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sqlite3
import struct
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from taskatlas.errors import BadInput, WorkFailed

RECEIPT = "receipt.json"
_STAGING = ".staging-"
_UNWRITABLE = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG}
)
_SAMPLED = "sampled:"
_BLOCKS, _BLOCK = 128, 2**16  # of a sampled digest, and their bytes
_ABANDONED_AFTER = 24 * 3600.0  # seconds after which an unfinished temporary folder belongs to a run that died


def digest(*values: object) -> str:
    """Content digest of plain values: the same for equal values in any process, on any machine.

    Takes ``None``, booleans, numbers, strings, bytes, paths (as strings), numpy arrays, and sequences, sets and
    mappings of these; the order of a mapping or a set does not matter.

    Returns:
        64 hexadecimal characters (SHA-256 over a tagged, length-prefixed encoding).

    Raises:
        TypeError: a value of any other type.

    Example:
        >>> digest({"a": 1, "b": [2.0, "x"]}) == digest({"b": (2.0, "x"), "a": 1})
        True
        >>> digest("1") == digest(1)
        False
    """
    state = hashlib.sha256()
    for value in values:
        _feed(state.update, value)
    return state.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, remembered by path, size and time stamp in the user's cache.

    Raises:
        BadInput: the file cannot be read.
    """
    path = path.resolve()
    try:
        stat = path.stat()
        known = _known_digest(path, stat)
        if known is not None:
            return known
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror or error}. Is the path right?") from error
    _remember_digest(path, stat, found)
    return found


def sampled_digest(path: Path) -> str:
    """Digest of a file's length and of blocks spread evenly over it: no work to speak of, however large it is.

    It tells files of weights apart, which differ everywhere once they were trained further; an edit of a few bytes
    between the blocks it does not see. A file of up to 8 MiB is read whole.

    Raises:
        BadInput: the file cannot be read.
    """
    state = hashlib.sha256()
    try:
        with path.open("rb") as file:
            length = os.fstat(file.fileno()).st_size
            state.update(struct.pack("<Q", length))
            spread = max(0, length - _BLOCK) / (_BLOCKS - 1)
            for block in range(_BLOCKS):
                start = int(block * spread) if length > _BLOCK * _BLOCKS else block * _BLOCK
                file.seek(start)
                state.update(file.read(_BLOCK))
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror or error}. Is the path right?") from error
    return f"{_SAMPLED}{state.hexdigest()}"


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turns a failure to write something into a sentence; other errors pass.

    Raises:
        BadInput: no permission, no space, no folder.

    Example:
        >>> with writing(Path("disk")):
        ...     raise OSError(errno.ENOSPC, "")
        Traceback (most recent call last):
        ...
        taskatlas.errors.BadInput: no space left to write disk; what was there is untouched. ...
    """
    try:
        yield
    except BadInput:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise BadInput(
                f"no space left to write {place}; what was there is untouched. Free some space or choose another place."
            ) from error
        if error.errno in _UNWRITABLE:
            raise BadInput(f"cannot write {place}: {error.strerror}. Choose another place.") from error
        raise


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; on success it replaces ``path`` in one step, on failure it is removed.

    Raises:
        BadInput: the place cannot be written (no folder, no permission, no space); what was there is untouched.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with atomic_write(Path(folder) / "a.txt") as file:
        ...         _ = file.write_text("whole")
        ...     (Path(folder) / "a.txt").read_text()
        'whole'
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class Receipt:
    """What made the files of a folder: enough to say later whether they still hold."""

    made_by: str
    inputs: Mapping[str, str]  # name -> digest
    settings: Mapping[str, Any]
    outputs: Mapping[str, str] = field(default_factory=dict)  # file, relative to the folder -> SHA-256
    sources: Mapping[str, str] = field(default_factory=dict)  # file that was read, absolute path -> SHA-256 or sampled
    versions: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None
    seconds: float = 0.0
    created: str = ""

    @classmethod
    def now(
        cls,
        made_by: str,
        *,
        inputs: Mapping[str, str],
        settings: Mapping[str, Any],
        outputs: Mapping[str, str],
        sources: Mapping[str, str],
        seed: int | None,
        started: float,
    ) -> Receipt:
        """A receipt for work that ends now and began at ``started`` (``time.perf_counter()``)."""
        return cls(
            made_by=made_by,
            inputs=dict(inputs),
            settings=dict(settings),
            outputs=dict(outputs),
            sources=dict(sources),
            versions=_versions(),
            seed=seed,
            seconds=round(time.perf_counter() - started, 3),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    @property
    def digest(self) -> str:
        """Digest of what determines the result: maker, inputs, settings and seed."""
        return digest(self.made_by, self.inputs, self.settings, self.seed)

    def __repr__(self) -> str:
        return f"Receipt({self.made_by}, {len(self.outputs)} files, {self.seconds:.1f} s, {self.digest[:12]})"

    def save(self, folder: Path) -> None:
        """Adds this receipt to ``folder/receipt.json``, in place of an earlier one by the same maker.

        Raises:
            BadInput: the receipt that is there is damaged, or the folder cannot be written.
        """
        text = _receipts_text(folder, self)
        with atomic_write(folder / RECEIPT) as file:
            file.write_text(text, encoding="utf-8")

    def verify(self, folder: Path) -> list[str]:
        """Problems found, each a sentence: an output that is gone or changed, a source that changed since."""
        problems = []
        for name, expected in self.outputs.items():
            path = folder / name
            if not path.is_file():
                problems.append(f"{path} is missing, but {self.made_by} wrote it")
            elif _plain_digest(path) != expected:  # the remembered digest would miss an edit that keeps the time stamp
                problems.append(f"{path} changed after {self.made_by} wrote it")
        for name, expected in self.sources.items():
            digest_of = sampled_digest if expected.startswith(_SAMPLED) else file_digest
            if Path(name).is_file() and digest_of(Path(name)) != expected:
                problems.append(f"{name} changed after {self.made_by} read it; run {self.made_by} again")
        return problems


def load_receipts(folder: Path) -> list[Receipt]:
    """The receipts of a folder, in the order in which their makers first ran; none where there is no receipt file.

    Raises:
        BadInput: the receipt file is not one.
    """
    path = folder / RECEIPT
    if not path.is_file():
        return []
    try:
        receipts = [Receipt(**fields) for fields in json.loads(path.read_text(encoding="utf-8")).values()]
        for receipt in receipts:
            _check_types(receipt)
    except (ValueError, TypeError, AttributeError, OSError, RecursionError) as error:
        raise BadInput(f"{path} is not a taskatlas receipt ({error}). Delete it and make the results again.") from error
    return receipts


def check_receipts(root: Path) -> tuple[int, list[str]]:
    """Verifies every receipt under ``root``: the number of receipts and the problems found.

    Raises:
        BadInput: there is no such folder, or no receipt in it.
    """
    if not root.is_dir():
        raise BadInput(f"{root} is not a folder. Give a folder that a taskatlas command wrote.")
    folders = sorted(path.parent for path in root.rglob(RECEIPT))
    if not folders:
        raise BadInput(f"{root} holds no {RECEIPT}. Give a folder that a taskatlas command wrote.")
    receipts = [(folder, receipt) for folder in folders for receipt in load_receipts(folder)]
    return len(receipts), [problem for folder, receipt in receipts for problem in receipt.verify(folder)]


@contextmanager
def output_folder(
    folder: Path,
    made_by: str,
    *,
    inputs: Mapping[str, str],
    settings: Mapping[str, Any],
    sources: Sequence[Path] = (),
    seed: int | None = None,
    started: float | None = None,
) -> Iterator[Path]:
    """Yields a temporary folder; on success its files move into ``folder`` one by one and a receipt follows.

    A run that fails or is killed changes nothing in ``folder`` that looks finished: the receipt is written last.

    Args:
        folder: where the files belong; made if it is not there.
        made_by: the maker's name; a receipt of the same maker is replaced.
        inputs: name -> digest of what went in.
        settings: plain values that decide the result.
        sources: files that were read, so that ``check`` can notice when they change.
        seed: of everything random.
        started: when the work began (``time.perf_counter()``), if that was earlier.

    Raises:
        BadInput: the place cannot be written; what was there is untouched.
    """
    started = time.perf_counter() if started is None else started
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder, _STAGING)
        staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=folder))
        try:
            yield staging
            files = sorted(path for path in staging.rglob("*") if path.is_file())
            receipt = Receipt.now(
                made_by,
                inputs=inputs,
                settings=settings,
                outputs={str(path.relative_to(staging)): _plain_digest(path) for path in files},
                sources={str(path.resolve()): file_digest(path) for path in sources},
                seed=seed,
                started=started,
            )
            # Whatever could refuse the receipt, a full disk too, does so before a file moves; then all is renaming.
            (staging / RECEIPT).write_text(_receipts_text(folder, receipt), encoding="utf-8")
            for path in [*files, staging / RECEIPT]:
                place = folder / path.relative_to(staging)
                place.parent.mkdir(parents=True, exist_ok=True)
                path.replace(place)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


@dataclass(frozen=True)
class Store:
    """Results of jobs in a folder, each under the digest of its kind, inputs and settings.

    Several processes and machines may share one store: a result appears whole, in one rename, and whoever comes second
    finds it there.
    """

    root: Path

    @classmethod
    def default(cls) -> Store:
        """The user's store: ``$TASKATLAS_STORE``, else ``~/.cache/taskatlas``."""
        return cls(_user_cache() / "results")

    def get(self, kind: str, inputs: Mapping[str, str], settings: Mapping[str, Any]) -> Path | None:
        """The folder of a finished result, or None."""
        place = self._place(kind, inputs, settings)
        return place if (place / RECEIPT).is_file() else None

    def make(
        self,
        kind: str,
        inputs: Mapping[str, str],
        settings: Mapping[str, Any],
        build: Callable[[Path], None],
    ) -> Path:
        """The folder of a result; where it is not there yet, ``build(folder)`` writes its files first.

        Raises:
            BadInput: the store cannot be written.
        """
        place = self._place(kind, inputs, settings)
        if (place / RECEIPT).is_file():
            return place
        prefix = f".{place.name}-"
        with writing(self.root):
            place.parent.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(place.parent, prefix)
            workshop = Path(tempfile.mkdtemp(prefix=prefix, dir=place.parent))
            try:
                with output_folder(workshop, kind, inputs=inputs, settings=settings) as folder:
                    build(folder)
                with suppress(OSError):  # another worker finished the same result first: theirs is as good
                    workshop.rename(place)
            finally:
                shutil.rmtree(workshop, ignore_errors=True)
        if not (place / RECEIPT).is_file():
            raise WorkFailed(f"the result {place} could not be put in its place. Remove that folder and run again.")
        return place

    def _place(self, kind: str, inputs: Mapping[str, str], settings: Mapping[str, Any]) -> Path:
        name = digest(kind, inputs, settings)
        return self.root / kind / name[:2] / name[:40]


def _feed(update: Callable[[bytes], object], value: object) -> None:
    """Feeds a tagged encoding of ``value``; every variable-length part carries its length."""
    match value:
        case None | bool() | np.bool_():
            _feed_bytes(update, b"c", str(value).encode())
        case int() | np.integer():
            _feed_bytes(update, b"i", str(int(value)).encode())
        case float() | np.floating():
            _feed_bytes(update, b"f", struct.pack("<d", float(value) + 0.0))  # -0.0 is 0.0
        case str() | Path():
            _feed_bytes(update, b"s", str(value).encode(errors="surrogateescape"))
        case bytes():
            _feed_bytes(update, b"b", value)
        case np.ndarray():
            if value.dtype.hasobject:
                raise TypeError("cannot digest an array of Python objects")
            _feed_bytes(update, b"a", f"{value.dtype.str}{value.shape}".encode())
            update(np.ascontiguousarray(value).tobytes())
        case Mapping():
            _feed_sorted(update, b"m", [(key, value[key]) for key in value])
        case Set():
            _feed_sorted(update, b"t", list(value))
        case Sequence():
            _feed_bytes(update, b"l", str(len(value)).encode())
            for item in value:
                _feed(update, item)
        case _:
            raise TypeError(f"cannot digest a {type(value).__name__}")


def _feed_sorted(update: Callable[[bytes], object], tag: bytes, items: Sequence[object]) -> None:
    _feed_bytes(update, tag, b"".join(sorted(bytes.fromhex(digest(item)) for item in items)))


def _feed_bytes(update: Callable[[bytes], object], tag: bytes, content: bytes) -> None:
    update(tag + struct.pack("<Q", len(content)))
    update(content)


def _receipts_text(folder: Path, latest: Receipt) -> str:
    """What ``receipt.json`` says once ``latest`` is in it."""
    receipts = {receipt.made_by: receipt for receipt in load_receipts(folder)} | {latest.made_by: latest}
    return json.dumps({name: asdict(receipt) for name, receipt in receipts.items()}, indent=1) + "\n"


def _check_types(receipt: Receipt) -> None:
    """Refuses a receipt that someone else wrote: other types, or files outside its folder."""
    if not isinstance(receipt.made_by, str) or not isinstance(receipt.settings, Mapping):
        raise TypeError("made_by or settings are of another type")
    for digests in (receipt.inputs, receipt.outputs, receipt.sources):
        if not isinstance(digests, Mapping) or not all(isinstance(value, str) for value in digests.values()):
            raise TypeError("digests are not given by name")
    outside = [name for name in receipt.outputs if Path(name).is_absolute() or ".." in Path(name).parts]
    if outside:
        raise ValueError(f"{outside[0]} lies outside the folder")


def _plain_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove_abandoned(parent: Path, prefix: str) -> None:
    for path in parent.glob(f"{prefix}*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _ABANDONED_AFTER:
                shutil.rmtree(path, ignore_errors=True)


def _umask() -> int:
    """The process's umask; reading it means setting it twice."""
    current = os.umask(0o077)
    os.umask(current)
    return current


def _versions() -> dict[str, str]:
    packages = ("taskatlas", "torch", "numpy", "scipy", "scikit-learn", "transformers")
    found = {}
    for package in packages:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _user_cache() -> Path:
    return Path(os.environ.get("TASKATLAS_STORE", "~/.cache/taskatlas")).expanduser()


def _known_digest(path: Path, stat: os.stat_result) -> str | None:
    with suppress(sqlite3.Error, OSError), closing(_digest_table()) as table:
        row = table.execute(
            "SELECT digest FROM files WHERE path = ? AND size = ? AND stamp = ?",
            (str(path), stat.st_size, stat.st_mtime_ns),
        ).fetchone()
        return str(row[0]) if row else None
    return None


def _remember_digest(path: Path, stat: os.stat_result, found: str) -> None:
    if time.time_ns() - stat.st_mtime_ns < 2_000_000_000:  # a file this young may change again within its time stamp
        return
    with suppress(sqlite3.Error, OSError), closing(_digest_table()) as table, table:
        table.execute(
            "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)",
            (str(path), stat.st_size, stat.st_mtime_ns, found),
        )


def _digest_table() -> sqlite3.Connection:
    folder = _user_cache()
    folder.mkdir(parents=True, exist_ok=True)
    table = sqlite3.connect(folder / "digests.sqlite", timeout=10)
    table.execute("CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, size INTEGER, stamp INTEGER, digest TEXT)")
    return table
