"""Ridge regression of one layer of a merged network: its own inputs, and what its parents' mean output is."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.fx import Graph

from taskatlas.errors import BadInput
from taskatlas.merge.linear_operations import BatchNorm, LinearOperation, along, moments
from taskatlas.merge.walker import Walker

Mix = Callable[[Sequence[Tensor], str, int, int], Tensor]
"""The mean of the parents' values: (values, the weight whose output channels they have, its axis, theirs) -> value."""

RIDGE = 1e-3  # of the mean square of a layer's inputs
ROWS = 16  # of a regression, for each unknown
_SPARE = 4  # rows to choose from, for each that is taken


def fold_norms(graph: Graph, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same function, with the scale of each BatchNorm after a linear operation in the operation's weight.

    The norm keeps a bias, or a mean, and nothing else: layers are then averaged as they act, not part by part.
    """
    folded = dict(tensors)

    def put(name: str, value: Tensor) -> None:
        folded[name] = value.to(tensors[name].dtype)

    for operation in map(LinearOperation.at, graph.nodes):
        if operation is None or operation.norm is None:
            continue
        scale, shift = operation.norm.scale_and_shift(tensors)
        weight = tensors[operation.weight]
        put(operation.weight, weight * along(scale, weight.ndim, operation.out_axis))
        if operation.bias is not None:
            shift = shift + scale * tensors[operation.bias].double()
            put(operation.bias, torch.zeros_like(tensors[operation.bias]))
        _put_shift(put, operation.norm, shift)
    return folded


def fit(
    operation: LinearOperation, merged: Walker, parents: Sequence[Walker], mix: Mix, generator: torch.Generator
) -> None:
    """Fits the weight, and the bias or what the norm adds, to the mean of the parents' results.

    All walkers have computed the operation's node, and their norms are as ``fold_norms`` leaves them.

    Raises:
        BadInput: the merged network's values are NaN or infinite here.
    """
    weight = merged.tensors[operation.weight]
    errors = _errors(operation, merged, parents, mix)
    shifted = operation.norm is not None or operation.bias is not None
    normal, right = _equations(operation, merged.values[operation.input], errors, weight, shifted, generator)
    change = ridge(normal, right, shifted)
    if not bool(change.isfinite().all()):
        raise BadInput(f"what the merged network computes is NaN or infinite at {operation.weight!r}.")
    inputs = operation.as_matrices(weight).shape[1]
    merged.put(operation.weight, weight + operation.as_weight(change[:, :inputs], weight.shape))
    if operation.bias is not None and operation.norm is None:
        merged.put(operation.bias, merged.tensors[operation.bias] + change[:, inputs].flatten())
    merged.step(operation.node)
    if operation.norm is not None:
        shift = operation.norm.scale_and_shift(merged.tensors)[1] + change[:, inputs].flatten()
        _put_shift(merged.put, operation.norm, shift)
        _take_statistics(operation, merged)


def ridge(
    normal: Float[Tensor, "groups unknowns _"], right: Float[Tensor, "groups unknowns outputs"], shifted: bool
) -> Float[Tensor, "groups unknowns outputs"]:
    """The smallest change that explains the errors: (XᵀX + λ) Δ = XᵀE, with λ = ``RIDGE`` times the mean square input.

    Args:
        normal: XᵀX.
        right: XᵀE.
        shifted: whether the last unknown is a constant, which is free.
    """
    diagonal = normal.diagonal(dim1=1, dim2=2)
    inputs = diagonal[:, :-1] if shifted else diagonal
    system = normal.clone()
    penalized = system.diagonal(dim1=1, dim2=2)[:, : inputs.shape[1]]
    penalized += (RIDGE * inputs.mean(1, keepdim=True)).clamp(min=1e-12)
    factor, failed = torch.linalg.cholesky_ex(system)
    if bool(failed.any()):  # rounding has made it indefinite
        return torch.linalg.solve(system, right)
    return torch.cholesky_solve(right, factor)


def _equations(
    operation: LinearOperation,
    inputs: Sequence[Tensor],
    errors: Sequence[Tensor],
    weight: Tensor,
    shifted: bool,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "groups unknowns unknowns"], Float[Tensor, "groups unknowns outputs"]]:
    """XᵀX and XᵀE: of all rows where no patches are to be written out, else of some of them."""
    if operation.moves_by_one:
        normal, right = operation.products(inputs, errors, weight)
        return (normal, right) if shifted else (normal[:, :-1, :-1], right[:, :-1])
    quota = -(-ROWS * (operation.as_matrices(weight).shape[1] + 1) // len(errors))
    some = (_some_samples(operation, x, e, quota, generator) for x, e in zip(inputs, errors, strict=True))
    rows = (some_rows(operation.rows(x, weight), operation.columns(e), quota, generator) for x, e in some)
    return normal_equations(rows, shifted)


def _errors(operation: LinearOperation, merged: Walker, parents: Sequence[Walker], mix: Mix) -> list[Tensor]:
    """What is missing in the merged network's results, norm included; and in the stream that they are added to."""
    results = [_results(operation, walker) for walker in (merged, *parents)]
    errors = [_missing(operation, batch, mix) for batch in zip(*results, strict=True)]
    other = operation.other_summand()
    if other is None or any(other not in walker.values for walker in (merged, *parents)):
        return errors
    summands = zip(*(walker.values[other] for walker in (merged, *parents)), strict=True)
    return [
        error + _missing(operation, [value.reshape(error.shape) for value in summand], mix)
        for error, summand in zip(errors, summands, strict=True)
    ]


def _some_samples(
    operation: LinearOperation, x: Tensor, error: Tensor, quota: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Samples at random with a few times the rows that are needed: patches take much memory to write out."""
    rows_each = error.numel() // (error.shape[operation.channel] * len(error))
    most = -(-_SPARE * quota // rows_each)
    if len(x) != len(error) or len(error) <= most:
        return x, error
    chosen = torch.randperm(len(error), generator=generator)[:most].to(x.device)
    return x[chosen], error[chosen]


def _missing(operation: LinearOperation, values: Sequence[Tensor], mix: Mix) -> Tensor:
    """The mean of the parents' values less the merged network's, which comes first."""
    own, *parents = values
    return mix(parents, operation.weight, operation.out_axis, operation.channel) - own


def _results(operation: LinearOperation, walker: Walker) -> list[Tensor]:
    values: list[Tensor] = walker.values[operation.node]
    if operation.norm is None:
        return values
    scale, shift = (
        along(part, values[0].ndim, operation.channel).to(values[0].dtype)
        for part in operation.norm.scale_and_shift(walker.tensors)
    )
    return [value * scale + shift for value in values]


def some_rows(
    rows: Tensor, columns: Tensor, quota: int, generator: torch.Generator
) -> tuple[Float[Tensor, "groups rows inputs"], Float[Tensor, "groups rows outputs"]]:
    """At most ``quota`` rows, chosen at random."""
    if rows.shape[1] <= quota:
        return rows, columns
    chosen = torch.randperm(rows.shape[1], generator=generator)[:quota].to(rows.device)
    return rows[:, chosen], columns[:, chosen]


def normal_equations(
    parts: Iterable[tuple[Tensor, Tensor]], shifted: bool
) -> tuple[Float[Tensor, "groups unknowns unknowns"], Float[Tensor, "groups unknowns outputs"]]:
    """XᵀX and XᵀE, products in the precision of the data, at least float32, and summed in float64."""
    normal = right = None
    for part in parts:
        rows, columns = (values.to(torch.promote_types(values.dtype, torch.float32)) for values in part)
        x = torch.cat([rows, torch.ones_like(rows[:, :, :1])], dim=2) if shifted else rows
        products = (x.mT @ x).double(), (x.mT @ columns).double()
        normal = products[0] if normal is None else normal + products[0]
        right = products[1] if right is None else right + products[1]
    assert normal is not None
    assert right is not None
    return normal, right


def _put_shift(put: Callable[[str, Tensor], None], norm: BatchNorm, shift: Tensor) -> None:
    """Makes a norm add ``shift`` to every channel and do nothing else."""
    put(norm.variance, torch.full_like(shift, 1 - norm.epsilon))
    put(norm.mean, torch.zeros_like(shift) if norm.bias is not None else -shift)
    if norm.bias is not None:
        put(norm.bias, shift)
    if norm.weight is not None:
        put(norm.weight, torch.ones_like(shift))


def _take_statistics(operation: LinearOperation, merged: Walker) -> None:
    """Writes a norm that only adds something with the statistics of what it takes; resetting them is harmless then."""
    norm = operation.norm
    if norm is None or norm.weight is None or norm.bias is None:
        return
    mean, variance = moments(merged.values[operation.node], operation.channel)
    merged.put(norm.mean, mean)
    merged.put(norm.variance, variance)
    merged.put(norm.weight, (variance + norm.epsilon).sqrt())
    merged.put(norm.bias, merged.tensors[norm.bias] + mean)
