"""What a probe is: samples in order with unique ids, saved and opened again the same."""

import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from taskatlas.errors import BadInput
from taskatlas.probe import Probe, parquet

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)


def probes():
    return {
        "floats": Probe.from_arrays(RNG.normal(size=(5, 2, 3)), labels=[0, 1, 0, 1, 2]),
        "big-endian": Probe.from_arrays(np.arange(6, dtype=">i4"), ids=list("abcdef")),
        "booleans": Probe.from_arrays(RNG.normal(size=(3, 4)) > 0),
        "no-width": Probe.from_arrays(np.zeros((3, 0))),
        "images": Probe.from_arrays(PIXELS, labels=["b", "a", "b", "c", "a"]),
        "grey-images": Probe.from_arrays(PIXELS[..., :1]),
        "mixed-sizes": Probe("image", [PIXELS[0], PIXELS[1][:2], PIXELS[2][:, :1]], ("x", "y", "z")),
        "text": Probe.from_text(["a\nb", "", "ünï 💡"], labels=["no", "yes", "no"]),
        "words": Probe("words", [["a", "cat"], ["dogs"]], ("s0", "s1"), np.array([2, 0, 1]), ("x", "y", "z")),
        "words-unlabelled": Probe("words", [["a", "cat"], ["dogs"]], ("s0", "s1")),
    }


def same(one, other):
    assert one.kind == other.kind
    assert one.ids == other.ids
    assert one.class_names == other.class_names
    assert (one.labels is None) == (other.labels is None)
    if one.labels is not None:
        np.testing.assert_array_equal(one.labels, other.labels)
    assert len(one.inputs) == len(other.inputs)
    for mine, theirs in zip(one.inputs, other.inputs, strict=True):
        np.testing.assert_array_equal(mine, theirs)
        if one.kind in ("array", "image"):
            assert mine.dtype.newbyteorder("=") == theirs.dtype.newbyteorder("=")
    assert one.digest == other.digest


@pytest.mark.parametrize("name", probes())
def test_a_saved_probe_opens_as_the_same(name, tmp_path):
    probe = probes()[name]
    probe.save(tmp_path / "p.parquet")
    loaded = Probe.load(tmp_path / "p.parquet")
    same(loaded, probe)
    same(Probe.open(tmp_path / "p.parquet"), probe)
    loaded.save(tmp_path / "again.parquet")
    same(Probe.load(tmp_path / "again.parquet"), probe)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.parquet", "p.parquet"]


@settings(max_examples=30, deadline=None)
@given(x=hnp.arrays(st.sampled_from(["<f4", "<f2", "i1", "<u8"]), hnp.array_shapes(min_dims=1, max_dims=3)))
def test_arrays_survive_to_the_bit(x, tmp_path_factory):
    x = np.nan_to_num(x, posinf=0, neginf=0)
    path = tmp_path_factory.mktemp("arrays") / "p.parquet"
    Probe.from_arrays(x).save(path)
    loaded = Probe.load(path).inputs
    assert loaded.dtype == x.dtype
    assert loaded.tobytes() == x.tobytes()


def test_row_groups_are_small_and_keep_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "_GROUP_ROWS", 3)
    probe = Probe.from_arrays(RNG.integers(0, 256, (8, 2, 2, 3), dtype=np.uint8), labels=list(range(8)))
    probe.save(tmp_path / "p.parquet")
    assert pq.ParquetFile(tmp_path / "p.parquet").num_row_groups == 3
    same(Probe.load(tmp_path / "p.parquet"), probe)


def test_any_change_of_content_order_ids_or_labels_changes_the_digest():
    x = RNG.normal(size=(4, 3))
    variants = [
        Probe.from_arrays(x),
        Probe.from_arrays(x.astype(np.float32)),
        Probe.from_arrays(x.reshape(4, 3, 1)),
        Probe.from_arrays(np.nextafter(x, 9)),
        Probe.from_arrays(x[::-1]),
        Probe.from_arrays(x, ids=list("abcd")),
        Probe.from_arrays(x, labels=[0, 1, 0, 1]),
        Probe.from_arrays(x, labels=[0, 1, 1, 0]),
        Probe.from_arrays(x, labels=list("abab")),
        Probe.from_arrays(x, labels=list("acac")),
        Probe.from_arrays(x[:3]),
    ]
    assert len({probe.digest for probe in variants}) == len(variants)
    assert Probe.from_arrays(torch.from_numpy(x)).digest == variants[0].digest


def test_an_array_and_its_png_are_the_same_sample_but_a_jpeg_is_known_by_its_bytes(tmp_path):
    for position, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(tmp_path / f"{position}.png", compress_level=position)
    folder = Probe.from_images(tmp_path)
    assert Probe("image", list(PIXELS), folder.ids).digest == folder.digest
    before = folder.digest
    Image.fromarray(PIXELS[0]).save(tmp_path / "0.png", format="JPEG", quality=90)
    jpeg = Probe.from_images(tmp_path).digest
    Image.fromarray(PIXELS[0]).save(tmp_path / "0.png", format="JPEG", quality=80)
    assert len({before, jpeg, Probe.from_images(tmp_path).digest}) == 3


@pytest.mark.parametrize("name", probes())
def test_take_gives_the_samples_in_the_order_asked_for(name):
    probe = probes()[name]
    rows = [2, 0] if len(probe) > 2 else [1, 0]
    taken = probe.take(rows)
    assert taken.ids == tuple(probe.ids[row] for row in rows)
    for row, sample in zip(rows, taken.inputs, strict=True):
        np.testing.assert_array_equal(sample, probe.inputs[row])
    assert taken.take([1, 0]).digest == probe.take(sorted(rows)).digest


def test_take_keeps_the_labels_of_words_with_their_sentences():
    taken = probes()["words"].take([1, 0])
    assert taken.labels.tolist() == [1, 2, 0]
    assert taken.row_ids == ("s1:0", "s0:0", "s0:1")


@pytest.mark.parametrize("rows", [[], [5], [-1], [0, 0], np.array([[0]]), np.array([True, False]), np.array([0.5])])
def test_take_refuses_rows_that_are_not_there(rows):
    with pytest.raises(BadInput):
        probes()["images"].take(rows)


def test_encoded_images_stay_in_the_file_and_are_read_by_row_group(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "_GROUP_ROWS", 2)
    monkeypatch.setattr(parquet, "_CACHE_BYTES", 1)
    probes()["images"].save(tmp_path / "p.parquet")
    read = []
    whole = pq.ParquetFile.read_row_group

    def counted(self, group, columns):
        read.append((group, columns))
        return whole(self, group, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    probe = Probe.load(tmp_path / "p.parquet")
    assert read == []
    for position in (2, 3, 0, 1, 4):
        np.testing.assert_array_equal(probe.inputs[position], PIXELS[position])
    assert read == [(1, ["image"]), (0, ["image"]), (2, ["image"])]
    some = probe.take([4, 1])
    assert len(read) == 3
    np.testing.assert_array_equal(some.inputs[1], PIXELS[1])
    np.testing.assert_array_equal(probe.inputs[-1], PIXELS[-1])
    assert len(probe.inputs[1:3]) == 2
    with pytest.raises(IndexError):
        probe.inputs[5]


def test_a_probe_travels_to_another_process(tmp_path):
    probes()["images"].save(tmp_path / "p.parquet")
    for probe in [*probes().values(), Probe.load(tmp_path / "p.parquet").take([3, 1])]:
        same(pickle.loads(pickle.dumps(probe)), probe)


def test_other_tools_read_a_saved_probe(tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs the extra hf")
    probes()["images"].save(tmp_path / "images.parquet")
    found = datasets.Dataset.from_parquet(str(tmp_path / "images.parquet"), cache_dir=str(tmp_path / "cache"))
    np.testing.assert_array_equal(np.asarray(found[3]["image"]), PIXELS[3])
    assert found.features["label"].names == ["a", "b", "c"]
    assert found["label"] == [1, 0, 1, 2, 0]
    probes()["text"].save(tmp_path / "text.parquet")
    assert pq.read_table(tmp_path / "text.parquet").to_pydict()["text"] == ["a\nb", "", "ünï 💡"]


def test_labels_of_strings_are_coded_by_sorted_names():
    probe = Probe.from_text(["x", "y", "z"], labels=np.array(["dog", "ant", "dog"]))
    assert probe.labels.tolist() == [1, 0, 1]
    assert probe.class_names == ("ant", "dog")
    assert Probe.from_arrays(np.eye(2), labels=torch.tensor([3, 1])).labels.tolist() == [3, 1]
    assert Probe.from_arrays(np.eye(2), labels=[True, False]).labels.tolist() == [1, 0]


def test_repr_is_short():
    assert repr(probes()["images"]) == "Probe(5 image, 3 classes)"
    assert repr(probes()["words-unlabelled"]) == "Probe(2 words, no labels)"


ONE = np.eye(3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Probe.from_arrays(ONE, ids=["a", "b", "a"]), "id 'a' stands for two samples"),
        (lambda: Probe.from_arrays(ONE, ids=["a", "b"]), "2 ids for 3 samples"),
        (lambda: Probe.from_arrays(ONE, labels=[0, 1]), "2 labels for 3 samples"),
        (lambda: Probe.from_arrays(ONE, labels=[0.5, 1, 2]), "float64; labels are integers or strings"),
        (lambda: Probe.from_arrays(ONE, labels=["a", 1, "b"]), "number 1 is 1"),
        (lambda: Probe.from_arrays(ONE, labels=[0, None, 1]), "none at sample 1"),
        (lambda: Probe.from_arrays(ONE, labels=[[0], [1], [2]]), r"shape \(3, 1\)"),
        (lambda: Probe.from_arrays(ONE, labels=[[0], [1, 2], [2]]), "one integer or string a sample"),
        (lambda: Probe.from_arrays(ONE * [1, np.nan, 1], ids=["a", "b", "c"]), "sample 'a' holds NaN"),
        (lambda: Probe.from_arrays(np.diag([1, 1, np.inf])), "sample '2' holds NaN or infinite"),
        (lambda: Probe.from_arrays(np.empty((0, 3))), "no samples"),
        (lambda: Probe.from_arrays(3.0), "single number"),
        (lambda: Probe.from_arrays(["a", "b"]), "array of numbers"),
        (lambda: Probe.from_arrays(np.array([None, 1])), "array of numbers"),
        (lambda: Probe("text", ["a", 1], ("0", "1")), "sample 1 is a int"),
        (lambda: Probe.from_text("a.txt"), "Path"),
        (lambda: Probe.from_text([]), "no samples"),
        (lambda: Probe("words", [["a"], []], ("0", "1")), "sample 1 is not a list of at least one word"),
        (lambda: Probe("words", [["a"], ["b"]], ("0", "1"), np.array([1])), "1 labels for 2 samples"),
        (lambda: Probe("text", ["a"], ("0",), np.array([1]), ("only",)), "1 class names"),
        (lambda: Probe("image", [PIXELS[0], PIXELS[0, ..., :1]], ("0", "1")), r"\[1, 3\] channels"),
        (lambda: Probe("image", [PIXELS[0] / 255], ("0",)), "sample 0 is float64"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(BadInput, match=message):
        make()


class Items(torch.utils.data.Dataset):
    """A map-style data set that, as many, does not stop an iteration at its end."""

    def __init__(self, items):
        self.items = items
        self.asked = []

    def __len__(self):
        return len(self.items)

    def __getitem__(self, position):
        self.asked.append(position)
        return self.items[position % len(self.items)]


def test_a_torch_data_set_of_tensors_and_labels():
    dataset = Items([(torch.full((2, 3), float(i)), i % 2) for i in range(5)])
    probe = Probe.from_dataset(dataset, limit=4)
    assert dataset.asked == [0, 1, 2, 3]
    assert probe.inputs.shape == (4, 2, 3)
    assert probe.inputs[:, 0, 0].tolist() == [0, 1, 2, 3]
    assert probe.labels.tolist() == [0, 1, 0, 1]
    assert Probe.from_dataset(torch.utils.data.TensorDataset(torch.eye(3), torch.arange(3))).labels.tolist() == [
        0,
        1,
        2,
    ]


def test_a_torch_data_set_of_pictures_strings_or_plain_x():
    pictures = Probe.from_dataset(Items([(Image.fromarray(p), "cat") for p in PIXELS]))
    assert pictures.kind == "image"
    np.testing.assert_array_equal(pictures.inputs[2], PIXELS[2])
    grey = Probe.from_dataset(Items([Image.fromarray(p[..., 0]) for p in PIXELS]))
    np.testing.assert_array_equal(grey.inputs[2], PIXELS[2][..., :1])
    assert grey.labels is None
    assert Probe.from_dataset(Items(["a", "b"])).kind == "text"
    assert Probe.from_dataset(Items([(p, 0) for p in PIXELS])).kind == "image"
    assert Probe.from_dataset(Items([torch.ones(2, dtype=torch.bfloat16)])).inputs.dtype == np.float32


def test_an_iterable_data_set():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return ((np.array([float(i)]), i) for i in range(10**9))

    assert Probe.from_dataset(Stream(), limit=3).labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "no items"),
        ([{"x": 1}], "item 0 of the data set is a dict"),
        ([(np.ones(2), 0), (np.ones(3), 0)], "item 1 of the data set has shape"),
        ([(np.ones(2), 0), np.ones(2)], "item 1 .* unlike those before"),
        (["a", np.ones(2)], "item 1 .* unlike those before"),
        ([(np.ones(2), np.ones(2))] * 2, r"shape \(2, 2\); give one label a sample"),
    ],
)
def test_a_data_set_that_is_no_probe(items, message):
    with pytest.raises(BadInput, match=message):
        Probe.from_dataset(Items(items))


def test_metadata_says_what_a_saved_probe_is(tmp_path):
    probes()["floats"].save(tmp_path / "p.parquet")
    about = json.loads(pq.read_schema(tmp_path / "p.parquet").metadata[b"taskatlas"])
    assert about == {"kind": "array", "class_names": None, "dtype": "<f8", "shape": [2, 3]}


def test_a_full_disk_leaves_the_old_probe_whole(tmp_path, monkeypatch):
    path = tmp_path / "p.parquet"
    probes()["text"].save(path)
    before = path.read_bytes()

    def full(self, table):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(BadInput, match="no space"):
        probes()["words"].save(path)
    assert path.read_bytes() == before
    assert list(Path(tmp_path).iterdir()) == [path]
