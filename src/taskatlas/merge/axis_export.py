"""Deriving axis groups from a module: export it, follow the graph, collect groups, name taps and stops, check."""

import hashlib
import inspect
import traceback
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Interpreter, Node
from torch.utils._pytree import tree_leaves

from taskatlas.errors import BadInput, TaskAtlasError
from taskatlas.merge.axis_check import check
from taskatlas.merge.axis_collect import collect
from taskatlas.merge.axis_groups import AxisGroups, Example
from taskatlas.merge.axis_run import Call, Weights, generic_weights, tensors_of, watch
from taskatlas.merge.axis_stops import made_of, stops
from taskatlas.merge.axis_trace import follow, is_ours
from taskatlas.merge.exporting import exported
from taskatlas.merge.network_graph import NetworkGraph, values_at
from taskatlas.probe import quiet

_PREFIX = "network."


def derive(module: nn.Module, example: Example, outputs: Sequence[str] | None) -> AxisGroups:
    """What ``AxisGroups.of`` returns."""
    call = Call.of(module, example, outputs)
    with quiet(module):
        with _told("the example does not fit the network"):
            weights = _telling_weights(call)
            _, seen = watch(call, weights, lambda _, tensor: _fingerprint(tensor))
        with _told("the forward pass cannot be followed"):
            program, names = _exported(call)
        parameters = _parameters(program, module)
        twins = _twins(module)
        trace = follow(program.graph, parameters, _inputs(program, call), names)
        prints = _fingerprints(program, call, weights)
        places = _places(program, prints, seen)
        axes = {place: trace.values[node].axes for place, node in places.items() if node in trace.values}
        groups, frozen = collect(trace, axes, twins)
        if not all(group.taps for group in groups):
            inner = _operations(call, weights, program, parameters, prints)
            axes |= {place: trace.values[node].axes for place, node in inner.items() if node in trace.values}
            everywhere, _ = collect(trace, axes, twins)
            groups = [group if group.taps else other for group, other in zip(groups, everywhere, strict=True)]
        found = AxisGroups(
            groups=tuple(groups),
            frozen=tuple(frozen),
            stops=tuple(stops(program.graph, places, parameters, twins)),
            shapes={name: tuple(tensor.shape) for name, tensor in module.state_dict().items()},
        )
        return check(found, call, weights)


def recheck(groups: AxisGroups, module: nn.Module, example: Example, outputs: Sequence[str] | None) -> AxisGroups:
    """What ``AxisGroups.checked`` returns."""
    call = Call.of(module, example, outputs)
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    with quiet(module), _told("the example does not fit the network"):
        return check(replace(groups, shapes=shapes), call, _telling_weights(call))


def _telling_weights(call: Call) -> Weights:
    """Random weights, in which nothing is alike by chance; the network's own where those give no numbers."""
    weights = generic_weights(call.module)
    if all(bool(output.isfinite().all()) for output in call.run(weights).values()):
        return weights
    return {name: tensor.detach() for name, tensor in tensors_of(call.module).items()}  # as for a logarithm of a weight


class _Named(nn.Module):
    """A network whose outputs are the tensors that count, in a list."""

    def __init__(self, call: Call, names: list[str]) -> None:
        super().__init__()
        self.network = call.module
        self._call = call
        self._names = names

    def forward(self, *arguments: Any, **keywords: Any) -> list[Tensor]:
        found = self._call.named(self.network(*arguments, **keywords))
        self._names[:] = found
        return list(found.values())


def _exported(call: Call) -> tuple[ExportedProgram, list[str]]:
    names: list[str] = []
    program = exported(_Named(call, names), call.arguments, call.keywords)
    return program, list(names)


def _parameters(program: ExportedProgram, module: nn.Module) -> dict[str, str]:
    """Placeholder -> name in the state dict, of weights and float buffers; tied ones under their first name."""
    kept = module.state_dict()
    own = tensors_of(module)
    first = {id(tensor): name for name, tensor in reversed(own.items())}
    found = {}
    for spec in program.graph_signature.input_specs:
        name = (spec.target or "").removeprefix(_PREFIX)
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and name in kept and kept[name].is_floating_point():
            found[spec.arg.name] = first[id(own[name])]
    return found


def _inputs(program: ExportedProgram, call: Call) -> dict[str, str]:
    """Placeholder -> why it does not move, of the network's inputs."""
    order = list(inspect.signature(call.module.forward).parameters)
    found = {}
    for spec in program.graph_signature.input_specs:
        if spec.kind == InputKind.USER_INPUT:
            position = spec.arg.name.removeprefix("arguments_")
            name = order[int(position)] if position.isdigit() and int(position) < len(order) else spec.arg.name
            found[spec.arg.name] = f"it meets the input {name}"
    return found


def _twins(module: nn.Module) -> dict[str, tuple[str, ...]]:
    """Name -> the other names of the same tensor."""
    names: dict[int, list[str]] = defaultdict(list)
    for name, tensor in tensors_of(module).items():
        names[id(tensor)].append(name)
    return {name: tuple(other for other in same if other != name) for same in names.values() for name in same}


class _Fingerprints(Interpreter):
    """Runs a graph and keeps a fingerprint of every tensor as it is made: a later operation may write into it.

    Weights as they are, or seen from another side, have none: no module has anything to show there.
    """

    def __init__(self, program: ExportedProgram, weights: Iterable[Tensor]) -> None:
        super().__init__(program.graph_module)
        self.of: dict[Node, str] = {}
        self._weights = {_storage(tensor) for tensor in weights}

    def run_node(self, n: Node) -> Any:
        """The node's value, noted."""
        value = super().run_node(n)
        if isinstance(value, Tensor) and _storage(value) not in self._weights:
            self.of[n] = _fingerprint(value)
        return value


def _fingerprints(program: ExportedProgram, call: Call, weights: Weights) -> dict[Node, str]:
    """Of every tensor in the graph, run with given weights."""
    inputs = iter(tree_leaves((call.arguments, call.keywords)))
    values = []
    for spec in program.graph_signature.input_specs:
        target = spec.target or ""
        if spec.kind == InputKind.USER_INPUT:
            values.append(next(inputs))
        else:
            own = weights.get(target.removeprefix(_PREFIX))
            values.append(program.constants[target] if own is None else own)
    interpreter = _Fingerprints(program, weights.values())
    interpreter.run(*values)
    return interpreter.of


def _places(program: ExportedProgram, fingerprints: Mapping[Node, str], seen: Mapping[str, str]) -> dict[str, Node]:
    """Place -> the node that makes the tensor which is seen there.

    Tensors may be equal by chance (a ReLU of what is positive), so of several nodes a module's output is the last one
    inside of it, and its input the last one before it.
    """
    nodes = list(program.graph.nodes)
    when = {node: place for place, node in enumerate(nodes)}
    inside: dict[str, list[int]] = defaultdict(list)
    for node in nodes:
        for path, _ in node.meta.get("nn_module_stack", {}).values():
            inside[path.removeprefix(_PREFIX)].append(when[node])
    makers: dict[str, list[Node]] = defaultdict(list)
    for node, mark in fingerprints.items():
        makers[mark].append(node)
    found = {}
    for place, mark in seen.items():
        name, is_input = place.removesuffix(":input"), place.endswith(":input")
        own = inside.get(name, [])
        if not own and not is_input and mark == seen.get(f"{name}:input"):
            continue  # a module that does nothing says nothing that its input does not
        fitting = [node for node in makers[mark] if not own or (when[node] < own[0] if is_input else when[node] in own)]
        candidates = fitting or makers[mark]
        if candidates:
            found[place] = candidates[-1] if fitting else candidates[0]
    return found


def _operations(
    call: Call,
    weights: Weights,
    program: ExportedProgram,
    parameters: Mapping[str, str],
    prints: Mapping[Node, str],
) -> dict[str, Node]:
    """Where values meet weights, by the names of those operations in the graph that networks are read in.

    That graph is exported by itself, with a free batch and all outputs; an operation is the same if it gives the same.
    """
    example = call.keywords or call.arguments
    try:
        graph = NetworkGraph.of(call.module, example)
    except BadInput:  # what stands in the way of a free batch
        return {}
    tensors = {**graph.tensors, **{name: weights[name] for name in graph.tensors if name in weights}}
    named: dict[str, str] = {}
    for place, value in values_at(graph, tensors, example, list(graph.operations())):
        if isinstance(value, Tensor):
            named.setdefault(_fingerprint(value), place)
    nodes = list(program.graph.nodes)
    of_inputs, of_weights = made_of(nodes, parameters)
    return {
        named[prints[node]]: node
        for node in nodes
        if node in of_inputs & of_weights
        and any(source in of_weights - of_inputs for source in node.all_input_nodes)
        and prints.get(node) in named
    }


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _fingerprint(tensor: Tensor) -> str:
    state = hashlib.blake2b(f"{tensor.dtype}{tuple(tensor.shape)}".encode(), digest_size=16)
    if tensor.numel():
        state.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return state.hexdigest()


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Turns whatever a network raises into a sentence that says which line of its code is meant."""
    try:
        yield
    except TaskAtlasError:
        raise
    except Exception as error:
        said = str(error).strip().splitlines()
        raise BadInput(
            f"{what}{_line(error)}: {type(error).__name__}: {said[0] if said else ''} "
            "Where the network cannot be changed, give its AxisGroups by hand: a dictionary or a JSON file."
        ) from error


def _line(error: BaseException) -> str:
    """The line of the network's own code in which it went wrong."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not is_ours(frame.filename):
            return f" at {frame.filename.rsplit('/', 1)[-1]}:{frame.lineno} ({frame.line})"
    return ""
