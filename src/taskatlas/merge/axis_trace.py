"""Following an exported graph: the axes of every tensor in it, joined by the operations between them."""

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor
from torch.fx import Graph, Node

from taskatlas.merge.axes import Axis, Mismatch, cases, fixed, free, freeze, leaves, merge_cases, stray_cases
from taskatlas.merge.axis_rules import rule_of
from taskatlas.merge.axis_step import Result, Step, Traced, unknown

Side = Literal["out", "in"]

_LONGEST = 80  # characters of a line of code that are quoted


@dataclass(eq=False)
class Trace:
    """What following a graph found out."""

    parameters: dict[str, Traced] = field(default_factory=dict)  # by the tensor's name
    values: dict[Node, Traced] = field(default_factory=dict)
    sides: dict[tuple[str, int], set[Side]] = field(default_factory=dict)  # how the axes of weights are used
    rigid: list[Axis] = field(default_factory=list)  # axes along which softmaxes and norms run


def follow(graph: Graph, names: Mapping[str, str], still: Mapping[str, str], outputs: list[str]) -> Trace:
    """Joins the axes of all tensors in a graph.

    Args:
        graph: ATen operations, as ``torch.export`` gives them.
        names: of the placeholders that are weights, their names in the state dict; tied ones under one name.
        still: of the other placeholders, why their axes do not move.
        outputs: names of the results, in order.
    """
    trace, refilled, live = Trace(), _refilled(graph), live_nodes(graph)
    unused = set(names.values()) - {names[node.name] for node in live if node.name in names}
    results: dict[Node, Any] = {}
    origins: dict[Node, frozenset[str]] = {}  # of what is made of weights alone
    for node in graph.nodes:
        if node.op == "placeholder":
            results[node] = _placeholder(node, names, still, trace)
            if names.get(node.name) in unused:
                for axis in results[node].axes:
                    freeze(axis, "the forward pass does not use it")
            if node.name in names and isinstance(results[node], Traced):
                origins[node] = frozenset({names[node.name]})
        elif node.op == "output":
            _freeze_outputs(node, results, outputs)
        elif node.target is operator.getitem:
            source, index = node.args
            results[node] = results[source][index] if isinstance(results.get(source), list) else None
        elif node.op == "call_function" and node in live:
            step = _step(node, trace, node in refilled)
            results[node] = _result(step, node, results)
            trace.rigid += step.rigid
            _note_sides(step, node, trace, results, origins)
        if isinstance(results.get(node), Traced):
            trace.values[node] = results[node]
    return trace


def live_nodes(graph: Graph) -> set[Node]:
    """What the outputs depend on: a tensor may be made for its shape alone."""
    live: set[Node] = set()
    for node in reversed(graph.nodes):
        if node.op == "output" or node in live or any(base in live for base in _written(node)):
            live.update((node, *node.all_input_nodes))
    return live


def source_line(node: Node) -> str:
    """The line of the network's code in which an operation stands, as ``model.py:12: return x + y``; else empty."""
    lines = (node.meta.get("stack_trace") or "").strip().splitlines()
    for place, line in reversed(list(enumerate(lines))):
        if line.strip().startswith('File "') and not is_ours(line):
            path, number = line.strip().removeprefix('File "').split('", line ')
            code = lines[place + 1].strip() if place + 1 < len(lines) else ""
            return f"{path.rsplit('/', 1)[-1]}:{number.split(',')[0]}: {code[:_LONGEST]}"
    return ""


def is_ours(file: str) -> bool:
    """Whether a line of a stack is torch's or this package's rather than the network's."""
    return "/torch/" in file or "/taskatlas/merge/" in file


def _placeholder(node: Node, names: Mapping[str, str], still: Mapping[str, str], trace: Trace) -> Any:
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return value
    if node.name not in names:
        return Traced(tuple(fixed(size, still.get(node.name, "a constant of the network")) for size in value.shape))
    if names[node.name] not in trace.parameters:  # a tied weight may come in twice
        trace.parameters[names[node.name]] = Traced(tuple(map(free, value.shape)))
    return trace.parameters[names[node.name]]


def _step(node: Node, trace: Trace, refilled: bool) -> Step:
    def unpack(position: Axis, others: Any) -> None:
        """Free axes that so far are only ever met together with ``position`` get a case for each of its indices."""
        if position.kind != "free":
            return
        for leaf in [leaf for axis in others for leaf in leaves(axis) if leaf.kind == "free"]:
            if _always_with(leaf, position, trace):
                chosen = [free(leaf.size) for _ in range(position.size)]
                leaf.become(cases(position, chosen))

    return Step(
        name=str(node.target).removeprefix("aten.").split(".")[0],
        shapes=[tuple(value.shape) for value in _tensors(node.meta.get("val"))],
        where=source_line(node),
        unpack=unpack,
        refilled=refilled,
    )


def _always_with(leaf: Axis, position: Axis, trace: Trace) -> bool:
    for traced in [*trace.parameters.values(), *trace.values.values()]:
        found = {id(part) for axis in traced.axes for part in leaves(axis)}
        if id(leaf) in found and id(position) not in found:
            return False
    return True


def _result(step: Step, node: Node, results: Mapping[Node, Any]) -> Any:
    arguments = _bound(node, results)
    try:
        found = _settled(step, rule_of(node.target)(step, **arguments))
    except Exception:  # an overload with arguments that its rule does not know, or axes that do not fit
        found = _settled(step, unknown(step, **arguments))
    value = node.meta.get("val")
    if isinstance(value, Tensor):
        return found[0]
    return found if isinstance(value, list | tuple) else value


def _settled(step: Step, result: Result) -> list[Traced]:
    """The results as they are kept, one by one.

    Raises:
        Mismatch: a rule gets a shape wrong.
    """
    every = result if isinstance(result, list) else [result]
    for axes, shape in zip(every, step.shapes, strict=False):
        if tuple(axis.size for axis in axes) != shape:
            raise Mismatch(f"{step.name} gives {shape} rather than {[axis.size for axis in axes]}")
        for stray in stray_cases(axes):
            merge_cases(stray)
    return [Traced(axes) for axes in every]


def _bound(node: Node, results: Mapping[Node, Any]) -> dict[str, Any]:
    """An operation's arguments by name, tensors as traced."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {f"argument{place}": _read(value, results) for place, value in enumerate(node.args)}
    renamed = {"self": "input", "step": "step_"}
    named = {renamed.get(argument.name, argument.name): argument for argument in schema.arguments}
    given = dict(zip(named, node.args, strict=False))
    given |= {renamed.get(name, name): value for name, value in node.kwargs.items()}
    for name, argument in named.items():
        if name not in given and argument.has_default_value():
            given[name] = argument.default_value
    return {name: _read(value, results) for name, value in given.items()}


def _read(value: Any, results: Mapping[Node, Any]) -> Any:
    if isinstance(value, Node):
        return results.get(value)
    if isinstance(value, list | tuple):
        return [_read(item, results) for item in value]
    return value


def _freeze_outputs(node: Node, results: Mapping[Node, Any], outputs: list[str]) -> None:
    for name, value in zip(outputs, _read(node.args[0], results), strict=False):
        if isinstance(value, Traced):
            for axis in value.axes:
                freeze(axis, f"it is seen in the {name}")


def _note_sides(
    step: Step, node: Node, trace: Trace, results: Mapping[Node, Any], origins: dict[Node, frozenset[str]]
) -> None:
    """Whether a weight's axis is summed over or stays, once something else than weights meets it."""
    used = [source for source in node.all_input_nodes if isinstance(results.get(source), Traced)]
    if used and all(source in origins for source in used):
        origins[node] = frozenset().union(*(origins[source] for source in used))
        return
    summed = {id(axis) for axis in step.summed}
    for source in used:
        for name in origins.get(source, ()):
            shown = {id(axis) for axis in results[source].axes}
            for place, axis in enumerate(trace.parameters[name].axes):
                if id(axis) in shown:
                    side: Side = "in" if id(axis) in summed else "out"
                    trace.sides.setdefault((name, place), set()).add(side)


def _written(node: Node) -> Iterator[Node]:
    """The tensors that an operation writes into, itself or through a view."""
    for argument, value in zip(_arguments(node), node.args, strict=False):
        if argument.alias_info is not None and argument.alias_info.is_write and isinstance(value, Node):
            yield from _bases(value)


def _refilled(graph: Graph) -> set[Node]:
    """What a later operation writes into."""
    return {base for node in graph.nodes for base in _written(node)}


def _bases(node: Node) -> Iterator[Node]:
    """A tensor and those that it is a view of."""
    yield node
    for argument, value in zip(_arguments(node), node.args, strict=False):
        if argument.alias_info is not None and isinstance(value, Node):
            yield from _bases(value)


def _arguments(node: Node) -> list[Any]:
    schema = getattr(node.target, "_schema", None)
    return [] if schema is None else list(schema.arguments)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [item for item in value if isinstance(item, Tensor)] if isinstance(value, list | tuple) else []
