"""Promises of the ground that break easily: nothing moves before the receipt is sure, errors cross processes."""

import json
import os
import pickle
import time
from pathlib import Path

import jaxtyping
import numpy as np
import pytest

from taskatlas.engine import run_jobs
from taskatlas.errors import BadInput, MissingExtra, WorkFailed
from taskatlas.store import RECEIPT, atomic_write, check_receipts, digest, output_folder


def make(folder, text="one", **more):
    with output_folder(folder, "map", **{"inputs": {}, "settings": {}, **more}) as staging:
        (staging / "a.txt").write_text(text)


def test_a_damaged_receipt_is_refused_before_files_move(tmp_path):
    make(tmp_path)
    (tmp_path / RECEIPT).write_text("{")
    with pytest.raises(BadInput, match="not a taskatlas receipt"):
        make(tmp_path, "two")
    assert (tmp_path / "a.txt").read_text() == "one"


@pytest.mark.parametrize("more", [{"sources": [Path("gone")]}, {"settings": {"tap": np.int64(3)}}])
def test_what_no_receipt_can_hold_is_refused_before_files_move(tmp_path, more):
    make(tmp_path)
    with pytest.raises((TypeError, BadInput)):
        make(tmp_path, "two", **more)
    assert (tmp_path / "a.txt").read_text() == "one"
    assert check_receipts(tmp_path) == (1, [])


@pytest.mark.parametrize(
    "change",
    [{"outputs": ["a"]}, {"sources": 3}, {"outputs": {"a.txt": 3}}, {"made_by": None}, {"outputs": {"/etc/x": "y"}}],
)
def test_a_receipt_with_wrong_types_is_refused(tmp_path, change):
    make(tmp_path)
    receipts = json.loads((tmp_path / RECEIPT).read_text())
    receipts["map"] |= change
    (tmp_path / RECEIPT).write_text(json.dumps(receipts))
    jaxtyping.config.update("jaxtyping_disable", True)  # so that the reader's own checks are what refuses
    try:
        with pytest.raises(BadInput, match="not a taskatlas receipt"):
            check_receipts(tmp_path)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def test_json_too_deep_to_read(tmp_path):
    (tmp_path / RECEIPT).write_text("[" * 100_000)
    with pytest.raises(BadInput, match="not a taskatlas receipt"):
        check_receipts(tmp_path)


def test_an_edit_that_keeps_size_and_time_stamp_is_found(tmp_path):
    make(tmp_path)
    file = tmp_path / "a.txt"
    an_hour_ago = time.time() - 3600
    os.utime(file, (an_hour_ago, an_hour_ago))
    assert check_receipts(tmp_path) == (1, [])
    before = file.stat()
    file.write_text("ONE")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert len(check_receipts(tmp_path)[1]) == 1


def test_what_a_killed_run_left_is_cleared_after_a_day(tmp_path):
    old = tmp_path / ".staging-dead"
    old.mkdir()
    (old / "big").write_text("x")
    os.utime(old, (0, 0))
    make(tmp_path)
    assert not old.exists()


def test_a_name_too_long_for_the_file_system(tmp_path):
    with pytest.raises(BadInput, match="cannot write"), atomic_write(tmp_path / ("x" * 300)) as file:
        file.write_text("x")


def test_equal_values_have_one_digest():
    assert digest(np.True_) == digest(True)
    assert digest(-0.0) == digest(0.0)
    assert digest(Path(os.fsdecode(b"\xff"))) != digest(Path("x"))


def test_a_missing_extra_crosses_processes():
    assert "timm" in str(pickle.loads(pickle.dumps(MissingExtra("timm", "vision", "mapping"))))


def test_a_lost_worker_is_told():
    with pytest.raises(WorkFailed, match="a worker died"):
        run_jobs(os._exit, [(1,)], engine="processes:1")


def test_a_number_of_workers_that_only_looks_like_one():
    with pytest.raises(BadInput, match="threads:²"):
        run_jobs(pow, [(1, 1)], engine="threads:²")
