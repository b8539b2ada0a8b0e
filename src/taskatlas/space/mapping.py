"""From a zoo and a probe to its task space: features of each checkpoint, then one kernel between all."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import numpy as np
from jaxtyping import Float

from taskatlas.engine import Engine, run_jobs, track
from taskatlas.errors import BadInput
from taskatlas.probe import Features, Probe, check_same_samples, extract
from taskatlas.probe.pooling import Pool, WordPool
from taskatlas.space.kernels import Kernel, find_kernel
from taskatlas.space.samples import Samples, SampleSubset, centre, standardise
from taskatlas.space.task_space import TaskSpace
from taskatlas.store import Store
from taskatlas.zoo import Checkpoint, Zoo

KernelName = Literal["cka", "debiased_cka", "minibatch_cka", "rbf_cka", "procrustes", "mutual_knn"]


def map_tasks(
    zoo: Zoo,
    probe: Probe,
    *,
    kernel: KernelName | Kernel = "cka",
    tap: str | None = None,
    pool: Pool = "auto",
    words: WordPool = "mean",
    standardised: bool = False,
    bootstrap: int = 0,
    seed: int = 0,
    batch_size: int = 64,
    device: str = "auto",
    engine: Engine = "local",
    store: Store | None = None,
    known: TaskSpace | None = None,
) -> TaskSpace:
    """Maps a zoo: the covariance of its checkpoints' tasks on one probe (Huang et al., NeurIPS 2021, section 3.1).

    Features are kept in the store, so mapping again is cheap. The result does not depend on the order of the zoo, to
    the bit; only ``names`` follow it.

    Args:
        zoo: m checkpoints.
        probe: n samples that every checkpoint sees, in the same order.
        kernel: ``cka`` (biased linear CKA, the paper's), ``debiased_cka``, ``minibatch_cka`` (debiased, for very many
            samples), ``rbf_cka``, ``procrustes``, ``mutual_knn``, or a function of the same form.
        tap: where features are read; None takes the input of the last linear layer, see ``extract``.
        pool: how maps and tokens become one vector, see ``extract``.
        words: how sub-words become a word, see ``extract``.
        standardised: scale every feature to unit variance first, for models in which a few dimensions drown the rest.
        bootstrap: replicates of the covariance, each on a random half of the samples without replacement, whose spread
            about their median estimates the standard error at n samples. Drawing with replacement would inflate
            biased CKA and make every sample its own neighbour.
        seed: of the replicates.
        batch_size: samples at once in a checkpoint's forward pass.
        device: ``auto``, ``cpu`` or ``cuda``.
        engine: where each checkpoint's features are computed.
        store: where features are kept; None takes the user's.
        known: an earlier space; pairs of checkpoints whose features it knows under the same kernel are not computed
            again, so that a new checkpoint costs one row.

    Raises:
        BadInput: an empty zoo, a checkpoint that does not open or fit the probe, features that are not finite or do
            not vary; the message names the checkpoint.
    """
    if not zoo:
        raise BadInput("the zoo is empty; give at least one checkpoint.")
    store = store or Store.default()
    names = sorted(zoo)
    read = partial(extract, tap=tap, pool=pool, words=words, batch_size=batch_size, device=device, store=store)
    jobs = [(read, zoo[name], probe) for name in names]
    run_jobs(_extract_into_store, jobs, engine=engine, description="extracting features")
    features = [read(zoo[name], probe) for name in names]
    check_same_samples(features)
    for one in features:
        centre(one.values, f"{one.checkpoint} at {one.tap}")  # refuses, by name, what no kernel can use
    space = map_features(
        features, kernel=kernel, standardised=standardised, bootstrap=bootstrap, seed=seed, known=known
    )
    return space.subset(list(zoo))


def map_features(
    features: Sequence[Features],
    *,
    kernel: KernelName | Kernel = "cka",
    standardised: bool = False,
    bootstrap: int = 0,
    seed: int = 0,
    known: TaskSpace | None = None,
) -> TaskSpace:
    """The task space of features that are there already, one entry a checkpoint; see ``map_tasks``.

    Raises:
        BadInput: no features, other samples in some of them, an unknown kernel, or as the kernel.
    """
    if not features:
        raise BadInput("there are no features to map; give at least one checkpoint's.")
    check_same_samples(features)
    function, kernel_name = find_kernel(kernel)
    if standardised:
        kernel_name += " of standardised features"
    if bootstrap < 0 or seed < 0:
        raise BadInput(f"bootstrap is {bootstrap} and seed is {seed}; neither may be negative.")
    given = [one.checkpoint for one in features]
    features = sorted(features, key=lambda one: one.checkpoint)  # sums round alike whatever the order they came in
    values: list[Samples] = [standardise(one.values) if standardised else one.values for one in features]
    if known is not None and (known.kernel, known.probe) != (kernel_name, features[0].probe):
        known = None
    digests = tuple(one.digest for one in features)
    n = features[0].values.shape[0]
    replicates = None
    if bootstrap:
        known_replicates = (
            known.replicates
            if known is not None
            and known.replicates is not None
            and (len(known.replicates), known.seed) == (bootstrap, seed)
            else None
        )
        replicates = np.empty((bootstrap, len(features), len(features)), dtype=np.float32)
        for b in track(range(bootstrap), "bootstrap", total=bootstrap):
            rows = np.sort(np.random.default_rng([seed, b]).choice(n, size=max(n // 2, 2), replace=False))
            halves = [SampleSubset(x, rows) for x in values]
            before = None if known is None or known_replicates is None else known_replicates[b]
            replicates[b] = _covariance(function, halves, digests, known, before)
    space = TaskSpace(
        names=tuple(one.checkpoint for one in features),
        covariance=_covariance(function, values, digests, known, None if known is None else known.covariance),
        replicates=replicates,
        kernel=kernel_name,
        probe=features[0].probe,
        features=digests,
        seed=seed,
    )
    return space.subset(given)


def _extract_into_store(read: Callable[[Checkpoint, Probe], Features], checkpoint: Checkpoint, probe: Probe) -> None:
    """A job: its result stays in the store, so that no features travel between processes."""
    read(checkpoint, probe)


def _covariance(
    function: Kernel,
    values: Sequence[Samples],
    digests: Sequence[str],
    known: TaskSpace | None,
    before: Float[np.ndarray, "k k"] | None,
) -> Float[np.ndarray, "m m"]:
    """All pairs, or only the rows of the checkpoints that ``known`` has not seen."""
    old_position = {} if known is None or before is None else dict(zip(known.features, range(len(known)), strict=False))
    old = [i for i, name in enumerate(digests) if name in old_position]
    new = [i for i in range(len(digests)) if i not in old]
    if not old or before is None:
        return function(values, None)
    covariance = np.empty((len(values), len(values)))
    positions = [old_position[digests[i]] for i in old]
    covariance[np.ix_(old, old)] = before[np.ix_(positions, positions)]
    if new:
        fresh = [values[i] for i in new]
        rows = function(fresh, [values[i] for i in old])
        covariance[np.ix_(new, old)] = rows
        covariance[np.ix_(old, new)] = rows.T
        covariance[np.ix_(new, new)] = function(fresh, None)
    return covariance
