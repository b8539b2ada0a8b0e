"""Views of a labelled probe: some of its classes, or labels drawn at random; no sample is read for either.

A class is an integer, the label as the probe numbers it, or a string, the class's name (where classes have none, the
label written out). What a view does to a sample depends on that sample's id and label alone, never on the order.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from difflib import get_close_matches
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import numpy as np

from taskatlas.errors import BadInput
from taskatlas.probe.probe import Probe

Class = int | str
_MOST_CLASSES = 10**6  # a larger label is a hash or an id, not the number of a class


def class_subset(probe: Probe, classes: Sequence[Class]) -> Probe:
    """The samples of some classes, in the probe's order, their labels numbered as the classes are given.

    Classes keep their names; where they had none, the label becomes the name, so that a view of a view is the view by
    names of the whole.

    Raises:
        BadInput: the probe has no labels, a class is unknown (the message says which names are near) or given twice,
            or no sample is left.

    Example:
        >>> pets = Probe.from_text(["a", "b", "c", "d"], labels=["cat", "dog", "eel", "cat"])
        >>> view = class_subset(pets, ["eel", "cat"])
        >>> view.ids, view.labels, view.class_names
        (('0', '2', '3'), array([1, 0, 1]), ('eel', 'cat'))
    """
    labels = _labels(probe)
    names = class_names(probe)
    chosen = [_number(one, names) for one in classes]
    if len(set(chosen)) != len(chosen):
        twice = next(one for position, one in enumerate(chosen) if one in chosen[:position])
        raise BadInput(f"the class {names[twice]!r} is given twice. A view has each class once.")
    place = {number: position for position, number in enumerate(chosen)}
    new = np.array([place.get(label, -1) for label in labels.tolist()], dtype=np.int64)
    rows = np.flatnonzero(new >= 0)
    if not len(rows):
        raise BadInput(f"no sample is of the {len(chosen)} classes that were chosen. Choose classes that have some.")
    return _relabelled(probe.take(rows), new[rows], tuple(names[number] for number in chosen))


def numbered_by_name(probe: Probe, names: Sequence[str], own: Sequence[str] | None = None) -> Probe:
    """The samples of the classes with these names, labels numbered as the names are; some classes may have no samples.

    Args:
        probe: labelled samples.
        names: of the classes, by their numbers.
        own: what the probe's own numbers stand for; None: its class names, or the labels written out.

    Raises:
        BadInput: the probe has no labels, a label that ``own`` has no name for, or no sample of these classes.

    Example:
        >>> pets = Probe.from_text(["a", "b", "c"], labels=["ant", "cat", "cat"])
        >>> numbered_by_name(pets, ["ant", "bee", "cat"]).labels
        array([0, 2, 2])
    """
    labels, own = _labels(probe), class_names(probe) if own is None else own
    if int(labels.max()) >= len(own):
        raise BadInput(f"the label {int(labels.max())} has no name; labels run from 0 to {len(own) - 1}.")
    place = {name: number for number, name in enumerate(names)}
    new = np.array([place.get(name, -1) for name in own], dtype=np.int64)[labels]
    rows = np.flatnonzero(new >= 0)
    if not len(rows):
        raise BadInput(f"no sample is of the classes {_some(names)}; its classes are {_some(own)}.")
    return probe if (new == labels).all() else _relabelled(probe.take(rows), new[rows], tuple(names))


def random_labels(probe: Probe, share: float = 1.0, *, seed: int = 0) -> Probe:
    """The same samples, a share of them with a label drawn evenly from all classes (their own is one of these).

    A sample's draw follows from the seed and its id: the order of samples does not matter, nor which others there are
    (where classes have names); and the labels drawn for a share are among those drawn for a larger one.

    Args:
        probe: labelled samples.
        share: expected share of the samples whose label is drawn, from 0 to 1.
        seed: of the draws.

    Raises:
        BadInput: the probe has no labels, or the share is outside [0, 1].

    Example:
        >>> probe = Probe.from_arrays(np.zeros((6, 2)), labels=[0, 0, 1, 1, 2, 2])
        >>> random_labels(probe, seed=1).labels
        array([0, 1, 2, 1, 0, 2])
        >>> (random_labels(probe, share=0.0).labels == probe.labels).all()
        np.True_
    """
    labels = _labels(probe)
    if not 0 <= share <= 1:
        raise BadInput(f"the share of random labels is {share}; it lies between 0 and 1.")
    numbers = np.arange(len(probe.class_names)) if probe.class_names is not None else np.unique(labels)
    drawn = labels.astype(np.int64)
    for row, name in enumerate(probe.ids):
        bits = hashlib.sha256(f"{seed}:{name}".encode(errors="surrogateescape")).digest()
        if int.from_bytes(bits[:8], "little") < share * 2**64:
            drawn[row] = numbers[int.from_bytes(bits[8:16], "little") % len(numbers)]
    return _relabelled(probe, drawn, probe.class_names)


def read_classes(path: Path | str, key: str | None = None) -> list[Class]:
    """A list of classes out of a JSON file: a bare list, or the list under one of its keys.

    Args:
        path: the file.
        key: which list, where there are several.

    Raises:
        BadInput: no such file or key, no JSON, or no list of names and integers.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "tasks.json").write_text('{"dogs": [151, 152], "pets": ["cat", "dog"]}')
        ...     read_classes(Path(folder) / "tasks.json", "pets")
        ['cat', 'dog']
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(
            f"cannot read classes from {path} ({error}). Give a JSON file with a list of classes."
        ) from error
    if isinstance(found, dict):
        if key is None and len(found) != 1:
            raise BadInput(f"{path} has the keys {_some(list(found))}. Say which: FILE:KEY.")
        key = next(iter(found)) if key is None else key
        if key not in found:
            raise BadInput(f"{path} has no key {key!r}.{_meant(key, list(found))}")
        found = found[key]
    elif key is not None:
        raise BadInput(f"{path} holds one list and no key {key!r}. Leave the key out.")
    if not isinstance(found, list) or not all(
        isinstance(one, int | str) and not isinstance(one, bool) for one in found
    ):
        raise BadInput(f"{path} holds no list of classes; a class is a name or an integer.")
    return found


def wordnet_classes(hierarchy: Path | str, node: str, names: Sequence[str]) -> list[str]:
    r"""The classes that are a node of a hierarchy or lie below it, in the order of ``names``.

    Args:
        hierarchy: a file with ``parent child`` a line, as ImageNet's ``wordnet.is_a.txt``.
        node: where to start, for example n02084071 (dog).
        names: of the classes, as the hierarchy calls them.

    Raises:
        BadInput: the file cannot be read, goes round in a circle, does not know the node, or has none of the classes
            below it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "is_a.txt").write_text("animal dog\ndog husky\ndog pug\nanimal cat\n")
        ...     wordnet_classes(Path(folder) / "is_a.txt", "dog", ["cat", "pug", "husky"])
        ['pug', 'husky']
    """
    children = _read_hierarchy(Path(hierarchy))
    known = {*children, *(child for below in children.values() for child in below)}
    if node not in known:
        raise BadInput(f"{hierarchy} knows no node {node!r}.{_meant(node, sorted(known))}")
    below, ahead = {node}, [node]
    while ahead:
        new = children[ahead.pop()] - below
        below |= new
        ahead.extend(new)
    found = [name for name in names if name in below]
    if not found:
        raise BadInput(
            f"none of the {len(names)} classes lies below {node!r} in {hierarchy} (the first class is {names[0]!r}). "
            "Classes have to be named as in the hierarchy."
        )
    return found


def class_names(probe: Probe) -> tuple[str, ...]:
    """A name for each label from 0 on: the class names, or the labels written out.

    Raises:
        BadInput: the probe has no labels.

    Example:
        >>> class_names(Probe.from_arrays(np.zeros((2, 1)), labels=[0, 2]))
        ('0', '1', '2')
    """
    labels = _labels(probe)
    highest = int(labels.max())
    if highest >= _MOST_CLASSES:
        row = int(np.argmax(labels))
        raise BadInput(f"sample {probe.ids[row]!r} has the label {highest}; number the classes from 0 on.")
    return probe.class_names or tuple(str(label) for label in range(highest + 1))


def _labels(probe: Probe) -> np.ndarray:
    if probe.labels is None or probe.kind == "words":
        what = "has a label a word" if probe.kind == "words" else "has no labels"
        raise BadInput(f"the data {what}; classes need one label a sample.")
    if int(probe.labels.min()) < 0:
        row = int(np.argmin(probe.labels))
        raise BadInput(f"sample {probe.ids[row]!r} has the label {probe.labels[row]}; classes are numbered from 0 on.")
    return probe.labels


def _number(wanted: Class, names: tuple[str, ...]) -> int:
    if isinstance(wanted, str):
        if wanted not in names:
            raise BadInput(f"there is no class {wanted!r}.{_meant(wanted, names) or f' There are {_some(names)}.'}")
        return names.index(wanted)
    if not 0 <= wanted < len(names):
        raise BadInput(f"there is no class {wanted}; labels run from 0 to {len(names) - 1}.")
    return int(wanted)


def _relabelled(probe: Probe, labels: np.ndarray, names: tuple[str, ...] | None) -> Probe:
    return Probe(probe.kind, probe.inputs, probe.ids, labels, names)


def _read_hierarchy(path: Path) -> defaultdict[str, set[str]]:
    """Children of each node.

    Raises:
        BadInput: a line is no pair, or a node lies below itself.
    """
    children: defaultdict[str, set[str]] = defaultdict(set)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot read a hierarchy from {path} ({error}). Give a text file.") from error
    for number, line in enumerate(lines, start=1):
        nodes = line.split()
        if len(nodes) not in (0, 2):
            raise BadInput(f"line {number} of {path} is {line[:60]!r}; write a parent and a child, nothing else.")
        if nodes:
            children[nodes[0]].add(nodes[1])
    try:
        TopologicalSorter(children).prepare()
    except CycleError as error:
        raise BadInput(
            f"{path} goes round in a circle: {' > '.join(reversed(error.args[1]))}. Remove a line."
        ) from error
    return children


def _meant(word: str, known: Sequence[str]) -> str:
    close = get_close_matches(word, known, n=3)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""


def _some(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
