"""Axis groups as plain values, which JSON can hold and a person can write."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from taskatlas.errors import BadInput
from taskatlas.merge.axis_groups import AxisGroups, FrozenAxis, Group, Layout, Member, Site, Stop


def as_plain(groups: AxisGroups) -> dict[str, Any]:
    """What ``AxisGroups.to_dict`` returns; what every plain axis has is left out."""
    return {
        "groups": [
            {
                "name": group.name,
                "size": group.size,
                "members": [_without_defaults(member, group.size) for member in group.members],
                "taps": [_without_defaults(site, group.size) for site in group.taps],
                **({"within": list(group.within)} if group.within else {}),
                **({} if group.scalable else {"scalable": False}),
            }
            for group in groups.groups
        ],
        "frozen": [asdict(axis) for axis in groups.frozen],
        "stops": [{key: _as_list(value) for key, value in asdict(stop).items()} for stop in groups.stops],
        "shapes": {name: list(shape) for name, shape in groups.shapes.items()},
    }


def from_plain(values: Mapping[str, Any]) -> AxisGroups:
    """What ``AxisGroups.from_dict`` returns."""
    try:
        return AxisGroups(
            groups=tuple(_read_group(group) for group in values["groups"]),
            frozen=tuple(FrozenAxis(**axis) for axis in values.get("frozen", ())),
            stops=tuple(_read_stop(stop) for stop in values.get("stops", ())),
            shapes={str(name): tuple(map(int, shape)) for name, shape in values.get("shapes", {}).items()},
        )
    except BadInput:
        raise
    except Exception as error:  # whatever a hand-written file can hold
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        raise BadInput(
            f"these are no axis groups ({said}). Every group needs a name, a size and members with tensor and axis."
        ) from error


def _read_stop(values: Mapping[str, Any]) -> Stop:
    aliases, trunk, rest = (tuple(map(str, values[key])) for key in ("aliases", "trunk", "rest"))
    return Stop(str(values["place"]), aliases, trunk, rest)


def _without_defaults(member: Member | Site, size: int) -> dict[str, Any]:
    """A member or site as plain values; what every plain axis has is left out."""
    values = {key: value for key, value in vars(member).items() if key != "layout" and value is not None}
    if values.get("role") == "out":
        del values["role"]
    if "only" in values:
        values["only"] = list(values["only"])
    if member.layout.units != Layout.plain(size).units:
        values["units"] = [list(unit) for unit in member.layout.units]
    if member.layout.copies:
        values["copies"] = [list(copy) for copy in member.layout.copies]
    return values


def _read_group(values: Mapping[str, Any]) -> Group:
    size, within = int(values["size"]), values.get("within")
    return Group(
        name=str(values["name"]),
        size=size,
        members=tuple(
            Member(
                tensor=str(member["tensor"]),
                axis=int(member["axis"]),
                layout=_read_layout(member, size),
                role=member.get("role", "out"),
                only=tuple(member["only"]) if "only" in member else None,
            )
            for member in values["members"]
        ),
        taps=tuple(
            Site(str(site["place"]), int(site["axis"]), _read_layout(site, size)) for site in values.get("taps", ())
        ),
        within=None if within is None else (str(within[0]), int(within[1])),
        scalable=bool(values.get("scalable", True)),
    )


def _read_layout(values: Mapping[str, Any], size: int) -> Layout:
    units = tuple((int(start), int(stop), int(step)) for start, stop, step in values.get("units", [[0, size, 1]]))
    return Layout(units, tuple((int(count), int(stride)) for count, stride in values.get("copies", ())))


def _as_list(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
