"""One network with several heads: a trunk that the models share, and for each model the rest of it."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.fx import GraphModule

from taskatlas.errors import BadInput


class Regroup(nn.Module):
    """Takes merged units apart: every unit of a model is the merged unit that it became part of.

    Args:
        places: for some axes of the tensor, which position of the merged axis each position takes.
    """

    def __init__(self, places: Mapping[int, Int[Tensor, " positions"]]) -> None:
        super().__init__()
        self.axes = tuple(places)
        for axis, index in places.items():
            self.register_buffer(f"places{axis}", index)

    def forward(self, merged: Tensor) -> Tensor:
        """The model's own arrangement."""
        for axis in self.axes:
            merged = merged.index_select(axis, self.get_buffer(f"places{axis}"))
        return merged


class Unmix(nn.Module):
    """Takes merged units apart by a linear map of them.

    Args:
        axis: of the units.
        weight: (own, merged).
        bias: (own,).
    """

    def __init__(self, axis: int, weight: Float[Tensor, "own merged"], bias: Float[Tensor, " own"]) -> None:
        super().__init__()
        self.axis = axis
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(bias)

    def forward(self, merged: Tensor) -> Tensor:
        """The model's own units."""
        if merged.ndim == 4 and self.axis == 1:
            return nn.functional.conv2d(merged, self.weight[:, :, None, None], self.bias)
        return nn.functional.linear(merged.movedim(self.axis, -1), self.weight, self.bias).movedim(-1, self.axis)


class ZippedNetwork(nn.Module):
    """An ordinary module: ``network(x)`` runs the trunk once and gives the output of every head, in a tuple.

    Args:
        trunk: takes the flat inputs, gives the tensor at the stop in a tuple.
        unmerges: for each model what takes that tensor apart.
        heads: for each model the rest of it: takes the tensor and the flat inputs, gives flat outputs.
        names: of the models.
        keywords: names of the inputs, where they are given by keyword.
        outputs: names of the outputs; a single ``output`` is given bare, several in a dictionary.
    """

    def __init__(
        self,
        trunk: GraphModule,
        unmerges: Sequence[nn.Module],
        heads: Sequence[nn.Module],
        *,
        names: Sequence[str],
        keywords: Sequence[str] = (),
        outputs: Sequence[str] = ("output",),
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.unmerges = nn.ModuleList(unmerges)
        self.heads = nn.ModuleList(heads)
        self.names = tuple(names)
        self.keywords = tuple(keywords)
        self.outputs = tuple(outputs)

    def forward(self, *arguments: Any, head: int | str | None = None, **keywords: Any) -> Any:
        """All heads' outputs in the order of the models; with ``head``, a position or a name, that one's alone.

        Raises:
            BadInput: there is no such head, or an input is missing.
        """
        inputs = self._flat(arguments, keywords)
        (merged,) = self.trunk(*inputs)
        if head is not None:
            return self._run(self._position(head), merged, inputs)
        return tuple(self._run(position, merged, inputs) for position in range(len(self.heads)))

    def _run(self, position: int, merged: Tensor, inputs: Sequence[Any]) -> Any:
        found = self.heads[position](self.unmerges[position](merged), *inputs)
        return found[0] if self.outputs == ("output",) else dict(zip(self.outputs, found, strict=True))

    def _flat(self, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> list[Any]:
        missing = [name for name in self.keywords if name not in keywords]
        unknown = [name for name in keywords if name not in self.keywords]
        if missing or unknown or (self.keywords and arguments):
            raise BadInput(
                f"this network takes {', '.join(self.keywords) or 'its inputs by position'}, "
                f"not {', '.join(unknown or keywords) or 'inputs by position'}."
            )
        return [keywords[name] for name in self.keywords] if self.keywords else list(arguments)

    def _position(self, head: int | str) -> int:
        if isinstance(head, str) and head in self.names:
            return self.names.index(head)
        if isinstance(head, int) and 0 <= head < len(self.heads):
            return head
        raise BadInput(f"there is no head {head!r}. There are: {', '.join(self.names)}.")


class OneHead(nn.Module):
    """A zipped network that answers with one of its heads."""

    def __init__(self, network: ZippedNetwork, head: int) -> None:
        super().__init__()
        self.network = network
        self.head = head

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        """As the model would."""
        return self.network(*arguments, head=self.head, **keywords)
