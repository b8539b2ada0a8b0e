"""What a recipe's words for models stand for: checkpoints of a zoo, paths, hub ids, adapters on a base, recipes."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from taskatlas.errors import BadInput
from taskatlas.merge.lora import AdaptedSource, base_of_adapter, is_adapter
from taskatlas.merge.sources import MemorySource, Source, open_weights
from taskatlas.zoo import Checkpoint, Zoo
from taskatlas.zoo.checkpoint import is_hub_id
from taskatlas.zoo.hugging_face import download_model

_RECIPES = (".yml", ".yaml")


@dataclass(frozen=True)
class References:
    """Opens models by what recipes call them, each once.

    Looked for, in this order: a checkpoint of the zoo; a path, seen from the working folder and else from the recipe's;
    ``BASE+ADAPTER``, where both are any of these; a hub id.

    Attributes:
        zoo: whose checkpoints may be named.
        beside: the folder of the recipe.
        base: what adapters are on that are named alone; None: what they say themselves.
        open_recipe: makes a source of another recipe's file.
    """

    zoo: Zoo | None
    beside: Path | None
    base: str | None
    open_recipe: Callable[[str, Path], Source]
    _opened: dict[str, Source] = field(default_factory=dict, repr=False)
    _opening: set[str] = field(default_factory=set, repr=False)

    def open(self, reference: str) -> Source:
        """The model that a reference stands for.

        Raises:
            BadInput: there is no such model, or it cannot be read.
        """
        if reference not in self._opened:
            if reference in self._opening:
                raise BadInput(f"{reference} is an adapter on itself. Write BASE+{reference} with the model it is for.")
            self._opening.add(reference)
            self._opened[reference] = self._found(reference)
        return self._opened[reference]

    def path(self, reference: str) -> Path | None:
        """What lies at a reference that is a path, seen from the working folder or else from the recipe's."""
        for root in (Path(), self.beside):
            place = None if root is None else root / Path(reference).expanduser()
            if place is not None and place.exists():
                return place
        return None

    def _found(self, reference: str) -> Source:
        if self.zoo is not None and reference in self.zoo:
            return self._of_zoo(reference, self.zoo[reference])
        place = self.path(reference)
        if place is not None:
            return self._at(reference, place)
        base, plus, adapter = reference.rpartition("+")
        if plus and base and adapter:
            return AdaptedSource(reference, self.open(base), self._adapter(adapter))
        if not is_hub_id(reference):
            raise BadInput(f"there is no model {reference!r}.{self._meant(reference)}")
        try:
            return self._at(reference, download_model(reference))
        except BadInput as error:
            raise BadInput(f"{error}{self._meant(reference)}") from error

    def _at(self, reference: str, place: Path) -> Source:
        if place.suffix in _RECIPES and place.is_file():
            return self.open_recipe(reference, place)
        if place.is_dir() and is_adapter(place):
            return self._on_base(reference, place)
        return open_weights(reference, place)

    def _on_base(self, reference: str, adapter: Path) -> Source:
        base = self.base or base_of_adapter(adapter)
        if base is None:
            raise BadInput(
                f"{reference} is an adapter that does not say of what. Write BASE+{reference}, or a base_model."
            )
        return AdaptedSource(reference, self.open(base), adapter)

    def _adapter(self, reference: str) -> Path:
        place = self.path(reference) or (download_model(reference) if is_hub_id(reference) else None)
        if place is None or not is_adapter(place):
            found = "there is no" if place is None else f"{place} is no"
            raise BadInput(f"{found} adapter {reference!r}. Name a folder that peft's save_pretrained wrote.")
        return place

    def _of_zoo(self, name: str, checkpoint: Checkpoint) -> Source:
        if checkpoint.module is None and isinstance(checkpoint.weights, Path):
            return self._at(name, checkpoint.weights)
        if checkpoint.module is None and isinstance(checkpoint.weights, str):
            return self._at(name, download_model(checkpoint.weights))
        module = checkpoint.module or checkpoint.open().module
        tensors = {key: value for key, value in module.state_dict().items() if isinstance(value, Tensor)}
        return MemorySource(name, tensors)

    def _meant(self, reference: str) -> str:
        """Names of the zoo, or beside the path that was meant, that are nearly the same."""
        place = (self.beside or Path()) / Path(reference).expanduser()
        beside = [entry.name for entry in place.parent.iterdir()] if place.parent.is_dir() else []
        known = [*(self.zoo or ()), *beside]
        close = difflib.get_close_matches(reference, known, n=1) or difflib.get_close_matches(place.name, known, n=1)
        return f" Did you mean {close[0]!r}?" if close else " Is the path right?"
