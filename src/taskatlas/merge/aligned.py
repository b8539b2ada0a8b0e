"""Several models tensor by tensor, in the order of their names: what averages with statistics of data go over."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from taskatlas.errors import BadInput
from taskatlas.merge.state import Model, named_tensors
from taskatlas.zoo.builders import some


@dataclass(frozen=True, eq=False)
class Aligned:
    """The tensors that models have in common.

    Attributes:
        names: of the models, sorted, so that sums do not depend on the order in which models are given.
        shares: of each model, adding up to 1.
        tensors: tensor's name -> that of each model, as they are stored.

    Example:
        >>> aligned = Aligned.of({"b": {"w": torch.ones(1)}, "a": {"w": torch.zeros(1)}}, weights={"a": 1.0, "b": 3.0})
        >>> aligned.names, aligned.mean("w")
        (('a', 'b'), tensor([0.7500]))
    """

    names: tuple[str, ...]
    shares: tuple[float, ...]
    tensors: Mapping[str, tuple[Tensor, ...]]

    @classmethod
    def of(
        cls, models: Mapping[str, Model], *, weights: Mapping[str, float] | None = None, own: Sequence[str] = ()
    ) -> "Aligned":
        """Aligns models that have the same tensors.

        Args:
            models: by name.
            weights: of each model; None: all alike.
            own: patterns of tensors that are left out.

        Raises:
            BadInput: no models, tensors that some model lacks or has in another shape (listed), NaN or infinite
                numbers, weights that are negative or all zero.
        """
        if not models:
            raise BadInput("there are no models to merge. Give at least one.")
        names = tuple(sorted(models))
        found = {
            name: {
                key: value
                for key, value in named_tensors(models[name], name).items()
                if not any(fnmatchcase(key, pattern) for pattern in own)
            }
            for name in names
        }
        _check_alike(found)
        aligned = {key: tuple(found[name][key] for name in names) for key in found[names[0]]}
        for key, tensors in aligned.items():
            for name, tensor in zip(names, tensors, strict=True):
                if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                    raise BadInput(f"the tensor {key!r} of {name} holds NaN or infinite numbers. Is it whole?")
        return cls(names, _shares(names, weights), aligned)

    def items(self) -> Iterator[tuple[str, tuple[Tensor, ...]]]:
        """Each tensor's name and that tensor of every model."""
        yield from self.tensors.items()

    def mean(self, name: str) -> Tensor:
        """The weighted mean, summed in float64, in the first model's type; integers are the first model's own."""
        first = self.tensors[name][0]
        if not first.is_floating_point():
            return first.clone()
        total = torch.zeros(first.shape, dtype=torch.float64)
        for tensor, share in zip(self.tensors[name], self.shares, strict=True):
            total.add_(tensor.to(total), alpha=share)
        return total.to(first.dtype)


def _shares(names: Sequence[str], weights: Mapping[str, float] | None) -> tuple[float, ...]:
    if weights is None:
        return (1 / len(names),) * len(names)
    missing = [name for name in names if name not in weights]
    if missing:
        raise BadInput(f"there is no weight for {missing[0]!r}. Give one for every model.")
    wanted = [float(weights[name]) for name in names]
    if not all(0 <= weight < math.inf for weight in wanted) or sum(wanted) == 0:
        raise BadInput(f"the weights are {wanted}; give numbers that are not negative, and not all of them 0.")
    return tuple(weight / sum(wanted) for weight in wanted)


def _check_alike(models: Mapping[str, Mapping[str, Tensor]]) -> None:
    first, *others = models
    problems = []
    for name in others:
        mine, its = models[first], models[name]
        missing = [key for key in mine if key not in its]
        more = [key for key in its if key not in mine]
        misshaped = [
            f"{key} is {tuple(its[key].shape)} there and {tuple(mine[key].shape)} in {first}"
            for key in mine
            if key in its and its[key].shape != mine[key].shape
        ]
        problems += [f"{name} lacks {some(missing)}"] if missing else []
        problems += [f"{first} lacks {some(more)} of {name}"] if more else []
        problems += [f"of {name}, {some(misshaped)}"] if misshaped else []
    if problems:
        raise BadInput(
            f"the models do not have the same tensors: {'; '.join(problems)}. "
            "If these belong to each model alone, leave them out: own=['head.*']."
        )
