"""Benchmarks of data-adaptive fusion: the merging part of a training step, its memory, and per-sample inference.

Run ``python benchmarks/fusion.py`` (8 GB of memory) or ``--quick``. Each comparison runs a straightforward procedure
and ours in turn in one process, on the same threads, and prints the median of the paired ratios. Straightforward is a
loop over dictionaries of tensors: merged = base + Σ coefficient · task vector, key by key, with autograd behind it,
once for every task of a step; and for inference a merge for each sample in turn.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from mmap import mmap
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from taskatlas.merge.merged_models import MergedModels
from taskatlas.merge.per_sample import PerSample
from taskatlas.merge.task_network import TaskNetwork
from taskatlas.merge.task_vectors import TaskVectors

EXPERTS = 8
SIZES = {"10 M": (6, 384), "43 M": (6, 768), "85 M": (12, 768)}  # layers and width of a transformer


def transformer(layers: int, width: int) -> nn.Module:
    """An encoder on made-up embeddings with a head of ten classes, in evaluation mode."""
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(width, width // 64, 4 * width, activation="gelu", batch_first=True)
    return Classifier(nn.TransformerEncoder(block, layers, enable_nested_tensor=False), nn.Linear(width, 10)).eval()


class Classifier(nn.Module):
    """Logits of the first token."""

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, x: Tensor) -> Tensor:
        """Of embeddings (batch, tokens, width)."""
        return self.head(self.encoder(x)[:, 0])


def family(module: nn.Module) -> TaskVectors:
    """Made-up experts, never whole in memory beside the task vectors."""
    base = {name: value.detach() for name, value in module.named_parameters()}
    one = TaskVectors.of(base, {"expert 0": {name: value + 0.01 * value.roll(1, -1) for name, value in base.items()}})
    matrix = torch.empty(EXPERTS + 1, one.base.numel())
    matrix[-1] = one.base
    for i, row in enumerate(matrix[:-1]):
        torch.mul(one.deltas[0].roll(i), 1 + 0.1 * i, out=row)
    names = tuple(f"expert {i}" for i in range(EXPERTS))
    return replace(one, names=names, matrix=matrix, own={name: {} for name in names})


def merged_by_dictionaries(
    base: dict[str, Tensor], deltas: list[dict[str, Tensor]], coefficients: Tensor
) -> list[Tensor]:
    """One merge, with a graph of it."""
    update: dict[str, Tensor] = {}
    for scale, delta in zip(coefficients, deltas, strict=True):
        for name, value in delta.items():
            update[name] = update[name] + scale * value if name in update else scale * value
    return [base[name] + update[name] for name in base]


class Left(torch.autograd.Function):
    """A loss whose gradients are at hand."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, gradients: list[Tensor], *_: Tensor) -> Tensor:
        """Of any weights; the gradients are given away."""
        ctx.gradients = gradients
        return torch.zeros(())

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, _: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients, of which nothing is left here."""
        gradients, ctx.gradients = ctx.gradients, []
        return None, *[gradients.pop(0) for _ in range(len(gradients))]


def apart_from_the_heap(tensors: dict[str, Tensor]) -> list[Tensor]:
    """Copies in memory of their own: what is freed and kept in the heap decides how fast the loop is."""
    blocks = [torch.frombuffer(mmap(-1, value.nbytes), dtype=value.dtype) for value in tensors.values()]
    return [block.resize_(value.shape).copy_(value) for block, value in zip(blocks, tensors.values(), strict=True)]


def timed(function: Callable[..., object], *arguments: object) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def bench_step(layers: int, width: int, tasks: int, rounds: int) -> dict:
    """Merging for every task of a step, and the gradient of its coefficients; the network's own work is left out.

    What leaves a network in its backward pass are gradients tensor by tensor, in new memory. The loop goes on with
    these; so does ours, whose weights give up their memory for them. One task after the other: torch's product of a
    vector and the task vectors for each merge and for each gradient.
    """
    vectors = family(transformer(layers, width))
    models = MergedModels(vectors, count=2)
    base, gradients = vectors.views(vectors.base), vectors.views(torch.randn_like(vectors.base))
    deltas = [vectors.views(row) for row in vectors.deltas]  # the same memory: neither procedure has more to read
    wanted = [torch.full((EXPERTS,), 0.3 + 0.01 * task) for task in range(tasks)]
    left, freed = [], []  # gradients by the networks of each task; weights, whose memory is freed outside the timing

    def ours() -> list[Tensor]:
        found = []
        for first in range(0, tasks, len(models)):
            together = wanted[first : first + len(models)]
            found += models.turn(together, "task")
            for slot in range(len(together)):
                weights = models.tensors(slot, vectors.base.device).values()
                freed.extend(value.detach() for value in weights)
                models.backward(slot, Left.apply(left.pop(), *weights))
        return found + models.turn([], "task")

    def theirs() -> list[Tensor]:
        leaves = [scale.clone().requires_grad_() for scale in wanted]
        for leaf in leaves:
            torch.autograd.backward(merged_by_dictionaries(base, deltas, leaf), list(gradients.values()))
        return [leaf.grad for leaf in leaves]

    theta, gradient = torch.empty_like(vectors.base), torch.cat([value.flatten() for value in gradients.values()])

    def in_turn() -> None:
        for scale in wanted:
            vectors.merged(scale, out=theta)
            vectors.gradient(gradient)

    first = timed(theirs)  # the heap is still growing
    expected = torch.stack(theirs())
    left += [apart_from_the_heap(gradients) for _ in wanted]
    difference = torch.stack(ours()) - expected
    freed.clear()
    slow, fast, one_by_one = [], [], []
    for _ in range(rounds):
        slow.append(timed(theirs))
        left += [apart_from_the_heap(gradients) for _ in wanted]
        fast.append(timed(ours))
        freed.clear()
        one_by_one.append(timed(in_turn))
    turns = -(-tasks // len(models))
    read = (turns + 1) * EXPERTS + turns + 2 * tasks  # τ, θ₀; θ written, its gradient read
    return {
        "parameters": vectors.base.numel(),
        "dictionaries_first_s": first,
        "dictionaries_s": float(np.median(slow)),
        "ours_s": float(np.median(fast)),
        "ratio": float(np.median(np.divide(slow, fast))),
        "ratio_of_one_task_after_the_other": float(np.median(np.divide(one_by_one, fast))),
        "floor_s": read * vectors.base.numel() * 4 / memory_rate(),
        "largest_relative_difference": float(difference.abs().max() / expected.abs().max()),
    }


def memory_rate() -> float:
    """Bytes a second of reading a vector that no cache holds, on all threads."""
    x = torch.ones(2**27)
    x.sum()
    return x.numel() * 4 / min(timed(x.sum) for _ in range(3))


_MEMORY_PROBE = """
import sys
sys.path.insert(0, sys.argv[1])
from fusion import memory_of_steps
memory_of_steps(int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
"""


def memory_of_steps(layers: int, width: int, tasks: int) -> None:
    """Two whole training steps; prints the process's peak above its start, and the bytes of what must be there."""
    train_two_steps(transformer(1, 64), 64, 2)  # libraries, threads and their buffers are there before we measure
    module = transformer(layers, width)
    before = _memory("VmRSS")
    train_two_steps(module, width, tasks)
    print(_memory("VmHWM") - before, (EXPERTS + 2) * sum(value.numel() for value in module.parameters()) * 4)


def train_two_steps(module: nn.Module, width: int, tasks: int) -> None:
    from taskatlas.merge.data_adaptive import DataAdaptive
    from taskatlas.merge.extractor import Extractor
    from taskatlas.merge.freed_memory import give_back_freed_memory

    vectors = family(module)
    give_back_freed_memory()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts here: making experts up is no part of training
    data = {name: [torch.randn(1, 4, width)] for name in vectors.names[:tasks]}
    extractor = Extractor.of(nn.Sequential(nn.Flatten(), nn.Linear(4 * width, 512)), tap="")  # as wide as ResNet-18's
    DataAdaptive(module, vectors, extractor, steps=2).fit(data)


def _memory(field: str) -> int:
    """Bytes resident now or at most: what ``getrusage`` says is handed down from the process that started this one."""
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields[field].split()[0]) * 1024


def bench_memory(layers: int, width: int, tasks: tuple[int, ...]) -> dict:
    """Peak memory of training against base + task vectors + one merged model, for steps of few and of many tasks."""
    found = {}
    for count in tasks:
        command = [sys.executable, "-c", _MEMORY_PROBE, str(Path(__file__).parent), str(layers), str(width), str(count)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        peak, needed = map(int, output.split())
        found |= {f"{count} tasks_MB": peak / 1e6, f"{count} tasks_ratio": peak / needed}
    return found | {"needed_MB": needed / 1e6}


def bench_inference(layers: int, width: int, tokens: int, batch: int, rounds: int) -> dict:
    """Logits of a batch whose samples all have coefficients of their own."""
    module = transformer(layers, width)
    vectors = family(module)
    deltas = [vectors.views(row) for row in vectors.deltas]
    base = vectors.views(vectors.base)
    network = TaskNetwork.each({"task": module}, vectors)["task"]
    runs = {engine: PerSample(network, vectors, engine) for engine in ("mixing", "merging")}
    x = torch.randn(batch, tokens, width)
    coefficients = torch.rand(batch, EXPERTS)

    def dictionaries() -> Tensor:
        found = []
        with torch.no_grad():
            for row in range(batch):
                merged = dict(base)
                for scale, delta in zip(coefficients[row], deltas, strict=True):
                    for name, value in delta.items():
                        merged[name] = merged[name] + scale * value
                found.append(functional_call(module, merged, (x[row : row + 1],)))
        return torch.cat(found)

    inputs = network.inputs(x)
    expected, found = dictionaries(), runs["mixing"](inputs, coefficients)
    seconds = {"dictionaries": [], "merging": [], "mixing": []}
    for _ in range(rounds):
        seconds["dictionaries"].append(timed(dictionaries))
        for engine, run in runs.items():
            seconds[engine].append(timed(run, inputs, coefficients))
    with torch.no_grad():
        plain = min(timed(module, x) for _ in range(3))
    return {
        **{f"{name}_s_per_sample": float(np.median(values)) / batch for name, values in seconds.items()},
        "plain_forward_s_per_sample": plain / batch,
        "ratio_to_dictionaries": float(np.median(np.divide(seconds["dictionaries"], seconds["mixing"]))),
        "ratio_to_flat_merging": float(np.median(np.divide(seconds["merging"], seconds["mixing"]))),
        "largest_difference": float((found - expected).abs().max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--only", help="only benchmarks whose title holds this")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    sizes = {"0.4 M": (2, 128)} if arguments.quick else SIZES
    tasks, rounds, batch, tokens = (3, 2, 4, 8) if arguments.quick else (8, 3, 16, 50)
    benchmarks: dict[str, Callable[[], dict]] = {}
    for name, (layers, width) in sizes.items():
        benchmarks[f"step, {EXPERTS} experts of {name}, {tasks} tasks"] = lambda layers=layers, width=width: bench_step(
            layers, width, tasks, rounds
        )
        benchmarks[f"memory, {EXPERTS} experts of {name}"] = lambda layers=layers, width=width: bench_memory(
            layers, width, (1, 2, EXPERTS)
        )
        benchmarks[f"inference, {EXPERTS} experts of {name}, {batch} samples of {tokens} tokens"] = (
            lambda layers=layers, width=width: bench_inference(layers, width, tokens, batch, rounds)
        )
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
