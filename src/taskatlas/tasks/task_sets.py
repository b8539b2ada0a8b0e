"""Where tasks come from: divisions of known classes, chance, networks that never learned, and embeddings."""

from collections.abc import Sequence
from itertools import combinations, islice
from math import comb

import numpy as np
from jaxtyping import Float, Int64
from scipy.stats import special_ortho_group

from taskatlas.errors import BadInput
from taskatlas.learn import Network, outputs
from taskatlas.probe import Probe, class_names
from taskatlas.tasks.samples import Learner, as_numbers, fresh_network, in_batches
from taskatlas.tasks.task import Task

_RANDOM, _EMBEDDING = 72, 73  # what a random generator is for
_SAMPLES, _NUMBERS = 1024, 2**25  # that an untrained network is shown at once, at most


def human_tasks(data: Probe, n: int | None = None, *, size: int | None = None) -> list[Task]:
    """The ways to divide the known classes in two groups, without complements, in lexicographic order.

    Ten classes have 126 divisions of five against five (Atanov et al., NeurIPS 2022, section 3.1). The group that is
    named has the label 1; of two groups of one size it is that of class 0.

    Args:
        data: labelled samples.
        n: only the first n; None: all.
        size: of the group; None: half of the classes, rounded down.

    Raises:
        BadInput: no labels, a single class, or no such size.

    Example:
        >>> probe = Probe.from_arrays(np.zeros((4, 1)), labels=[0, 1, 2, 3])
        >>> [task.name for task in human_tasks(probe)]
        ['0+1', '0+2', '0+3']
    """
    names = class_names(data)
    labels, count = data.labels, len(names)
    assert labels is not None
    own = count // 2 if size is None else size
    if count < 2 or not 1 <= own < count:
        raise BadInput(f"{count} classes have no group of {own} against the rest. Give a size from 1 to {count - 1}.")
    groups = combinations(range(count), own)  # those with class 0 come first: half of them where both sizes agree
    last = comb(count - 1, own - 1) if 2 * own == count else comb(count, own)
    return [class_group_task(data, group) for group in islice(groups, last if n is None else min(n, last))]


def class_group_task(data: Probe, group: Sequence[int | str], name: str | None = None) -> Task:
    """The task whose class 1 is a group of known classes, given by number or name, and whose class 0 are the others.

    Raises:
        BadInput: no labels, an unknown class, or a group of no or all samples.

    Example:
        >>> class_group_task(Probe.from_text(["a", "b", "c"], labels=["cat", "dog", "eel"]), ["eel", "cat"])
        Task('cat+eel', 3 samples, classes .333 .667)
    """
    names = class_names(data)
    unknown = [one for one in group if (one not in names if isinstance(one, str) else not 0 <= one < len(names))]
    if unknown:
        raise BadInput(f"there is no class {unknown[0]!r}; the data has {', '.join(names[:8])}.")
    chosen = sorted({names.index(one) if isinstance(one, str) else int(one) for one in group})
    called = "+".join(names[one] for one in chosen) if name is None else name
    assert data.labels is not None
    return Task.of_probe(called, data, np.isin(data.labels, chosen))


def random_tasks(
    data: Probe, n: int, *, classes: int = 2, rates: Sequence[float] | None = None, seed: int = 0
) -> list[Task]:
    """Tasks whose labels are shuffled: what agreement is when there is nothing to generalise.

    A sample's label follows from the seed and its place among the sorted ids, so the order of the data does not matter.

    Args:
        data: the samples.
        n: how many tasks.
        classes: how many classes, of the same size.
        rates: the share of each class instead.
        seed: of the shuffling.

    Example:
        >>> random_tasks(Probe.from_arrays(np.zeros((8, 1))), 2, seed=1)[0].class_rates
        array([0.5, 0.5])
    """
    shares = np.full(classes, 1 / classes) if rates is None else np.asarray(rates) / np.sum(rates)
    ends = np.round(np.cumsum(shares) * len(data)).astype(int)
    even = np.searchsorted(ends, np.arange(len(data)), side="right").clip(max=len(shares) - 1)
    order = sorted(range(len(data)), key=data.ids.__getitem__)
    tasks = []
    for number in range(n):
        labels = np.empty(len(data), dtype=np.int64)
        labels[order] = np.random.default_rng([_RANDOM, seed, number]).permutation(even)
        tasks.append(Task(f"random {number}", labels, data.ids, note=f"random labels, seed {seed}"))
    return tasks


def untrained_tasks(
    learner: Learner,
    data: Probe,
    n: int,
    *,
    classes: int = 2,
    rates: Sequence[float] | None = None,
    size: int | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> list[Task]:
    """Tasks that networks of an architecture compute before they learn anything: what generalises by itself.

    Samples are read a batch at a time. Each output is standardised over the data, and borders are moved to where the
    rates are as wanted.

    Args:
        learner: how a network is built.
        data: the samples.
        n: how many tasks, each from a network of its own.
        classes: how many classes.
        rates: the share of each class; None: the same of two, whatever the outputs say of more.
        size: to what side images are brought.
        seed: of the weights.
        device: where the networks run.

    Raises:
        BadInput: the learner does not fit.
    """
    data, ids = as_numbers(data), data.ids
    seeds = [seed * 1009 + number for number in range(n)]
    networks = [fresh_network(learner, data, classes, size=size, seed=own) for own in seeds]
    modules = [network.module.to(device) for network in networks]
    found = [
        [outputs(module, x.to(device)).double().cpu().numpy() for module in modules]
        for x in in_batches(data, networks[0], _batch_size(data, networks[0]))
    ]
    tasks: list[Task] = []
    for number, logits in enumerate(zip(*found, strict=True)):
        note = f"untrained {networks[number].builder}, seed {seeds[number]}"
        task = task_of_logits(f"untrained {number}", np.concatenate(logits), data.ids, rates=rates, note=note)
        tasks.append(task.among(ids))
    return tasks


def _batch_size(data: Probe, network: Network) -> int:
    """Samples that are looked at together: fewer where they are large."""
    numbers = next(in_batches(data.take([0]), network, 1)).numel()
    return max(1, min(_SAMPLES, _NUMBERS // max(numbers, 1)))


def task_of_logits(
    name: str,
    logits: Float[np.ndarray, "n classes"],
    ids: tuple[str, ...],
    *,
    rates: Sequence[float] | None = None,
    note: str = "",
) -> Task:
    """The task of the largest output, each output standardised over the samples so that no class takes all of them.

    For two classes the border lies where class 1 has its share, ``rates[1]`` (a half where there are no rates). Of more
    classes with rates, each in turn takes, of the samples that are left, those where it leads most over the classes
    that are left.

    Example:
        >>> task_of_logits("t", np.array([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0], [0.0, 4.0]]), ("a", "b", "c", "d")).labels
        array([0, 0, 1, 1])
    """
    classes = logits.shape[1]
    if classes == 2:
        margin = logits[:, 1] - logits[:, 0]
        share = 0.5 if rates is None else float(rates[1]) / float(np.sum(rates))
        ranks = np.empty(len(margin), dtype=np.int64)
        ranks[np.lexsort((np.asarray(ids), margin))] = np.arange(len(margin))
        border = round((1 - share) * len(margin))
        labels = (ranks >= border).astype(np.int64)
        certainty = np.abs(margin - np.sort(margin)[min(border, len(margin) - 1)])
    else:
        scaled = (logits - logits.mean(0)) / np.maximum(logits.std(0), 1e-12)
        labels = scaled.argmax(1) if rates is None else _with_rates(scaled, ids, rates)
        own = np.take_along_axis(scaled, labels[:, None], 1)[:, 0]
        np.put_along_axis(scaled, labels[:, None], -np.inf, 1)
        certainty = own - scaled.max(1)
    return Task(name, labels, ids, certainty.astype(np.float32), note)


def _with_rates(
    scaled: Float[np.ndarray, "n classes"], ids: tuple[str, ...], rates: Sequence[float]
) -> Int64[np.ndarray, " n"]:
    """Classes of which each has its share."""
    ends = np.round(np.cumsum(rates) / np.sum(rates) * len(scaled)).astype(int)
    labels = np.full(len(scaled), len(ends) - 1)
    left = np.arange(len(scaled))
    for label, count in enumerate(np.diff(ends, prepend=0)[:-1]):
        lead = scaled[left, label] - scaled[left, label + 1 :].max(1)
        order = np.lexsort((np.asarray(ids)[left], -lead))
        labels[left[order[:count]]] = label
        left = np.sort(left[order[count:]])
    return labels


def embedding_tasks(
    embedding: Float[np.ndarray, "n d"], ids: Sequence[str], n: int, *, classes: int = 2, seed: int = 0
) -> list[Task]:
    """Random linear tasks on a fixed embedding: what its directions ask of the samples.

    The embedding is standardised; the tasks' directions come from random rotations.

    Raises:
        BadInput: an embedding of too few dimensions, or not of these samples.

    Example:
        >>> x = np.random.default_rng(0).standard_normal((100, 3))
        >>> embedding_tasks(x, [str(i) for i in range(100)], 1)[0].class_rates
        array([0.5, 0.5])
    """
    if embedding.ndim != 2 or len(embedding) != len(ids):
        raise BadInput(f"an embedding of shape {embedding.shape} is none of {len(ids)} samples.")
    h = embedding - embedding.mean(0)
    h = h / np.maximum(h.std(0), 1e-12)
    random = np.random.default_rng([_EMBEDDING, seed])
    heads = rotated_heads(n, classes, h.shape[1], random)
    return [
        task_of_logits(f"linear {number}", h @ head.T, tuple(ids), note=f"random head, seed {seed}")
        for number, head in enumerate(heads)
    ]


def rotated_heads(
    n: int, classes: int, width: int, random: np.random.Generator
) -> Float[np.ndarray, "n classes width"]:
    """Heads of n tasks: corners of a simplex, turned at random; orthogonal to each other as long as there is room.

    For two classes each head is [w, −w] with w a row of a random orthogonal matrix; the head of k classes takes k − 1
    dimensions. More tasks than fit take a further rotation.

    Raises:
        BadInput: fewer dimensions than a head takes.

    Example:
        >>> heads = rotated_heads(2, 2, 3, np.random.default_rng(0))
        >>> bool(np.allclose(heads[0, 0], -heads[0, 1])), abs(round(float(heads[0, 0] @ heads[1, 0]), 6))
        (True, 0.0)
    """
    taken = classes - 1
    if classes < 2 or width < taken:
        raise BadInput(f"{classes} classes do not fit into {width} dimensions; give at least {max(taken, 1)}.")
    corners = np.linalg.svd(np.eye(classes) - 1 / classes)[0][:, :taken]  # centred, all at one distance
    corners /= np.linalg.norm(corners, axis=1, keepdims=True)
    heads: list[np.ndarray] = []
    while len(heads) < n:
        turn = special_ortho_group.rvs(width, random_state=random) if width > 1 else np.ones((1, 1))
        heads += [corners @ turn[start : start + taken] for start in range(0, width - taken + 1, taken)]
    return np.stack(heads[:n])
