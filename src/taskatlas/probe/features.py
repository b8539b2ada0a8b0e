"""Features: what a checkpoint makes of every sample of a probe, streamed to disk as it comes."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, get_args, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from taskatlas.errors import BadInput
from taskatlas.probe.forward import Batch, Opened, batches, chosen_device
from taskatlas.probe.pooling import Pool, WordPool, pooled, pooled_words
from taskatlas.probe.probe import Probe
from taskatlas.probe.quiet import quiet
from taskatlas.probe.taps import Tap
from taskatlas.store import Store, atomic_write, digest

_VALUES = "values.npy"
_ABOUT = "features.json"


@runtime_checkable
class Openable(Protocol):
    """Something that opens as a network: ``zoo.Checkpoint``, or a stand-in with its name, digest and ``open``."""

    @property
    def name(self) -> str:
        """For bars and messages."""

    @property
    def digest(self) -> str:
        """Of everything that decides what the network computes."""

    def open(self, device: str = "cpu") -> Opened:
        """The network in evaluation mode on the device."""


@dataclass(frozen=True, eq=False, repr=False)
class Features:
    """The features (n, d) of one checkpoint on one probe at one tap.

    Attributes:
        values: float32 (n, d), possibly a read-only memory map.
        ids: one a row, as ``Probe.row_ids``.
        checkpoint: its name.
        tap: where in the network they were read.
        probe: digest of the probe.
        digest: of what made them: checkpoint, probe, tap and pooling.

    Raises:
        BadInput: the values are no matrix with an id for each row.
    """

    values: np.ndarray
    ids: tuple[str, ...]
    checkpoint: str
    tap: str
    probe: str
    digest: str

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or len(self.values) != len(self.ids):
            raise BadInput(
                f"the features of {self.checkpoint} have shape {self.values.shape} for {len(self.ids)} ids; "
                "give a matrix (samples, features)."
            )

    def __repr__(self) -> str:
        n, d = self.values.shape
        return f"Features({self.checkpoint} at {self.tap}, {n} x {d}, {self.digest[:12]})"

    def save(self, path: Path | str) -> None:
        """Writes one .npz file without pickles: values, ids and where they come from.

        Raises:
            BadInput: the place cannot be written.
        """
        with atomic_write(Path(path)) as temporary, temporary.open("wb") as file:
            origin: dict[str, Any] = {key: getattr(self, key) for key in ("checkpoint", "tap", "probe", "digest")}
            np.savez(file, values=self.values, ids=np.array(self.ids), **origin)

    @classmethod
    def load(cls, path: Path | str) -> "Features":
        """Features as ``save`` wrote them.

        Raises:
            BadInput: the file cannot be read, or is something else.

        Example:
            >>> import tempfile
            >>> features = Features(np.ones((2, 3), np.float32), ("a", "b"), "net", "fc:input", "", "")
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     features.save(Path(folder) / "features.npz")
            ...     Features.load(Path(folder) / "features.npz")
            Features(net at fc:input, 2 x 3, )
        """
        try:
            with np.load(path, allow_pickle=False) as archive:
                origin = {key: str(archive[key]) for key in ("checkpoint", "tap", "probe", "digest")}
                return cls(archive["values"], tuple(str(name) for name in archive["ids"]), **origin)
        except BadInput:
            raise
        except Exception as error:  # numpy and zipfile raise whatever a damaged archive provokes
            raise BadInput(f"{path} holds no features that can be read ({error}). Extract them again.") from error


def extract(
    checkpoint: Openable,
    probe: Probe,
    *,
    tap: str | None = None,
    pool: Pool = "auto",
    words: WordPool = "mean",
    batch_size: int = 64,
    device: str = "auto",
    store: Store | None = None,
) -> Features:
    """The features of a checkpoint on a probe: a row a sample, or a row a word for a probe of words.

    Rows go to the store batch by batch and come back as a memory map, so memory is needed for one checkpoint and one
    batch. What the store has already is not computed again, and the checkpoint is then not even opened.

    Args:
        checkpoint: a ``zoo.Checkpoint``.
        probe: the samples.
        tap: ``layer3`` for the output of that module, ``fc:input`` for its input; None: a Hugging Face model's last
            hidden state, else the input of the linear layer that is called last.
        pool: how maps and tokens become one vector. ``auto``: the mean over space, or over the tokens that are no
            padding; ``first`` or ``last``: that token.
        words: which of a word's sub-words count, for a probe of words (Huang et al., 2021, take the last).
        batch_size: samples a forward pass; changes nothing but rounding.
        device: ``cpu``, ``cuda``, or ``auto`` for cuda where there is one.
        store: where results are kept; None: the user's store.

    Raises:
        BadInput: no such tap; the network cannot take the samples; features that are NaN or infinite, or no row a
            sample. Names the checkpoint, the tap and the sample, and keeps nothing in the store.
        WorkFailed: the device's memory is too small for a batch.

    Example:
        >>> from taskatlas.zoo import Checkpoint
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        >>> extract(Checkpoint("net", module=net), Probe.from_arrays(np.eye(4))).values.shape
        (4, 3)
    """
    _check_choice("pool", pool, get_args(Pool))
    _check_choice("words", words, get_args(WordPool))
    inputs = {"checkpoint": checkpoint.digest, "probe": probe.digest}
    how: dict[str, Any] = {"tap": tap, **({"words": words} if probe.kind == "words" else {"pool": pool})}

    def build(folder: Path) -> None:
        place = chosen_device(device)
        opened = checkpoint.open(place)
        with quiet(opened.module), Tap(opened.module, tap, checkpoint.name) as watched:
            passes = batches(opened, probe, who=checkpoint.name, batch_size=batch_size, device=place)
            blocks = (_vectors(batch, watched, probe, checkpoint.name, pool, words) for batch in passes)
            _write_rows(folder / _VALUES, blocks, probe.row_ids, lambda: f"{checkpoint.name} at {watched.place}")
            (folder / _ABOUT).write_text(json.dumps({"tap": watched.place}) + "\n", encoding="utf-8")

    folder = (store or Store.default()).make("features", inputs, how, build)
    try:
        values = np.load(folder / _VALUES, mmap_mode="r", allow_pickle=False)
        found_tap = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))["tap"]
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(f"the stored features in {folder} are damaged ({error}). Remove that folder.") from error
    return Features(values, probe.row_ids, checkpoint.name, found_tap, probe.digest, digest("features", inputs, how))


def check_same_samples(features: Sequence[Features]) -> None:
    """Refuses features that are not of the same samples in the same order.

    Raises:
        BadInput: names two checkpoints whose ids differ, and the first id that does.

    Example:
        >>> one = Features(np.ones((1, 2)), ("a",), "one", "fc:input", "", "")
        >>> two = Features(np.ones((1, 2)), ("b",), "two", "fc:input", "", "")
        >>> check_same_samples([one, two])
        Traceback (most recent call last):
            ...
        taskatlas.errors.BadInput: the features of one and of two are not of the same samples: row 0 is 'a' in one and
        'b' in the other. Extract both on one probe.
    """
    for other in features[1:]:
        first = features[0]
        if other.ids == first.ids:
            continue
        said = f"the features of {first.checkpoint} and of {other.checkpoint} are not of the same samples"
        for row, (mine, theirs) in enumerate(zip(first.ids, other.ids, strict=False)):
            if mine != theirs:
                raise BadInput(
                    f"{said}: row {row} is {mine!r} in one and {theirs!r} in the other. Extract both on one probe."
                )
        longer = max(first.ids, other.ids, key=len)
        row = min(len(first.ids), len(other.ids))
        raise BadInput(
            f"{said}: they have {len(first.ids)} and {len(other.ids)} rows, and {longer[row]!r} is in one only. "
            "Extract both on one probe."
        )


def _check_choice(name: str, chosen: str, known: tuple[str, ...]) -> None:
    if chosen not in known:
        raise BadInput(f"{name}={chosen!r} is not a way to pool. Choose one of: {', '.join(known)}.")


def _vectors(batch: Batch, watched: Tap, probe: Probe, who: str, pool: Pool, words: WordPool) -> np.ndarray:
    """A vector for each sample of a batch, or for each of its words."""
    values = watched.read(batch.output)
    where = f"{who} at {watched.place}"
    if values.ndim == 0 or len(values) != len(batch.rows):
        raise BadInput(
            f"{where} has shape {tuple(values.shape)} for a batch of {len(batch.rows)}; the first axis must be the "
            "samples. Choose another tap."
        )
    try:
        if probe.kind == "words":
            counts = [len(sentence) for sentence in batch.samples]
            owners = _words_of_tokens(batch, [probe.ids[row] for row in batch.rows])
            if values.ndim != 3 or values.shape[1] != len(owners[0]):
                raise BadInput(
                    f"values of shape {tuple(values.shape)} are no {len(owners[0])} tokens. Choose another tap."
                )
            vectors = pooled_words(values, owners, counts, words)
        else:
            vectors = pooled(values, pool, _attention_mask(batch.prepared, values.device))
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from error
    return vectors.cpu().numpy()


def _attention_mask(prepared: Any, device: torch.device) -> Tensor | None:
    mask = prepared.get("attention_mask") if isinstance(prepared, Mapping) else None
    return mask.bool().to(device) if isinstance(mask, Tensor) and mask.ndim == 2 else None


def _words_of_tokens(batch: Batch, ids: list[str]) -> list[list[int | None]]:
    """For each sentence the word that each token belongs to, after a check that no word is without tokens."""
    word_ids = getattr(batch.prepared, "word_ids", None)
    if word_ids is None:
        raise BadInput("prepare does not say which word a token belongs to. Return a fast tokenizer's BatchEncoding.")
    owners = [list(word_ids(position)) for position in range(len(ids))]
    for sentence, found, name in zip(batch.samples, owners, ids, strict=True):
        missing = sorted(set(range(len(sentence))) - set(found))
        if not missing:
            continue
        if missing == list(range(missing[0], len(sentence))):
            raise BadInput(
                f"the tokenizer kept {missing[0]} of the {len(sentence)} words of sentence {name!r} "
                f"({sentence[missing[0]]!r} and what follows is truncated). Split long sentences."
            )
        raise BadInput(f"word {missing[0]} of sentence {name!r} ({sentence[missing[0]]!r}) has no token. Replace it.")
    return owners


def _write_rows(path: Path, blocks: Iterable[np.ndarray], ids: tuple[str, ...], where: Callable[[], str]) -> None:
    """Streams blocks of rows into a .npy file of float32.

    Plain writes and no memory map: on a full disk a write fails, where a map would end the process.
    """
    written, width = 0, None
    with path.open("wb") as file:
        for block in blocks:
            finite = np.isfinite(block).all(axis=1)
            if not finite.all():
                name = ids[written + int(np.argmin(finite))]
                raise BadInput(
                    f"{where()} gives NaN or infinite features for sample {name!r}. Is the checkpoint whole?"
                )
            if width is None:
                width = block.shape[1]
                header = {"descr": "<f4", "fortran_order": False, "shape": (len(ids), width)}
                np.lib.format.write_array_header_1_0(file, header)
            if block.shape[1] != width:
                raise BadInput(
                    f"{where()} has {width} features for the first samples and {block.shape[1]} "
                    f"from {ids[written]!r} on. Choose another tap."
                )
            file.write(np.ascontiguousarray(block, dtype="<f4").data)
            written += len(block)
    if written != len(ids):
        raise BadInput(f"{where()} gives {written} rows for {len(ids)} samples. Choose another tap.")
