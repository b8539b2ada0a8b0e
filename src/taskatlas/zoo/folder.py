"""What a folder without a manifest holds: every weights file and every Hugging Face model folder in it."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from taskatlas.errors import BadInput
from taskatlas.zoo.checkpoint import TRANSFORMERS, Checkpoint
from taskatlas.zoo.hugging_face import is_model_folder
from taskatlas.zoo.weights import shard_index, weights_name


def find_checkpoints(folder: Path) -> list[Checkpoint]:
    """The checkpoints in a folder and its subfolders, sorted by name; nothing of their weights is read.

    A checkpoint's name is its path in the folder, without suffix. Hidden files are passed over; shards belong to their
    index, and the files of a Hugging Face model folder to it.

    Raises:
        BadInput: there is no such folder, it holds no weights, or two checkpoints would have one name.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "digits.pt").write_bytes(b"")
        ...     [checkpoint.name for checkpoint in find_checkpoints(Path(folder))]
        ['digits']
    """
    found: dict[str, Checkpoint] = {}
    for place in _places(folder, frozenset()):
        checkpoint = _checkpoint_at(place, folder)
        if checkpoint.name in found:
            raise BadInput(
                f"two checkpoints would be called {checkpoint.name!r}: {found[checkpoint.name].weights} and {place}. "
                "Move or rename one of them."
            )
        found[checkpoint.name] = checkpoint
    if not found:
        programs = sorted(folder.glob("*.pt2"))
        if programs:
            raise BadInput(
                f"{folder} holds no checkpoints but the exported program {programs[0].name}, which needs no builder. "
                f"Open it in Python, torch.export.load({str(programs[0])!r}).module(), for taskatlas.evaluate."
            )
        raise BadInput(
            f"{folder} holds no checkpoints. Give a folder with .safetensors, .pt, .pth, .th or .bin files, "
            "with Hugging Face model folders, or with a zoo.yaml."
        )
    return [found[name] for name in sorted(found)]


def _checkpoint_at(place: Path, root: Path) -> Checkpoint:
    if place.is_dir():
        name = root.resolve().name if place == root else place.relative_to(root).as_posix()
        return Checkpoint(name, place, TRANSFORMERS)
    name = place.relative_to(root).with_name(weights_name(place) or place.name).as_posix()
    return Checkpoint(name, place)


def _places(folder: Path, above: frozenset[Path]) -> Iterator[Path]:
    """Weights files, shard indices and model folders; a link back to a folder above is not followed."""
    here = folder.resolve()
    if here in above:
        return
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise BadInput(f"cannot list {folder}: {error.strerror or error}. Is it a folder that you may read?") from error
    if is_model_folder(folder):
        yield folder
    else:
        files = [entry for entry in entries if weights_name(entry) is not None and entry.is_file()]
        shards = {shard for file in files if file.suffix == ".json" for shard in _shards(file)}
        yield from (file for file in files if file.name not in shards)
    for entry in entries:
        if entry.is_dir():
            yield from _places(entry, above | {here})


def _shards(index: Path) -> set[str]:
    with suppress(BadInput):  # listing is no place to fail over one damaged file: opening it says what is wrong
        return set(shard_index(index).values())
    return set()
