"""Legal stops: where a single tensor cuts a network into a trunk and a rest."""

from collections.abc import Iterator, Mapping, Sequence

from torch.fx import Graph, Node

from taskatlas.merge.axis_groups import Stop


def stops(
    graph: Graph, places: Mapping[Node, Sequence[str]], names: Mapping[str, str], twins: Mapping[str, Sequence[str]]
) -> Iterator[Stop]:
    """The cuts that have a name, in the order of the graph, each with the weights on its two sides.

    What is made of inputs alone (masks, positions) does not count as crossing a cut, since a head can make it again, nor
    does what is made of weights alone.

    Args:
        graph: of the network.
        places: modules' inputs and outputs at which a node's value can be seen.
        names: of the placeholders that are weights, their names in the state dict.
        twins: the other names of tied weights.
    """
    nodes = list(graph.nodes)
    hidden = _hidden(nodes, names)
    when = {node: place for place, node in enumerate(nodes)}
    last_use = {node: max((when[user] for user in node.users), default=-1) for node in hidden}
    read = {name: [when[user] for user in node.users] for node in nodes if (name := names.get(node.name))}
    told: set[str] = set()
    crossing: set[Node] = set()
    for place, node in enumerate(nodes):
        if node in last_use:
            crossing.add(node)
        crossing = {other for other in crossing if last_use[other] > place}
        if len(crossing) != 1:
            continue
        known = sorted(places.get(next(iter(crossing)), ()), key=lambda name: (":" in name, name.count("."), len(name)))
        trunk = [
            twin
            for name, uses in read.items()
            if any(use <= place for use in uses)
            for twin in (name, *twins.get(name, ()))
        ]
        rest = [
            twin
            for name, uses in read.items()
            if any(use > place for use in uses)
            for twin in (name, *twins.get(name, ()))
        ]
        if known and trunk and rest and known[0] not in told:
            told.update(known)
            yield Stop(known[0], tuple(known[1:]), tuple(trunk), tuple(rest))


def _hidden(nodes: Sequence[Node], names: Mapping[str, str]) -> list[Node]:
    """Nodes that depend on both inputs and weights."""
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
    return [node for node in nodes if node in of_inputs and node in of_weights and node.op != "output"]
