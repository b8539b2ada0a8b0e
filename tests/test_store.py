"""The ground: digests, writes that are whole or not at all, receipts that can be verified, results kept by digest."""

import errno
import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskatlas.errors import BadInput, WorkFailed
from taskatlas.store import (
    RECEIPT,
    Receipt,
    Store,
    atomic_write,
    check_receipts,
    digest,
    file_digest,
    load_receipts,
    output_folder,
    sampled_digest,
)


def contents(folder):
    """Every file under a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Digests

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False).filter(lambda x: str(x) != "-0.0")
    | st.text(st.characters(codec="utf-8"), max_size=5)
    | st.binary(max_size=5)
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=3) | st.integers(), inner, max_size=4)
        | st.frozensets(LEAVES, max_size=4)
    ),
    max_leaves=8,
)


def canonical(value):
    """A text that is the same for values that must have the same digest, and for no others."""
    match value:
        case dict():
            return f"mapping({sorted((canonical(key), canonical(item)) for key, item in value.items())})"
        case frozenset() | set():
            return f"set({sorted(canonical(item) for item in value)})"
        case list() | tuple():
            return f"sequence({[canonical(item) for item in value]})"
        case _:
            return f"{type(value).__name__}({value!r})"


def turned(value):
    """The same value with its mappings in another order and its lists as tuples."""
    match value:
        case dict():
            return {key: turned(value[key]) for key in reversed(value)}
        case list():
            return tuple(turned(item) for item in value)
        case _:
            return value


@given(VALUES, VALUES)
@settings(max_examples=100)
def test_digests_are_equal_exactly_for_equal_values(one, other):
    assert digest(turned(one)) == digest(one)
    assert (digest(one) == digest(other)) == (canonical(one) == canonical(other))


@given(st.lists(VALUES, max_size=4), st.lists(VALUES, max_size=4))
@settings(max_examples=50)
def test_several_values_do_not_run_together(one, other):
    assert (digest(*one) == digest(*other)) == (canonical(one) == canonical(other))
    assert digest([*one, *other]) != digest(one, other)


def test_known_digests():
    # Other values here would orphan every store there is.
    assert digest() == hashlib.sha256(b"").hexdigest()
    assert digest("a") == hashlib.sha256(b"s" + struct.pack("<Q", 1) + b"a").hexdigest()
    assert (
        digest(7, 0.5)
        == hashlib.sha256(
            b"i" + struct.pack("<Q", 1) + b"7" + b"f" + struct.pack("<Q", 8) + struct.pack("<d", 0.5)
        ).hexdigest()
    )
    everything = {"a": [1, 2.5, None, True, b"x"], "b": {"c": {1, 2}}, "d": np.arange(6, dtype="<f4").reshape(2, 3)}
    assert digest(everything) == "9b85ba22f3b663d1a977fc1233e9a254891cc9d256c364eaa85a5e9932b12d57"


def test_numbers_that_look_alike_differ():
    alike = [
        1,
        1.0,
        True,
        "1",
        b"1",
        [1],
        {1},
        {1: None},
        np.array(1),
        np.array([1]),
        None,
        "None",
        0,
        "",
        [],
        {},
        set(),
    ]
    assert len({digest(value) for value in alike}) == len(alike)


def test_numpy_scalars_are_the_numbers_they_hold():
    assert digest(np.int64(3)) == digest(np.uint8(3)) == digest(3)
    assert digest(np.float64(0.1)) == digest(0.1)
    assert digest(np.float32(0.1)) == digest(float(np.float32(0.1))) != digest(0.1)


def test_arrays_differ_by_type_shape_and_values():
    values = np.arange(6.0)
    arrays = [values, values.astype("f4"), values.astype(int), values.reshape(2, 3), values.reshape(3, 2), values[::-1]]
    arrays += [values[:5], np.empty((0, 3)), np.empty((3, 0)), values.astype(">f8"), np.array(list("abcdef"))]
    assert len({digest(array) for array in arrays}) == len(arrays)


def test_an_array_is_its_values_however_they_lie():
    grid = np.arange(12.0).reshape(3, 4)
    assert digest(np.asfortranarray(grid)) == digest(grid)
    assert digest(np.repeat(grid, 2, axis=1)[:, ::2]) == digest(grid)
    frozen = grid.copy()
    frozen.setflags(write=False)
    assert digest(frozen) == digest(grid)
    assert digest(grid.tolist()) != digest(grid)


def test_a_path_is_its_string():
    assert digest(Path("a/b")) == digest("a/b")


@pytest.mark.parametrize("value", [object(), print, 1j, [object()], {"a": object()}, np.array([object()])])
def test_what_is_no_plain_value_has_no_digest(value):
    with pytest.raises(TypeError, match="cannot digest"):
        digest(value)


def test_no_process_sees_another_digest():
    code = "from taskatlas.store import digest; print(digest({'b': {'x', 'y', 'z'}, 'a': frozenset({1.5, None})}))"
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert found == {digest({"a": frozenset({None, 1.5}), "b": {"z", "y", "x"}})}


# Digests of files


def aged(path, seconds=3600.0):
    """Makes a file look this old: the digest of a young one is not remembered."""
    stamp = time.time() - seconds
    os.utime(path, (stamp, stamp))


def test_the_digest_of_a_file_is_sha_256(tmp_path):
    (tmp_path / "a").write_bytes(b"content")
    assert file_digest(tmp_path / "a") == hashlib.sha256(b"content").hexdigest()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert file_digest(tmp_path / "link") == hashlib.sha256(b"content").hexdigest()


def test_a_digest_is_remembered_by_size_and_time(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"content")
    aged(path)
    first = file_digest(path)
    stamp = path.stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("read again"))
        assert file_digest(path) == first
    path.write_bytes(b"CONTENT")  # as long as before
    os.utime(path, ns=(stamp, stamp + 1))
    assert file_digest(path) == hashlib.sha256(b"CONTENT").hexdigest()
    path.write_bytes(b"longer content")
    os.utime(path, ns=(stamp, stamp))
    assert file_digest(path) == hashlib.sha256(b"longer content").hexdigest()


def test_a_young_file_is_read_every_time(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"content")
    stamp = path.stat().st_mtime_ns
    file_digest(path)
    path.write_bytes(b"CONTENT")
    os.utime(path, ns=(stamp, stamp))  # two writes within one tick of the clock
    assert file_digest(path) == hashlib.sha256(b"CONTENT").hexdigest()


@pytest.mark.parametrize("damage", ["garbage", "folder", "no place"])
def test_a_damaged_memory_is_no_obstacle(tmp_path, monkeypatch, damage):
    memory = tmp_path / "memory"
    monkeypatch.setenv("TASKATLAS_STORE", str(memory))
    if damage == "no place":
        memory.write_text("a file where a folder should be")
    else:
        memory.mkdir()
        table = memory / "digests.sqlite"
        table.write_bytes(b"garbage" * 1000) if damage == "garbage" else table.mkdir()
    path = tmp_path / "a"
    path.write_bytes(b"content")
    aged(path)
    assert file_digest(path) == file_digest(path) == hashlib.sha256(b"content").hexdigest()


def test_a_file_that_cannot_be_read_has_no_digest(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(BadInput, match=r"cannot read .*Is the path right"):
            file_digest(path)


def test_a_sampled_digest_tells_long_files_apart(tmp_path):
    path = tmp_path / "weights"
    content = np.random.default_rng(0).bytes(2**25 + 5)
    path.write_bytes(content)
    first = sampled_digest(path)
    assert first.startswith("sampled:")
    others = [content[:-1], content + b"0", b"0" + content[1:], content[:-1] + b"0", bytes(len(content))]
    for other in others:
        path.write_bytes(other)
        assert sampled_digest(path) != first
    path.write_bytes(content)
    assert sampled_digest(path) == first


def test_a_sampled_digest_sees_every_byte_of_a_short_file(tmp_path):
    path = tmp_path / "config"
    for length in (0, 1, 2**16, 2**16 + 1, 3 * 2**16 - 1, 2**23):
        content = bytes(length)
        path.write_bytes(content)
        first = sampled_digest(path)
        for place in {0, length // 3, length // 2, length - 1} if length else ():
            path.write_bytes(content[:place] + b"1" + content[place + 1 :])
            assert sampled_digest(path) != first
    with pytest.raises(BadInput, match=r"cannot read .*Is the path right"):
        sampled_digest(tmp_path / "none")


def test_verifying_a_sampled_source(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"weights")
    receipt = Receipt("merge", {}, {}, sources={str(path): sampled_digest(path)})
    assert receipt.verify(tmp_path) == []
    path.write_bytes(b"Weights")
    assert "changed after merge read it" in receipt.verify(tmp_path)[0]


# Whole or not at all


def write_one(folder):
    with atomic_write(folder / "old.txt") as file:
        file.write_text("old")


def half_a_file(path, error):
    with atomic_write(path) as file:
        file.write_text("half")
        raise error


def half_a_folder(folder, error):
    with output_folder(folder, "map", inputs={}, settings={}) as staging:
        (staging / "a.txt").write_text("new")
        (staging / "c.txt").write_text("new")
        raise error


def test_a_write_replaces_in_one_step(tmp_path):
    path = tmp_path / "deep" / "er" / "a.txt"
    for text in ("one", "two"):
        with atomic_write(path) as temporary:
            assert temporary.parent == path.parent
            assert temporary.suffix == ".txt"
            temporary.write_text(text)
            assert not path.exists() or path.read_text() == "one"
    assert contents(tmp_path) == {"deep/er/a.txt": b"two"}


def test_a_written_file_has_the_rights_of_any_new_file(tmp_path):
    old = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "a") as file:
            file.write_text("x")
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), BadInput("no"), OSError(errno.EIO, "no")])
def test_a_failing_write_leaves_the_old_file(tmp_path, error):
    write_one(tmp_path)
    with pytest.raises(type(error)):
        half_a_file(tmp_path / "old.txt", error)
    assert contents(tmp_path) == {"old.txt": b"old"}


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, r"no space left to write .*old\.txt; what was there is untouched"),
        (errno.EDQUOT, "no space left"),
        (errno.EFBIG, "no space left"),
        (errno.EACCES, r"cannot write .*old\.txt: Permission denied"),
        (errno.EROFS, "Read-only file system"),
    ],
)
def test_what_the_file_system_says_becomes_a_sentence(tmp_path, code, words):
    write_one(tmp_path)
    with pytest.raises(BadInput, match=words):
        half_a_file(tmp_path / "old.txt", OSError(code, os.strerror(code)))
    assert contents(tmp_path) == {"old.txt": b"old"}


def test_a_step_that_fails_at_the_end_leaves_the_old_file(tmp_path, monkeypatch):
    write_one(tmp_path)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(BadInput, match="no space left"), atomic_write(tmp_path / "old.txt") as file:
        file.write_text("new")
    assert contents(tmp_path) == {"old.txt": b"old"}


def test_places_that_cannot_be_written(tmp_path):
    write_one(tmp_path)
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "old.txt" / "below.txt", tmp_path / "folder"):
        with pytest.raises(BadInput, match=r"cannot write .*Choose another place"), atomic_write(path) as file:
            file.write_text("new")
    with (
        pytest.raises(BadInput, match="cannot write"),
        output_folder(tmp_path / "old.txt", "map", inputs={}, settings={}),
    ):
        pass
    with pytest.raises(BadInput, match="cannot write"):
        Store(tmp_path / "old.txt").make("features", {}, {}, lambda folder: None)
    assert contents(tmp_path) == {"old.txt": b"old"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_device_that_is_full(tmp_path):
    write_one(tmp_path)

    def write():
        with atomic_write(tmp_path / "old.txt") as file:
            file.unlink()
            file.symlink_to("/dev/full")
            file.write_text("new")

    with pytest.raises(BadInput, match="no space left"):
        write()
    assert contents(tmp_path) == {"old.txt": b"old"}


@contextmanager
def tiny_disk(place):
    """A file system of 256 KiB; skips where it cannot be had."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if sys.platform != "linux" or os.geteuid() != 0 or subprocess.call(command):
        pytest.skip("a file system of one's own needs root")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_leaves_everything_as_it_was(tmp_path):
    with tiny_disk(tmp_path / "disk") as disk:
        write_one(disk)
        with output_folder(disk / "atlas", "map", inputs={}, settings={}) as staging:
            (staging / "space").write_bytes(b"old" * 100)
        place = Store(disk / "store").make("features", {}, {"a": 1}, lambda folder: (folder / "x").write_text("old"))
        before = contents(disk)
        large = b"\0" * 2**19

        def file():
            with atomic_write(disk / "old.txt") as temporary:
                temporary.write_bytes(large)

        def folder():
            with output_folder(disk / "atlas", "map", inputs={}, settings={}) as staging:
                (staging / "space").write_bytes(b"new" * 100)
                (staging / "more").write_bytes(large)

        def build(workshop):
            (workshop / "x").write_bytes(large)

        for write, place_named in (
            (file, r"old\.txt"),
            (folder, "atlas"),
            (lambda: Store(disk / "store").make("features", {}, {"a": 2}, build), "store"),
        ):
            with pytest.raises(BadInput, match=f"no space left to write .*{place_named}"):
                write()
        assert contents(disk) == before
        assert check_receipts(disk / "atlas") == (1, [])
        assert Store(disk / "store").get("features", {}, {"a": 1}) == place
        assert Store(disk / "store").get("features", {}, {"a": 2}) is None


# Receipts


def make(folder, maker="map", files=None, **more):
    with output_folder(folder, maker, **{"inputs": {"zoo": "d"}, "settings": {"k": 1}, **more}) as staging:
        for name, text in (files or {"a.txt": "one", "deep/b.txt": "two"}).items():
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            (staging / name).write_text(text)


def test_a_receipt_says_what_made_a_folder(tmp_path):
    source = tmp_path / "source"
    source.write_text("weights")
    make(tmp_path / "out", sources=[source], seed=3)
    (receipt,) = load_receipts(tmp_path / "out")
    assert (receipt.made_by, receipt.inputs, receipt.settings, receipt.seed) == ("map", {"zoo": "d"}, {"k": 1}, 3)
    assert receipt.outputs == {
        name: hashlib.sha256(text).hexdigest() for name, text in {"a.txt": b"one", "deep/b.txt": b"two"}.items()
    }
    assert receipt.sources == {str(source): hashlib.sha256(b"weights").hexdigest()}
    assert {"numpy", "torch"} <= set(receipt.versions)
    assert receipt.seconds >= 0
    assert receipt.created.endswith("+00:00")
    assert repr(receipt).startswith("Receipt(map, 2 files, ")
    assert receipt.verify(tmp_path / "out") == []
    assert set(contents(tmp_path / "out")) == {"a.txt", "deep/b.txt", RECEIPT}


def test_the_digest_of_a_receipt_is_of_what_determines_the_result():
    receipt = Receipt("map", {"zoo": "d"}, {"k": 1, "j": 2})
    assert Receipt("map", {"zoo": "d"}, {"j": 2, "k": 1}, outputs={"a": "x"}, seconds=3.0).digest == receipt.digest
    others = [Receipt("cut", {"zoo": "d"}, {"k": 1}), Receipt("map", {"zoo": "e"}, {"k": 1, "j": 2})]
    others += [Receipt("map", {"zoo": "d"}, {"k": 2, "j": 2}), Receipt("map", {"zoo": "d"}, {"k": 1, "j": 2}, seed=0)]
    assert len({receipt.digest, *(other.digest for other in others)}) == 5


def test_verifying_finds_what_changed(tmp_path):
    source = tmp_path / "source"
    source.write_text("weights")
    make(tmp_path / "out", sources=[source])
    (receipt,) = load_receipts(tmp_path / "out")
    (tmp_path / "out" / "a.txt").write_text("six")
    (tmp_path / "out" / "deep" / "b.txt").unlink()
    source.write_text("retrained")
    problems = receipt.verify(tmp_path / "out")
    assert len(problems) == 3
    assert f"{tmp_path / 'out' / 'a.txt'} changed after map wrote it" in problems
    assert f"{tmp_path / 'out' / 'deep' / 'b.txt'} is missing, but map wrote it" in problems
    assert f"{source} changed after map read it; run map again" in problems
    source.unlink()  # gone is not changed: results may travel without what made them
    assert len(receipt.verify(tmp_path / "out")) == 2


def test_a_maker_replaces_its_own_receipt_alone(tmp_path):
    make(tmp_path, "map", {"a.txt": "one"})
    make(tmp_path, "select", {"b.txt": "two"})
    make(tmp_path, "map", {"a.txt": "three"})
    assert [receipt.made_by for receipt in load_receipts(tmp_path)] == ["map", "select"]
    assert check_receipts(tmp_path) == (2, [])


def test_receipts_are_checked_in_every_folder_below(tmp_path):
    make(tmp_path / "a")
    make(tmp_path / "b" / "c")
    make(tmp_path / "b" / "c", "select", {"s.txt": "x"})
    assert check_receipts(tmp_path) == (3, [])
    (tmp_path / "b" / "c" / "s.txt").write_text("y")
    count, problems = check_receipts(tmp_path)
    assert count == 3
    assert problems == [f"{tmp_path / 'b' / 'c' / 's.txt'} changed after select wrote it"]


def test_there_must_be_a_receipt_to_check(tmp_path):
    with pytest.raises(BadInput, match=rf"{tmp_path} holds no receipt\.json"):
        check_receipts(tmp_path)
    with pytest.raises(BadInput, match="none is not a folder"):
        check_receipts(tmp_path / "none")
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadInput, match="file is not a folder"):
        check_receipts(tmp_path / "file")
    assert load_receipts(tmp_path) == []


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"3", b"null", b"\xff\xfe\x00"),
        *(b'{"map": 3}', b'{"map": null}', b'{"map": {}}', b'{"map": []}'),
        b'{"map": {"made_by": "map", "inputs": {}, "settings": {}, "more": 1}}',
    ],
)
def test_a_file_that_is_no_receipt_is_refused(tmp_path, content):
    (tmp_path / RECEIPT).write_bytes(content)
    for read in (load_receipts, check_receipts):
        with pytest.raises(BadInput, match=r"receipt\.json is not a taskatlas receipt"):
            read(tmp_path)


# Folders of results


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_a_failing_run_leaves_the_old_results_whole(tmp_path, error):
    make(tmp_path)
    before = contents(tmp_path)
    expected = BadInput if isinstance(error, OSError) else type(error)
    with pytest.raises(expected):
        half_a_folder(tmp_path, error)
    assert contents(tmp_path) == before
    assert check_receipts(tmp_path) == (1, [])


def test_a_first_run_that_fails_leaves_nothing_that_looks_finished(tmp_path):
    with pytest.raises(ZeroDivisionError):
        half_a_folder(tmp_path / "out", ZeroDivisionError())
    assert contents(tmp_path) == {}


def started_child(code, tmp_path):
    """Runs code in a process of its own until it says that it is half-way."""
    header = "import time\nfrom pathlib import Path\nfrom taskatlas.store import Store, atomic_write, output_folder"
    script = f"{header}\nroot = Path({str(tmp_path)!r})\n{code}"
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "half-way\n"
    return child


HALF_WAY = "; print('half-way', flush=True); time.sleep(600)"


def test_a_killed_run_leaves_the_old_results_whole(tmp_path):
    make(tmp_path / "out")
    write_one(tmp_path)
    before = contents(tmp_path)
    child = started_child(
        f"""
with output_folder(root / "out", "map", inputs={{}}, settings={{}}) as staging:
    (staging / "a.txt").write_text("new")
    with atomic_write(root / "old.txt") as file:
        file.write_text("new"){HALF_WAY}
""",
        tmp_path,
    )
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before
    left_over = set(after) - set(before)
    assert all(any(part.startswith(".") for part in Path(name).parts) for name in left_over)
    assert check_receipts(tmp_path) == (1, [])
    make(tmp_path / "out", files={"a.txt": "newer"})
    assert check_receipts(tmp_path) == (1, [])
    assert (tmp_path / "out" / "a.txt").read_text() == "newer"


# The store


def building(text="built"):
    """A build that counts its calls."""

    def build(folder):
        build.calls += 1
        (folder / "result.txt").write_text(text)

    build.calls = 0
    return build


def test_what_is_there_is_not_built_again(tmp_path):
    store, build = Store(tmp_path), building()
    assert store.get("features", {"a": "1"}, {"k": 2}) is None
    place = store.make("features", {"a": "1"}, {"k": 2, "j": 3}, build)
    assert (place / "result.txt").read_text() == "built"
    assert store.make("features", {"a": "1"}, {"j": 3, "k": 2}, build) == place
    assert store.get("features", {"a": "1"}, {"j": 3, "k": 2}) == place
    assert build.calls == 1
    assert check_receipts(tmp_path) == (1, [])
    (receipt,) = load_receipts(place)
    assert (receipt.made_by, receipt.inputs, receipt.settings) == ("features", {"a": "1"}, {"k": 2, "j": 3})


def test_other_work_has_another_place(tmp_path):
    store, build = Store(tmp_path), building()
    places = {
        store.make(kind, inputs, settings, build)
        for kind, inputs, settings in [
            ("features", {"a": "1"}, {"k": 2}),
            ("features", {"a": "1"}, {"k": 3}),
            ("features", {"a": "2"}, {"k": 2}),
            ("features", {"b": "1"}, {"k": 2}),
            ("other", {"a": "1"}, {"k": 2}),
        ]
    }
    assert len(places) == build.calls == 5


@pytest.mark.parametrize(
    "error", [ValueError("no"), KeyboardInterrupt(), OSError(errno.ENOSPC, "full"), BadInput("no")]
)
def test_a_failing_build_leaves_nothing(tmp_path, error):
    def build(folder):
        (folder / "half.txt").write_text("half")
        raise error

    with pytest.raises(BadInput if isinstance(error, OSError) else type(error)):
        Store(tmp_path).make("features", {}, {}, build)
    assert contents(tmp_path) == {}
    assert Store(tmp_path).get("features", {}, {}) is None
    assert (Store(tmp_path).make("features", {}, {}, building()) / "result.txt").read_text() == "built"


def test_a_result_without_its_receipt_is_no_result(tmp_path):
    store = Store(tmp_path)
    place = store.make("features", {}, {}, building())
    (place / RECEIPT).unlink()
    assert store.get("features", {}, {}) is None
    with pytest.raises(WorkFailed, match=f"{place} could not be put in its place. Remove that folder"):
        store.make("features", {}, {}, building())
    (place / "result.txt").unlink()
    assert store.make("features", {}, {}, building()) == place


def test_whoever_comes_second_takes_what_is_there(tmp_path):
    store = Store(tmp_path)

    def overtaken(folder):
        (folder / "result.txt").write_text("slow")
        store.make("features", {}, {}, building("fast"))

    place = store.make("features", {}, {}, overtaken)
    assert (place / "result.txt").read_text() == "fast"
    assert len(contents(tmp_path)) == 2


def test_processes_that_build_the_same_agree(tmp_path):
    code = f"""
import sys, time, os
from pathlib import Path
from taskatlas.store import Store
root = Path({str(tmp_path)!r})
def build(folder):
    (root / f"started-{{os.getpid()}}").touch()
    while len(list(root.glob("started-*"))) < 3:  # all are building before any has built
        time.sleep(0.01)
    (folder / "result.txt").write_text(str(os.getpid()))
print(Store(root / "store").make("features", {{"a": "1"}}, {{}}, build))
"""
    children = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    places = {child.communicate(timeout=60)[0].strip() for child in children}
    assert [child.returncode for child in children] == [0, 0, 0]
    assert len(places) == 1
    place = Path(places.pop())
    assert Store(tmp_path / "store").get("features", {"a": "1"}, {}) == place
    assert set(contents(tmp_path / "store")) == {
        f"{place.relative_to(tmp_path / 'store')}/{name}" for name in ("result.txt", RECEIPT)
    }
    assert check_receipts(tmp_path / "store") == (1, [])


def test_a_killed_build_is_built_again_and_cleared_away_later(tmp_path):
    child = started_child(
        f"""
def build(folder):
    (folder / "result.txt").write_text("half"){HALF_WAY}
Store(root).make("features", {{}}, {{}}, build)
""",
        tmp_path,
    )
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert Store(tmp_path).get("features", {}, {}) is None
    with pytest.raises(BadInput, match=r"holds no receipt"):
        check_receipts(tmp_path)
    place = Store(tmp_path).make("features", {}, {}, building())
    (abandoned,) = [path for path in place.parent.iterdir() if path != place]
    aged(abandoned, seconds=48 * 3600)
    (place / RECEIPT).unlink()
    (place / "result.txt").unlink()
    Store(tmp_path).make("features", {}, {}, building())
    assert list(place.parent.iterdir()) == [place]


def test_the_users_store_is_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("TASKATLAS_STORE", str(tmp_path / "mine"))
    assert Store.default().root == tmp_path / "mine" / "results"
    monkeypatch.delenv("TASKATLAS_STORE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Store.default().root == tmp_path / ".cache" / "taskatlas" / "results"


def test_receipts_are_plain_json(tmp_path):
    make(tmp_path)
    found = json.loads((tmp_path / RECEIPT).read_text())
    assert list(found) == ["map"]
    assert found["map"]["settings"] == {"k": 1}
