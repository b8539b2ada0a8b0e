"""Benchmarks of zipping: the greedy matching against two baselines, its memory, and a whole zip in parts.

Run ``python benchmarks/zip.py`` (about six minutes on two idle cores) or ``--quick``. Comparisons run both in turn in
one process, on the same threads, and print the median of the paired ratios. The lean baseline is the straightforward
loop with as little work a join as it can have; the other does what the published program does, in its own terms.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from taskatlas.merge.axis_groups import AxisGroups
from taskatlas.merge.covariance import correlation_of
from taskatlas.merge.greedy_zip import greedy_zip, within_model_budget


def straightforward_zip(similarity: np.ndarray, n_models: int, a: float, b: float) -> np.ndarray:
    """The published procedure: the largest entry of the whole matrix, and a smaller matrix for every join.

    Returns the place of every feature. A budget is spent by joins of features that both have members of one model.
    """
    s = similarity.copy()
    features = len(s)
    width = features // n_models
    np.fill_diagonal(s, -np.inf)
    members = np.eye(features, dtype=bool)
    owners = np.arange(features) // width == np.arange(n_models)[:, None]
    budgets = [within_model_budget((width,) * n_models, b)] * n_models
    factor = s.dtype.type(a)
    for model in range(n_models):
        if budgets[model] == 0:
            s[np.ix_(owners[model], owners[model])] = -np.inf
    while len(s) > width:
        i, j = sorted(divmod(int(s.argmax()), len(s)))
        assert s[i, j] > -np.inf, "two models never run out of pairs"
        shared = owners[:, i] & owners[:, j]
        row = np.minimum(s[i], s[j])
        row = np.minimum(row, np.where(np.isinf(row), row, factor * row))
        row[i] = -np.inf
        s[i] = s[:, i] = row
        s = np.delete(np.delete(s, j, axis=0), j, axis=1)
        members[:, i] |= members[:, j]
        owners[:, i] |= owners[:, j]
        members, owners = np.delete(members, j, axis=1), np.delete(owners, j, axis=1)
        for model in np.flatnonzero(shared):
            budgets[model] -= 1
            if budgets[model] == 0:
                s[np.ix_(owners[model], owners[model])] = -np.inf
    return members.argmax(axis=1)


def zip_in_published_terms(similarity: torch.Tensor, n_models: int, a: float, b: float) -> torch.Tensor:
    """The same procedure in torch, as it was published: a dense float matrix of who is a member of what.

    Each join looks for the largest entry of the transposed matrix, which is copied for it, and makes membership and
    similarity anew by joining what lies before and after the column that goes.
    """
    s = similarity.clone().fill_diagonal_(-torch.inf)
    features = len(s)
    width = features // n_models
    membership = torch.eye(features)
    budgets = torch.full((n_models,), within_model_budget((width,) * n_models, b))

    def close(model: int) -> None:
        own = membership[model * width : (model + 1) * width].sum(0) > 0
        s[own[:, None] & own] = -torch.inf

    for model in range(n_models):
        if budgets[model] == 0:
            close(model)
    while membership.shape[1] > width:
        i, j = sorted(divmod(int(s.T.argmax()), len(s)))
        shared = ((membership[:, [i, j]].view(n_models, width, 2).sum(1) > 0).all(1)).nonzero().flatten()
        membership[:, i] += membership[:, j]
        membership = torch.cat([membership[:, :j], membership[:, j + 1 :]], dim=1)
        row = torch.minimum(s[i], s[j])
        row = torch.minimum(row, torch.where(row.isinf(), row, a * row))
        row[i] = -torch.inf
        s[i] = s[:, i] = row
        s = torch.cat([s[:j], s[j + 1 :]], dim=0)
        s = torch.cat([s[:, :j], s[:, j + 1 :]], dim=1)
        for model in shared.tolist():
            budgets[model] -= 1
            if budgets[model] == 0:
                close(model)
    return membership.argmax(1)


def made_up_correlation(features: int, dtype=np.float32) -> np.ndarray:
    """Correlations of two models' features, half of them alike, on 1000 samples."""
    draw = np.random.default_rng(0)
    width = features // 2
    common = draw.normal(size=(1000, width))
    parts = [common[:, draw.permutation(width)] * 0.7 + draw.normal(size=(1000, width)) for _ in range(2)]
    x = np.concatenate(parts, axis=1)
    x = ((x - x.mean(0)) / x.std(0)).astype(dtype)
    return correlation_of(x.T @ x / 1000)


def bench_greedy(features: int, rounds: int) -> dict:
    correlation = made_up_correlation(features)
    greedy_zip(correlation[:64, :64].copy(), (32, 32), 0.3, 0.125)
    slow, fast, same = [], [], True
    for _ in range(rounds):
        for a, b in ((0.3, 0.125), (1e-4, 0.075)):
            start = time.perf_counter()
            expected = straightforward_zip(correlation, 2, a, b)
            slow.append(time.perf_counter() - start)
            given = correlation_of(correlation)  # the same, laid out as ``match_features`` has it
            start = time.perf_counter()
            found = greedy_zip(given, (features // 2,) * 2, a, b)
            fast.append(time.perf_counter() - start)
            same &= bool((np.unique(found, return_inverse=True)[1] == expected).all())
    ratios = np.array(slow) / np.array(fast)
    return {
        "straightforward_s": float(np.median(slow)),
        "ours_s": float(np.median(fast)),
        "ratio": float(np.median(ratios)),
        "same_result": same,
    }


def bench_published_terms(features: int, rounds: int) -> dict:
    """Ours against the published program's own way."""
    correlation = made_up_correlation(features)
    greedy_zip(correlation[:64, :64].copy(), (32, 32), 0.3, 0.125)
    slow, fast = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        expected = zip_in_published_terms(torch.from_numpy(correlation).contiguous(), 2, 0.3, 0.125).numpy()
        slow.append(time.perf_counter() - start)
        given = correlation_of(correlation)
        start = time.perf_counter()
        found = greedy_zip(given, (features // 2,) * 2, 0.3, 0.125)
        fast.append(time.perf_counter() - start)
        same = np.unique(found, return_inverse=True)[1] == expected
        if not same.all():
            raise SystemExit(f"{(~same).sum()} of {features} features are joined otherwise than in the published terms")
    return {
        "published_terms_s": float(np.median(slow)),
        "ours_s": float(np.median(fast)),
        "ratio": float(np.median(np.divide(slow, fast))),
        "same_result": True,
    }


_LARGE_PROBE = """
import sys, time, numpy as np
from taskatlas.merge.matching import match_features
sys.path.insert(0, sys.argv[1])
def memory(field):
    fields = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in fields if line.startswith(field))
features = int(sys.argv[2])
match_features(np.eye(64, dtype=np.float32), 2)
start = memory("VmRSS")
draw = np.random.default_rng(0)
x = draw.normal(size=(400, features)).astype(np.float32)
x[:, features // 2 :] += x[:, : features // 2] * np.float32(0.7)
covariance = np.empty((features, features), np.float32)
for first in range(0, features, 512):
    np.matmul(x[:, first : first + 512].T, x, out=covariance[first : first + 512])
before = time.perf_counter()
found = match_features(covariance, 2)
print(time.perf_counter() - before, memory("VmHWM:") - start, covariance.nbytes)
"""


def bench_large(features: int) -> dict:
    """Time and peak memory of ``match_features`` in a process of its own, the covariance included."""
    command = [sys.executable, "-c", _LARGE_PROBE, str(Path(__file__).parent), str(features)]
    seconds, peak, given = map(
        float, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    )
    return {"seconds": seconds, "peak_GB": peak / 1e9, "of_which_covariance_GB": given / 1e9}


def resnet20(width: int) -> nn.Module:
    """A ResNet-20 of CIFAR size, ``width`` times as wide, with statistics that its random weights bring."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    from cifar_resnet_projection import ProjectionResNet

    network = ProjectionResNet(blocks=3, width=16 * width, classes=10)
    network.train()
    with torch.no_grad():
        network(torch.randn(64, 3, 32, 32))
    return network.eval()


def bench_whole_zip(width: int, images: int, calibration: str | None) -> dict:
    """Where the time of a whole zip goes: two networks, all groups, matching, merging, and calibrating or not.

    Forward passes are those that features are read in; passes in calibration, those of the merged network and, for
    least squares, of its parents once more, operation by operation.
    """
    from taskatlas.merge import group_statistics, merging, zipping
    from taskatlas.merge.walker import Walker

    torch.manual_seed(0)
    networks = [resnet20(width), resnet20(width)]
    data = torch.randn(images, 3, 32, 32)
    spent: dict[str, float] = {}
    within = [0.0]  # seconds of what is timed within what is being timed

    def timed(name: str, function: Callable) -> Callable:
        def run(*arguments, **keywords):
            within.append(0.0)
            start = time.perf_counter()
            result = function(*arguments, **keywords)
            took = time.perf_counter() - start
            spent[name] = spent.get(name, 0.0) + took - within.pop()
            within[-1] += took
            return result

        return run

    start = time.perf_counter()
    groups = AxisGroups.of(networks[0], data[:2])
    deriving = time.perf_counter() - start
    for network in networks:
        network.forward = timed("forward passes", network.forward)
    places = {
        (group_statistics, "_read"): "reading features",
        (group_statistics, "_pool"): "covariances",
        (zipping, "align"): "matching",
        (Walker, "step"): "passes in calibration",
        (merging, "calibrate"): "calibrating",
    }
    own = {place: getattr(*place) for place in places}
    for place, name in places.items():
        setattr(*place, timed(name, own[place]))
    start = time.perf_counter()
    zipping.zip_models(networks, data, calibration=calibration, groups=groups, batch_size=50)
    whole = time.perf_counter() - start
    for place, function in own.items():
        setattr(*place, function)
    spent["all else"] = whole - sum(spent.values())
    shares = {f"{name}_share": seconds / whole for name, seconds in spent.items()}
    return {"seconds": whole, **shares, "deriving_axes_s": deriving}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--only", help="only benchmarks whose title holds this")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    features, large, rounds, width, images = (256, 1024, 1, 1, 50) if arguments.quick else (2048, 8192, 3, 4, 200)
    benchmarks = {
        f"greedy zip, {features} features": lambda: bench_greedy(features, rounds),
        f"greedy zip, {features} features, published terms": lambda: bench_published_terms(features, rounds),
        f"greedy zip, {large} features": lambda: bench_large(large),
    }
    for calibration in (None, "reset", "least_squares"):
        title = f"whole zip, two ResNet-20 x{width}, {images} images, calibration={calibration}"
        benchmarks[title] = partial(bench_whole_zip, width, images, calibration)
    machine = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
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
