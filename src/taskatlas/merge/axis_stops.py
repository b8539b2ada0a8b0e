"""Legal stops: where a single tensor cuts a network into a trunk and a rest."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from torch.fx import Graph, Node

from taskatlas.merge.axis_groups import Stop
from taskatlas.merge.axis_trace import live_nodes


def stops(
    graph: Graph, places: Mapping[str, Node], names: Mapping[str, str], twins: Mapping[str, Sequence[str]]
) -> Iterator[Stop]:
    """The cuts that have a name, in the order of the graph, each with the weights on its two sides.

    What is made of inputs alone (masks, positions) does not count as crossing a cut, since a head can make it again;
    nor does what is made of weights alone.

    Args:
        graph: of the network.
        places: modules' inputs and outputs, and the nodes that make what is seen there.
        names: of the placeholders that are weights, their names in the state dict.
        twins: the other names of tied weights.
    """
    live = live_nodes(graph)
    nodes = [node for node in graph.nodes if node in live]
    when = {node: place for place, node in enumerate(nodes)}
    users = {node: [when[user] for user in node.users if user in live] for node in nodes}
    last_use = {node: max(users[node], default=-1) for node in _hidden(nodes, names)}
    uses: dict[str, list[int]] = defaultdict(list)
    for node in nodes:
        if node.name in names:
            for name in (names[node.name], *twins.get(names[node.name], ())):
                uses[name] += users[node]
    named: dict[Node, list[str]] = defaultdict(list)
    for place, node in places.items():
        named[node].append(place)
    told: set[Node] = set()
    crossing: set[Node] = set()
    for now, node in enumerate(nodes):
        crossing = {other for other in (*crossing, node) if last_use.get(other, -1) > now}
        if len(crossing) != 1 or crossing <= told:
            continue
        told |= crossing
        known = sorted(named[next(iter(crossing))], key=lambda name: (":" in name, name.count("."), len(name)))
        trunk = tuple(name for name, here in uses.items() if here and min(here) <= now)
        rest = tuple(name for name, here in uses.items() if here and max(here) > now)
        if known and trunk and rest:
            yield Stop(known[0], tuple(known[1:]), trunk, rest)


def made_of(nodes: Sequence[Node], names: Mapping[str, str]) -> tuple[set[Node], set[Node]]:
    """The nodes that depend on inputs, and those that depend on weights."""
    of_inputs: set[Node] = set()
    of_weights: set[Node] = set()
    for node in nodes:
        if node.op == "placeholder":
            (of_weights if node.name in names else of_inputs).add(node)
        for source in node.all_input_nodes:
            if source in of_inputs:
                of_inputs.add(node)
            if source in of_weights:
                of_weights.add(node)
    return of_inputs, of_weights


def _hidden(nodes: Sequence[Node], names: Mapping[str, str]) -> list[Node]:
    """Nodes that depend on both inputs and weights."""
    of_inputs, of_weights = made_of(nodes, names)
    return [node for node in nodes if node in of_inputs and node in of_weights and node.op != "output"]
