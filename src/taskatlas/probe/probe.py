"""The probe: the samples, in one order, that every checkpoint is shown."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from taskatlas.errors import BadInput
from taskatlas.probe.hub import read_hub_dataset
from taskatlas.probe.images import LazyImages, Mode, is_image, mode_of, read_image_folder
from taskatlas.probe.parquet import little_endian, read_parquet, write_parquet
from taskatlas.probe.samples import Kind, Samples, coded_labels
from taskatlas.probe.tables import read_conll, read_csv, read_lines, read_npy, read_npz
from taskatlas.probe.torch_dataset import plain_array, read_torch_dataset
from taskatlas.store import atomic_write, digest

_CHUNK = 4096  # rows looked at together when a large array on disk is checked


@dataclass(frozen=True, eq=False, repr=False)
class Probe:
    """n samples in a fixed order, each with an id of its own, and their labels where they have some.

    Attributes:
        kind: what a sample is. ``array``: a row of numbers; ``image``: uint8 (height, width, channels); ``text``: a
            string; ``words``: a list of words.
        inputs: the n samples. An array (n, ...) for ``array``; for images a sequence that may decode them one by one.
        ids: n different strings.
        labels: integers (n,), or None; for ``words`` one for each word, all sentences after each other.
        class_names: what the integers stand for, where that is known.

    Raises:
        BadInput: no samples, ids that are not unique, labels of another length, NaN or infinite numbers.

    Example:
        >>> Probe.from_text(["A cat sat.", "Dogs ran."], labels=["cat", "dog"])
        Probe(2 text, 2 classes)
    """

    kind: Kind
    inputs: Any
    ids: tuple[str, ...]
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        _check_inputs(self.kind, self.inputs)
        n = len(self.inputs)
        if len(self.ids) != n:
            raise BadInput(f"there are {len(self.ids)} ids for {n} samples; give one each.")
        if len(set(self.ids)) != n:
            raise BadInput(f"the id {_first_repeated(self.ids)!r} stands for two samples; ids must be unique.")
        if self.kind == "array":
            _check_finite(self.inputs, self.ids)
        if self.labels is not None:
            _check_labels(self.labels, self.class_names, len(self.row_ids))

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        labels = self.labels
        classes = "no labels" if labels is None else f"{len(self.class_names or np.unique(labels))} classes"
        return f"Probe({len(self)} {self.kind}, {classes})"

    @cached_property
    def row_ids(self) -> tuple[str, ...]:
        """An id for each row of features: those of the samples, or of the words as ``sentence:position``.

        Example:
            >>> Probe("words", [["a", "cat"], ["dogs"]], ("0", "1")).row_ids
            ('0:0', '0:1', '1:0')
        """
        if self.kind != "words":
            return self.ids
        return tuple(
            f"{name}:{position}"
            for name, words in zip(self.ids, self.inputs, strict=True)
            for position in range(len(words))
        )

    @cached_property
    def digest(self) -> str:
        """Digest of the samples in their order, their ids and labels; reads every sample once."""
        match self.kind:
            case "image" if isinstance(self.inputs, LazyImages):
                content: Any = list(self.inputs.digests())
            case "image":
                content = [digest(pixels) for pixels in self.inputs]
            case "array":
                content = [self.inputs.dtype.newbyteorder("<").str, self.inputs.shape, *map(digest, self._blocks())]
            case _:
                content = self.inputs
        labels = None if self.labels is None else self.labels.astype("<i8")
        return digest(self.kind, content, self.ids, labels, self.class_names)

    def _blocks(self) -> Iterator[np.ndarray]:
        """An array that may lie on disk, some rows at a time, in the byte order that files have."""
        return (little_endian(self.inputs[start : start + _CHUNK]) for start in range(0, len(self), _CHUNK))

    def take(self, rows: Sequence[int] | np.ndarray) -> "Probe":
        """The samples at these positions, in the order given.

        Raises:
            BadInput: a position that is not there, or twice the same.

        Example:
            >>> Probe.from_text(["a", "b", "c"]).take([2, 0]).ids
            ('2', '0')
        """
        wanted = np.asarray(rows)
        if (
            wanted.ndim != 1
            or not len(wanted)
            or wanted.dtype.kind not in "iu"
            or wanted.min() < 0
            or wanted.max() >= len(self)
        ):
            raise BadInput(f"cannot take rows {rows!r} of a probe; give positions from 0 to {len(self) - 1}.")
        if isinstance(self.inputs, np.ndarray):
            inputs: Any = self.inputs[wanted]
        elif isinstance(self.inputs, LazyImages):
            inputs = self.inputs.take(wanted.tolist())
        else:
            inputs = [self.inputs[row] for row in wanted]
        labels = self.labels
        if labels is not None and self.kind == "words":
            ends = np.cumsum([0, *(len(words) for words in self.inputs)])
            labels = np.concatenate([labels[ends[row] : ends[row + 1]] for row in wanted])
        elif labels is not None:
            labels = labels[wanted]
        return Probe(self.kind, inputs, tuple(self.ids[row] for row in wanted), labels, self.class_names)

    def save(self, path: Path | str) -> None:
        """Writes one Parquet file that ``load`` opens as the same probe, and other tools as a table.

        Images in memory become PNG, which keeps every pixel; encoded ones are written as they are.

        Raises:
            BadInput: the place cannot be written.

        Example:
            >>> import tempfile
            >>> probe = Probe.from_arrays(np.eye(3), labels=[0, 1, 1])
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     probe.save(Path(folder) / "probe.parquet")
            ...     Probe.load(Path(folder) / "probe.parquet").digest == probe.digest
            True
        """
        with atomic_write(Path(path)) as file:
            write_parquet(file, Samples(self.kind, self.inputs, self.ids, self.labels, self.class_names))

    @classmethod
    def load(cls, path: Path | str) -> "Probe":
        """A saved probe; images stay in the file until they are needed.

        Raises:
            BadInput: the file cannot be read as a probe.
        """
        return cls.from_parquet(path)

    @classmethod
    def open(cls, path: Path | str) -> "Probe":
        """A probe out of whatever a path leads to.

        Parquet (a saved probe, a column of images or texts, or columns of numbers), a folder of images, .npy, .npz with
        x and y, .txt with a sample a line, .csv or .tsv with a column text or columns of numbers, .conll with words in
        columns; ``hf:NAME:SPLIT`` for a data set of Hugging Face, by its id or the folder it was saved to. In tables
        labels are in the column label, ids in the column id. The ``from_`` functions take more settings.

        Raises:
            BadInput: nothing there, or nothing that can be read as a probe.
        """
        if isinstance(path, str) and path.startswith("hf:"):
            name, _, split = path.removeprefix("hf:").partition(":")
            return cls.from_hf(name, split=split)
        path = Path(path)
        if path.is_dir():
            return cls.from_images(path)
        if not path.is_file():
            raise BadInput(f"there is no file or folder {path} to open as a probe. Is the path right?")
        readers: dict[str, Callable[[Path], Probe]] = {
            ".parquet": cls.from_parquet,
            ".npy": lambda file: cls._of(read_npy(file), file),
            ".npz": lambda file: cls._of(read_npz(file), file),
            ".txt": cls.from_text,
            ".csv": cls.from_table,
            ".tsv": cls.from_table,
            ".conll": cls.from_conll,
        }
        if path.suffix not in readers:
            raise BadInput(
                f"{path} cannot be opened as a probe. Give a folder of images or a file that ends in "
                f"{', '.join(readers)}."
            )
        return readers[path.suffix](path)

    @classmethod
    def from_arrays(cls, x: Any, labels: Any = None, ids: Sequence[str] | None = None) -> "Probe":
        """A probe of arrays: ``x`` (n, ...) of numbers, an array or a tensor.

        An ``x`` of uint8 (n, height, width, 1, 3 or 4) is a probe of images; anything else goes to a network as it is,
        in float32.

        Args:
            x: the samples.
            labels: n integers or strings.
            ids: n different strings; None: the positions.

        Raises:
            BadInput: not numbers, NaN or infinite ones, or the lengths differ.

        Example:
            >>> Probe.from_arrays(np.zeros((4, 8)), labels=["a", "b", "a", "b"]).labels
            array([0, 1, 0, 1])
        """
        coded = coded_labels(labels) if labels is not None else (None, None)
        return cls._of(Samples("array", plain_array(x), ids, *coded))

    @classmethod
    def from_dataset(cls, dataset: Any, limit: int | None = None) -> "Probe":
        """A probe of the items of a torch data set, (x, y) or x each; the first ``limit`` of them.

        Each item is asked for once and kept: Pillow images as PNG, tensors as one array.

        Raises:
            BadInput: items that are no samples, or that differ in kind or shape.
        """
        return cls._of(read_torch_dataset(dataset, limit))

    @classmethod
    def from_images(cls, folder: Path | str, *, mode: Mode = "RGB") -> "Probe":
        """A probe of every image in a folder, sorted by path; sub-folders are labels, as torchvision's ImageFolder.

        Raises:
            BadInput: no images, or labelled and unlabelled ones together.
        """
        if not Path(folder).is_dir():
            raise BadInput(f"{folder} is not a folder of images. Is the path right?")
        return cls._of(read_image_folder(Path(folder), mode), folder)

    @classmethod
    def from_parquet(
        cls,
        path: Path | str,
        *,
        image: str | None = None,
        text: str | None = None,
        label: str | None = None,
        mode: Mode = "RGB",
    ) -> "Probe":
        """A probe of the encoded images, the texts or the rows of numbers in a Parquet file.

        Ids are its column id, or the positions. Where there are neither images nor texts, all columns but those of
        labels and ids are numbers.

        Args:
            path: the file; encoded images stay in it until a batch needs them.
            image: the column of images, bytes or Hugging Face's struct; None: the first of that type.
            text: the column of texts; None: text, where there are no images.
            label: the column of labels; None: label, where there is one.
            mode: Pillow's name of what images are converted to.

        Raises:
            BadInput: the file is damaged, or lacks such a column.
        """
        return cls._of(read_parquet(Path(path), image=image, text=text, label=label, mode=mode), path)

    @classmethod
    def from_hf(
        cls,
        source: Any,
        *,
        image: str | None = None,
        text: str | None = None,
        label: str | None = None,
        split: str = "test",
        mode: Mode = "RGB",
    ) -> "Probe":
        """A probe of a Hugging Face data set, by id or as a ``datasets.Dataset``; arguments as ``from_parquet``.

        Raises:
            MissingExtra: the package datasets is not installed.
            BadInput: no such data set, split or column.
        """
        return cls._of(read_hub_dataset(source, image, text, label, split, mode))

    @classmethod
    def from_text(cls, lines: Sequence[str] | Path, labels: Any = None) -> "Probe":
        """A probe of texts: a list of strings, or the path of a UTF-8 file with one a line (blank lines left out).

        Raises:
            BadInput: the file cannot be read, or an entry is no string.
        """
        if isinstance(lines, str):
            raise BadInput("from_text takes a list of texts or a Path; for a file write Path(...).")
        texts = read_lines(lines) if isinstance(lines, Path) else list(lines)
        coded = coded_labels(labels) if labels is not None else (None, None)
        return cls._of(Samples("text", texts, None, *coded), lines if isinstance(lines, Path) else None)

    @classmethod
    def from_table(
        cls, path: Path | str, *, text: str | None = None, label: str | None = None, split: str | None = None
    ) -> "Probe":
        """A probe of the texts, or the rows of numbers, in a CSV or TSV file with a heading.

        Args:
            path: tabs separate the columns where it ends in .tsv, else commas do.
            text: the column of texts; None: text or sentence; where there is neither, all columns but those of labels
                and ids are numbers.
            label: the column of labels; None: label, where there is one.
            split: only rows with this value in the column split.

        Raises:
            BadInput: the file is no such table, or lacks a column.
        """
        return cls._of(read_csv(Path(path), text, label, split), path)

    @classmethod
    def from_conll(cls, path: Path | str, column: int = -1) -> "Probe":
        """A probe of sentences in CoNLL columns: a word a line with its label in ``column``, blank lines between.

        Lines that start with -DOCSTART-, and comments before a sentence (#), are skipped. Features have a row a word.

        Raises:
            BadInput: the file holds no sentences, or a line lacks the column.
        """
        return cls._of(read_conll(Path(path), column), path)

    @classmethod
    def _of(cls, samples: Samples, path: Path | str | None = None) -> "Probe":
        kind, inputs = samples.kind, samples.inputs
        try:
            if kind == "array" and inputs.ndim == 4 and len(inputs) and is_image(inputs[0]):
                kind, inputs = "image", list(inputs)
            _check_inputs(kind, inputs)
            ids = samples.ids if samples.ids is not None else range(len(inputs))
            return cls(kind, inputs, tuple(str(name) for name in ids), samples.labels, samples.class_names)
        except BadInput as error:
            if path is None:
                raise
            raise BadInput(f"{path}: {error}") from error


def _check_inputs(kind: str, inputs: Any) -> None:
    match kind:
        case "array":
            if not isinstance(inputs, np.ndarray) or inputs.dtype.kind not in "biuf":
                said = inputs.dtype if isinstance(inputs, np.ndarray) else type(inputs).__name__
                raise BadInput(f"a probe of arrays holds one array of numbers, not {said}.")
            if inputs.ndim == 0:
                raise BadInput("a single number is no probe; give an array (samples, ...).")
        case "image":
            mode_of(inputs)
        case "text":
            wrong = next((position for position, text in enumerate(inputs) if not isinstance(text, str)), None)
            if wrong is not None:
                raise BadInput(f"sample {wrong} is a {type(inputs[wrong]).__name__} and not a text.")
        case "words":
            for position, words in enumerate(inputs):
                if isinstance(words, str) or not len(words) or not all(isinstance(word, str) for word in words):
                    raise BadInput(f"sample {position} is not a list of at least one word.")
        case _:
            raise BadInput(f"there is no kind of probe {kind!r}; it is array, image, text or words.")
    if not len(inputs):
        raise BadInput("the probe holds no samples.")


def _check_finite(values: np.ndarray, ids: tuple[str, ...]) -> None:
    if values.dtype.kind != "f":
        return
    for start in range(0, len(values), _CHUNK):
        finite = np.isfinite(values[start : start + _CHUNK]).reshape(len(values[start : start + _CHUNK]), -1).all(1)
        if not finite.all():
            name = ids[start + int(np.argmin(finite))]
            raise BadInput(f"sample {name!r} holds NaN or infinite numbers. Remove it or fill them in.")


def _check_labels(labels: np.ndarray, class_names: tuple[str, ...] | None, count: int) -> None:
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise BadInput(f"labels are integers (n,), not {labels.dtype} of shape {labels.shape}.")
    if len(labels) != count:
        raise BadInput(f"there are {len(labels)} labels for {count} samples; give one each (or none at all).")
    if class_names is not None and (labels.min() < 0 or labels.max() >= len(class_names)):
        raise BadInput(
            f"labels run from {labels.min()} to {labels.max()}, but there are {len(class_names)} class names."
        )


def _first_repeated(names: tuple[str, ...]) -> str:
    seen: set[str] = set()
    return next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
