"""Task vectors as one matrix: merging is one product, and so is the gradient of every merging coefficient.

With θ₀ the base and τ_i = θ_i − θ₀ (Ilharco et al., "Editing Models with Task Arithmetic", ICLR 2023), all tensors of
a network lie one after the other in a vector of D numbers, and the task vectors of N experts in a matrix (N, D) with
the base as one more row. Then

    θ(λ) = θ₀ + Σ_i λ_i τ_i        and        ∂L/∂λ_i = ⟨∂L/∂θ, τ_i⟩,

so coefficients are learned without a graph of the merge: merge, go backward through the network, multiply. Layer-wise
coefficients (N, T) have one number for every expert and tensor, and the same two formulas tensor by tensor.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import accumulate
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from taskatlas.errors import BadInput
from taskatlas.merge.composition import how_many
from taskatlas.merge.operands import Operands
from taskatlas.merge.quantile import kth_largest
from taskatlas.merge.state import Model, named_tensors
from taskatlas.zoo.builders import some

Level = Literal["task", "layer"]

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)  # whose first axis are outputs
_PIECE = 2**20  # elements of a product that is summed in the matrix's precision; the pieces' sums are float64


@dataclass(frozen=True, eq=False, repr=False)
class TaskVectors:
    """A base and the task vectors of N experts, flat: T tensors of D elements in all.

    Tensors that share memory (tied weights) stand there once. What is no weight stands beside: integer tensors, running
    statistics of BatchNorm, which are not linear in λ (re-estimate them after a merge), and what is each expert's own.

    Attributes:
        names: the experts, sorted; without those that equal the base.
        matrix: τ, a row an expert, and θ₀ as the last row, (N + 1, D): a merged piece is one product of it.
        places: tensor's name -> its elements in D, in the order of the base.
        shapes: tensor's name -> its shape.
        dtypes: tensor's name -> how the base stores it.
        ties: another name of a tensor -> the one under which it stands here.
        fixed: tensors that no coefficient moves: integers as the base has them, running statistics as their mean over
            the experts.
        own: expert -> its own tensors, heads mostly; also of experts that equal the base.
        dropped: experts that equal the base, whose task vector is all zero.

    Example:
        >>> base = {"w": torch.zeros(2), "b": torch.ones(1)}
        >>> vectors = TaskVectors.of(base, {"a": {"w": torch.tensor([1.0, 0.0]), "b": torch.tensor([3.0])}})
        >>> vectors
        TaskVectors(1 experts: a; 2 tensors, 3 elements, 24 bytes)
        >>> vectors.state(vectors.merged(torch.tensor([0.5])))
        {'w': tensor([0.5000, 0.0000]), 'b': tensor([2.])}
    """

    names: tuple[str, ...]
    matrix: Float[Tensor, "rows D"]
    places: Mapping[str, slice]
    shapes: Mapping[str, torch.Size]
    dtypes: Mapping[str, torch.dtype]
    ties: Mapping[str, str]
    fixed: Mapping[str, Tensor]
    own: Mapping[str, Mapping[str, Tensor]]
    dropped: tuple[str, ...]

    @classmethod
    def of(
        cls,
        base: Model,
        experts: Mapping[str, Model],
        *,
        own: Sequence[str] = (),
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> "TaskVectors":
        """Copies a base and the differences of its experts into one matrix; changes none of them.

        Args:
            base: what the experts were trained from: a module, tensors by name, a checkpoint, or a path of weights.
            experts: by name.
            own: patterns (``classifier.*``) of tensors that stay each expert's own; so do those that the base lacks.
            dtype: of the matrix.
            device: where it lies.

        Raises:
            BadInput: an expert lacks a tensor of the base or has it in another shape (they are listed), holds NaN or
                infinite numbers, or all experts equal the base.
        """
        if not experts:
            raise BadInput("there are no experts to take task vectors of. Give at least one.")
        tensors = {name: value for name, value in _tensors_of(base, "the base").items() if not _matches(name, own)}
        found = {name: _tensors_of(experts[name], name) for name in sorted(experts)}
        names, ties = _untied(tensors, found)
        _check_fit(tensors, names, ties, found)
        merged = [name for name in names if tensors[name].is_floating_point() and not _is_statistic(name)]
        if not merged:
            raise BadInput("the base has no floating-point tensor to merge. Is it the right network?")
        ends = [0, *accumulate(tensors[name].numel() for name in merged)]
        places = {name: slice(*ends[i : i + 2]) for i, name in enumerate(merged)}
        matrix = torch.empty(len(found) + 1, ends[-1], dtype=dtype, device=device)
        deltas, flat = matrix[:-1], matrix[-1]
        for name, place in places.items():
            flat[place] = tensors[name].reshape(-1).to(flat)
            _check_finite(flat[place], name, "the base")
            for row, (expert, its) in enumerate(found.items()):
                deltas[row, place] = _looked_up(name, its, ties).reshape(-1).to(flat)
                _check_finite(deltas[row, place], name, expert)
                deltas[row, place] -= flat[place]
        changed = [row for row in range(len(found)) if bool(deltas[row].any())]
        if not changed:
            raise BadInput("every expert equals the base, so there is no task vector. Are these the fine-tuned models?")
        in_order = list(found)
        return cls(
            names=tuple(in_order[row] for row in changed),
            matrix=matrix if len(changed) == len(found) else matrix[[*changed, len(found)]],
            places=places,
            shapes={name: tensors[name].shape for name in merged},
            dtypes={name: tensors[name].dtype for name in merged},
            ties=ties,
            fixed={name: _kept(name, tensors[name], ties, found) for name in names if name not in places},
            own={name: _own_tensors(its, {*names, *ties}) for name, its in found.items()},
            dropped=tuple(name for row, name in enumerate(in_order) if row not in changed),
        )

    def __repr__(self) -> str:
        shown = ", ".join(self.names[:6]) + (" ..." if len(self.names) > 6 else "")
        dropped = f"; dropped, equal to the base: {', '.join(self.dropped)}" if self.dropped else ""
        return (
            f"TaskVectors({len(self.names)} experts: {shown}; {len(self.places)} tensors, {self.base.numel():,} "
            f"elements, {_said(self.bytes)}{dropped})"
        )

    @property
    def base(self) -> Float[Tensor, " D"]:
        """θ₀."""
        return self.matrix[-1]

    @property
    def deltas(self) -> Float[Tensor, "N D"]:
        """τ, a row an expert."""
        return self.matrix[:-1]

    @property
    def bytes(self) -> int:
        """Memory of the base and the task vectors. A merged model takes as much as the base again."""
        return self.matrix.numel() * self.matrix.element_size()

    @property
    def dead(self) -> Bool[Tensor, "N T"]:
        """Where an expert left a tensor as it was: a coefficient there changes nothing."""
        columns = [~self.deltas[:, place].any(1) for place in self.places.values()]
        return torch.stack(columns, 1)

    def of_experts(self) -> Iterator[Mapping[str, Tensor]]:
        """Of each expert, and then of each one's own, the tensors that say what it is."""
        yield from ({name: row} for name, row in zip(self.names, self.deltas, strict=True))
        yield from self.own.values()

    def merged(self, coefficients: Float[Tensor, "N *T"], out: Tensor | None = None) -> Float[Tensor, " D"]:
        """θ₀ + λτ: task-wise λ (N,), or layer-wise λ (N, T).

        Args:
            coefficients: in the order of ``names`` and ``places``.
            out: where to write; a new vector where None.

        Raises:
            BadInput: another number of coefficients.
        """
        self._check(coefficients)
        wanted = coefficients.detach().to(self.base)
        theta = torch.empty_like(self.base) if out is None else out
        if wanted.ndim == 1:
            return torch.addmv(self.base, self.deltas.T, wanted, out=theta)
        for column, place in enumerate(self.places.values()):
            torch.addmv(self.base[place], self.deltas[:, place].T, wanted[:, column], out=theta[place])
        return theta

    def gradient(self, of_theta: Float[Tensor, " D"], level: Level = "task") -> Float[Tensor, "N *T"]:
        """∂L/∂λ from ∂L/∂θ, in float64: (N,) task-wise, (N, T) layer-wise."""
        columns = []
        for place in self.places.values():
            column = torch.zeros(len(self.names), dtype=torch.float64, device=self.base.device)
            for start in range(place.start, place.stop, _PIECE):
                piece = slice(start, min(start + _PIECE, place.stop))
                column += self.deltas[:, piece] @ of_theta[piece].to(self.deltas)
            columns.append(column)
        layers = torch.stack(columns, 1)
        return layers if level == "layer" else layers.sum(1)

    def elected(self, density: float) -> "TaskVectors":
        """Trimmed task vectors, of which only what agrees with the elected sign is left, as in TIES.

        Of each τ_i the share ``density`` that is largest in magnitude over the whole vector is kept, ties too; then the
        sign of the sum is elected for every element (Yadav et al., NeurIPS 2023, algorithm 1, steps 1 and 2).

        Raises:
            BadInput: a share that is not in (0, 1].
        """
        if not 0 < density <= 1:
            raise BadInput(f"density is {density:g}; it is the share of a task vector that is kept, in (0, 1].")
        matrix = self.matrix.clone()
        deltas = matrix[:-1]
        for row in deltas:
            row[row.abs() < _least_kept(row, density)] = 0
        for start in range(0, deltas.shape[1], _PIECE):
            piece = deltas[:, start : start + _PIECE]
            piece[(piece < 0) == (piece.sum(0) >= 0)] = 0  # the sign is plus where signs cancel
        return replace(self, matrix=matrix)

    def views(self, flat: Float[Tensor, " D"]) -> dict[str, Tensor]:
        """The tensors within a flat vector, in their shapes; they share its memory. One name for each storage."""
        return {name: flat[place].view(self.shapes[name]) for name, place in self.places.items()}

    def state(self, flat: Float[Tensor, " D"]) -> dict[str, Tensor]:
        """A flat vector as the base's tensors, copied, in the base's types, with tied names and what is fixed."""
        found = {name: value.to(self.dtypes[name], copy=True) for name, value in self.views(flat).items()}
        found |= {name: value.clone() for name, value in self.fixed.items()}
        return found | {other: found[name] for other, name in self.ties.items()}

    def _check(self, coefficients: Tensor) -> None:
        sizes = (len(self.names),), (len(self.names), len(self.places))
        if tuple(coefficients.shape) not in sizes:
            raise BadInput(
                f"coefficients of shape {tuple(coefficients.shape)} do not fit {sizes[0][0]} experts and "
                f"{sizes[1][1]} tensors; give {sizes[0]} or {sizes[1]}."
            )


def differing(base: Model, experts: Mapping[str, Model]) -> tuple[str, ...]:
    """Names of tensors that some expert has in another shape than the base or another expert: heads, mostly.

    Example:
        >>> differing({"w": torch.zeros(2)}, {"a": {"w": torch.zeros(2), "head": torch.zeros(3)},
        ...                                   "b": {"w": torch.zeros(2), "head": torch.zeros(4)}})
        ('head',)
    """
    shapes: dict[str, set[torch.Size]] = {}
    for who, model in (("the base", base), *experts.items()):
        for name, value in _tensors_of(model, who).items():
            shapes.setdefault(name, set()).add(value.shape)
    return tuple(sorted(name for name, seen in shapes.items() if len(seen) > 1))


def differing_heads(base: Model, experts: Mapping[str, Model], own: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of tensors by which models differ in a layer's number of outputs alone: heads for other classes.

    None where any other tensor differs in shape: then the networks are of another width, and no tensor is a head.

    Args:
        base: one of them has to be a module, which says what is a layer.
        experts: by name.
        own: patterns of tensors that are known to be each expert's own.

    Example:
        >>> differing_heads(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3)),
        ...                 {"a": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 4))})
        ('1.bias', '1.weight')
    """
    models = {"the base": base, **experts}
    tensors = {who: _tensors_of(model, who) for who, model in models.items()}
    layers = [dict(model.named_modules()) for model in models.values() if isinstance(model, nn.Module)]
    found = tuple(name for name in differing(base, experts) if name in tensors["the base"] and not _matches(name, own))
    for name in found:
        inputs = {its[name].shape[1:] for its in tensors.values() if name in its}
        layer = next((its[name.rpartition(".")[0]] for its in layers if name.rpartition(".")[0] in its), None)
        if len(inputs) > 1 or not isinstance(layer, _LAYERS):
            return ()
    return found


def _tensors_of(model: Model, who: str) -> dict[str, Tensor]:
    """A module's tensors where they are: copies from a GPU would not show which share memory."""
    if isinstance(model, nn.Module):
        return {name: value.detach() for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    return named_tensors(model, who)


def _untied(
    tensors: Mapping[str, Tensor], experts: Mapping[str, Mapping[str, Tensor]]
) -> tuple[list[str], dict[str, str]]:
    """One name for each storage of the base, and the other names with the one that each stands for.

    Names stay apart where some expert gives them different values.
    """
    names: list[str] = []
    ties: dict[str, str] = {}
    first: dict[Any, str] = {}
    for name, value in tensors.items():
        known = first.setdefault(_storage(value), name) if value.numel() else name
        if known != name and all(_alike(its.get(name), its.get(known)) for its in experts.values()):
            ties[name] = known
        else:
            names.append(name)
    return names, ties


def _storage(value: Tensor) -> Any:
    return value.data_ptr(), value.shape, value.stride(), value.dtype


def _alike(one: Tensor | None, other: Tensor | None) -> bool:
    """Two names of one tensor; a file may leave either out."""
    if one is None or other is None:
        return one is not other
    return _storage(one) == _storage(other) or torch.equal(one, other)


def _under(name: str, tensors: Mapping[str, Tensor], ties: Mapping[str, str]) -> Tensor | None:
    """A tensor under its name, or under one that is tied to it."""
    names = [name, *(other for other, stands_for in ties.items() if stands_for == name)]
    return next((tensors[each] for each in names if each in tensors), None)


def _looked_up(name: str, tensors: Mapping[str, Tensor], ties: Mapping[str, str]) -> Tensor:
    found = _under(name, tensors, ties)
    assert found is not None  # _check_fit has seen that it is there
    return found


def _kept(name: str, value: Tensor, ties: Mapping[str, str], experts: Mapping[str, Mapping[str, Tensor]]) -> Tensor:
    """Running statistics: the experts' mean, which no coefficient makes negative. Others as the base has them."""
    if not _is_statistic(name):
        return value.clone()
    return torch.stack([_looked_up(name, its, ties).double() for its in experts.values()]).mean(0).to(value)


def _check_fit(
    tensors: Mapping[str, Tensor],
    names: Sequence[str],
    ties: Mapping[str, str],
    experts: Mapping[str, Mapping[str, Tensor]],
) -> None:
    problems, which = [], []
    for expert, its in experts.items():
        found = {name: _under(name, its, ties) for name in names}
        missing = [name for name, value in found.items() if value is None]
        unlike = [name for name, value in found.items() if value is not None and value.shape != tensors[name].shape]
        misshaped = [
            f"{name} is {tuple(_looked_up(name, its, ties).shape)} there and {tuple(tensors[name].shape)} in the base"
            for name in unlike
        ]
        which += [*missing, *unlike]
        problems += [f"{expert} lacks {some(missing)}"] if missing else []
        problems += [f"of {expert}, {some(misshaped)}"] if misshaped else []
    if problems:
        patterns = list(dict.fromkeys(f"{name.rpartition('.')[0]}.*" if "." in name else name for name in which))
        raise BadInput(
            f"the experts do not fit the base: {'; '.join(problems)}. "
            f"If these belong to each expert alone, name them: own={patterns}."
        )


def _own_tensors(tensors: Mapping[str, Tensor], shared: Set[str]) -> dict[str, Tensor]:
    """What a network has beside the shared tensors; another name of a shared one is none."""
    storages = {_storage(value) for name, value in tensors.items() if name in shared and value.numel()}
    return {name: value for name, value in tensors.items() if name not in shared and _storage(value) not in storages}


def _least_kept(vector: Tensor, density: float) -> float:
    """The magnitude of the smallest element that is kept."""
    whole, rank = Operands("τ", ("τ",), (vector.cpu(),), None, ({},), {}), how_many(density, len(vector))
    ((least,),) = kth_largest([whole], lambda piece: [piece.tensors[0].abs().numpy()], [[rank]])
    return least


def _check_finite(values: Tensor, name: str, who: str) -> None:
    if not bool(values.isfinite().all()):
        raise BadInput(f"the tensor {name!r} of {who} holds NaN or infinite numbers. Is the checkpoint whole?")


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _is_statistic(name: str) -> bool:
    return name.endswith(("running_mean", "running_var"))


def _said(count: int) -> str:
    """Bytes for a person: 24 bytes, 1.4 GB."""
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
