"""Tied weights in files: one tensor under two names, by one storage or as equal copies, is merged once."""

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence

from taskatlas.merge.assembly import Slot
from taskatlas.merge.sources import Source

Places = Sequence[tuple[str, str | None]]
"""The models, the base last, each with a tensor's name in it; None where it has no such tensor."""


def tied_slots(slots: Sequence[tuple[Slot, Places]], sources: Mapping[str, Source]) -> dict[str, str]:
    """Names of tensors that are another one wherever they are found, with the other one's name.

    The other one is in all models; of two that are, it is the one that stands nearer to the first layer. A tensor that
    some models lack counts as tied where all that have it say so: files of one architecture hold tied weights once or
    twice, depending on what wrote them.

    Args:
        slots: the tensors of one slice of the result, with their places.
        sources: the models by reference.
    """
    ties: dict[str, str] = {}
    by_depth = sorted(slots, key=lambda one: one[0].depth)
    firsts = _Firsts(sources)
    for lacking in (False, True):
        for slot, places in by_depth:
            if any(name is None for _, name in places) == lacking:
                first = firsts.like(places)
                if first is not None:
                    ties[slot.name] = first
                elif not lacking:
                    firsts.add(slot, places)
    return ties


class _Firsts:
    """Tensors that all models have and that are tied to none before them, found again by a mark in one model."""

    def __init__(self, sources: Mapping[str, Source]) -> None:
        self._sources = sources
        self._all: list[tuple[Slot, Places]] = []
        self._marked: dict[int, dict[Hashable, list[tuple[Slot, Places]]]] = {}

    def add(self, slot: Slot, places: Places) -> None:
        self._all.append((slot, places))
        for position, marked in self._marked.items():
            marked[self._mark(places, position)].append((slot, places))

    def like(self, places: Places) -> str | None:
        """The name of the one that a tensor is in every model that has it; the base is asked first."""
        held = [position for position, (_, name) in enumerate(places) if name is not None][::-1]
        if held[0] not in self._marked:
            self._marked[held[0]] = defaultdict(list)
            for one in self._all:
                self._marked[held[0]][self._mark(one[1], held[0])].append(one)
        for first, others in self._marked[held[0]][self._mark(places, held[0])]:
            if all(self._tied(places[position], others[position]) for position in held):
                return first.name
        return None

    def _mark(self, places: Places, position: int) -> Hashable:
        model, name = places[position]
        assert name is not None  # held by all models, or asked for as held
        return self._sources[model].mark(name)

    def _tied(self, one: tuple[str, str | None], other: tuple[str, str | None]) -> bool:
        (model, name), (_, its) = one, other
        assert name is not None
        assert its is not None
        return self._sources[model].tied(name, its)
