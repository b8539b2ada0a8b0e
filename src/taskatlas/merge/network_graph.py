"""A network as a flat graph of ATen operations without side effects, which can be cut in two and run step by step."""

import warnings
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.fx import Graph, GraphModule, Interpreter, Node
from torch.utils._pytree import tree_leaves, tree_structure, tree_unflatten

from taskatlas.errors import BadInput
from taskatlas.merge.axis_groups import Example
from taskatlas.merge.axis_run import Call, first_tensor
from taskatlas.probe import quiet
from taskatlas.zoo.weights import first_line

_PREFIX = "network."


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
        with quiet(network):
            names = tuple(call.named(network(*call.arguments, **call.keywords)))
            try:
                module = _exported(flat, flat_inputs(example))
            except Exception as error:  # whatever a network's own code, or torch, raises
                raise BadInput(
                    f"{type(network).__name__} cannot be followed ({first_line(error)}). "
                    "Rewrite what depends on the values of tensors, or merge to the end with groups given by hand and "
                    "calibration=None."
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


def free_axes(leaves: Sequence[Any], most: int) -> tuple[dict[int, Any] | None, ...]:
    """For ``torch.export``: of floats the first axis is free, of whole numbers the first ``most``."""
    return tuple(
        dict.fromkeys(range(min(leaf.ndim, 1 if leaf.is_floating_point() else most)), Dim.AUTO)
        if isinstance(leaf, Tensor)
        else None
        for leaf in leaves
    )


def seen_at(network: nn.Module, example: Example, places: Sequence[str]) -> dict[str, Tensor]:
    """The tensors at modules' outputs (``layer2``) and inputs (``fc:input``) in one forward pass, as they were then.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.ReLU(inplace=True))
        >>> {place: value.tolist() for place, value in seen_at(net, -torch.ones(1, 1, 2), ["0", "1"]).items()}
        {'0': [[-1.0, -1.0]], '1': [[0.0, 0.0]]}
    """
    seen: dict[str, Tensor] = {}

    def note(place: str, value: Any) -> None:
        found = first_tensor(value)
        if found is not None:
            seen[place] = found.detach().clone()

    def taken(place: str) -> Any:
        return lambda _, arguments, keywords: note(place, [*arguments, *keywords.values()])

    def given(place: str) -> Any:
        return lambda _, __, output: note(place, output)

    modules = dict(network.named_modules(remove_duplicate=False))
    hooks = []
    for place in places:
        module = modules[place.removesuffix(":input")]
        if place.endswith(":input"):
            hooks.append(module.register_forward_pre_hook(taken(place), with_kwargs=True))
        else:
            hooks.append(module.register_forward_hook(given(place)))
    call = Call.of(network, example, None)
    try:
        with quiet(network):
            network(*call.arguments, **call.keywords)
    finally:
        for hook in hooks:
            hook.remove()
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
    """Runs a graph and keeps the first operation whose result is the one looked for."""

    def __init__(self, module: GraphModule, wanted: Tensor) -> None:
        super().__init__(module)
        self.wanted = wanted
        self.found: Node | None = None

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if self.found is None and n.op == "call_function" and isinstance(value, Tensor):
            same = value.shape == self.wanted.shape and torch.equal(value, self.wanted)
            self.found = n if same else None
        return value


def _exported(network: _Flat, leaves: list[Any]) -> GraphModule:
    """Free are the batch, and the other axes of whole numbers (texts differ in length) where the network allows it."""

    def export(most: int) -> GraphModule:
        shapes = (free_axes(leaves, most),)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what export would like to be otherwise in somebody's network
            program = torch.export.export(network, tuple(leaves), dynamic_shapes=shapes, strict=False)
            module: GraphModule = program.run_decompositions({}).module(check_guards=False)
        return module

    try:
        return export(most=8)
    except Exception:  # some networks build tables of one length
        return export(most=1)


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
