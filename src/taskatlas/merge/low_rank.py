"""Task vectors of LoRA experts, kept as the factors that they are.

Expert i adds s_i B_i A_i to a weight W₀ (Hu et al., "LoRA", 2022, equation 3). The factors of all experts stand side by
side in U (rows, R) and V (R, columns), a component a column and a row; each component belongs to one expert, so

    W(λ) = W₀ + U diag(λ) V        and        ∂L/∂λ_i = Σ_{k of i} u_kᵀ (∂L/∂W) v_k,

and the N (D,) vectors that they stand for are never made: 16 components instead of 768 columns.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from taskatlas.errors import BadInput
from taskatlas.merge.lora import AdaptedSource
from taskatlas.merge.sources import MemorySource
from taskatlas.merge.state import Model, named_tensors
from taskatlas.merge.task_vectors import Level, TaskVectors
from taskatlas.store import digest
from taskatlas.zoo.weights import tensors_digest


@dataclass(frozen=True, eq=False)
class Factors:
    """The updates of one weight by all experts, R components in all: update of i = Σ_{k of i} u_k v_kᵀ.

    Attributes:
        up: U, (rows, R).
        down: V, (R, columns).
        owner: the expert of each component, its position among the names.
    """

    up: Float[Tensor, "rows R"]
    down: Float[Tensor, "R columns"]
    owner: Int64[Tensor, " R"]

    def update(self, coefficients: Float[Tensor, " N"]) -> Float[Tensor, "rows columns"]:
        """U diag(λ) V."""
        return (self.up * coefficients[self.owner]) @ self.down

    def gradient(self, of_weight: Float[Tensor, "rows columns"], experts: int) -> Float[Tensor, " N"]:
        """∂L/∂λ from ∂L/∂W, in float64."""
        by_component = (self.up * (of_weight @ self.down.T)).double().sum(0)
        found = torch.zeros(experts, dtype=torch.float64, device=by_component.device)
        return found.index_add_(0, self.owner, by_component)

    def squares(self, experts: int) -> Float[Tensor, " N"]:
        """‖update of i‖² (Frobenius) of every expert, from the small Gram matrices of its factors."""
        up, down = self.up.double(), self.down.double()
        together = (up.T @ up) * (down @ down.T) * (self.owner[:, None] == self.owner)
        found = torch.zeros(experts, dtype=torch.float64, device=up.device)
        return found.index_add_(0, self.owner, together.sum(1)).clamp(min=0)


@dataclass(frozen=True, eq=False, repr=False)
class LowRankVectors:
    """A base and LoRA experts: like ``TaskVectors``, but of the adapted weights alone, and with factors for deltas.

    Attributes:
        names: the experts, sorted; without those whose adapter changes nothing.
        base: the adapted weights of the base, flat, (D,).
        factors: adapted weight -> its updates.
        places: adapted weight -> its elements in D, in the order of the base.
        shapes: adapted weight -> its shape.
        dtypes: adapted weight -> how the base stores it.
        ties: another name of an adapted weight -> the one under which it stands here.
        fixed: the base's other tensors; not copied.
        own: expert -> tensors that its adapter brings whole: heads.
        dropped: experts whose adapter changes nothing.
    """

    names: tuple[str, ...]
    base: Float[Tensor, " D"]
    factors: Mapping[str, Factors]
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
        adapters: Mapping[str, Path | str],
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> "LowRankVectors":
        """Reads PEFT adapters that were trained on one base.

        Args:
            base: the network, or its tensors.
            adapters: expert -> folder with ``adapter_config.json``.
            dtype: of factors and base.
            device: where they lie.

        Raises:
            BadInput: no adapters, one that is no plain LoRA adapter or does not fit the base, or none changes anything.
        """
        if not adapters:
            raise BadInput("there are no adapters to merge. Give at least one folder.")
        tensors = named_tensors(base, "the base")
        source = MemorySource("the base", tensors)
        opened = {name: AdaptedSource(name, source, Path(adapters[name])) for name in sorted(adapters)}
        pairs = {name: {key: one.factors(key) for key in tensors} for name, one in opened.items()}
        changes = {
            name: any(pair is not None and bool(pair[0].any()) and bool(pair[1].any()) for pair in its.values())
            for name, its in pairs.items()
        }
        names = tuple(name for name, changed in changes.items() if changed)
        if not names:
            raise BadInput("no adapter changes anything: every B or A is zero. Are these the trained ones?")
        touched = [key for key in tensors if any(pairs[name][key] is not None for name in names)]
        ends = [0, *accumulate(tensors[key].numel() for key in touched)]
        storages = {_storage(tensors[key]): key for key in touched}
        others = [key for key in tensors if key not in touched]
        once: dict[object, Tensor] = {}  # tied weights stay one tensor, which is what torch asks of those it runs with
        return cls(
            names=names,
            base=torch.cat([tensors[key].reshape(-1).to(device, dtype) for key in touched]),
            factors={key: _side_by_side([pairs[name][key] for name in names], dtype, device) for key in touched},
            places={key: slice(*ends[i : i + 2]) for i, key in enumerate(touched)},
            shapes={key: tensors[key].shape for key in touched},
            dtypes={key: tensors[key].dtype for key in touched},
            ties={key: storages[_storage(tensors[key])] for key in others if _storage(tensors[key]) in storages},
            fixed={
                key: once.setdefault(_storage(tensors[key]), tensors[key])
                for key in others
                if _storage(tensors[key]) not in storages
            },
            own={name: {key: one.read(key) for key in one.whole} for name, one in opened.items()},
            dropped=tuple(name for name, changed in changes.items() if not changed),
        )

    def __repr__(self) -> str:
        ranks = sorted({len(factors.owner) / len(self.names) for factors in self.factors.values()})
        shown = ", ".join(self.names[:6]) + (" ..." if len(self.names) > 6 else "")
        return (
            f"LowRankVectors({len(self.names)} experts: {shown}; {len(self.places)} tensors of mean rank {ranks[-1]:g})"
        )

    @property
    def bytes(self) -> int:
        """Memory of the adapted weights of the base and of all factors."""
        elements = sum(factors.up.numel() + factors.down.numel() for factors in self.factors.values())
        return (self.base.numel() + elements) * self.base.element_size()

    @property
    def dead(self) -> Bool[Tensor, "N T"]:
        """Where an expert left a tensor as it was."""
        return torch.stack([factors.squares(len(self.names)) == 0 for factors in self.factors.values()], 1)

    def of_experts(self) -> Iterator[Mapping[str, Tensor]]:
        """The factors of all experts by weight, and then the tensors of each one's own: they say what it is."""
        for name, factors in self.factors.items():
            yield {f"{name} up": factors.up, f"{name} down": factors.down, f"{name} owner": factors.owner}
        yield from self.own.values()

    def merged(self, coefficients: Float[Tensor, "N *T"], out: Tensor | None = None) -> Float[Tensor, " D"]:
        """The adapted weights with λ: task-wise (N,), or layer-wise (N, T).

        Raises:
            BadInput: another number of coefficients.
        """
        sizes = (len(self.names),), (len(self.names), len(self.places))
        if tuple(coefficients.shape) not in sizes:
            raise BadInput(
                f"coefficients of shape {tuple(coefficients.shape)} do not fit; give {sizes[0]} or {sizes[1]}."
            )
        wanted = coefficients.detach().to(self.base)
        theta = torch.empty_like(self.base) if out is None else out
        for column, (name, place) in enumerate(self.places.items()):
            update = self.factors[name].update(wanted if wanted.ndim == 1 else wanted[:, column])
            torch.add(self.base[place], update.reshape(-1), out=theta[place])
        return theta

    def gradient(self, of_theta: Float[Tensor, " D"], level: Level = "task") -> Float[Tensor, "N *T"]:
        """∂L/∂λ from ∂L/∂θ, in float64: (N,) task-wise, (N, T) layer-wise."""
        columns = [
            factors.gradient(of_theta[self.places[name]].view(len(factors.up), -1), len(self.names))
            for name, factors in self.factors.items()
        ]
        layers = torch.stack(columns, 1)
        return layers if level == "layer" else layers.sum(1)

    def views(self, flat: Float[Tensor, " D"]) -> dict[str, Tensor]:
        """The tensors within a flat vector, in their shapes; they share its memory."""
        return {name: flat[place].view(self.shapes[name]) for name, place in self.places.items()}

    def state(self, flat: Float[Tensor, " D"]) -> dict[str, Tensor]:
        """All tensors of the base, copied, with the adapted ones from a flat vector."""
        found = {name: value.to(self.dtypes[name], copy=True) for name, value in self.views(flat).items()}
        copies = {id(value): value.clone() for value in self.fixed.values()}
        found |= {name: copies[id(value)] for name, value in self.fixed.items()}
        return found | {other: found[name] for other, name in self.ties.items()}


Vectors = TaskVectors | LowRankVectors
"""Experts as merging sees them: dense task vectors, or factors."""


def task_vector_norms(vectors: Vectors) -> Float[Tensor, "N T"]:
    """‖τ_i‖ of every expert and tensor, float64. Squares add up: that of a whole task vector is the root of their sum.

    Example:
        >>> base = {"w": torch.zeros(2), "b": torch.zeros(1)}
        >>> task_vector_norms(TaskVectors.of(base, {"a": {"w": torch.tensor([3.0, 4.0]), "b": torch.ones(1)}}))
        tensor([[5., 1.]], dtype=torch.float64)
    """
    if isinstance(vectors, TaskVectors):
        columns = [torch.linalg.vector_norm(vectors.deltas[:, place], dim=1) for place in vectors.places.values()]
        return torch.stack(columns, 1).double()
    return torch.stack([factors.squares(len(vectors.names)).sqrt() for factors in vectors.factors.values()], 1)


def content_digests(vectors: Vectors) -> dict[str, str]:
    """Digests of ``base`` and ``experts``: the same for the same weights in any process.

    Example:
        >>> base, one = {"w": torch.zeros(2)}, TaskVectors.of({"w": torch.zeros(2)}, {"a": {"w": torch.ones(2)}})
        >>> other = content_digests(TaskVectors.of(base, {"a": {"w": -torch.ones(2)}}))
        >>> {what: found == other[what] for what, found in content_digests(one).items()}
        {'base': True, 'experts': False}
    """
    return {
        "base": tensors_digest({"": vectors.base, **{f"/{name}": value for name, value in vectors.fixed.items()}}),
        "experts": digest("experts", [tensors_digest(tensors) for tensors in vectors.of_experts()]),
    }


def _storage(value: Tensor) -> object:
    return (value.data_ptr(), value.shape) if value.numel() else id(value)


def _side_by_side(pairs: list[tuple[Tensor, Tensor] | None], dtype: torch.dtype, device: str | torch.device) -> Factors:
    found = [(expert, *pair) for expert, pair in enumerate(pairs) if pair is not None]
    owners = [torch.full((up.shape[1],), expert, dtype=torch.int64) for expert, up, _ in found]
    return Factors(
        torch.cat([up for _, up, _ in found], 1).to(device, dtype),
        torch.cat([down for *_, down in found], 0).to(device, dtype),
        torch.cat(owners).to(device),
    )
