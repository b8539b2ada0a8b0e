"""Task discovery: a network learns to label samples so that others, trained on its labels, agree on new ones."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from taskatlas.engine import track_steps
from taskatlas.errors import BadInput, WorkFailed
from taskatlas.learn import Network, new_network
from taskatlas.probe import Features, Probe
from taskatlas.probe.forward import chosen_device
from taskatlas.store import atomic_write, digest
from taskatlas.tasks.diversity import information_with, pairwise_information, uniformity
from taskatlas.tasks.encoder import TaskEncoder, soft_labels
from taskatlas.tasks.jobs import fitting_threads, seed_of, source_of
from taskatlas.tasks.samples import Learner, as_numbers, as_tensor, canonical, fresh_network, hold_out
from taskatlas.tasks.task import Task, least_rate
from taskatlas.tasks.task_sets import rotated_heads
from taskatlas.tasks.unrolled import can_stack, sqrt_segment, stack_learners, unrolled_gradient

Diversity = Literal["uniformity", "information"]
Watch = Callable[["Step"], object]

_SAVE_SECONDS = 60.0
_SETTLED = 10  # last steps whose mean is told
_UNFIT = 0.8  # below it learners did not learn their own labels, and the objective has nothing to say


@dataclass(frozen=True)
class Search:
    """Settings of a discovery; the defaults suit small data.

    The published ones, for CIFAR-10: 50 inner steps at a rate of .01, batches of 512, 32 tasks in 32 dimensions, a
    coefficient of 25, an encoder's rate of .001, nothing truncated.

    Attributes:
        steps: of the encoder (Adam).
        learning_rate: of the encoder.
        batch_size: samples that the two learners of a task train on, half each.
        asked: further samples, on which they are compared.
        inner_steps: K, steps of gradient descent that learners take, each on the whole of their half.
        inner_rate: of these. Too low with too few steps, learners never fit and nothing is found; ``fit`` tells.
        truncate: differentiate so many last inner steps only; None: all.
        checkpoint: keep the graph of √K inner steps at a time and train each part twice: memory against time.
        temperature: of the labels; higher is harder.
        diversity: what keeps tasks apart: a uniform embedding, or little mutual information between tasks.
        coefficient: of the diversity, against the objective in nats.
        fresh_heads: every step asks new random directions, so that all of the embedding's become tasks.
        together: tasks of a step; None: all, up to 8.

    Raises:
        BadInput: a setting out of its range.
    """

    steps: int = 120
    learning_rate: float = 2e-3
    batch_size: int = 128
    asked: int = 128
    inner_steps: int = 30
    inner_rate: float = 0.3
    truncate: int | None = 5
    checkpoint: bool = False
    temperature: float = 5.0
    diversity: Diversity = "uniformity"
    coefficient: float = 0.4
    fresh_heads: bool = False
    together: int | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "asked", "inner_steps", "truncate", "together"):
            value = getattr(self, name)
            if value is not None and value < (2 if name == "batch_size" else 1):
                raise BadInput(
                    f"{name.replace('_', ' ')} is {value}; give at least {2 if name == 'batch_size' else 1}."
                )
        for name in ("learning_rate", "inner_rate", "temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise BadInput(f"the {name.replace('_', ' ')} is {getattr(self, name)}; give a number above 0.")
        if not 0 <= self.coefficient < math.inf:
            raise BadInput(f"the coefficient of diversity is {self.coefficient}; give 0 or more.")
        if self.diversity not in get_args(Diversity):
            raise BadInput(f"there is no diversity {self.diversity!r}. Choose {', '.join(get_args(Diversity))}.")


class Step(NamedTuple):
    """How a step of a discovery went, as a row of its history."""

    step: int  # from 1 on
    objective: float  # symmetric cross-entropy of two learners on other samples, nats
    agreement: float  # of two learners on other samples, mean over tasks
    fit: float  # of the learners on their own samples
    diversity: float  # the term that keeps tasks apart
    similarity: float  # mean over pairs of tasks, on the batch; NaN for a single one


class ConstantTasks(WorkFailed):
    """A search ended with all samples of each task in one class."""


@dataclass(frozen=True, eq=False, repr=False)
class Discovered:
    """Tasks that a discovery found, and the embedding that they ask about.

    Attributes:
        tasks: labels of every sample of the data, with certainties.
        embedding: (n, d) points on the unit sphere, in the order of the tasks' ids.
        heads: (tasks, classes, d) the directions that the tasks ask.
        held_out: ids of the samples that the search never saw.
        history: a row for each step.
        settings: of the search.
        notes: what there is to mind, a sentence each, such as tasks that are constant and left out.
        encoder: the network, while it is in memory.
    """

    tasks: tuple[Task, ...]
    embedding: Float[np.ndarray, "n d"]
    heads: Float[np.ndarray, "tasks classes d"]
    held_out: tuple[str, ...]
    history: tuple[Step, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    encoder: TaskEncoder | None = None

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, position: int) -> Task:
        return self.tasks[position]

    def __iter__(self) -> Iterator[Task]:
        return iter(self.tasks)

    def __repr__(self) -> str:
        steps = self.history[-_SETTLED:]
        end = f", agreement {np.mean([one.agreement for one in steps]):.3f} at the end" if steps else ""
        return f"Discovered({len(self)} tasks of {len(self.embedding)} samples{end})"

    @property
    def digest(self) -> str:
        """Digest of the labels of all tasks."""
        return digest("discovered", [task.digest for task in self.tasks])

    def save(self, folder: Path | str) -> None:
        """Writes ``tasks.csv``, ``certainty.csv``, ``embedding.npz``, ``history.csv`` and, if known, the encoder.

        Raises:
            BadInput: the folder cannot be written.
        """
        from taskatlas.tasks.files import write_discovered

        write_discovered(self, Path(folder))

    @classmethod
    def load(cls, folder: Path | str) -> "Discovered":
        """What ``save`` wrote, without the encoder's network.

        Raises:
            BadInput: the folder does not hold it.
        """
        from taskatlas.tasks.files import read_discovered

        return read_discovered(Path(folder))

    def plot(self, ax: Any = None) -> Any:
        """Draws agreement, fit and similarity over the steps; returns the matplotlib axes."""
        from taskatlas.tasks.drawing import draw_history

        return draw_history(self, ax)


def discover_tasks(
    data: Probe,
    learner: Learner = "mlp",
    *,
    n_tasks: int = 8,
    classes: int = 2,
    encoder: Learner | None = None,
    width: int | None = None,
    features: Features | Float[np.ndarray, "n d"] | None = None,
    search: Search | None = None,
    known: Sequence[Task] = (),
    held_out: float = 0.2,
    size: int | None = None,
    seed: int = 0,
    split_seed: int | None = None,
    device: str = "auto",
    state: Path | None = None,
    watch: Watch | None = None,
) -> Discovered:
    """Finds tasks on which networks generalise, different from each other (Atanov et al., NeurIPS 2022, section 3).

    At each step two fresh learners a task train on the encoder's soft labels, each on its own half of a batch, and are
    compared on further samples; the gradient goes back through their training (see ``unrolled``). The proxy is not the
    score: measure the tasks with ``agreement_scores``, which with the same seed and share holds out the same samples.

    Args:
        data: arrays, images or texts; labels are not used.
        learner: the networks that shall agree; see ``agreement_scores``.
        n_tasks: how many tasks.
        classes: of each task.
        encoder: how the labelling network is built; None: as the learner, or a linear map where there are features.
        width: d, dimensions of its output; None: 8, or as many as the tasks need to be orthogonal.
        features: of the data, from a network that stays as it is: the regulated form, in which the encoder learns a
            map of these alone.
        search: settings.
        known: tasks that are accepted already, of any number of classes: mutual information with them is added to the
            diversity term.
        held_out: share of the samples that the search never sees.
        size: to what side images are brought.
        seed: of everything random.
        split_seed: of which samples are held out; None: the seed.
        device: cpu, cuda or auto.
        state: where the search is saved, every minute and at the end, and goes on from to the same tasks.
        watch: called after each step.

    Raises:
        BadInput: fewer samples than a batch, a learner with the wrong number of outputs, a state of another search.
        WorkFailed: the learners' loss became NaN (names the step and suggests a rate), or all tasks are constant. The
            saved state is removed, for the same search would end alike.

    Example:
        >>> x = np.random.default_rng(0).standard_normal((400, 6)).astype(np.float32)
        >>> search = Search(steps=2, batch_size=64, asked=64, inner_steps=5)
        >>> found = discover_tasks(Probe.from_arrays(x), "mlp", n_tasks=2, width=4, search=search)
        >>> len(found), found.embedding.shape
        (2, (400, 4))
    """
    search = search or Search()
    if n_tasks < 1 or classes < 2:
        raise BadInput(f"{n_tasks} tasks of {classes} classes cannot be found; give at least 1 task of 2 classes.")
    given = None if features is None else _features(features, data)
    ids, order = data.ids, canonical(np.arange(len(data)), data.ids)
    data = as_numbers(data)
    width = max(8, n_tasks * (classes - 1)) if width is None else width
    place = chosen_device(device)
    seen = data if given is None else Probe("array", given[order], data.ids)
    template = fresh_network(learner, data, classes, size=size, seed=0)
    built = encoder if encoder is not None else (learner if features is None else linear_map)
    labelling = fresh_network(built, seen, width, size=size, seed=seed_of(seed, "encoder"))
    x = as_tensor(data, template, place)
    looked = x if given is None and labelling.prepare == template.prepare else as_tensor(seen, labelling, place)
    learned, held = hold_out(data.ids, held_out, seed if split_seed is None else split_seed)
    if search.batch_size + search.asked > len(learned):
        raise BadInput(
            f"{len(learned)} samples to search on are fewer than a batch of {search.batch_size} and {search.asked} to "
            "ask about. Give more samples, or smaller numbers."
        )
    rows = torch.from_numpy(learned)
    network = TaskEncoder(labelling.module.to(place), looked[rows[:4096]])
    random = np.random.default_rng(seed_of(seed, "heads"))
    heads = torch.from_numpy(rotated_heads(n_tasks, classes, width, random)).to(looked)
    few, others = data.take(np.arange(min(2, len(data)))), [torch.from_numpy(task.on(data.ids)) for task in known]
    stackable = can_stack(template.module.to(place), x[:2])
    job = _Job(search, learner, few, classes, size, seed, x, looked, rows, heads, others, stackable)
    key = _key(
        (template, labelling), data, given, search, n_tasks, classes, width, held_out, size, seed, split_seed, known
    )
    try:
        with fitting_threads(x):
            history = _run(job, network, key, state, watch)
            network.settle(looked[rows])
            h = network.embed(looked)
        found, asked = _tasks(soft_labels(h, heads, search.temperature), data.ids, seed)
    except WorkFailed:
        if state is not None:
            state.unlink(missing_ok=True)
        raise
    back = np.argsort(order)  # to the order in which the data came
    settings = {**asdict(search), "learner": template.builder, "encoder": labelling.builder, "seed": seed}
    settings |= {
        "n_tasks": n_tasks,
        "classes": classes,
        "width": width,
        "held_out": held_out,
        "regulated": given is not None,
    }
    return Discovered(
        tuple(task.among(ids) for task in found),
        h.double().cpu().numpy()[back],
        heads.double().cpu().numpy()[asked],
        tuple(data.ids[row] for row in held),
        tuple(history),
        settings,
        _notes(history, search, found, n_tasks),
        network,
    )


def linear_map(shape: Sequence[int], classes: int) -> nn.Module:
    """The encoder of the regulated form: one linear layer on given features."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))


@dataclass(frozen=True, eq=False)
class _Job:
    """All that a step needs besides the encoder and its own number."""

    search: Search
    learner: Learner
    few: Probe  # samples from which learners read their sizes
    classes: int
    size: int | None
    seed: int
    x: Tensor  # (n, ...) as learners take them
    looked: Tensor  # (n, ...) as the encoder takes them
    rows: Tensor  # that may be looked at
    heads: Tensor
    known: Sequence[Tensor]
    stackable: bool  # whether learners run under vmap


def _run(job: _Job, network: TaskEncoder, key: str, state: Path | None, watch: Watch | None) -> list[Step]:
    """All steps, from the last saved one on; the encoder is trained in place."""
    optimizer = torch.optim.Adam(network.network.parameters(), lr=job.search.learning_rate)
    history: list[Step] = []
    if state is not None and state.is_file():
        history = _restore(state, key, network, optimizer)
    elif state is not None:  # from here on another search is refused
        _save(state, key, network, optimizer, history)
    saved, steps = time.monotonic(), job.search.steps
    with track_steps("discovering tasks", steps, len(history)) as tell:
        while len(history) < steps:
            row = _step(job, network, optimizer, len(history))
            history.append(row)
            tell(f"agreement {row.agreement:.3f}, similarity {row.similarity:.3f}, diversity {row.diversity:.2f}")
            if watch is not None:
                watch(row)
            if state is not None and (len(history) == steps or time.monotonic() - saved > _SAVE_SECONDS):
                _save(state, key, network, optimizer, history)
                saved = time.monotonic()
    return history


def _step(job: _Job, network: TaskEncoder, optimizer: torch.optim.Optimizer, number: int) -> Step:
    """One step: a function of the encoder, its optimiser's state and the step's number."""
    search, own = job.search, seed_of(job.seed, "step", number)
    drawn = torch.Generator().manual_seed(own)
    half = search.batch_size // 2
    order = job.rows[torch.randperm(len(job.rows), generator=drawn)]
    batch, asked = order[: 2 * half], order[2 * half : 2 * half + search.asked]
    heads = job.heads
    if search.fresh_heads:
        turned = rotated_heads(len(heads), job.classes, heads.shape[2], np.random.default_rng(own))
        heads = torch.from_numpy(turned).to(heads)
    count = min(len(heads), search.together or 8)
    chosen = torch.randperm(len(heads), generator=drawn)[:count].sort().values
    modules = [
        new_network(job.learner, job.few, job.classes, size=job.size, seed=own + member).module.to(job.x.device)
        for member in range(2 * count)
    ]
    weights, forward = stack_learners(modules, at_once=job.stackable)
    h = network.of_batch(job.looked[batch])
    labels = soft_labels(h, heads, search.temperature)
    halves = labels[chosen].view(count, 2, half, job.classes)
    unrolled = unrolled_gradient(
        forward,
        weights,
        job.x[batch].view(2, half, *job.x.shape[1:]),
        halves,
        job.x[asked],
        steps=search.inner_steps,
        rate=search.inner_rate,
        truncate=search.truncate,
        segment=sqrt_segment(min(search.inner_steps, search.truncate or search.inner_steps))
        if search.checkpoint
        else None,
    )
    apart = uniformity(h) if search.diversity == "uniformity" else pairwise_information(labels)
    if job.known:
        count = max(int(one.max()) + 1 for one in job.known)
        soft = torch.stack([torch.nn.functional.one_hot(one[batch], count).to(labels) for one in job.known])
        apart = apart + information_with(labels, soft)
    surrogate = (halves * unrolled.gradient).sum() + search.coefficient * apart
    optimizer.zero_grad()
    surrogate.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    if not all(parameter.isfinite().all() for parameter in network.network.parameters()):
        raise WorkFailed(
            f"the encoder became NaN at step {number + 1}. Try a learning rate below {search.learning_rate:g}."
        )
    return Step(
        number + 1,
        float(unrolled.objective),
        float(unrolled.agreement.mean()),
        float(unrolled.fit.mean()),
        float(apart.detach()),
        _similarity(labels.detach().argmax(-1)),
    )


def _similarity(labels: Int64[Tensor, "tasks n"]) -> float:
    """Mean over pairs of max(s, 1 − s) on a batch; for more classes than two without renaming them."""
    same = (labels[:, None] == labels[None]).double().mean(-1)
    upper = torch.triu_indices(len(labels), len(labels), 1)
    pairs = same[upper[0], upper[1]]
    if int(labels.max()) <= 1:
        pairs = torch.maximum(pairs, 1 - pairs)
    return float(pairs.mean())


def _tasks(labels: Float[Tensor, "tasks n classes"], ids: tuple[str, ...], seed: int) -> tuple[list[Task], list[int]]:
    """The tasks that are not constant, and which heads asked them."""
    logs = labels.double().log().cpu()
    top = logs.topk(2, dim=-1).values
    certain = (top[..., 0] - top[..., 1]).float().numpy()
    hard = logs.argmax(-1).numpy()
    asked = [number for number, row in enumerate(hard) if row.min() < row.max()]
    if not asked:
        raise ConstantTasks(
            f"all discovered tasks ({len(hard)}) are constant: all samples are of one class. Raise the coefficient of "
            "diversity, or search for fewer tasks."
        )
    note = f"discovered, seed {seed}"
    return [Task(f"discovered {i}", hard[number], ids, certain[number], note) for i, number in enumerate(asked)], asked


def _notes(history: Sequence[Step], search: Search, found: Sequence[Task], wanted: int) -> tuple[str, ...]:
    notes = []
    fit = float(np.mean([row.fit for row in history[-_SETTLED:]]))
    if fit < _UNFIT:
        notes.append(
            f"learners fit only {fit:.2f} of their own labels in {search.inner_steps} inner steps at a rate of "
            f"{search.inner_rate:g}: raise either, for what they agree on may be that they did not learn"
        )
    if len(found) < wanted:
        notes.append(
            f"{wanted - len(found)} of {wanted} tasks are constant and left out: raise the coefficient of diversity, "
            "or search for fewer tasks"
        )
    notes += [
        f"{task.name} is nearly constant: its smallest class has {100 * task.class_rates.min():.1f} % of the samples, "
        "and on so uneven a task networks agree by themselves"
        for task in found
        if task.class_rates.min() < least_rate(task.classes)
    ]
    return tuple(notes)


def _features(features: Features | np.ndarray, data: Probe) -> np.ndarray:
    x = features if isinstance(features, np.ndarray) else np.asarray(features.values)
    if len(x) != len(data) or (isinstance(features, Features) and tuple(features.ids) != data.ids):
        raise BadInput(f"features of {len(x)} samples are not those of the data, which has {len(data)}.")
    return x.reshape(len(x), -1).astype(np.float32)


def _key(networks: Sequence[Network], data: Probe, given: np.ndarray | None, search: Search, *others: Any) -> str:
    """Names a search: its data, its networks (as far as their source can be read) and its settings."""
    *plain, known = others
    built = [(network.builder, source_of(network), repr(network.module)) for network in networks]
    return digest("discovery", data.digest, given, built, asdict(search), plain, [task.digest for task in known])


def _save(
    file: Path, key: str, network: TaskEncoder, optimizer: torch.optim.Optimizer, history: Sequence[Step]
) -> None:
    content = {
        "key": key,
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "history": [tuple(row) for row in history],
    }
    with atomic_write(file) as temporary:
        torch.save(content, temporary)


def _restore(file: Path, key: str, network: TaskEncoder, optimizer: torch.optim.Optimizer) -> list[Step]:
    try:
        content = torch.load(file, map_location=network.mean.device, weights_only=True)
        found = content["key"]
    except Exception as error:  # torch and pickle raise whatever a damaged file provokes
        raise BadInput(f"the state of the search in {file} is damaged. Remove it to begin anew.") from error
    if found != key:
        raise BadInput(
            f"{file} is the state of another search: other data, network or settings. Give another place, or remove it "
            "to begin anew."
        )
    network.load_state_dict(content["network"])
    optimizer.load_state_dict(content["optimizer"])
    return [Step(*row) for row in content["history"]]
