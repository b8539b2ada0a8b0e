"""Views: the samples that are meant, whatever the order; labels at random that belong to ids."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskatlas.errors import BadInput
from taskatlas.probe import Probe, class_names, class_subset, random_labels, read_classes, wordnet_classes

NAMES = ("ant", "bee", "cat", "dog", "eel")


def animals(n=30, seed=0, named=True):
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 5, n)
    ids = tuple(f"s{i}" for i in range(n))
    return Probe("array", np.arange(n, dtype=float)[:, None], ids, labels, NAMES if named else None)


def as_table(probe):
    """What a probe says of each id, whatever the order: its content and its class."""
    names = class_names(probe)
    return {
        name: (float(x[0]), names[label]) for name, x, label in zip(probe.ids, probe.inputs, probe.labels, strict=True)
    }


@settings(deadline=None, max_examples=40)
@given(st.lists(st.sampled_from(NAMES), unique=True, min_size=1))
def test_a_view_has_all_samples_of_its_classes_and_no_others(chosen):
    whole = animals()
    view = class_subset(whole, chosen)
    assert as_table(view) == {name: entry for name, entry in as_table(whole).items() if entry[1] in chosen}
    assert view.class_names == tuple(chosen)
    assert [view.class_names[label] for label in view.labels] == [as_table(whole)[name][1] for name in view.ids]
    assert list(view.ids) == [name for name in whole.ids if name in view.ids]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.sampled_from(range(5)), unique=True, min_size=2), st.data(), st.booleans())
def test_a_view_of_a_view_is_the_view_by_names_of_the_whole(first, data, named):
    whole = animals(named=named)
    names = [class_names(whole)[number] for number in first]
    second = data.draw(st.lists(st.sampled_from(names), unique=True, min_size=1))
    twice, once = class_subset(class_subset(whole, first), second), class_subset(whole, second)
    assert (twice.ids, twice.class_names, twice.labels.tolist()) == (once.ids, once.class_names, once.labels.tolist())


@settings(deadline=None, max_examples=40)
@given(st.permutations(range(30)), st.floats(0, 1), st.integers(0, 5))
def test_the_order_of_samples_does_not_matter(order, share, seed):
    whole = animals()
    for view in (
        lambda probe: class_subset(probe, ["eel", "bee"]),
        lambda probe: random_labels(probe, share, seed=seed),
    ):
        assert as_table(view(whole)) == as_table(view(whole.take(order)))


def test_integers_are_labels_and_strings_are_names():
    assert class_subset(animals(), [2, 0]).class_names == ("cat", "ant")
    unnamed = animals(named=False)
    assert class_subset(unnamed, [2, 0]).class_names == class_subset(unnamed, ["2", "0"]).class_names == ("2", "0")
    view = class_subset(unnamed, [4, 2])
    assert class_subset(view, [0]).ids == class_subset(unnamed, [4]).ids  # an integer counts in the view


def test_lazy_images_stay_lazy(tmp_path):
    from PIL import Image

    for name in ("cat/a.png", "cat/b.png", "dog/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"no image at all")
    view = random_labels(class_subset(Probe.from_images(tmp_path), ["cat"]), seed=3)
    assert view.ids == ("cat/a.png", "cat/b.png")
    with pytest.raises(BadInput, match="not an image"):
        view.inputs[0]
    Image.new("RGB", (2, 2)).save(tmp_path / "cat/a.png")
    assert view.inputs[0].shape == (2, 2, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: class_subset(p, ["dgo"]), "no class 'dgo'. Did you mean 'dog'"),
        (lambda p: class_subset(p, ["zebra"]), "There are ant, bee, cat, dog, eel"),
        (lambda p: class_subset(p, [5]), "no class 5; labels run from 0 to 4"),
        (lambda p: class_subset(p, [-1]), "no class -1"),
        (lambda p: class_subset(p, ["ant", 0]), "'ant' is given twice"),
        (lambda p: class_subset(p, []), "no sample"),
        (lambda p: class_subset(p.take([int(np.argmax(p.labels == 0))]), ["dog"]), "no sample"),
        (lambda p: class_subset(Probe.from_text(["a"]), [0]), "has no labels"),
        (lambda p: class_subset(Probe("words", [["a", "b"]], ("0",), np.array([0, 1])), [0]), "a label a word"),
        (lambda p: class_subset(Probe.from_arrays(np.eye(2), labels=[-1, 0]), [0]), "label -1"),
        (lambda p: class_subset(Probe.from_arrays(np.eye(2), labels=[10**12, 0]), [0]), "number the classes from 0"),
        (lambda p: random_labels(p, 1.5), "share of random labels is 1.5"),
        (lambda p: random_labels(Probe.from_text(["a"])), "has no labels"),
    ],
)
def test_what_cannot_be_viewed(make, message):
    with pytest.raises(BadInput, match=message):
        make(animals())


# Random labels


def test_random_labels_belong_to_seed_and_id():
    whole = animals(500)
    drawn = random_labels(whole, seed=1)
    part = random_labels(whole.take(range(100, 200)), seed=1)
    assert (part.labels == drawn.labels[100:200]).all()
    assert (random_labels(whole, seed=2).labels != drawn.labels).mean() == pytest.approx(0.8, abs=0.1)
    assert drawn.ids == whole.ids
    assert drawn.inputs is whole.inputs


def test_random_labels_are_even_and_as_many_as_asked():
    whole = animals(20_000)
    counts = np.bincount(random_labels(whole, seed=4).labels, minlength=5)
    assert ((counts - 4000) ** 2 / 4000).sum() < 20  # chi-squared with 4 degrees of freedom: 1 in 2,000
    changed = (random_labels(whole, 0.5, seed=4).labels != whole.labels).mean()
    assert changed == pytest.approx(0.5 * 4 / 5, abs=0.015)


@settings(deadline=None, max_examples=40)
@given(st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_draws_the_same_and_more(one, other):
    low, high = sorted((one, other))
    whole = animals(100)
    few, many = random_labels(whole, low).labels, random_labels(whole, high).labels
    assert (many[few != whole.labels] == few[few != whole.labels]).all()


def test_classes_without_names_are_those_that_occur():
    whole = Probe.from_arrays(np.zeros((300, 1)), labels=np.arange(300) % 2 * 7)
    assert set(random_labels(whole).labels.tolist()) == {0, 7}


# Files


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_classes_from_json(tmp_path):
    file = tmp_path / "tasks.json"
    assert read_classes(write(file, ["a", 3])) == ["a", 3]
    assert read_classes(write(file, {"labels": [151, 152]})) == [151, 152]
    assert read_classes(write(file, {"one": [1], "two": ["b"]}), "two") == ["b"]


@pytest.mark.parametrize(
    ("content", "key", "message"),
    [
        ({"one": [1], "two": [2]}, None, "the keys one, two. Say which"),
        ({"one": [1], "two": [2]}, "tow", "Did you mean 'two'"),
        ([1], "one", "holds one list and no key 'one'"),
        ("[1, 2", None, "cannot read classes"),
        ("[" * 100_000, None, "cannot read classes"),
        ("3", None, "no list of classes"),
        ([1.5], None, "no list of classes"),
        ([True], None, "no list of classes"),
        ({"one": {"two": [1]}}, None, "no list of classes"),
    ],
)
def test_files_that_hold_no_classes(tmp_path, content, key, message):
    with pytest.raises(BadInput, match=message):
        read_classes(write(tmp_path / "tasks.json", content), key)
    with pytest.raises(BadInput, match="cannot read classes"):
        read_classes(tmp_path / "gone.json")


HIERARCHY = "animal pet\nanimal insect\npet cat\npet dog\nfish eel\ninsect ant\ninsect bee\n\nanimal fish\npet fish\n"


def test_classes_below_a_node(tmp_path):
    file = write(tmp_path / "is_a.txt", HIERARCHY)
    assert wordnet_classes(file, "pet", NAMES) == ["cat", "dog", "eel"]
    assert wordnet_classes(file, "animal", NAMES) == list(NAMES)
    assert wordnet_classes(file, "bee", NAMES) == ["bee"]


@pytest.mark.parametrize(
    ("content", "node", "message"),
    [
        (HIERARCHY, "insekt", "no node 'insekt'. Did you mean 'insect'"),
        (HIERARCHY + "cat animal\n", "pet", "goes round in a circle: "),
        (HIERARCHY + "dog dog\n", "insect", "goes round in a circle: dog > dog"),
        (HIERARCHY + "a b c\n", "pet", "line 11"),
        (HIERARCHY + "rock stone\n", "rock", "none of the 5 classes lies below 'rock'"),
    ],
)
def test_hierarchies_that_do_not_help(tmp_path, content, node, message):
    with pytest.raises(BadInput, match=message):
        wordnet_classes(write(tmp_path / "is_a.txt", content), node, NAMES)
    with pytest.raises(BadInput, match="cannot read a hierarchy"):
        wordnet_classes(tmp_path / "gone.txt", node, NAMES)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)).filter(lambda pair: pair[0] < pair[1]), min_size=1))
def test_what_lies_below_is_what_can_be_reached(tmp_path_factory, edges):
    file = write(tmp_path_factory.getbasetemp() / "edges.txt", "".join(f"n{a} n{b}\n" for a, b in edges))
    names = [f"n{i}" for i in range(13)]
    start = edges[0][0]
    reached = {start}
    for _ in range(13):
        reached |= {b for a, b in edges if a in reached}
    assert wordnet_classes(file, f"n{start}", names) == [f"n{i}" for i in sorted(reached)]


# Data sets of Hugging Face


def test_a_data_set_by_name_and_split(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {"text": ["a", "b"], "label": [1, 0]}
    one = datasets.Dataset.from_dict(rows)
    one.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": one, "test": one.select([1])}).save_to_disk(tmp_path / "both")
    assert Probe.open(f"hf:{tmp_path}/one").inputs == ["a", "b"]
    assert Probe.open(f"hf:{tmp_path}/both:test").labels.tolist() == [0]
    with pytest.raises(BadInput, match=r"say which split of the data set .hf:NAME:SPLIT.; it has train, test"):
        Probe.open(f"hf:{tmp_path}/both")
    with pytest.raises(BadInput, match="no split 'val'"):
        Probe.open(f"hf:{tmp_path}/both:val")
