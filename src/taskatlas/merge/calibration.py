"""Making a merged network compute what it should, from what its parents compute on unlabelled data.

A merged layer is right for the mean of its parents' inputs, and it gets something else: what was merged before it. So
the variance of its outputs shrinks, and errors add up from layer to layer. Three remedies, in one sweep through the
graph in which the merged network and its parents go side by side, operation by operation:

- ``reset``: every BatchNorm takes the statistics of what it gets now.
- ``repair``: every layer's channels are rescaled to the mean and the deviation that its parents' channels have on
  average (Jordan et al., REPAIR, ICLR 2023).
- ``least_squares``: every layer's weights are fitted to what they should give, the mean of the parents' outputs, by
  ridge regression towards the merged weights. Where a layer's result is added to a stream, it also makes up for the
  error that the stream has so far. Earlier layers are done when a later one is fitted, so errors do not add up.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.fx import Graph

from taskatlas.engine import track
from taskatlas.merge.least_squares import Mix, fit
from taskatlas.merge.linear_operations import BatchNorm, LinearOperation, along, moments
from taskatlas.merge.walker import Walker, last_uses

Remedy = Literal["least_squares", "repair", "reset"]


def calibrate(
    graph: Graph, merged: Walker, parents: Sequence[Walker], mix: Mix, remedy: Remedy, *, seed: int = 0
) -> None:
    """Changes the merged network's tensors; every walker that is needed ends with the values of the graph's outputs.

    Args:
        graph: of all.
        merged: the network to calibrate.
        parents: what it was merged from; for ``least_squares`` with their norms folded, as the merged one's. ``reset``
            needs none, and they stay where they are.
        mix: what the merged network should compute.
        remedy: see above.
        seed: of the rows that regressions are made of, where patches or tokens are written out.

    Raises:
        BadInput: the merged network computes NaN or infinite values; a weight is named.
    """
    generator = torch.Generator().manual_seed(seed)
    last_needed = last_uses(graph)
    operations = map(LinearOperation.at, graph.nodes if remedy == "least_squares" else ())
    fitted = {operation.norm.node for operation in operations if operation is not None and operation.norm is not None}
    walkers = (merged,) if remedy == "reset" else (*parents, merged)
    for node in track(list(graph.nodes), f"calibrating ({remedy.replace('_', ' ')})"):
        operation, norm = LinearOperation.at(node), BatchNorm.at(node)
        if norm is not None and node not in fitted:
            _reset(norm, merged)
        for walker in walkers:
            walker.step(node)
        if operation is not None and remedy == "least_squares":
            fit(operation, merged, parents, mix, generator)
        elif operation is not None and remedy == "repair" and operation.norm is None:
            _rescale_layer(operation, merged, parents, mix)
        elif norm is not None and node not in fitted and remedy != "reset":
            _rescale_norm(norm, merged, parents, mix)
            merged.step(node)
        for walker in walkers:
            walker.forget(last_needed[node])


def _reset(norm: BatchNorm, merged: Walker) -> None:
    source = norm.node.all_input_nodes[0]
    mean, variance = moments(merged.values[source], 1)
    merged.put(norm.mean, mean)
    merged.put(norm.variance, variance)


def _rescale_norm(norm: BatchNorm, merged: Walker, parents: Sequence[Walker], mix: Mix) -> None:
    """A norm, just reset, gives every channel a mean and a deviation of its choice; the sign of its weight stays."""
    if norm.weight is None or norm.bias is None:
        return
    mean, deviation = _wanted(
        [[value[0] for value in parent.values[norm.node]] for parent in parents], norm.mean, 0, 1, mix
    )
    variance, weight = merged.tensors[norm.variance].double(), merged.tensors[norm.weight].double()
    own = weight.abs() * (variance / (variance + norm.epsilon)).sqrt()
    merged.put(norm.weight, torch.where(own > 0, weight * deviation / own, 0.0))
    merged.put(norm.bias, mean)


def _rescale_layer(operation: LinearOperation, merged: Walker, parents: Sequence[Walker], mix: Mix) -> None:
    results = [parent.values[operation.node] for parent in parents]
    mean, deviation = _wanted(results, operation.weight, operation.out_axis, operation.channel, mix)
    own_mean, own_variance = moments(merged.values[operation.node], operation.channel)
    scale = torch.where(own_variance > 0, deviation / own_variance.sqrt(), 1.0)
    weight = merged.tensors[operation.weight]
    merged.put(operation.weight, weight * along(scale, weight.ndim, operation.out_axis))
    if operation.bias is not None:
        merged.put(operation.bias, (merged.tensors[operation.bias] - own_mean) * scale + mean)
    merged.step(operation.node)


def _wanted(results: Sequence[Sequence[Tensor]], name: str, axis: int, channel: int, mix: Mix) -> tuple[Tensor, Tensor]:
    """Mean over the parents of their channels' means and deviations."""
    found = [moments(values, channel) for values in results]
    means = mix([mean for mean, _ in found], name, axis, 0)
    return means, mix([variance.sqrt() for _, variance in found], name, axis, 0)
