"""Where in a network features are read: the input or output of a module, or a model's last hidden state."""

from difflib import get_close_matches
from types import TracebackType
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from taskatlas.errors import BadInput

LAST_HIDDEN_STATE = "last_hidden_state"


class Tap:
    """Keeps what a network computes at one place in a forward pass; ``read`` after each pass gives it.

    Args:
        network: whose forward passes to watch, within the ``with`` block.
        place: ``layer3`` for the output of that module, ``fc:input`` for its input, ``last_hidden_state``; None for the
            last hidden state where the output has one, else for the input of the linear layer that is called last.
            A module that is called several times in a pass counts with its last call.
        who: the checkpoint's name, for messages.

    Raises:
        BadInput: the network has no such module.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> with torch.no_grad(), Tap(net, None, "a") as tap:
        ...     features = tap.read(net(torch.zeros(5, 2, 2)))
        >>> tap.place, features.shape
        ('3:input', torch.Size([5, 3]))
    """

    def __init__(self, network: nn.Module, place: str | None, who: str) -> None:
        self.place = place
        self._network = network
        self._who = who
        self._hooks: dict[str, RemovableHandle] = {}
        self._latest: tuple[str, Tensor | None] | None = None
        if place is not None and place != LAST_HIDDEN_STATE:
            _module_at(network, place, who)

    def __enter__(self) -> "Tap":
        if self.place is None:
            for name, module in self._network.named_modules():
                if isinstance(module, nn.Linear):
                    self._watch(f"{name}:input")
        elif self.place != LAST_HIDDEN_STATE:
            self._watch(self.place)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks.values():
            hook.remove()

    def read(self, output: Any) -> Tensor:
        """What stood at the tap in the pass that gave ``output``.

        Raises:
            BadInput: there was nothing, or no tensor.
        """
        if self.place is None:
            self._settle(output)
        if self.place == LAST_HIDDEN_STATE:
            return self._tensor(_last_hidden_state(output))
        latest, self._latest = self._latest, None
        if latest is None:
            raise BadInput(f"{self._who}: the forward pass never calls {self.place!r}. Choose another tap.")
        return self._tensor(latest[1])

    def _settle(self, output: Any) -> None:
        """The first pass decides the place; from then on only that one is watched."""
        if _last_hidden_state(output) is not None:
            self.place = LAST_HIDDEN_STATE
        elif self._latest is not None:
            self.place = self._latest[0]
        else:
            raise BadInput(
                f"{self._who} calls no nn.Linear, so there is no default tap. Name a module: {_listed(self._network)}."
            )
        for place, hook in self._hooks.items():
            if place != self.place:
                hook.remove()

    def _tensor(self, value: Tensor | None) -> Tensor:
        if value is None:
            raise BadInput(f"{self._who}: there is no tensor at the tap {self.place!r}. Choose another tap.")
        return value

    def _watch(self, place: str) -> None:
        # A copy is kept, because a later in-place operation may write over the tensor itself.
        def keep_input(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._latest = (place, _copied([*args, *kwargs.values()]))

        def keep_output(_: nn.Module, __: Any, output: Any) -> None:
            self._latest = (place, _copied(output))

        module, is_input = _module_at(self._network, place, self._who)
        if is_input:
            self._hooks[place] = module.register_forward_pre_hook(keep_input, with_kwargs=True)
        else:
            self._hooks[place] = module.register_forward_hook(keep_output)


def _module_at(network: nn.Module, place: str, who: str) -> tuple[nn.Module, bool]:
    """The module that a place names, and whether its input is meant."""
    name, _, side = place.partition(":")
    modules = dict(network.named_modules(remove_duplicate=False))
    if name in modules and side in ("", "input"):
        return modules[name], side == "input"
    close = get_close_matches(name, [known for known in modules if known], n=3, cutoff=0.5)
    meant = f"Did you mean {' or '.join(close)}?" if close else f"It has {_listed(network)}."
    raise BadInput(f"{who} has no tap {place!r}; a tap is a module's name, or name:input. {meant}")


def _listed(network: nn.Module, most: int = 20) -> str:
    names = [name for name, _ in network.named_modules() if name]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _last_hidden_state(output: Any) -> Tensor | None:
    found = output.get(LAST_HIDDEN_STATE) if isinstance(output, dict) else getattr(output, LAST_HIDDEN_STATE, None)
    return found if isinstance(found, Tensor) else None


def _copied(value: Any) -> Tensor | None:
    found = _first_tensor(value)
    return None if found is None else found.detach().clone()


def _first_tensor(value: Any) -> Tensor | None:
    """The tensor itself, or the first within a tuple, list or mapping: an LSTM's outputs, an attention's values."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return next((found for item in value if (found := _first_tensor(item)) is not None), None)
    return None
