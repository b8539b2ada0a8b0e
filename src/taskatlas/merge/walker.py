"""A network on its way through a graph, operation by operation, with many batches at once."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves


class Walker:
    """One network's tensors, and its values so far: for each node a list, one a batch.

    Args:
        tensors: by the names that the graph has for them.
        batches: for each batch the flat inputs of the graph.

    Example:
        >>> import torch
        >>> graph = torch.fx.symbolic_trace(torch.nn.ReLU()).graph
        >>> walker = Walker({}, [[torch.tensor([-1.0, 1.0])], [torch.tensor([2.0])]])
        >>> for node in graph.nodes:
        ...     walker.step(node)
        >>> walker.outputs
        [(tensor([0., 1.]),), (tensor([2.]),)]
    """

    def __init__(self, tensors: dict[str, Tensor], batches: Sequence[Sequence[Any]]) -> None:
        self.tensors = tensors
        self.values: dict[Node, list[Any]] = {}
        self.outputs: list[tuple[Any, ...]] = []
        self._batches = batches
        self._inputs_taken = 0
        self._readers: dict[str, Node] = {}

    def step(self, node: Node) -> None:
        """Computes a node for every batch."""
        match node.op:
            case "placeholder":
                self.values[node] = [batch[self._inputs_taken] for batch in self._batches]
                self._inputs_taken += 1
            case "get_attr":
                self._readers[str(node.target)] = node
                self.values[node] = [self.tensors[str(node.target)]] * len(self._batches)
            case "output":
                results = node.args[0] if isinstance(node.args[0], list | tuple) else (node.args[0],)
                self.outputs = [tuple(map_arg(tuple(results), self._at(batch))) for batch in range(len(self._batches))]
            case _:
                function: Any = node.target
                self.values[node] = [
                    function(*map_arg(node.args, self._at(batch)), **map_arg(node.kwargs, self._at(batch)))
                    for batch in range(len(self._batches))
                ]

    def put(self, name: str, tensor: Tensor) -> None:
        """Replaces one of the network's tensors, for what is computed from now on."""
        self.tensors[name] = tensor.to(self.tensors[name].dtype)
        if name in self._readers:
            self.values[self._readers[name]] = [self.tensors[name]] * len(self._batches)

    def forget(self, nodes: Iterable[Node]) -> None:
        """Frees the values of nodes that no later one needs."""
        for node in nodes:
            self.values.pop(node, None)

    def _at(self, batch: int) -> Callable[[Node], Any]:
        return lambda node: self.values[node][batch]


def last_uses(graph: Graph) -> dict[Node, list[Node]]:
    """For each node those whose values nothing after it needs."""
    seen: set[Node] = set()
    found: dict[Node, list[Node]] = {}
    for node in reversed(graph.nodes):
        fresh = [other for other in (node, *node.all_input_nodes) if other not in seen]
        seen.update(fresh)
        found[node] = fresh
    return found


def peak_bytes(graph: Graph, tensors: dict[str, Tensor], inputs: Sequence[Any]) -> int:
    """The most bytes of values that one batch needs at a time on its way through a graph."""
    walker, last_needed, peak = Walker(tensors, [inputs]), last_uses(graph), 0
    for node in graph.nodes:
        walker.step(node)
        held = [value for other, values in walker.values.items() if other.op != "get_attr" for value in values]
        peak = max(peak, sum(value.nbytes for value in tree_leaves(held) if isinstance(value, Tensor)))
        walker.forget(last_needed[node])
    return peak
