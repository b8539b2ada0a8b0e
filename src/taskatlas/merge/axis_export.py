"""Deriving axis groups from a module: export it, follow the graph, collect groups, name taps and stops, check."""

import hashlib
import traceback
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Interpreter, Node
from torch.utils._pytree import tree_leaves

from taskatlas.errors import BadInput
from taskatlas.merge.axis_check import check
from taskatlas.merge.axis_collect import collect
from taskatlas.merge.axis_groups import AxisGroups, Example
from taskatlas.merge.axis_run import Call, Weights, generic_weights, tensors_of, watch
from taskatlas.merge.axis_stops import stops
from taskatlas.merge.axis_trace import follow
from taskatlas.probe import quiet

_PREFIX = "network."


def derive(module: nn.Module, example: Example, outputs: Sequence[str] | None) -> AxisGroups:
    """What ``AxisGroups.of`` returns."""
    call = Call.of(module, example, outputs)
    with quiet(module):
        with _told("the example does not fit the network"):
            weights = generic_weights(call)
        _, seen = watch(call, weights, lambda _, tensor: _fingerprint(tensor))
        with _told("the forward pass cannot be followed"):
            program, names = _exported(call)
        parameters = _parameters(program, module)
        twins = _twins(module)
        trace = follow(program.graph, parameters, _inputs(program), names)
        fingerprints = _Fingerprints(program, call, weights)
        places = {
            place: node for place, print_ in seen.items() if (node := fingerprints.first.get(print_)) in trace.values
        }
        groups, frozen = collect(trace, {place: trace.values[node].axes for place, node in places.items()}, twins)
        seen_at: dict[str, list[str]] = defaultdict(list)
        for place, print_ in seen.items():
            seen_at[print_].append(place)
        at = {node: seen_at[print_] for node, print_ in fingerprints.of.items() if print_ in seen_at}
        found = AxisGroups(
            groups=tuple(groups),
            frozen=tuple(frozen),
            stops=tuple(stops(program.graph, at, parameters, twins)),
            shapes={name: tuple(tensor.shape) for name, tensor in module.state_dict().items()},
        )
        return check(found, call)


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
    program = torch.export.export(_Named(call, names).eval(), call.arguments, call.keywords, strict=False)
    return program, list(names)


def _parameters(program: ExportedProgram, module: nn.Module) -> dict[str, str]:
    """Placeholder -> name in the state dict, of weights and float buffers."""
    kept = module.state_dict()
    found = {}
    for spec in program.graph_signature.input_specs:
        name = (spec.target or "").removeprefix(_PREFIX)
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and name in kept and kept[name].is_floating_point():
            found[spec.arg.name] = name
    return found


def _inputs(program: ExportedProgram) -> dict[str, str]:
    """Placeholder -> why it does not move, of the network's inputs."""
    specs = program.graph_signature.input_specs
    return {spec.arg.name: f"it meets the input {spec.arg.name}" for spec in specs if spec.kind == InputKind.USER_INPUT}


def _twins(module: nn.Module) -> dict[str, tuple[str, ...]]:
    """Name -> the other names of the same tensor."""
    names: dict[int, list[str]] = defaultdict(list)
    for name, tensor in tensors_of(module).items():
        names[id(tensor)].append(name)
    return {name: tuple(other for other in same if other != name) for same in names.values() for name in same}


class _Fingerprints(Interpreter):
    """Runs a graph and keeps a fingerprint of every tensor, by which modules' inputs and outputs are recognised in it."""

    def __init__(self, program: ExportedProgram, call: Call, weights: Weights) -> None:
        super().__init__(program.graph_module)
        self.of: dict[Node, str] = {}
        self.first: dict[str, Node] = {}
        inputs = iter(tree_leaves((call.arguments, call.keywords)))
        values = []
        for spec in program.graph_signature.input_specs:
            if spec.kind == InputKind.USER_INPUT:
                values.append(next(inputs))
            else:
                target = spec.target or ""
                own = weights.get(target.removeprefix(_PREFIX))
                values.append(program.constants[target] if own is None else own)
        self.run(*values)

    def run_node(self, n: Node) -> Any:
        """Every tensor as soon as it is made, before a later operation may write into it."""
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.of[n] = _fingerprint(value)
            self.first.setdefault(self.of[n], n)
        return value


def _fingerprint(tensor: Tensor) -> str:
    content = tensor.detach().cpu().contiguous()
    state = hashlib.blake2b(f"{content.dtype}{tuple(content.shape)}".encode(), digest_size=16)
    state.update(content.flatten().view(torch.uint8).numpy().tobytes() if content.numel() else b"")
    return state.hexdigest()


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Turns whatever a network raises into a sentence that says which line of its code is meant."""
    try:
        yield
    except BadInput:
        raise
    except Exception as error:
        said = str(error).strip().splitlines()
        raise BadInput(
            f"{what}{_line(error)}: {type(error).__name__}: {said[0] if said else ''} "
            "If the network cannot be changed there, give its AxisGroups by hand (AxisGroups.from_dict, or a JSON file)."
        ) from error


def _line(error: BaseException) -> str:
    """The line of the network's own code in which it went wrong."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if "/torch/" not in frame.filename and "/taskatlas/" not in frame.filename:
            return f" at {frame.filename.rsplit('/', 1)[-1]}:{frame.lineno} ({frame.line})"
    return ""
