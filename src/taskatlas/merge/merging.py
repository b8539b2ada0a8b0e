"""Merging aligned networks: one set of weights for what they share, calibrated side by side with what it came from."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import Graph

from taskatlas.errors import BadInput
from taskatlas.merge.aligning import NetworkAlignment
from taskatlas.merge.axis_groups import AxisGroups, Example, Stop
from taskatlas.merge.batch_norm import reestimate_batch_norm
from taskatlas.merge.calibration import Remedy, calibrate
from taskatlas.merge.least_squares import fold_norms
from taskatlas.merge.merged_weights import mean_of_parents, merged_weights
from taskatlas.merge.network_graph import (
    NetworkGraph,
    as_module,
    flat_inputs,
    seen_at,
    tensor_names,
    tensors_of_graph,
)
from taskatlas.merge.probe_batches import ProbeBatches, batch_length, first_samples
from taskatlas.merge.unmerging import Places, own_places, regroup, unmix
from taskatlas.merge.walker import Walker, peak_bytes
from taskatlas.merge.widening import Widened
from taskatlas.merge.zipped_network import ZippedNetwork

_MEMORY = 2**30  # bytes of values that all networks hold while they are calibrated, about


@dataclass(frozen=True, eq=False)
class Merging:
    """Networks, how they are aligned, and how the result is to be calibrated.

    Attributes:
        networks: of one architecture, up to where they are merged.
        even: the same, with equal widths up to there.
        names: theirs.
        groups: up to where they are merged.
        aligned: their units.
        batches: unlabelled data.
        example: two samples.
        outputs: which entries of a mapping count.
        calibration: the remedy, or None.
        seed: of the rows of regressions.
        shares: how much each network counts beside the others; None: alike.
    """

    networks: Sequence[nn.Module]
    even: Widened
    names: tuple[str, ...]
    groups: AxisGroups
    aligned: NetworkAlignment
    batches: ProbeBatches
    example: Example
    outputs: Sequence[str] | None
    calibration: Remedy | None
    seed: int
    shares: Sequence[float | int] | None = None

    def to_the_end(self) -> dict[str, Tensor]:
        """The state dict of one network like the first, or the widest."""
        networks = self.even.networks
        states = [network.state_dict() for network in networks]
        merged = merged_weights(states, self.groups, self.aligned.alignments, self.shares)
        if self.calibration is None:
            return merged
        try:
            graph = NetworkGraph.of(networks[0], self.example, self.outputs)
        except BadInput:
            several = isinstance(self.example, tuple | list) and len(self.example) > 1
            if self.calibration != "reset" or several:
                raise
            return self._reset_without_a_graph(merged)
        tensors = [tensors_of_graph(graph, network) for network in networks]
        walker, _ = self._merge(graph.graph, tensors, self._inputs(graph.graph, tensors[0]))
        return merged | {name: tensor for name, tensor in walker.tensors.items() if name in merged}

    def _reset_without_a_graph(self, merged: dict[str, Tensor]) -> dict[str, Tensor]:
        """Statistics as norms see them while the network runs, whatever way it takes."""
        network = deepcopy(self.even.networks[0])
        network.load_state_dict(merged)
        return reestimate_batch_norm(network, self.batches, who="the merged network").state_dict()

    def up_to(self, stop: Stop) -> ZippedNetwork:
        """A trunk, and for each model a head."""
        graphs = self._graphs()
        nodes = [
            graph.node_at(network, self.example, stop.place)
            for graph, network in zip(graphs, self.networks, strict=False)  # one graph may be all
        ]
        if len(graphs) == 1:
            graphs, nodes = graphs * len(self.networks), nodes * len(self.networks)
        widest = self.even.widest
        tensors = [tensors_of_graph(graphs[widest], network) for network in self.even.networks]
        inputs = self._inputs(graphs[widest].graph, tensors[widest])
        trunk = graphs[widest].until(nodes[widest])
        merged, parents = self._merge(trunk, tensors, inputs)
        shape, *own_shapes = (
            seen_at(network, self.example, [stop.place])[stop.place].shape
            for network in (self.even.networks[0], *self.networks)
        )
        unmerges, heads = [], []
        for model, (graph, network) in enumerate(zip(graphs, self.networks, strict=True)):
            own = self.even.own_positions(stop, model, shape, own_shapes[model])
            places = own_places(self.groups, self.aligned.alignments, stop, model, shape)
            places |= {axis: places[axis][positions] for axis, positions in own.items()}
            rest = graph.after(nodes[model])
            start = {name: tensors_of_graph(graph, network)[name] for name in tensor_names(rest)}
            wanted = [regroup(own).to(value.device)(value) for (value,) in parents[model].outputs]
            unmerge, head = self._head(rest, start, places, merged, wanted, inputs)
            unmerges.append(unmerge)
            heads.append(as_module(rest, head, _parameters(network)))
        return ZippedNetwork(
            as_module(trunk, merged.tensors, _parameters(self.networks[widest])),
            unmerges,
            heads,
            names=self.names,
            keywords=tuple(self.example) if isinstance(self.example, Mapping) else (),
            outputs=graphs[widest].outputs,
        )

    def _graphs(self) -> list[NetworkGraph]:
        """One graph for all where their tensors have the same shapes, else one each."""
        shapes = [{name: value.shape for name, value in network.state_dict().items()} for network in self.networks]
        if all(shape == shapes[0] for shape in shapes):
            return [NetworkGraph.of(self.networks[0], self.example, self.outputs)]
        return [NetworkGraph.of(network, self.example, self.outputs) for network in self.networks]

    def _inputs(self, graph: Graph, tensors: dict[str, Tensor]) -> list[list[object]]:
        """Flat inputs of as many samples, from all over the data, as memory allows for; none without calibration."""
        if self.calibration is None:
            return []
        first = first_samples(next(iter(self.batches)), 8)
        one = peak_bytes(graph, tensors, flat_inputs(first)) / batch_length(first)
        many = int(_MEMORY / (one * (len(self.networks) + 1)))
        return [flat_inputs(batch) for batch in self.batches.some(max(1, many))]

    def _merge(
        self, graph: Graph, tensors: Sequence[Mapping[str, Tensor]], inputs: Sequence[Sequence[object]]
    ) -> tuple[Walker, list[Walker]]:
        """The merged network and its parents, at the end of the graph where the calibration needs them there."""
        own = [{name: values[name] for name in tensor_names(graph)} for values in tensors]
        if self.calibration == "least_squares":
            own = [fold_norms(graph, values) for values in own]
        merged = Walker(merged_weights(own, self.groups, self.aligned.alignments, self.shares), inputs)
        parents = [Walker(values, inputs) for values in own]
        if self.calibration is not None:
            mix = mean_of_parents(self.groups, self.aligned.alignments, self.shares)
            calibrate(graph, merged, parents, mix, self.calibration, seed=self.seed)
        return merged, parents

    def _head(
        self,
        rest: Graph,
        tensors: dict[str, Tensor],
        places: Places,
        merged: Walker,
        wanted: Sequence[Tensor],
        inputs: Sequence[Sequence[object]],
    ) -> tuple[nn.Module, dict[str, Tensor]]:
        """What takes the merged tensor apart for one model, and the rest of that model."""
        unmerge: nn.Module = regroup(places).to(next(iter(merged.tensors.values())).device)
        if self.calibration is None:
            return unmerge, tensors
        given = [value for (value,) in merged.outputs]
        if self.calibration == "least_squares":
            tensors = fold_norms(rest, tensors)
            unmerge = unmix(places, given, wanted, generator=torch.Generator().manual_seed(self.seed))
        head = Walker(dict(tensors), [[unmerge(value), *flat] for value, flat in zip(given, inputs, strict=True)])
        own = []
        if self.calibration != "reset":  # which does not look at what a network computed by itself
            own = [Walker(tensors, [[value, *flat] for value, flat in zip(wanted, inputs, strict=True)])]
        calibrate(rest, head, own, lambda values, *_: values[0], self.calibration, seed=self.seed)
        return unmerge, head.tensors


def _parameters(network: nn.Module) -> set[str]:
    return {name for name, _ in network.named_parameters(remove_duplicate=False)}
