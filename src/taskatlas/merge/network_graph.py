"""A network as a flat graph of ATen operations without side effects, which can be cut in two and run step by step."""

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Interpreter, Node
from torch.utils._pytree import tree_leaves, tree_structure, tree_unflatten

from taskatlas.errors import BadInput
from taskatlas.merge.axis_groups import OPERATION, Example
from taskatlas.merge.axis_run import Call, watching
from taskatlas.merge.exporting import exported_freely, slow_attention
from taskatlas.merge.walker import Walker, last_uses
from taskatlas.probe import quiet
from taskatlas.zoo.weights import first_line

_PREFIX = "network."
_ROUNDING = 1e-5  # of the largest value: as much as another order of the same sums makes


@dataclass(frozen=True, eq=False)
class NetworkGraph:
    """What a network computes, apart from the numbers in it.

    Attributes:
        graph: takes the flat inputs and gives the flat outputs; its tensors are named as in the state dict.
        tensors: the network's own, by those names.
        outputs: names of the outputs; a single ``output`` is returned bare.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> x = torch.ones(4, 3)
        >>> graph = NetworkGraph.of(net, x)
        >>> middle = graph.node_at(net, x, "1")
        >>> trunk, rest = (as_module(part, graph.tensors) for part in (graph.until(middle), graph.after(middle)))
        >>> bool((rest(*trunk(x), x)[0] == net(x)).all())
        True
    """

    graph: Graph
    tensors: Mapping[str, Tensor]
    outputs: tuple[str, ...]

    @classmethod
    def of(cls, network: nn.Module, example: Example, outputs: Sequence[str] | None = None) -> "NetworkGraph":
        """Follows one forward pass in evaluation mode. The number of samples, and the length of a text, stay free.

        Args:
            network: left as it was.
            example: a tensor, a tuple of arguments or a mapping of keyword arguments; of two samples or more.
            outputs: for a network that returns a mapping, the entries that count; None: all tensors in it.

        Raises:
            BadInput: the forward pass cannot be followed; the message has torch's reason.
        """
        call = Call.of(network, example, outputs)
        flat = _Flat(call)
        with quiet(network), slow_attention():
            names = tuple(call.named(network(*call.arguments, **call.keywords)))
            try:
                program = exported_freely(flat, flat_inputs(example), functional=True)
                module: GraphModule = program.module(check_guards=False)
            except Exception as error:  # whatever a network's own code, or torch, raises
                raise BadInput(
                    f"{type(network).__name__} cannot be followed ({first_line(error)}). "
                    "Rewrite what depends on the values of tensors, or merge to the end with groups given by hand and "
                    "calibration=None or 'reset'."
                ) from error
        tensors = {}
        for node in module.graph.find_nodes(op="get_attr"):
            value = attrgetter(node.target)(module)
            node.target = node.target.removeprefix(_PREFIX)
            tensors[node.target] = value.detach()
        return cls(module.graph, tensors, names)

    def node_at(self, network: nn.Module, example: Example, place: str) -> Node:
        """The value that a module gives (``layer2``) or takes (``fc:input``), recognised by what it is on the example.

        Raises:
            BadInput: no value of the graph is what can be seen there.
        """
        finder = _Finder(GraphModule(dict(self.tensors), self.graph), seen_at(network, example, [place])[place])
        with torch.no_grad():
            finder.run(*flat_inputs(example))
        if finder.found is None:
            raise BadInput(f"no value of the network is what can be seen at {place!r}. Choose another stop.")
        return finder.found

    def operations(self) -> dict[str, Node]:
        """The values of the graph by names of their own: ``linear#2`` is what the third linear operation gives."""
        times: Counter[str] = Counter()
        found = {}
        for node in (node for node in self.graph.nodes if node.op == "call_function"):
            kind = str(node.target).removeprefix("aten.").split(".")[0]
            found[f"{kind}{OPERATION}{times[kind]}"] = node
            times[kind] += 1
        return found

    def until(self, node: Node) -> Graph:
        """The part that makes a value: takes the flat inputs, gives the value in a tuple."""
        graph, copies = _copied(self.graph)
        (output,) = graph.find_nodes(op="output")
        output.args = ((copies[node],),)
        return _pruned(graph)

    def after(self, node: Node) -> Graph:
        """The part that a value is for: takes it and the flat inputs, gives the flat outputs."""
        graph, copies = _copied(self.graph)
        with graph.inserting_before(next(iter(graph.nodes))):
            merged = graph.placeholder("merged")
        copies[node].replace_all_uses_with(merged)
        return _pruned(graph)


def tensors_of_graph(graph: NetworkGraph, network: nn.Module) -> dict[str, Tensor]:
    """A network's tensors by the names in a graph that may be another network's."""
    state = network.state_dict()
    return {name: state.get(name, value) for name, value in graph.tensors.items()}


def needed_for(nodes: Iterable[Node]) -> set[Node]:
    """Nodes and all that they are made of."""
    found: set[Node] = set()
    left = list(nodes)
    while left:
        node = left.pop()
        if node not in found:
            found.add(node)
            left += node.all_input_nodes
    return found


def values_at(
    graph: NetworkGraph, tensors: Mapping[str, Tensor], example: Example, operations: Iterable[str]
) -> Iterator[tuple[str, Tensor]]:
    """What some of the graph's operations give on an example, in their order; nothing else is computed.

    Raises:
        BadInput: there is no such operation.

    Example:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> graph = NetworkGraph.of(net, torch.zeros(2, 2))
        >>> [(name, value.shape) for name, value in values_at(graph, graph.tensors, torch.zeros(5, 2), ["linear#0"])]
        [('linear#0', torch.Size([5, 1]))]
    """
    known = graph.operations()
    missing = [name for name in operations if name not in known]
    if missing:
        raise BadInput(f"the network's graph has no operation {missing[0]!r}. Derive its axis groups anew.")
    names = {known[name]: name for name in operations}
    needed = needed_for(names)
    walker, last_needed = Walker(dict(tensors), [flat_inputs(example)]), last_uses(graph.graph)
    for node in graph.graph.nodes:
        if node not in needed and node.op != "placeholder":
            continue
        walker.step(node)
        if node in names:
            yield names[node], walker.values[node][0]
        walker.forget(last_needed[node])


def tensor_names(graph: Graph) -> list[str]:
    """The tensors that a graph reads, in order."""
    return [str(node.target) for node in graph.find_nodes(op="get_attr")]


def as_module(graph: Graph, tensors: Mapping[str, Tensor], parameters: Container[str] = ()) -> GraphModule:
    """A graph as a module of its own; those of its tensors that are parameters can be trained.

    The tensors keep their names as attributes, so its state dict is part of the network's.
    """
    own = {
        name: nn.Parameter(tensors[name].clone()) if name in parameters else tensors[name].clone()
        for name in tensor_names(graph)
    }
    return GraphModule(own, graph)


def flat_inputs(example: Example) -> list[Any]:
    """One batch as a graph takes it."""
    call = Call.of(nn.Identity(), example, None)
    return list(tree_leaves((call.arguments, call.keywords)))


def seen_at(network: nn.Module, example: Example, places: Sequence[str]) -> dict[str, Tensor]:
    """The tensors at modules' outputs (``layer2``) and inputs (``fc:input``) in one forward pass, as they were then.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.ReLU(inplace=True))
        >>> {place: value.tolist() for place, value in seen_at(net, -torch.ones(1, 1, 2), ["0", "1"]).items()}
        {'0': [[-1.0, -1.0]], '1': [[0.0, 0.0]]}
    """
    seen: dict[str, Tensor] = {}

    def note(place: str, tensor: Tensor) -> None:
        seen[place] = tensor.detach().clone()

    call = Call.of(network, example, None)
    with quiet(network), watching(network, places, note):
        network(*call.arguments, **call.keywords)
    return seen


class _Flat(nn.Module):
    """A network that takes the leaves of its arguments and gives the tensors that count."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.network = call.module
        self._call = call
        self._spec = tree_structure((call.arguments, call.keywords))

    def forward(self, *leaves: Any) -> tuple[Tensor, ...]:
        arguments, keywords = tree_unflatten(leaves, self._spec)
        return tuple(self._call.named(self.network(*arguments, **keywords)).values())


class _Finder(Interpreter):
    """Runs a graph and keeps the first operation whose result is the one looked for, or else differs by rounding."""

    def __init__(self, module: GraphModule, wanted: Tensor) -> None:
        super().__init__(module)
        self.wanted = wanted
        self.found: Node | None = None
        self._apart = _ROUNDING * float(wanted.abs().max()) if wanted.numel() else 0.0

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n.op == "call_function" and isinstance(value, Tensor) and value.shape == self.wanted.shape:
            if self.found is None and torch.equal(value, self.wanted):
                self.found, self._apart = n, 0.0
            elif self._apart and float((value - self.wanted).abs().max()) < self._apart:
                self.found, self._apart = n, float((value - self.wanted).abs().max())
        return value


def _copied(graph: Graph) -> tuple[Graph, dict[Node, Node]]:
    copies: dict[Node, Node] = {}
    fresh = Graph()
    results = fresh.graph_copy(graph, copies)
    fresh.output(tuple(results) if isinstance(results, list | tuple) else (results,))
    return fresh, copies


def _pruned(graph: Graph) -> Graph:
    """The graph without what its output does not need; there are no side effects that could be lost."""
    needed = {*graph.find_nodes(op="output"), *graph.find_nodes(op="placeholder")}
    for node in reversed(graph.nodes):
        if node in needed:
            needed.update(node.all_input_nodes)
        else:
            graph.erase_node(node)
    return graph
