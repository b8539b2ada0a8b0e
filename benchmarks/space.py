"""Benchmarks of the room of task spaces: kernel, memory, one more checkpoint, selection.

Run ``python benchmarks/space.py`` (about five minutes on two idle cores) or ``--quick``. Each comparison runs the
published procedure and ours in turn in one process, on the same threads, and prints the median of the paired ratios.
Beside each time stands the floor: the multiplications no way avoids, at the rate this machine multiplies matrices.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from taskatlas.space import TaskSpace, cka_matrix, select


def published_kernel(features: list[np.ndarray]) -> np.ndarray:
    """The straightforward procedure: every pair afresh, centred, with both self-norms."""
    m = len(features)
    kernel = np.eye(m)
    for i in range(m):
        for j in range(i):
            x = features[i] - features[i].mean(axis=0)
            y = features[j] - features[j].mean(axis=0)
            cross = np.linalg.norm(x.T @ y) ** 2
            kernel[i, j] = kernel[j, i] = cross / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    return kernel


def naive_selection(covariance: np.ndarray, k: int) -> list[int]:
    """The straightforward procedure: both conditional variances of every candidate by a solve of its own."""
    m = len(covariance)
    picked: list[int] = []

    def variance(y: int, given: list[int]) -> float:
        if not given:
            return float(covariance[y, y])
        cross = covariance[given, y]
        return float(covariance[y, y] - cross @ np.linalg.solve(covariance[np.ix_(given, given)], cross))

    for _ in range(k):
        rest = [y for y in range(m) if y not in picked]
        gains = [variance(y, picked) / variance(y, [v for v in rest if v != y]) for y in rest]
        picked.append(rest[int(np.argmax(gains))])
    return picked


def timed(function, *arguments) -> tuple[float, object]:
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def multiplication_rate(dtype=np.float32) -> float:
    """Floating-point operations a second of a large matrix product."""
    a = np.random.default_rng(0).normal(size=(1536, 1536)).astype(dtype)
    a @ a
    return 2 * 1536**3 / min(timed(np.matmul, a, a)[0] for _ in range(8))


def made_up_features(m: int, n: int, d: int) -> list[np.ndarray]:
    """Features that share a common part, float32."""
    draw = np.random.default_rng(0)
    common = draw.normal(size=(n, 64)).astype(np.float32)
    return [
        common @ draw.normal(size=(64, d)).astype(np.float32) + draw.normal(size=(n, d)).astype(np.float32) * 4
        for _ in range(m)
    ]


def bench_kernel(m: int, n: int, d: int, rounds: int, rate: float) -> dict:
    features = made_up_features(m, n, d)
    cka_matrix(features)
    ratios, ours, published = [], [], []
    difference = 0.0
    for _ in range(rounds):
        slow, expected = timed(published_kernel, features)
        fast, found = timed(cka_matrix, features)
        ratios.append(slow / fast)
        ours.append(fast)
        published.append(slow)
        difference = float(np.abs(expected - found).max())
    floor = min(m * n * n * d, m * (m + 1) * n * d * d) / rate
    return {
        "published_s": float(np.median(published)),
        "ours_s": float(np.median(ours)),
        "ratio": float(np.median(ratios)),
        "floor_s": floor,
        "largest_difference": difference,
    }


_MEMORY_PROBE = """
import sys, numpy as np
from pathlib import Path
from taskatlas.space import cka_matrix
mode, folder = sys.argv[1], Path(sys.argv[2])
x = np.random.default_rng(0).normal(size=(600, 64)).astype("f4")
cka_matrix([x, x * 2 + 1])  # libraries, threads and their buffers are there before we measure
def memory():  # of this program alone; getrusage would count what the parent held before it started us
    fields = Path("/proc/self/status").read_text().splitlines()
    return {line.split()[0]: int(line.split()[1]) * 1024 for line in fields if line.startswith(("Rss", "Vm"))}
before = memory()
features = [np.load(path, mmap_mode="r" if mode == "mapped" else None) for path in sorted(folder.glob("*.npy"))]
cka_matrix(features)
private = memory()["RssAnon:"] - before["RssAnon:"]
print(memory()["VmHWM:"] - before["VmRSS:"], private)
"""


def bench_memory(m: int, n: int, d: int) -> dict:
    """Peak resident memory above that of the loaded libraries, in units of the features' bytes."""
    size = m * n * d * 4
    with tempfile.TemporaryDirectory() as folder:
        for i, values in enumerate(made_up_features(m, n, d)):
            np.save(Path(folder) / f"{i:03}.npy", values)
        result = {}
        for mode in ("in memory", "mapped"):
            command = [sys.executable, "-c", _MEMORY_PROBE, mode, folder]
            peak, private = map(int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
            result[mode] = {"peak_over_features": peak / size, "private_after_over_features": private / size}
    return {"features_MB": size / 1e6} | result


_MAPPING_PROBE = """
import sys, numpy as np, taskatlas as ta
from pathlib import Path
def memory(field):
    fields = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in fields if line.startswith(field))
folder = Path(sys.argv[1])
probe = ta.Probe.load(folder / "probe.parquet")
names = sorted((folder / "zoo").glob("*.safetensors"))[: int(sys.argv[2])]
warm = ta.Zoo.open({"warm": __import__("torch").nn.Linear(probe.inputs.shape[1], 2)})
ta.map_tasks(warm, probe, store=ta.Store(folder / "warm"))
before = memory("VmRSS")
zoo = ta.Zoo.open({path.stem: ta.Checkpoint(path.stem, path, sys.argv[3] + ":build") for path in names})
ta.map_tasks(zoo, probe, store=ta.Store(folder / f"store-{len(names)}"))
print(memory("VmHWM") - before)
"""


def build(width: int = 2048) -> "object":
    """The network of the next benchmark: 67 MB of weights at full width."""
    from torch import nn

    return nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))


def bench_mapping_memory(counts: tuple[int, int]) -> dict:
    """Peak resident memory of mapping a whole zoo, above that of the loaded libraries, in units of one checkpoint."""
    import torch
    from safetensors.torch import save_file

    import taskatlas as ta

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "zoo").mkdir()
        ta.Probe.from_arrays(np.random.default_rng(0).normal(size=(256, 2048)).astype(np.float32)).save(
            folder / "probe.parquet"
        )
        for position in range(max(counts)):
            torch.manual_seed(position)
            save_file(build().state_dict(), folder / "zoo" / f"{position:02}.safetensors")
        size = (folder / "zoo" / "00.safetensors").stat().st_size
        result = {"checkpoint_MB": size / 1e6}
        for count in counts:
            command = [sys.executable, "-c", _MAPPING_PROBE, name, str(count), str(Path(__file__).resolve())]
            peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            result[f"{count} checkpoints: peak_over_one"] = peak / size
    return result


def bench_row(m: int, n: int, d: int, rate: float) -> dict:
    features = made_up_features(m + 1, n, d)
    whole = float(np.median([timed(cka_matrix, features)[0] for _ in range(3)]))
    row = float(np.median([timed(cka_matrix, features[-1:], features[:-1])[0] for _ in range(3)]))
    floor = min(2 * m * n * d * d, m * n * n * d) / rate
    return {"whole_s": whole, "row_s": row, "ratio": whole / row, "floor_row_s": floor}


def made_up_covariance(m: int) -> np.ndarray:
    x = np.random.default_rng(0).normal(size=(m, 2 * m))
    x[: m // 2] += 0.8 * x[m // 2 : 2 * (m // 2)]
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x @ x.T


def bench_selection(m: int, k: int, rounds: int, small: int, rate: float) -> dict:
    covariance = made_up_covariance(small)
    space = TaskSpace(tuple(f"{i:05}" for i in range(small)), covariance)
    slow, expected = timed(naive_selection, covariance, 10)
    fast, found = timed(select, space, 10)
    large = TaskSpace(tuple(f"{i:05}" for i in range(m)), made_up_covariance(m))
    times = [timed(select, large, k)[0] for _ in range(rounds)]
    return {
        "ours_s": float(np.median(times)),
        "floor_s": 2 * m**3 / 3 / rate,
        "same_picks_as_naive": [int(name) for name in found.names] == expected,
        "naive_s_small": slow,
        "ours_s_small": fast,
        "ratio_small": slow / fast,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--only", help="only benchmarks whose title holds this")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    m, n, d, rounds = (6, 500, 96, 1) if arguments.quick else (34, 2000, 768, 3)
    tasks, picks, small = (200, 10, 60) if arguments.quick else (1000, 50, 200)
    single, double = multiplication_rate(), multiplication_rate(np.float64)
    machine = f"{platform.processor() or platform.machine()}, {single / 1e9:.0f} GFLOP/s float32"
    benchmarks = {
        f"kernel, {m} models x {n} samples x {d} features": lambda: bench_kernel(m, n, d, rounds, single),
        f"memory, {m} x {n} x {d}": lambda: bench_memory(m, n, d),
        f"one more checkpoint, {m} + 1 x {n} x {d}": lambda: bench_row(m, n, d, single),
        f"one more checkpoint, {m} + 1 x {5 * n} x {d}": lambda: bench_row(m, 5 * n, d, single),
        "mapping a zoo": lambda: bench_mapping_memory((2, 4) if arguments.quick else (4, 16)),
        f"select {picks} of {tasks}": lambda: bench_selection(tasks, picks, 5, small, double),
    }
    print(f"machine: {machine}")
    figures: dict[str, object] = {"machine": machine}
    for title, run in benchmarks.items():
        if arguments.only and arguments.only not in title:
            continue
        print(title, flush=True)
        figures[title] = values = run()
        for name, value in values.items():
            print(f"    {name:36} {value if not isinstance(value, float) else format(value, '.4g')}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(f"peak of this whole process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
