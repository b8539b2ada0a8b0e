"""Readers of files that others made, and files made to break them."""

import io
import struct
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from taskatlas.errors import BadInput, MissingExtra
from taskatlas.probe import Probe

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def png_bomb(side):
    """A valid PNG of side x side white pixels in a few kilobytes."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = zlib.compressobj(9)
    packed = b"".join(rows.compress(b"\0" * (1 + side // 8)) for _ in range(side)) + rows.flush()
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def image_table(images, **columns):
    return pa.table({"image": [{"bytes": image, "path": None} for image in images], **columns})


# --- folders of images


def test_sub_folders_are_labels_and_paths_are_ids(tmp_path):
    for name, pixels in zip(["dog/b.png", "cat/z.PNG", "dog/a.jpg", "cat/deep/x.png"], PIXELS, strict=True):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "dog" / "._b.png").write_bytes(b"what another system leaves")
    probe = Probe.open(tmp_path)
    assert probe.ids == ("cat/deep/x.png", "cat/z.PNG", "dog/a.jpg", "dog/b.png")
    assert probe.labels.tolist() == [0, 0, 1, 1]
    assert probe.class_names == ("cat", "dog")
    np.testing.assert_array_equal(probe.inputs[0], PIXELS[3])
    np.testing.assert_array_equal(probe.take([3]).inputs[0], PIXELS[0])


def test_images_in_one_folder_have_no_labels_and_are_converted_to_one_mode(tmp_path):
    Image.fromarray(PIXELS[0, ..., 0]).save(tmp_path / "grey.png")
    Image.fromarray(PIXELS[1]).convert("P").save(tmp_path / "palette.gif")
    Image.fromarray(np.concatenate([PIXELS[2], PIXELS[2][..., :1]], -1)).save(tmp_path / "alpha.png")
    probe = Probe.from_images(tmp_path)
    assert probe.labels is None
    assert {pixels.shape for pixels in probe.inputs} == {(5, 6, 3)}
    assert {pixels.shape for pixels in Probe.from_images(tmp_path, mode="L").inputs} == {(5, 6, 1)}


def test_an_empty_folder(tmp_path):
    with pytest.raises(BadInput, match="holds no images"):
        Probe.open(tmp_path)


def test_labelled_and_unlabelled_images_together(tmp_path):
    (tmp_path / "cat").mkdir()
    for name in ("a.png", "cat/b.png"):
        Image.fromarray(PIXELS[0]).save(tmp_path / name)
    with pytest.raises(BadInput, match=r"beside sub-folders of images, such as a\.png"):
        Probe.open(tmp_path)


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"this is no image", png(PIXELS[0])[:20]])
def test_a_file_that_is_no_image_is_named_before_any_network_opens(tmp_path, content):
    Image.fromarray(PIXELS[0]).save(tmp_path / "a.png")
    (tmp_path / "broken.jpg").write_bytes(content)
    probe = Probe.open(tmp_path)
    with pytest.raises(BadInput, match=r"broken\.jpg is not an image"):
        probe.inputs[1]
    with pytest.raises(BadInput, match=r"broken\.jpg is not an image"):
        probe.digest  # noqa: B018


def test_a_damaged_image_is_named(tmp_path):
    big = np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)
    (tmp_path / "cut.png").write_bytes(png(big)[:-2000])
    with pytest.raises(BadInput, match=r"cut\.png is a damaged image"):
        Probe.open(tmp_path).inputs[0]


def test_an_image_deeper_than_8_bits_is_not_clipped_in_silence(tmp_path):
    Image.fromarray(np.full((4, 4), 40000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(BadInput, match=r"deep\.png has more than 8 bits"):
        Probe.open(tmp_path).inputs[0]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_000, 20_000])  # Pillow itself only warns of the first
def test_a_file_made_to_fill_the_memory_is_refused(tmp_path, side):
    bomb = png_bomb(side)
    assert len(bomb) < 100_000
    (tmp_path / "bomb.png").write_bytes(bomb)
    with pytest.raises(BadInput, match=r"bomb\.png decodes to more than"):
        Probe.open(tmp_path).digest  # noqa: B018


def test_a_file_that_vanishes_is_named(tmp_path):
    Image.fromarray(PIXELS[0]).save(tmp_path / "a.png")
    probe = Probe.open(tmp_path)
    (tmp_path / "a.png").unlink()
    with pytest.raises(BadInput, match=r"cannot read the image .*a\.png"):
        probe.inputs[0]


# --- Parquet


def test_a_foreign_file_of_images(tmp_path):
    metadata = {"huggingface": '{"info": {"features": {"label": {"names": ["ant", "bee"], "_type": "ClassLabel"}}}}'}
    table = image_table(map(png, PIXELS), label=[1, 0, 1, 1], id=["p", "q", "r", "s"])
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "f.parquet", row_group_size=3)
    probe = Probe.open(tmp_path / "f.parquet")
    assert probe.ids == ("p", "q", "r", "s")
    assert probe.class_names == ("ant", "bee")
    assert probe.labels.tolist() == [1, 0, 1, 1]
    for mine, theirs in zip(probe.inputs, PIXELS, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_columns_of_other_names(tmp_path):
    table = pa.table(
        {
            "picture": pa.array([png(p) for p in PIXELS], pa.large_binary()),
            "photo": [{"bytes": png(p[::-1]), "path": "x"} for p in PIXELS],
            "caption": list("abcd"),
            "kind": ["x", "y", "y", "x"],
        }
    )
    path = tmp_path / "f.parquet"
    pq.write_table(table, path)
    np.testing.assert_array_equal(Probe.open(path).inputs[0], PIXELS[0][::-1])
    np.testing.assert_array_equal(Probe.from_parquet(path, image="picture").inputs[0], PIXELS[0])
    captions = Probe.from_parquet(path, text="caption", label="kind")
    assert captions.inputs == list("abcd")
    assert captions.class_names == ("x", "y")
    with pytest.raises(BadInput, match="no column 'pixels'; its columns are picture, photo, caption, kind"):
        Probe.from_parquet(path, image="pixels")
    with pytest.raises(BadInput, match=r"column 'caption' .* no encoded images"):
        Probe.from_parquet(path, image="caption")


def test_labels_that_are_kept_back_are_no_labels(tmp_path):
    metadata = {"huggingface": '{"info": {"features": {"label": {"names": ["ant", "bee"], "_type": "ClassLabel"}}}}'}
    table = pa.table({"text": ["a", "b"], "label": [-1, -1]}).replace_schema_metadata(metadata)
    pq.write_table(table, tmp_path / "f.parquet")
    assert Probe.open(tmp_path / "f.parquet").labels is None


def test_neither_images_nor_texts(tmp_path):
    pq.write_table(pa.table({"a": [1], "b": ["x"]}), tmp_path / "f.parquet")
    with pytest.raises(BadInput, match=r"f\.parquet has neither .* its columns are a, b"):
        Probe.open(tmp_path / "f.parquet")


def test_a_truncated_file_and_one_that_is_none(tmp_path):
    path = tmp_path / "f.parquet"
    pq.write_table(image_table(map(png, PIXELS)), path)
    whole = path.read_bytes()
    for content in (b"", b"PAR1", whole[: len(whole) // 2], whole[:-10], b"x" * 100):
        path.write_bytes(content)
        with pytest.raises(BadInput, match=r"f\.parquet"):
            Probe.open(path)


def test_a_file_with_a_damaged_middle(tmp_path):
    path = tmp_path / "f.parquet"
    pq.write_table(image_table(map(png, PIXELS)), path, compression="gzip")
    content = bytearray(path.read_bytes())
    content[20:300] = b"\xff" * 280
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"f\.parquet"):
        Probe.open(path).digest  # noqa: B018


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": ["a", "b", "c", "a"]}, r"f\.parquet: the id 'a' stands for two samples"),
        ({"id": ["a", None, "c", "d"]}, "column 'id' .* empty in row 1"),
        ({"label": [0, None, 1, 1]}, "column 'label' .* empty in row 1"),
        ({"label": [0.5, 0.5, 1, 1]}, "labels are integers or strings"),
    ],
)
def test_bad_columns_beside_the_images(tmp_path, columns, message):
    pq.write_table(image_table(map(png, PIXELS), **columns), tmp_path / "f.parquet")
    with pytest.raises(BadInput, match=message):
        Probe.open(tmp_path / "f.parquet")


def test_an_image_without_bytes_is_named_by_its_row(tmp_path):
    pq.write_table(image_table([png(PIXELS[0]), None]), tmp_path / "f.parquet")
    with pytest.raises(BadInput, match=r"row 1 of .*f\.parquet holds no bytes"):
        Probe.open(tmp_path / "f.parquet").inputs[1]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("shape", [7]),
        ("dtype", "|O"),
        ("dtype", "<f4"),
        ("kind", "film"),
        ("kind", "text"),
        (None, "[1]"),
        (None, "{"),
    ],
)
def test_a_saved_probe_whose_description_lies(tmp_path, key, value):
    import json

    path = tmp_path / "p.parquet"
    Probe.from_arrays(np.eye(3)).save(path)
    table = pq.read_table(path)
    about = json.loads(table.schema.metadata[b"taskatlas"])
    said = value if key is None else json.dumps({**about, key: value})
    pq.write_table(table.replace_schema_metadata({"taskatlas": said}), path)
    with pytest.raises(BadInput, match=r"p\.parquet"):
        Probe.open(path)


# --- numpy's files


def test_npy_is_a_memory_map(tmp_path):
    np.save(tmp_path / "x.npy", np.eye(3))
    probe = Probe.open(tmp_path / "x.npy")
    assert isinstance(probe.inputs, np.memmap)
    assert probe.digest == Probe.from_arrays(np.eye(3)).digest


def test_npz_with_samples_labels_and_ids(tmp_path):
    np.savez(tmp_path / "p.npz", x=np.eye(3), y=["a", "b", "a"], ids=["r", "s", "t"])
    probe = Probe.open(tmp_path / "p.npz")
    assert probe.digest == Probe.from_arrays(np.eye(3), labels=["a", "b", "a"], ids=["r", "s", "t"]).digest
    np.savez_compressed(tmp_path / "one.npz", whatever=PIXELS)
    assert Probe.open(tmp_path / "one.npz").kind == "image"


def test_npz_of_which_it_is_unclear_what_is_meant(tmp_path):
    np.savez(tmp_path / "p.npz", x_train=np.eye(3), x_test=np.eye(3))
    with pytest.raises(BadInput, match=r"p\.npz holds x_train, x_test; save the samples as x"):
        Probe.open(tmp_path / "p.npz")


class Dangerous:
    def __reduce__(self):
        return print, ("this ran",)


def test_pickled_objects_are_refused_and_do_not_run(tmp_path, capsys):
    objects = np.array([Dangerous(), None], dtype=object)
    np.savez(tmp_path / "p.npz", x=objects)
    np.savez(tmp_path / "y.npz", x=np.eye(2), y=objects)
    np.save(tmp_path / "p.npy", objects)
    for name in ("p.npz", "y.npz", "p.npy"):
        with pytest.raises(BadInput, match=rf"{name} holds pickled Python objects"):
            Probe.open(tmp_path / name)
    assert capsys.readouterr().out == ""


def test_damaged_numpy_files(tmp_path):
    np.savez(tmp_path / "p.npz", x=np.eye(30))
    np.save(tmp_path / "p.npy", np.eye(30))
    for name in ("p.npz", "p.npy"):
        whole = (tmp_path / name).read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 255
        for content in (b"", whole[:100], whole[:-30], b"x" * 50, *([bytes(flipped)] if name == "p.npz" else [])):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(BadInput, match=name):
                Probe.open(tmp_path / name)


def test_one_kind_of_numpy_file_under_the_name_of_the_other(tmp_path):
    np.savez(tmp_path / "p.npz", x=np.eye(3))
    np.save(tmp_path / "p.npy", np.eye(3))
    (tmp_path / "p.npz").rename(tmp_path / "q.npy")
    (tmp_path / "p.npy").rename(tmp_path / "q.npz")
    with pytest.raises(BadInput, match=r"Rename it to end in \.npz"):
        Probe.open(tmp_path / "q.npy")
    with pytest.raises(BadInput, match=r"Rename it to end in \.npy"):
        Probe.open(tmp_path / "q.npz")


def test_nan_in_a_file_names_file_and_sample(tmp_path):
    values = np.ones((10_000, 2), np.float32)
    values[7_777, 1] = np.nan
    np.save(tmp_path / "x.npy", values)
    with pytest.raises(BadInput, match=r"x\.npy: sample '7777' holds NaN"):
        Probe.open(tmp_path / "x.npy")


# --- text


def test_lines(tmp_path):
    (tmp_path / "t.txt").write_bytes("\ufefffirst line\r\n\r\n  \nsecond\u2028 line".encode())
    assert Probe.open(tmp_path / "t.txt").inputs == ["first line", "second\u2028 line"]
    (tmp_path / "empty.txt").write_bytes(b"\n\n")
    with pytest.raises(BadInput, match=r"empty\.txt: the probe holds no samples"):
        Probe.open(tmp_path / "empty.txt")
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(BadInput, match=r"latin\.txt is not UTF-8"):
        Probe.open(tmp_path / "latin.txt")


def test_tables(tmp_path):
    (tmp_path / "t.csv").write_text('label,sentence,split\n1,"a ""quoted"", one\ntwo lines",train\n0,NA,test\n')
    probe = Probe.open(tmp_path / "t.csv")
    assert probe.inputs == ['a "quoted", one\ntwo lines', "NA"]
    assert probe.labels.tolist() == [1, 0]
    assert Probe.from_table(tmp_path / "t.csv", split="test").inputs == ["NA"]
    with pytest.raises(BadInput, match="no split 'val'; it has test, train"):
        Probe.from_table(tmp_path / "t.csv", split="val")

    (tmp_path / "t.tsv").write_text("id\twords\tlabel\nx\t1,5\tLOC:city\ny\t2\tHUM:ind\n")
    with pytest.raises(
        BadInput, match=r"t\.tsv has no column named text or sentence, and its column 'words' holds other things"
    ):
        Probe.open(tmp_path / "t.tsv")
    probe = Probe.from_table(tmp_path / "t.tsv", text="words")
    assert probe.inputs == ["1,5", "2"]
    assert probe.ids == ("x", "y")
    assert probe.class_names == ("HUM:ind", "LOC:city")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as a table"),
        (b"text,label\na,1\nb,2,3\n", "cannot be read as a table"),
        (b"text,label\n", "holds no samples"),
        (b"text,text\na,b\n", "2 columns 'text'"),
        ("text\ncafé\n".encode("latin-1"), "cannot be read as a table"),
    ],
)
def test_bad_tables(tmp_path, content, message):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(BadInput, match=message):
        Probe.open(tmp_path / "t.csv")


CONLL = """\
-DOCSTART- -X- -X- O

EU NNP I-NP B-ORG
rejects VBZ I-VP O
. . O O


# sent_id = 2
\t
Peter NNP I-NP B-PER
# # I-NP O
5 CD I-NP O
"""


def test_conll_columns(tmp_path):
    (tmp_path / "ner.conll").write_text(CONLL)
    probe = Probe.open(tmp_path / "ner.conll")
    assert probe.inputs == [["EU", "rejects", "."], ["Peter", "#", "5"]]
    assert probe.row_ids == ("0:0", "0:1", "0:2", "1:0", "1:1", "1:2")
    assert probe.class_names == ("B-ORG", "B-PER", "O")
    assert probe.labels.tolist() == [0, 2, 2, 1, 2, 2]
    tags = Probe.from_conll(tmp_path / "ner.conll", column=1)
    assert [tags.class_names[code] for code in tags.labels] == ["NNP", "VBZ", ".", "NNP", "#", "CD"]


@pytest.mark.parametrize(
    ("content", "column", "message"),
    [
        ("a B\nb\n", -1, "line 2: 1 columns, so there is no label in column -1"),
        ("a B\n", 2, "line 1: 2 columns, so there is no label in column 2"),
        ("a B\n", 0, "no label in column 0"),
        ("", -1, "holds no samples"),
        ("-DOCSTART- O\n\n", -1, "holds no samples"),
    ],
)
def test_bad_conll(tmp_path, content, column, message):
    (tmp_path / "t.conll").write_text(content)
    with pytest.raises(BadInput, match=message):
        Probe.from_conll(tmp_path / "t.conll", column=column)


# --- paths, and Hugging Face


def test_paths_that_lead_nowhere(tmp_path):
    with pytest.raises(BadInput, match="there is no file or folder"):
        Probe.open(tmp_path / "nothing.parquet")
    (tmp_path / "x.docx").write_bytes(b"x")
    with pytest.raises(BadInput, match=r"x\.docx cannot be opened as a probe.*\.parquet"):
        Probe.open(tmp_path / "x.docx")
    with pytest.raises(BadInput, match="not a folder of images"):
        Probe.from_images(tmp_path / "x.docx")
    for read in (Probe.from_parquet, Probe.from_table, Probe.from_conll, Probe.load):
        with pytest.raises(BadInput, match="gone"):
            read(tmp_path / "gone")
    with pytest.raises(BadInput, match="gone"):
        Probe.from_text(tmp_path / "gone")


def test_a_hugging_face_data_set(tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs the extra hf")
    features = datasets.Features(
        {
            "picture": datasets.Image(),
            "label": datasets.ClassLabel(names=["ant", "bee"]),
            "text": datasets.Value("string"),
        }
    )
    rows = {"picture": [Image.fromarray(p) for p in PIXELS], "label": [1, 0, 0, 1], "text": list("abcd")}
    dataset = datasets.Dataset.from_dict(rows, features=features)
    probe = Probe.from_hf(dataset)
    assert probe.class_names == ("ant", "bee")
    np.testing.assert_array_equal(probe.take([2]).inputs[0], PIXELS[2])
    assert Probe.from_hf(dataset, text="text").inputs == list("abcd")
    assert len(Probe.from_hf(datasets.DatasetDict({"train": dataset}), split="train")) == 4
    with pytest.raises(BadInput, match="no split 'test'; it has train"):
        Probe.from_hf(datasets.DatasetDict({"train": dataset}))
    with pytest.raises(BadInput, match="no column 'x'; its columns are picture, label, text"):
        Probe.from_hf(dataset, image="x")
    with pytest.raises(BadInput, match="neither images nor a column named text"):
        Probe.from_hf(dataset.select_columns(["label"]))
    with pytest.raises(BadInput, match="list is no data set"):
        Probe.from_hf([1, 2])


def test_a_missing_extra_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"taskatlas\[hf\]"):
        Probe.from_hf("ylecun/mnist")
