"""Benchmarks of the room of tasks: what a step of discovery costs, its memory, and learners trained stacked.

Run ``python benchmarks/tasks.py`` (about a minute on two cores) or ``--quick``. Both sides of a comparison run in turn
in one process, on the same threads; the figure is the median of the paired ratios. Networks are tiny, so one thread is
used: a second one is waited for longer than it helps.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from taskatlas.learn import mlp, train
from taskatlas.tasks.unrolled import Unrolled, sqrt_segment, stack_learners, unrolled_gradient

HALF, ASKED = 64, 128  # samples that a learner trains on, and is asked about, as digits are searched


def step(
    tasks: int,
    steps: int,
    *,
    truncate: int | None = None,
    segment: int | None = None,
    width: int = 64,
    half: int = HALF,
) -> Unrolled:
    """One meta-gradient of digits-sized learners."""
    torch.manual_seed(0)
    weights, forward = stack_learners([mlp(64, (width, width), 2) for _ in range(2 * tasks)])
    samples, asked = torch.randn(2, half, 64), torch.randn(ASKED, 64)
    labels = torch.randn(tasks, 2, half, 2).softmax(-1)
    return unrolled_gradient(
        forward, weights, samples, labels, asked, steps=steps, rate=0.3, truncate=truncate, segment=segment
    )


def seconds(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def ratio(slow: Callable[[], object], fast: Callable[[], object], pairs: int) -> tuple[float, float, float]:
    """Median seconds of both, and the median of the paired ratios."""
    slow(), fast()
    found = [(seconds(slow), seconds(fast)) for _ in range(pairs)]
    return (*(statistics.median(side) for side in zip(*found, strict=True)), statistics.median(a / b for a, b in found))


def tasks_together(pairs: int) -> dict[str, float]:
    one, eight, quotient = ratio(lambda: step(1, 30), lambda: step(8, 30), pairs)
    return {"one task, s": one, "eight tasks, s": eight, "cheaper a task, times": 8 * quotient}


def truncation(pairs: int) -> dict[str, float]:
    whole, short, quotient = ratio(lambda: step(8, 30), lambda: step(8, 30, truncate=5), pairs)
    exact = step(8, 30).gradient.flatten()
    cosine = torch.cosine_similarity(exact, step(8, 30, truncate=5).gradient.flatten(), dim=0)
    return {"30 of 30 steps, s": whole, "last 5, s": short, "times": quotient, "cosine with the exact": float(cosine)}


def checkpointing(pairs: int) -> dict[str, float]:
    segment = sqrt_segment(50)
    whole, parts, quotient = ratio(lambda: step(8, 50), lambda: step(8, 50, segment=segment), pairs)
    memory = {name: peak(name) for name in ("none", "whole", "parts", "last 5")}
    return {
        "50 steps, s": whole,
        "in segments, s": parts,
        "time, times": 1 / quotient,
        "50 steps, MB": memory["whole"] - memory["none"],
        "in segments, MB": memory["parts"] - memory["none"],
        "last 5, MB": memory["last 5"] - memory["none"],
        "memory, share": (memory["parts"] - memory["none"]) / (memory["whole"] - memory["none"]),
    }


def stacked(pairs: int) -> dict[str, float]:
    found = {}
    for learners, batch_size in ((2, 32), (2, 128), (8, 128)):
        slow, fast, quotient, differ = side_by_side(learners, batch_size, pairs)
        name = f"{learners} learners, batch {batch_size}"
        found |= {f"{name}: in turn, s": slow, f"{name}: stacked, s": fast, f"{name}: times": quotient}
        found[f"{name}: largest difference"] = differ
    return found


def side_by_side(learners: int, batch_size: int, pairs: int) -> tuple[float, float, float, float]:
    """Seconds in turn and stacked, the median ratio, and by how much a weight differs at most."""
    torch.manual_seed(0)
    x, y = torch.randn(1280, 64), torch.randint(0, 2, (1280,))

    def fresh() -> list[torch.nn.Module]:
        torch.manual_seed(0)
        return [mlp(64, (64, 64), 2) for _ in range(learners)]

    def apart() -> list[torch.nn.Module]:
        nets = fresh()
        for net in nets:
            train([net], x, [y], epochs=3, batch_size=batch_size)
        return nets

    def together() -> list[torch.nn.Module]:
        nets = fresh()
        train(nets, x, [y] * learners, epochs=3, batch_size=batch_size)
        return nets

    pairs_of_weights = (
        (a, b)
        for one, other in zip(apart(), together(), strict=True)
        for a, b in zip(one.parameters(), other.parameters(), strict=True)
    )
    differ = max(float((a - b).abs().max().detach()) for a, b in pairs_of_weights)
    return (*ratio(apart, together, pairs), differ)


def peak(kind: str) -> float:
    """Peak memory in MB of one step in a process of its own; ``none`` takes one inner step."""
    run = subprocess.run([sys.executable, __file__, "--peak", kind], capture_output=True, text=True, check=True)
    return float(run.stdout)


def print_peak(kind: str) -> None:
    settings: dict[str, dict[str, int]] = {
        "none": {"steps": 1},
        "whole": {"steps": 50},
        "parts": {"steps": 50, "segment": sqrt_segment(50)},
        "last 5": {"steps": 50, "truncate": 5},
    }
    step(8, width=128, half=512, **settings[kind])
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    print(int(fields["VmHWM"].split()[0]) / 1024)  # what getrusage says is handed down from the parent


BENCHMARKS = {
    "Meta-gradient, eight tasks a step against one (K = 30)": tasks_together,
    "Truncated to the last 5 of 30 steps (8 tasks)": truncation,
    "K = 50 in segments (8 tasks; memory with learners 128 wide on 512 samples each)": checkpointing,
    "Learners trained stacked against in turn (MLP 64-64-64-2)": stacked,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", help="part of a title")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.peak:
        print_peak(given.peak)
        return
    figures = {}
    for title, run in BENCHMARKS.items():
        if given.only and given.only not in title:
            continue
        print(title, flush=True)
        figures[title] = values = run(1 if given.quick else 5)
        for name, value in values.items():
            print(f"    {name:36} {value:.4g}", flush=True)
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
