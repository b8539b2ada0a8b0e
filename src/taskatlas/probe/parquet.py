"""Probes as Parquet files: the format that probes are saved in, and files of images or texts that others wrote.

A saved probe has a column ``id``, its labels, and one column named after its kind: ``image`` holds a struct of bytes
and path as Hugging Face's Image feature does, ``text`` strings, ``words`` lists of strings, ``array`` raw little-endian
bytes whose type and shape stand in the schema's metadata.
"""

import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from taskatlas.errors import BadInput
from taskatlas.probe.images import CHANNELS, LazyImages, Mode, encode_png, mode_of
from taskatlas.probe.samples import Coded, Samples, named_labels
from taskatlas.probe.tables import number_columns

_OURS = b"taskatlas"  # metadata key: what a saved probe is
_HUGGING_FACE = b"huggingface"  # metadata key: which columns decode as images and class labels
_GROUP_ROWS = 1000
_GROUP_BYTES = 2**25
_CACHE_BYTES = 2**28  # encoded images kept from the row groups last read, so that a shuffled order reads few twice
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write_parquet(path: Path, samples: Samples) -> None:
    """Writes a probe's samples a few at a time.

    Raises:
        BadInput: images of mixed channels or of a type that PNG cannot keep.
    """
    kind, ids, labels = samples.kind, samples.ids, samples.labels
    assert ids is not None
    schema = _schema(samples)
    lengths = [len(words) for words in samples.inputs] if kind == "words" else [1] * len(ids)
    ends = np.cumsum([0, *lengths])
    with pq.ParquetWriter(path, schema) as writer:
        for rows, encoded in _groups(samples):
            columns: dict[str, Any] = {"id": [ids[row] for row in rows], kind: encoded}
            if labels is not None and kind == "words":
                columns["labels"] = [labels[ends[row] : ends[row + 1]].tolist() for row in rows]
            elif labels is not None:
                columns["label"] = labels[rows.start : rows.stop]
            writer.write_table(pa.table(columns, schema))


def read_parquet(
    path: Path,
    *,
    image: str | None = None,
    text: str | None = None,
    label: str | None = None,
    mode: Mode = "RGB",
) -> Samples:
    """A saved probe, or the images, texts or rows of numbers of any Parquet file; encoded images stay on disk.

    Args:
        path: the file.
        image: the column of encoded images; None: image, or the only column that holds some.
        text: the column of texts, instead of images; None: text, where there are no images. Where there is neither, all
            columns but those of labels and ids are numbers, a row a sample.
        label: the column of labels; None: label, where there is one.
        mode: what images are converted to; a saved probe knows its own.

    Raises:
        BadInput: the file is damaged or none of Parquet's, or lacks such a column.
    """
    with _told_as_bad_input(path), pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        names = schema.names
        ours = json.loads((schema.metadata or {}).get(_OURS, b"null"))
        for name in (image, text, label):
            if name is not None and names.count(name) != 1:
                raise BadInput(f"{path} has no column {name!r}; its columns are {', '.join(names)}.")
        ids = [str(name) for name in _plain(file, "id", path)] if "id" in names else None
        if ours is not None and image is None and text is None:
            return _read_ours(file, path, ours, ids)
        label = label or ("label" if "label" in names else None)
        coded: Coded = (None, None)
        if label is not None:
            coded = named_labels(_plain(file, label, path), _class_names(schema, label), f"labels in {path}")
        if image is None and text is None:
            image = next((name for name in ("image", *names) if name in names and _holds_images(schema, name)), None)
            text = "text" if image is None and "text" in names else None
        if image is not None:
            if not _holds_images(schema, image) and not _is_binary(schema.field(image).type):
                raise BadInput(f"column {image!r} of {path} holds {schema.field(image).type} and no encoded images.")
            return Samples("image", LazyImages(ParquetImages(path, image), mode), ids, *coded)
        if text is not None:
            return Samples("text", _plain(file, text, path), ids, *coded)
        numeric = [name for name in names if name not in ("id", label)]
        wrong = next((name for name in numeric if not _is_number(schema.field(name).type)), None)
        if wrong is not None or not numeric:
            raise BadInput(
                f"{path} has neither a column of encoded images nor one named text, and "
                + (f"column {wrong!r} holds no numbers; " if wrong is not None else "")
                + f"its columns are {', '.join(names)}. Name one: Probe.from_parquet(path, image=...) or text=..."
            )
        return Samples("array", number_columns({name: _plain(file, name, path) for name in numeric}, path), ids, *coded)


def little_endian(array: np.ndarray) -> np.ndarray:
    """An array with the byte order that files have; itself where it has that."""
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


class ParquetImages:
    """Encoded images in a Parquet file, read by column and row group."""

    def __init__(self, path: Path, column: str, rows: np.ndarray | None = None) -> None:
        self.path = path
        self.column = column
        with _told_as_bad_input(path), pq.ParquetFile(path) as file:
            counts = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        self._starts = np.cumsum([0, *counts])
        self._rows = np.arange(self._starts[-1]) if rows is None else rows
        self._recent: OrderedDict[int, Any] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        return ParquetImages, (self.path, self.column, self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: int, /) -> bytes:
        row = int(self._rows[position])
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        content = self._group(group)[row - int(self._starts[group])].as_py()
        if content is None:
            raise BadInput(f"{self.where(position)} holds no bytes. Save the images themselves into the file.")
        return bytes(content)

    def where(self, position: int) -> str:
        """The file and row of an image."""
        return f"row {int(self._rows[position])} of {self.path}"

    def take(self, rows: Sequence[int]) -> "ParquetImages":
        """Some of the images, in the order given."""
        return ParquetImages(self.path, self.column, self._rows[np.asarray(rows, dtype=np.int64)])

    def _group(self, group: int) -> Any:
        """The encoded images of a row group; recently read ones are at hand."""
        images = self._recent.pop(group, None)
        if images is None:
            with _told_as_bad_input(self.path), pq.ParquetFile(self.path) as file:
                images = file.read_row_group(group, columns=[self.column])[self.column].combine_chunks()
            if pa.types.is_struct(images.type):
                images = images.field("bytes")
        self._recent[group] = images
        while len(self._recent) > 1 and sum(held.nbytes for held in list(self._recent.values())) > _CACHE_BYTES:
            self._recent.popitem(last=False)
        return images


def _groups(samples: Samples) -> Iterator[tuple[range, Any]]:
    """Runs of rows, each with its column: at most so many rows and so many bytes."""
    start, size = 0, 0
    encoded: list[Any] = []
    for row in range(len(samples.inputs)):
        encoded.append(_encode(samples, row))
        size += _bytes_of(encoded[-1])
        if len(encoded) == _GROUP_ROWS or size > _GROUP_BYTES or row == len(samples.inputs) - 1:
            yield range(start, row + 1), encoded
            start, size, encoded = row + 1, 0, []


def _encode(samples: Samples, row: int) -> Any:
    match samples.kind:
        case "image" if isinstance(samples.inputs, LazyImages):
            return {"bytes": samples.inputs.encoded[row], "path": None}
        case "image":
            return {"bytes": encode_png(samples.inputs[row]), "path": None}
        case "array":
            return little_endian(np.asarray(samples.inputs[row])).tobytes()
        case _:
            return samples.inputs[row]


def _bytes_of(encoded: Any) -> int:
    return len(encoded["bytes"]) if isinstance(encoded, dict) else len(encoded)


def _schema(samples: Samples) -> Any:
    ours: dict[str, Any] = {"kind": samples.kind}
    ours["class_names"] = list(samples.class_names) if samples.class_names is not None else None
    features: dict[str, Any] = {"id": {"dtype": "string", "_type": "Value"}}
    fields = [("id", pa.string())]
    match samples.kind:
        case "image":
            ours["mode"] = mode_of(samples.inputs)
            fields.append(("image", _IMAGE))
            features["image"] = {"_type": "Image"}
        case "text":
            fields.append(("text", pa.string()))
            features["text"] = {"dtype": "string", "_type": "Value"}
        case "words":
            fields.append(("words", pa.list_(pa.string())))
        case "array":
            ours["dtype"] = little_endian(samples.inputs[:0]).dtype.str
            ours["shape"] = list(samples.inputs.shape[1:])
            fields.append(("array", pa.binary()))
            features["array"] = {"dtype": "binary", "_type": "Value"}
    if samples.labels is not None and samples.kind == "words":
        fields.append(("labels", pa.list_(pa.int64())))
    elif samples.labels is not None:
        fields.append(("label", pa.int64()))
        features["label"] = {"dtype": "int64", "_type": "Value"}
        if samples.class_names is not None:
            features["label"] = {"names": list(samples.class_names), "_type": "ClassLabel"}
    metadata = {_OURS: json.dumps(ours)}
    if samples.kind != "words":  # lists are spelt differently in the versions of Hugging Face's description
        metadata[_HUGGING_FACE] = json.dumps({"info": {"features": features}})
    return pa.schema(fields, metadata)


def _read_ours(file: Any, path: Path, ours: dict[str, Any], ids: list[str] | None) -> Samples:
    kind, names = ours["kind"], file.schema_arrow.names
    labels = None
    if "labels" in names:
        labels = np.array([code for codes in _plain(file, "labels", path) for code in codes], dtype=np.int64)
    elif "label" in names:
        labels = np.array(_plain(file, "label", path), dtype=np.int64)
    class_names = None if ours["class_names"] is None else tuple(ours["class_names"])
    match kind:
        case "image":
            mode = next(mode for mode in CHANNELS if mode == ours["mode"])
            inputs: Any = LazyImages(ParquetImages(path, "image"), mode)
        case "array":
            inputs = _read_arrays(file, np.dtype(ours["dtype"]), tuple(ours["shape"]))
        case "text" | "words":
            inputs = _plain(file, kind, path)
        case _:
            raise ValueError(f"kind {kind!r} is unknown")
    return Samples(kind, inputs, ids, labels, class_names)


def _read_arrays(file: Any, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    values = np.empty((file.metadata.num_rows, *shape), dtype)
    row = 0
    for group in range(file.num_row_groups):
        for content in file.read_row_group(group, columns=["array"])["array"]:
            values[row] = np.frombuffer(content.as_py(), dtype).reshape(shape)
            row += 1
    return values


def _plain(file: Any, column: str, path: Path) -> list[Any]:
    entries: list[Any] = file.read(columns=[column])[column].to_pylist()
    if None in entries:
        raise BadInput(f"column {column!r} of {path} is empty in row {entries.index(None)}. Fill or drop that row.")
    return entries


def _holds_images(schema: Any, column: str) -> bool:
    kind = schema.field(column).type
    return bool(pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)


def _is_binary(kind: Any) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_number(kind: Any) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def _class_names(schema: Any, label: str) -> tuple[str, ...] | None:
    """Names that Hugging Face's metadata give the classes, where they do."""
    try:
        features = json.loads((schema.metadata or {})[_HUGGING_FACE])["info"]["features"]
        return tuple(str(name) for name in features[label]["names"])
    except (KeyError, TypeError, ValueError):
        return None


@contextmanager
def _told_as_bad_input(path: Path) -> Iterator[None]:
    try:
        yield
    except BadInput:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise BadInput(f"{path} cannot be read as a probe in Parquet: {error}. Is the file whole?") from error
