"""Axis groups as a table that a person can read."""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from taskatlas.merge.axis_groups import AxisGroups, FrozenAxis, Group


def table(groups: AxisGroups) -> str:
    """One line a group, groups within equal blocks on one line, then what stays and why.

    Members read ``tensor[axis]``; ``×3`` says that the group lies three times along that axis.
    """
    rows = [("group", "size", "axes that move together", "seen at")]
    for _, members in groupby(groups, key=lambda group: (_stem(group.name), group.size, _outer(group))):
        family = list(members)
        many = len(family) > 1
        name = f"{_stem(family[0].name)}[0 … {len(family) - 1}]" if many else family[0].name
        rows.append(
            (
                "  " * _depth(groups, family[0]) + name,
                f"{len(family)} × {family[0].size}" if many else str(family[0].size),
                _some(_counted([_member(member.tensor, member.axis) for member in family[0].members]), 3),
                _some(_counted([site.place for site in family[0].taps]), 2),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [repr(groups), ""]
    lines += [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]).rstrip()
        for row in rows
    ]
    if groups.frozen:
        lines += ["", "stays"]
        for why, axes in groupby(sorted(groups.frozen, key=lambda axis: axis.why), key=lambda axis: axis.why):
            lines.append(f"  {why}{_reason(list(axes))}")
    if groups.stops:
        lines += ["", f"legal stops: {_some([stop.place for stop in groups.stops], 12)}"]
    return "\n".join(lines)


def _stem(name: str) -> str:
    return name.split("[", maxsplit=1)[0]


def _outer(group: Group) -> str | None:
    return None if group.within is None else _stem(group.within[0])


def _depth(groups: AxisGroups, group: Group) -> int:
    return 0 if group.within is None else 1 + _depth(groups, groups[group.within[0]])


def _member(tensor: str, axis: int) -> str:
    return f"{tensor}[{axis}]"


def _counted(names: list[str]) -> list[str]:
    return [name if count == 1 else f"{name} ×{count}" for name, count in Counter(names).items()]


def _reason(axes: list[FrozenAxis]) -> str:
    lines = [where for where in dict.fromkeys(axis.where for axis in axes) if where]
    where = f" ({lines[0]}{' and elsewhere' if len(lines) > 1 else ''})" if lines else ""
    return f"{where}: {_some([_member(axis.tensor, axis.axis) for axis in axes], 4)}"


def _some(names: list[str], most: int) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
