"""Runs that lie on disk: what a trace of them needs of memory does not grow with their length."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.paths.make import run

from taskatlas.paths import Trajectory
from taskatlas.paths.trajectory_file import write_run

SOURCE = Path(__file__).parents[2] / "src"
SAMPLES, CLASSES = 2048, 48
# What is freed leaves the process at once, so that its peak tells what is needed and not what the allocator keeps.
FREED_AT_ONCE = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "1048576"}

# Peak of private memory (what no file backs) over that after the imports, in bytes.
PROGRAM = """
import sys, threading, time
from pathlib import Path
from taskatlas.paths import Trajectory
from taskatlas.paths.trace import trace_runs
import taskatlas.paths.drawing, torch
torch.set_num_threads(1)

def private():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssAnon")))

base, peak, done = private(), 0, False
def watch():
    global peak
    while not done:
        peak = max(peak, private() - base)
        time.sleep(0.002)
watcher = threading.Thread(target=watch)
watcher.start()
try:
    found = trace_runs([Trajectory.from_hdf5(path) for path in sys.argv[1:]])
finally:
    done = True
    watcher.join()
assert found.tree is not None
print(peak)
"""


def write_run_elsewhere(path, snapshots, seed):
    """Logits that come closer to their labels, written a snapshot at a time."""
    h5py = pytest.importorskip("h5py")
    labels = np.random.default_rng(0).integers(0, CLASSES, SAMPLES)
    random = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        file["labels"] = labels
        logits = file.create_dataset("logits", (snapshots, SAMPLES, CLASSES), dtype="f4")
        for step in range(snapshots):
            values = random.standard_normal((SAMPLES, CLASSES), dtype=np.float32)
            values[np.arange(SAMPLES), labels] += 5 * step / snapshots
            logits[step] = values


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_does_not_grow_with_the_number_of_snapshots(tmp_path):
    def peak_of(snapshots):
        files = [tmp_path / f"{name}-{snapshots}.h5" for name in "ab"]
        for seed, file in enumerate(files):
            write_run_elsewhere(file, snapshots, seed)
        ran = subprocess.run(
            [sys.executable, "-c", PROGRAM, *map(str, files)],
            env=os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"} | FREED_AT_ONCE,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        return int(ran.stdout)

    few, many = 64, 160  # both larger than the blocks in which runs are read
    more = 2 * (many - few) * SAMPLES * CLASSES * 4  # bytes by which the longer runs are larger, as float32
    assert peak_of(many) - peak_of(few) < 0.5 * more


def test_a_run_is_written_in_pieces_of_any_size(tmp_path):
    whole = run(steps=3, samples=8, classes=5)
    flat = np.array(whole.log_probs).reshape(-1)
    for name, pieces in {"snapshots": list(whole.log_probs), "odd": np.array_split(flat, 7), "one": [flat]}.items():
        path = tmp_path / f"{name}.safetensors"
        write_run(path, pieces, (3, 8, 5), name="a", steps=whole.steps, ids=whole.ids, labels=whole.labels)
        assert Trajectory.load(path).digest == whole.digest
    with pytest.raises(ValueError, match="hold 300 bytes"):
        write_run(tmp_path / "x", [flat[:75]], (3, 8, 5), name="a", steps=whole.steps, ids=whole.ids)
    assert not (tmp_path / "x").exists()


def test_blocks_change_nothing(monkeypatch):
    from taskatlas.paths import bhattacharyya, pairwise, trajectory_distance

    a, b = run(), run(seed=1, steps=7)
    found = [a.progress(), a.accuracy(), a.step_lengths(), a.resample([0.1, 0.2]).log_probs]
    apart = trajectory_distance(a, b)
    small = 40
    monkeypatch.setattr(pairwise.pieces, "__defaults__", (small,))
    for module in ("trajectory", "reindex", "compare"):
        monkeypatch.setattr(f"taskatlas.paths.{module}.BLOCK", small)
    again = [a.progress(), a.accuracy(), a.step_lengths(), a.resample([0.1, 0.2]).log_probs]
    for before, after in zip(found, again, strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-6, atol=1e-9)
    assert trajectory_distance(a, b) == pytest.approx(apart, rel=1e-9)
    assert bhattacharyya(a.probabilities()).shape == (9, 9)
