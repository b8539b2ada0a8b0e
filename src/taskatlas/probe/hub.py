"""Samples out of a Hugging Face data set, by its id or the object itself."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from taskatlas.errors import BadInput, MissingExtra
from taskatlas.probe.images import LazyImages, Mode
from taskatlas.probe.samples import Coded, Samples, named_labels


def read_hub_dataset(
    source: Any, image: str | None, text: str | None, label: str | None, split: str, mode: Mode
) -> Samples:
    """The images or texts of a data set with their labels; images stay encoded where the data set keeps them.

    Args:
        source: an id on the hub, the folder of a data set, or a ``datasets.Dataset``.
        image: the column of images; None: the only column of that type, where no text is asked for.
        text: the column of texts; None: text, where there are no images.
        label: the column of labels; None: label, where there is one.
        split: which split, where there are several.
        mode: what images are converted to.

    Raises:
        MissingExtra: datasets is not installed.
        BadInput: no such data set, split or column.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingExtra("datasets", "hf", "a Hugging Face data set as a probe") from error
    found = _load(datasets, source) if isinstance(source, str) else source
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            missing = (
                f"the data set has no split {split!r}" if split else "say which split of the data set (hf:NAME:SPLIT)"
            )
            raise BadInput(f"{missing}; it has {', '.join(map(str, found))}.")
        found = found[split]
    if not isinstance(found, datasets.Dataset):
        raise BadInput(f"a {type(found).__name__} is no data set of Hugging Face; give its id or a datasets.Dataset.")
    names = found.column_names
    for name in (image, text, label):
        if name is not None and name not in names:
            raise BadInput(f"the data set has no column {name!r}; its columns are {', '.join(names)}.")
    coded, class_names = _labels(found, label or ("label" if "label" in names else None))
    if image is None and text is None:
        image = next((name for name in names if isinstance(found.features[name], datasets.Image)), None)
        text = "text" if image is None and "text" in names else None
    if image is not None:
        encoded = found.select_columns([image]).cast_column(image, datasets.Image(decode=False))
        return Samples("image", LazyImages(HubImages(encoded, image), mode), None, coded, class_names)
    if text is not None:
        return Samples("text", list(found[text]), None, coded, class_names)
    raise BadInput(
        f"the data set has neither images nor a column named text; its columns are {', '.join(names)}. "
        "Name one: Probe.from_hf(..., image=...) or text=..."
    )


class HubImages:
    """Encoded images in a data set, which keeps them on disk."""

    def __init__(self, dataset: Any, column: str) -> None:
        self._dataset = dataset
        self._column = column

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, position: int, /) -> bytes:
        entry = self._dataset[position][self._column]
        if entry is None:
            raise BadInput(f"{self.where(position)} is empty. Drop that row.")
        if entry["bytes"] is not None:
            return bytes(entry["bytes"])
        try:
            return Path(entry["path"]).read_bytes()
        except OSError as error:
            raise BadInput(f"cannot read the image {entry['path']}: {error.strerror}.") from error

    def where(self, position: int) -> str:
        """The row of an image."""
        return f"row {position} of the data set"

    def take(self, rows: Sequence[int]) -> "HubImages":
        """Some of the images, in the order given."""
        return HubImages(self._dataset.select(rows), self._column)


def _load(datasets: Any, name: str) -> Any:
    saved = any((Path(name) / about).is_file() for about in ("dataset_info.json", "dataset_dict.json"))
    try:
        return datasets.load_from_disk(name) if saved else datasets.load_dataset(name)
    except Exception as error:  # the hub, the network, the cache: every layer raises its own
        raise BadInput(f"cannot load the data set {name!r}: {error}.") from error


def _labels(dataset: Any, label: str | None) -> Coded:
    if label is None:
        return None, None
    names = getattr(dataset.features[label], "names", None)
    return named_labels(list(dataset[label]), names, f"column {label!r}")
