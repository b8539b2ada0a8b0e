"""Several small learners trained at once on tensors in memory, all seeing the same batches in the same order."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from taskatlas.engine import track
from taskatlas.errors import BadInput, WorkFailed
from taskatlas.learn.randomness import TURNS, state_kept
from taskatlas.probe.quiet import quiet

IGNORED = -100  # a target that counts for nothing, as in torch's cross-entropy
_EVALUATED = 1024  # samples a pass where nothing is trained
_POINTWISE = (nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Identity)


def train(
    modules: Sequence[nn.Module],
    inputs: Shaped[Tensor, "n *rest"],
    targets: Sequence[Tensor],
    *,
    epochs: int,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
    seed: int = 0,
    orders: Sequence[int] | None = None,
    enough: float | None = None,
    description: str = "training",
) -> list[float]:
    """Trains classifiers in place with AdamW and cross-entropy, by default all on the same batches in the same order.

    Learners of one structure that have neither buffers nor batch statistics nor recurrent layers train stacked: plain
    linear layers in one product each, all else in one pass of ``torch.func.vmap``. The others, and those that vmap
    cannot run, train in turn. Either way a learner ends where it would have ended alone, up to rounding (and but for
    dropout, whose masks differ). The order of the batches follows ``seed``, and so does dropout; torch's own random
    state and the modes of the networks stay as they are.

    Args:
        modules: networks that map (batch, ...) to (batch, classes), on the device of ``inputs``.
        inputs: the samples, the same for all.
        targets: for each network the class of each sample, int64 (n,), or -100 where the sample counts for nothing.
        epochs: passes over the samples.
        batch_size: samples a step.
        learning_rate: of AdamW.
        weight_decay: of AdamW, decoupled from the gradient.
        seed: of the order of the samples, and of what is random within the networks.
        orders: for each network the seed of an order of its own.
        enough: a network whose predictions in an epoch, as it trained, were right for this share is left as it is
            then. What the others do never depends on it.
        description: beside the progress bar.

    Returns:
        Each network's mean loss in nats over its last epoch, as it was while it trained.

    Raises:
        BadInput: lengths that differ, inputs that are not finite, a target that is no class, learners that share
            parameters, a single sample a step for a learner with batch statistics.
        WorkFailed: a loss is NaN or infinite; names the learner and the epoch.

    Example:
        >>> x, y = torch.tensor([[0.0], [1.0], [2.0], [3.0]]), torch.tensor([0, 0, 1, 1])
        >>> net = nn.Linear(1, 2)
        >>> losses = train([net], x, [y], epochs=100, learning_rate=0.3)
        >>> losses[0] < 0.1, accuracy(net, x, y)
        (True, 1.0)
    """
    _check(modules, inputs, targets, epochs, batch_size)
    if orders is not None and len(orders) != len(modules):
        raise BadInput(f"there are {len(orders)} orders for {len(modules)} networks; give each its own, or none.")
    groups: list[list[int]] = []
    losses: dict[int, float] = {}
    passes = (
        (group, epoch, means)
        for group in groups
        for epoch, means in enumerate(
            _fit(
                [modules[position] for position in group],
                inputs,
                torch.stack([targets[position] for position in group]).to(inputs.device),
                epochs=epochs,
                batch_size=batch_size,
                learning_rate=learning_rate,
                weight_decay=weight_decay,
                seed=seed,
                orders=None if orders is None else [orders[position] for position in group],
                enough=math.inf if enough is None else enough,
            ),
            start=1,
        )
    )
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        with state_kept(inputs.device):
            groups += _runnable(modules, inputs[:2], apart=orders is not None)
            for group, epoch, means in track(passes, description, total=epochs * len(groups)):
                losses |= dict(zip(group, means.tolist(), strict=True))
                for learner in group:
                    if not math.isfinite(losses[learner]):
                        raise WorkFailed(
                            f"the loss of learner {learner} became NaN or infinite in epoch {epoch} of {epochs}. "
                            f"Try a learning rate below {learning_rate:g}."
                        )
    finally:
        for part, mode in modes:
            part.training = mode
    return [losses[position] for position in range(len(modules))]


def accuracy(module: nn.Module, x: Shaped[Tensor, "n *rest"], y: Int64[Tensor, " n"]) -> float:
    """The share of samples, in [0, 1], whose largest output is that of their class; a ``y`` of -100 does not count.

    Raises:
        BadInput: no sample counts.

    Example:
        >>> accuracy(nn.Identity(), torch.tensor([[0.0, 1.0], [2.0, 1.0]]), torch.tensor([1, 1]))
        0.5
    """
    counted = y != IGNORED
    if not counted.any():
        raise BadInput("there is no labelled sample to measure an accuracy on.")
    return float((outputs(module, x).argmax(-1) == y)[counted].float().mean())


def outputs(module: nn.Module, x: Shaped[Tensor, "n *rest"]) -> Float[Tensor, "n *out"]:
    """What a network gives for each sample in evaluation mode, some samples at a time.

    Example:
        >>> outputs(nn.Identity(), torch.eye(2))
        tensor([[1., 0.],
                [0., 1.]])
    """
    with TURNS, quiet(module):
        return torch.cat([module(batch) for batch in torch.split(x, _EVALUATED)])


def has_batch_statistics(module: nn.Module) -> bool:
    """Whether what a network says of a sample may depend on others of a batch: it normalises by batch, or has buffers.

    Example:
        >>> has_batch_statistics(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))), has_batch_statistics(nn.ReLU())
        (True, False)
    """
    return next(module.buffers(), None) is not None or any(isinstance(part, _BatchNorm) for part in module.modules())


def _fit(
    learners: list[nn.Module],
    inputs: Tensor,
    targets: Tensor,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    seed: int,
    orders: Sequence[int] | None,
    enough: float,
) -> Iterator[Tensor]:
    """Trains learners of one structure; yields each one's mean loss after every epoch.

    Args:
        targets: (learners, n).
    """
    with TURNS:
        torch.manual_seed(seed)
    drawing = [torch.Generator().manual_seed(own) for own in ([seed] if orders is None else orders)]
    counted = (targets != IGNORED).sum(1)
    means = torch.full((len(learners),), math.nan, device=inputs.device)
    going = torch.ones(len(learners), dtype=torch.bool, device=inputs.device)
    highest = int(targets.max())
    for learner in learners:
        learner.train()
    apart = orders is not None
    parameters, forward = _stacked(learners, apart) if len(learners) > 1 else _alone(learners[0], apart)
    optimized = list(parameters.values()) if len(learners) == 1 else _as_one(parameters)
    optimizer = torch.optim.AdamW(optimized, lr=learning_rate, weight_decay=weight_decay)
    for _ in range(epochs):
        sums = torch.zeros(2, len(learners), device=inputs.device)  # loss, right predictions
        order = torch.stack([torch.randperm(len(inputs), generator=own) for own in drawing]).to(inputs.device)
        for rows in _batches(order, batch_size, whole=has_batch_statistics(learners[0])):
            logits = forward(inputs[rows if apart else rows[0]])
            if logits.ndim != 3 or logits.shape[-1] <= highest:
                raise BadInput(
                    f"a target is class {highest}, but the network gives outputs of shape {tuple(logits.shape[1:])}; "
                    "it needs one for each class."
                )
            wanted = targets.gather(1, rows.expand(len(targets), -1))
            each = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="none")
            total = each.view(wanted.shape).sum(1)
            optimizer.zero_grad(set_to_none=len(learners) == 1)
            # The sum over learners gives each its own gradient, since they share nothing.
            (total / (wanted != IGNORED).sum(1).clamp(min=1)).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            sums += torch.stack([total.detach(), (logits.argmax(-1) == wanted).sum(1).float()])
        means = torch.where(going, sums[0] / counted, means)
        settled = going & (sums[1] / counted >= enough)
        going &= ~settled
        if len(learners) > 1:
            _unstack(parameters, learners, settled.nonzero().flatten().tolist())
        yield means
        if not going.any():
            break
    optimizer.zero_grad()
    if len(learners) > 1:
        _unstack(parameters, learners, going.nonzero().flatten().tolist())


def _batches(order: Int64[Tensor, "orders n"], size: int, *, whole: bool) -> Sequence[Tensor]:
    """Batches of an order; a last one of a single sample, which has no deviation, goes with the one before."""
    batches = list(torch.split(order, size, dim=1))
    if whole and len(batches) > 1 and batches[-1].shape[1] == 1:
        batches[-2:] = [torch.cat(batches[-2:], dim=1)]
    if whole and batches[0].shape[1] == 1:
        raise BadInput("a learner with batch statistics cannot learn from one sample a step. Give larger batches.")
    return batches


def _alone(learner: nn.Module, apart: bool) -> tuple[dict[str, Tensor], Callable[[Tensor], Tensor]]:
    """A learner's parameters, and (batch, ...), or (1, batch, ...) where they come apart, to (1, batch, classes)."""
    return dict(learner.named_parameters()), lambda x: learner(x[0] if apart else x)[None]


def _stacked(learners: list[nn.Module], apart: bool) -> tuple[dict[str, Tensor], Callable[[Tensor], Tensor]]:
    """Parameters of all learners, stacked along a new first axis, and their function of a batch.

    It takes (batch, ...) to (learners, batch, classes); or, where each has its own, (learners, batch, ...).
    """
    parameters, _ = stack_module_state(learners)
    if _is_plain(learners[0]):
        own = {id(one): parameters[name] for name, one in learners[0].named_parameters()}
        steps = [_for_each(layer, own) for layer in _in_order(learners[0])]
        return parameters, lambda x: _in_turn(steps, x if apart else x.expand(len(learners), *x.shape))

    def one(own: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(learners[0], own, (x,))

    run = vmap(one, in_dims=(0, 0 if apart else None), randomness="different")
    return parameters, lambda x: run(parameters, x)


def _is_plain(network: nn.Module) -> bool:
    """Whether a network is a sequence of linear layers and functions of single numbers, with nothing hooked to it.

    For such small ones vmap's bookkeeping takes longer than the arithmetic.
    """
    layers = list(_in_order(network))
    hooked = any(
        part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks
        for part in network.modules()
    )
    flattened = all((part.start_dim, part.end_dim) == (1, -1) for part in layers if isinstance(part, nn.Flatten))
    return not hooked and flattened and all(type(part) in (nn.Linear, nn.Flatten, *_POINTWISE) for part in layers)


def _in_order(network: nn.Module) -> Iterator[nn.Module]:
    """What sequences within sequences run, in order."""
    if type(network) is nn.Sequential:
        for part in network:
            yield from _in_order(part)
    else:
        yield network


def _for_each(layer: nn.Module, own: dict[int, Tensor]) -> Callable[[Tensor], Tensor]:
    """A layer of all learners: (learners, batch, ...) to the same; its parameters are found by those of the first."""
    if isinstance(layer, nn.Flatten):
        return lambda x: x.flatten(2)
    if not isinstance(layer, nn.Linear):
        return layer
    weight, bias = own[id(layer.weight)], None if layer.bias is None else own[id(layer.bias)]

    def linear(x: Tensor) -> Tensor:
        product = torch.bmm(x.flatten(1, -2), weight.mT)
        return (product if bias is None else product + bias[:, None]).view(*x.shape[:-1], -1)

    return linear


def _in_turn(steps: Sequence[Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
    for step in steps:
        x = step(x)
    return x


def _as_one(parameters: dict[str, Tensor]) -> list[Tensor]:
    """For each type one vector, with a gradient, of which all parameters become views.

    The optimiser then takes a dozen small operations a step, and not a dozen for every parameter.
    """
    vectors = []
    trained = [parameter for parameter in parameters.values() if parameter.requires_grad]
    for dtype in dict.fromkeys(parameter.dtype for parameter in trained):
        alike = [parameter for parameter in trained if parameter.dtype == dtype]
        vector = torch.cat([parameter.detach().flatten() for parameter in alike])
        vector.grad = torch.zeros_like(vector)
        sizes = [parameter.numel() for parameter in alike]
        parts = torch.split(vector, sizes), torch.split(vector.grad, sizes)
        for parameter, values, gradient in zip(alike, *parts, strict=True):
            parameter.data, parameter.grad = values.view(parameter.shape), gradient.view(parameter.shape)
        vectors.append(vector)
    return vectors


@torch.no_grad()
def _unstack(parameters: dict[str, Tensor], learners: list[nn.Module], positions: Sequence[int]) -> None:
    for position in positions:
        for name, own in learners[position].named_parameters():
            own.copy_(parameters[name][position])


def _runnable(modules: Sequence[nn.Module], few: Tensor, *, apart: bool) -> list[list[int]]:
    """The groups of ``_alike``; one that fails under vmap on a few samples, such as by an ``if``, is taken apart."""
    groups: list[list[int]] = []
    for group in _alike(modules):
        stackable = len(group) == 1 or _runs_stacked([modules[position].train() for position in group], few, apart)
        groups += [group] if stackable else [[position] for position in group]
    return groups


@torch.no_grad()
def _runs_stacked(learners: list[nn.Module], few: Tensor, apart: bool) -> bool:
    try:
        _stacked(learners, apart)[1](few.expand(len(learners), *few.shape) if apart else few)
    except Exception:  # in turn it runs, or its own error is told
        return False
    return True


def _alike(modules: Sequence[nn.Module]) -> list[list[int]]:
    """Positions of modules that can train stacked; one that cannot is a group of its own."""
    groups: list[list[int]] = []
    for position, module in enumerate(modules):
        recurrent = any(isinstance(part, nn.RNNBase) for part in module.modules())  # vmap cannot batch their kernels
        stackable = not has_batch_statistics(module) and not recurrent
        group = next((g for g in groups if stackable and _same_structure(modules[g[0]], module)), None)
        if group is None:
            groups.append([position])
        else:
            group.append(position)
    return groups


def _same_structure(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules compute the same function of their parameters and input, as far as can be told."""
    return (
        [(name, p.shape, p.dtype, p.device, p.requires_grad) for name, p in one.named_parameters()]
        == [(name, p.shape, p.dtype, p.device, p.requires_grad) for name, p in other.named_parameters()]
        and [(name, type(part)) for name, part in one.named_modules()]
        == [(name, type(part)) for name, part in other.named_modules()]
        and all(_same_settings(a, b) for a, b in zip(one.modules(), other.modules(), strict=True))
    )


def _same_settings(one: nn.Module, other: nn.Module) -> bool:
    settings = [{k: v for k, v in vars(part).items() if not k.startswith("_")} for part in (one, other)]
    try:
        return bool(settings[0] == settings[1])
    except (RuntimeError, ValueError):  # arrays among them, which have no single truth
        return False


def _check(
    modules: Sequence[nn.Module], inputs: Tensor, targets: Sequence[Tensor], epochs: int, batch_size: int
) -> None:
    if not modules or len(modules) != len(targets):
        raise BadInput(f"there are {len(modules)} networks and {len(targets)} targets; give each network its own.")
    if epochs < 1 or batch_size < 1:
        raise BadInput(f"{epochs} epochs of batches of {batch_size} are no training; give at least 1 of each.")
    if inputs.is_floating_point() and not inputs.isfinite().all():
        raise BadInput("the inputs hold NaN or infinite numbers. Remove those samples or fill them in.")
    owners: dict[int, int] = {}
    for learner, (module, target) in enumerate(zip(modules, targets, strict=True)):
        if not any(parameter.requires_grad for parameter in module.parameters()):
            raise BadInput(f"learner {learner} has no parameter to train.")
        for parameter in module.parameters():
            if owners.setdefault(id(parameter), learner) != learner:
                raise BadInput(f"learners {owners[id(parameter)]} and {learner} share parameters; give each its own.")
        if len(target) != len(inputs):
            raise BadInput(f"learner {learner} has {len(target)} targets for {len(inputs)} samples.")
        if ((target < 0) & (target != IGNORED)).any():
            raise BadInput(f"learner {learner} has a negative target; a class is at least 0, or {IGNORED} for none.")
        if (target == IGNORED).all():
            raise BadInput(f"learner {learner} has no sample to learn from: all its targets are {IGNORED}.")
