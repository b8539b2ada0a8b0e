"""Benchmarks of the room of paths: distances, their memory and growth, one more snapshot, progress.

Run ``python benchmarks/paths.py`` (about two minutes on two cores) or ``--quick``. Each comparison runs the published
procedure and ours in turn in one process, on the same threads, and prints the median of the paired ratios. Beside each
time stands the floor: the multiplications that cannot be avoided at the rate this machine multiplies matrices.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from taskatlas.paths import bhattacharyya, extend, progress


def published_distances(probs: torch.Tensor) -> torch.Tensor:
    """The straightforward procedure: one batched einsum for all coefficients, then a logarithm of each."""
    roots = probs.sqrt()
    return -torch.einsum("mnc,knc->nmk", roots, roots).log().mean(0)


def timed(function, *arguments) -> tuple[float, object]:
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def multiplication_rate() -> float:
    """Floating-point operations a second of a large float32 matrix product."""
    a = torch.randn(1536, 1536)
    a @ a
    return 2 * 1536**3 / min(timed(torch.mm, a, a)[0] for _ in range(8))


def made_up_models(models: int, samples: int, classes: int) -> torch.Tensor:
    """Predictions that range from unsure to sure, float32."""
    logits = torch.randn(models, samples, classes, generator=torch.Generator().manual_seed(0))
    return torch.softmax(logits * torch.linspace(0.1, 5, models)[:, None, None], -1)


def bench_distances(models: int, samples: int, classes: int, rounds: int, rate: float) -> dict:
    probs = made_up_models(models, samples, classes)
    bhattacharyya(probs[:, :64])
    slow, fast, difference = [], [], 0.0
    for _ in range(rounds):
        seconds, expected = timed(published_distances, probs)
        slow.append(seconds)
        seconds, found = timed(bhattacharyya, probs)
        fast.append(seconds)
        difference = float((found - expected).abs().max())
    return {
        "published_s": float(np.median(slow)),
        "ours_s": float(np.median(fast)),
        "ratio": float(np.median(np.divide(slow, fast))),
        "floor_s": models * (models + 1) * samples * classes / rate,
        "largest_difference": difference,
    }


_MEMORY_PROBE = """
import sys, numpy as np, torch
from pathlib import Path
def memory(field):  # what getrusage says is handed down from the process that started this one
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields[field].split()[0])
sys.path.insert(0, sys.argv[1])
from paths import bhattacharyya, published_distances
function = {"published": published_distances, "ours": bhattacharyya}[sys.argv[2]]
probs = torch.from_numpy(np.load(sys.argv[3]))
function(probs[:8, :64].contiguous())  # libraries, threads and their buffers are there before we measure
before = memory("VmRSS")
function(probs)
print(memory("VmHWM") - before)
"""


def bench_memory(models: int, samples: int, classes: int) -> dict:
    """Peak resident memory of each procedure above that of its input, in a process of its own."""
    found = {}
    with tempfile.NamedTemporaryFile(suffix=".npy") as file:
        np.save(file.name, made_up_models(models, samples, classes).numpy())
        for name in ("published", "ours"):
            command = [sys.executable, "-c", _MEMORY_PROBE, str(Path(__file__).parent), name, file.name]
            kilobytes = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found[f"{name}_MB"] = int(kilobytes) * 1024 / 1e6
    return found | {"ratio": found["published_MB"] / found["ours_MB"]}


def bench_growth(models: tuple[int, ...], samples: int, classes: int) -> dict:
    """Time as the models grow, best of three interleaved rounds, and its exponent; 2 is quadratic."""
    bhattacharyya(made_up_models(8, 64, classes))
    rounds = [[timed(bhattacharyya, made_up_models(m, samples, classes))[0] for m in models] for _ in range(3)]
    seconds = np.min(rounds, axis=0)
    exponents = np.diff(np.log(seconds)) / np.diff(np.log(models))
    whole = np.log(seconds[-1] / seconds[0]) / np.log(models[-1] / models[0])
    return {f"{m} models_s": float(s) for m, s in zip(models, seconds, strict=True)} | {
        "exponent of the last step": float(exponents[-1]),
        "exponent of the whole": float(whole),
    }


def bench_one_more(models: int, samples: int, classes: int, rounds: int) -> dict:
    """A new snapshot beside known ones: one row against a whole new matrix."""
    probs = made_up_models(models + 1, samples, classes)
    known = bhattacharyya(probs[:-1])
    row = [timed(extend, known, probs[:-1], probs[-1:])[0] for _ in range(rounds)]
    anew = [timed(bhattacharyya, probs)[0] for _ in range(rounds)]
    return {"one_row_s": float(np.median(row)), "anew_s": float(np.median(anew))}


def bench_progress(models: int, samples: int, classes: int, rounds: int) -> dict:
    probs = made_up_models(models, samples, classes)
    labels = torch.randint(0, classes, (samples,), generator=torch.Generator().manual_seed(1))
    probs = torch.softmax(probs.log() + 2 * torch.nn.functional.one_hot(labels, classes), -1)
    return {"ours_s": float(np.median([timed(progress, probs, labels)[0] for _ in range(rounds)]))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--only", help="only benchmarks whose title holds this")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    m, n, rounds = (120, 300, 1) if arguments.quick else (500, 1000, 5)
    steps = (60, 120, 240) if arguments.quick else (500, 1000, 2000, 4000)
    rate = multiplication_rate()
    machine = f"{platform.processor() or platform.machine()}, {rate / 1e9:.0f} GFLOP/s float32"
    benchmarks = {
        f"distances, {m} models x {n} samples x 10 classes": lambda: bench_distances(m, n, 10, rounds, rate),
        f"distances, {m} models x {n} samples x 100 classes": lambda: bench_distances(m, n, 100, rounds, rate),
        f"memory, {m} x {n} x 10": lambda: bench_memory(m, n, 10),
        f"growth, {steps} x {n} x 10": lambda: bench_growth(steps, n, 10),
        f"one more snapshot, {m} + 1 x {n} x 10": lambda: bench_one_more(m, n, 10, rounds),
        f"progress, {m} x {n} x 10": lambda: bench_progress(m, n, 10, rounds),
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


if __name__ == "__main__":
    main()
