"""A data set as tensors in memory, and the rows of it that nobody learns from."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from taskatlas.engine import track
from taskatlas.errors import BadInput
from taskatlas.learn import Network, new_network
from taskatlas.probe import Probe
from taskatlas.probe.forward import prepare_samples

Learner = str | Callable[..., Any]
"""How a new network is built: mlp, small_cnn, resnet18, vit, ``timm:NAME``, ``file.py:function``, or a function."""

Rows = Int64[np.ndarray, "_"]

_WORDS = 1024  # columns that the words of a text are counted in
_FLAT = 1e-6  # deviation, in units of a column's largest number, below which it is constant but for rounding
_HELD_OUT = 71  # what the random generator is for
_PREPARED = 512  # samples prepared at a time


def as_numbers(probe: Probe) -> Probe:
    """The same samples in the order of their ids, as a learner takes them.

    Rows of numbers are standardised, column by column; other arrays as a whole. Texts become counts of hashed words and
    pairs of words, each row of length 1. Images stay as they are.

    Raises:
        BadInput: samples are sentences with a label a word.

    Example:
        >>> as_numbers(Probe.from_arrays([[1.0, 7.0], [3.0, 7.0]])).inputs
        array([[-1.,  0.],
               [ 1.,  0.]], dtype=float32)
    """
    probe = probe.take(canonical(np.arange(len(probe)), probe.ids))
    if probe.kind == "image":
        return probe
    if probe.kind == "array":
        x = np.asarray(probe.inputs, dtype=np.float32)
        axes = 0 if x.ndim == 2 else None
        spread, large = x.std(axis=axes, dtype=np.float64), np.abs(x).max(axis=axes)
        scale = np.where(spread > _FLAT * large, spread, np.inf)
        x = ((x - x.mean(axis=axes, dtype=np.float64)) / scale).astype(np.float32)
        return Probe("array", x, probe.ids, probe.labels, probe.class_names)
    if probe.kind == "words":
        raise BadInput("sentences with a label a word are no samples of a task; give one label a sample.")
    from sklearn.feature_extraction.text import HashingVectorizer

    counts = HashingVectorizer(n_features=_WORDS, ngram_range=(1, 2)).transform(probe.inputs)
    x = np.asarray(counts.todense(), dtype=np.float32)
    return Probe("array", x, probe.ids, probe.labels, probe.class_names)


def as_tensor(probe: Probe, network: Network, device: str = "cpu") -> Tensor:
    """All samples as a network takes them, (n, ...), each decoded once.

    Raises:
        BadInput: the network's preparation makes other than one tensor of them.
    """
    return torch.cat(list(in_batches(probe, network, _PREPARED))).to(device)


def in_batches(probe: Probe, network: Network, size: int) -> Iterator[Tensor]:
    """Samples as a network takes them, some at a time, in their order.

    Raises:
        BadInput: the network's preparation makes other than one tensor of them.
    """
    starts = range(0, len(probe), size)
    for start in track(starts, "reading samples") if len(starts) > 8 else starts:
        rows = range(start, min(start + size, len(probe)))
        made = prepare_samples(network.prepare, probe, rows, [probe.inputs[row] for row in rows], who="the learner")
        if not isinstance(made, Tensor):
            raise BadInput(
                f"the learner's preparation makes a {type(made).__name__} of samples; here it has to be one tensor."
            )
        yield made


def hold_out(ids: Sequence[str], share: float, seed: int) -> tuple[Rows, Rows]:
    """Rows to learn from and rows held out, each in the order of the data; by id, so that its order does not matter.

    Raises:
        BadInput: the share leaves nothing on one side.

    Example:
        >>> learned, held = hold_out(["c", "a", "d", "b"], 0.25, seed=0)
        >>> len(learned), len(held)
        (3, 1)
    """
    count = round(share * len(ids)) if 0 < share < 1 else 0
    if not 0 < count < len(ids):
        raise BadInput(f"a share of {share:g} of {len(ids)} samples held out leaves one side empty; give 0.1 to 0.5.")
    order = np.array(sorted(range(len(ids)), key=ids.__getitem__), dtype=np.int64)
    drawn = order[np.random.default_rng([_HELD_OUT, seed]).permutation(len(ids))]
    return np.sort(drawn[count:]), np.sort(drawn[:count])


def canonical(rows: Rows, ids: Sequence[str]) -> Rows:
    """The same rows in the order of their ids: whoever goes through them meets the samples in one order."""
    return np.array(sorted(rows.tolist(), key=lambda row: ids[row]), dtype=np.int64)


def fresh_network(learner: Learner, probe: Probe, classes: int, *, size: int | None, seed: int) -> Network:
    """A network with weights of its own, whose outputs are checked on a sample.

    Raises:
        BadInput: it cannot be built, cannot take a sample, or has another number of outputs.
    """
    network = new_network(learner, probe, classes, size=size, seed=seed)
    sample = as_tensor(probe.take([0, min(1, len(probe) - 1)] if len(probe) > 1 else [0]), network)
    training = network.module.training
    try:
        with torch.no_grad():
            found = network.module.eval()(sample)
    except Exception as error:  # the network's own code may raise anything
        reason = str(error).strip().partition("\n")[0]
        raise BadInput(
            f"the learner {network.builder} cannot take samples of shape {tuple(sample.shape[1:])}: {reason}"
        ) from error
    finally:
        network.module.train(training)
    if not isinstance(found, Tensor) or found.shape != (len(sample), classes):
        shape = tuple(found.shape[1:]) if isinstance(found, Tensor) else type(found).__name__
        raise BadInput(
            f"the learner {network.builder} gives outputs of shape {shape} for a sample, and {classes} are needed. "
            "Let its builder take the number of classes as a parameter called classes."
        )
    return network
