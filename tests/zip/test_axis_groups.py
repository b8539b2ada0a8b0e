"""The types of axis groups: layouts, permuting against a plain reference, files, and what is refused."""

import copy
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.zip import networks

from taskatlas.errors import BadInput
from taskatlas.merge.axis_groups import AxisGroups, Group, Layout, Member

# Two heads of three contents each in "w", of which contents move within their head; "b" holds the heads alone.
HEADS = {
    "groups": [
        {
            "name": "heads",
            "size": 2,
            "members": [
                {"tensor": "w", "axis": 0, "units": [[0, 6, 3]], "copies": [[3, 1]]},
                {"tensor": "b", "axis": 0},
            ],
        },
        *(
            {
                "name": f"contents[{head}]",
                "size": 3,
                "members": [{"tensor": "w", "axis": 0, "units": [[3 * head, 3 * head + 3, 1]]}],
                "within": ["heads", head],
            }
            for head in (0, 1)
        ),
    ],
}


def state():
    return {"w": torch.arange(12.0).view(6, 2), "b": torch.arange(2.0), "other": torch.zeros(1)}


# Layouts


@pytest.mark.parametrize(
    ("layout", "index"),
    [
        (Layout.plain(3), [[0], [1], [2]]),
        (Layout(((4, 7, 1),)), [[4], [5], [6]]),
        (Layout(((0, 12, 4),), ((4, 1),)), [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]),
        (Layout(((0, 2, 1), (6, 8, 1))), [[0], [1], [6], [7]]),
        (Layout(((0, 2, 1),), ((2, 6), (3, 2))), [[0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9, 11]]),
    ],
)
def test_a_layout_says_where_units_lie(layout, index):
    assert layout.index().tolist() == index
    assert len(layout) == len(index)
    assert layout.end == max(map(max, index)) + 1


@pytest.mark.parametrize("units", [(), ((0, 0, 1),), ((-1, 2, 1),), ((0, 3, 0),), ((3, 0, -1),)])
def test_a_layout_without_units_is_refused(units):
    with pytest.raises(BadInput, match="lays out no units"):
        Layout(units)


@pytest.mark.parametrize("copies", [((0, 1),), ((2, 0),), ((2, -1),)])
def test_copies_that_are_none_are_refused(copies):
    with pytest.raises(BadInput, match="are no copies"):
        Layout(((0, 3, 1),), copies)


# Permuting


def reference(groups, state_dict, permutations):
    """Unit by unit and position by position, inner groups first."""
    result = {name: tensor.clone() for name, tensor in state_dict.items()}
    for group in sorted(groups, key=lambda group: group.within is None):
        if group.name not in permutations:
            continue
        for member in group.members:
            old, new = result[member.tensor].clone(), result[member.tensor]
            for place, unit in enumerate(permutations[group.name]):
                for here, there in zip(member.layout.index()[place], member.layout.index()[unit], strict=True):
                    new.select(member.axis, int(here)).copy_(old.select(member.axis, int(there)))
    return result


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_permuting_is_what_the_reference_does(seed):
    groups = AxisGroups.from_dict(HEADS)
    permutations = groups.random_permutations(seed)
    expected = reference(groups, state(), permutations)
    found = groups.permute(state(), permutations)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_heads_carry_their_contents_along():
    groups = AxisGroups.from_dict(HEADS)
    moved = groups.permute(state(), {"contents[0]": np.array([2, 0, 1]), "heads": np.array([1, 0])})
    assert moved["w"][:, 0].tolist() == [6, 8, 10, 4, 0, 2]
    assert moved["b"].tolist() == [1, 0]


def test_permuting_leaves_what_it_was_given():
    groups, given_state = AxisGroups.from_dict(HEADS), state()
    before = copy.deepcopy(given_state)
    moved = groups.permute(given_state, groups.random_permutations(0))
    assert all(torch.equal(given_state[name], before[name]) for name in before)
    assert moved["other"] is given_state["other"]
    assert moved["w"] is not given_state["w"]


def test_permuting_back_gives_back_what_was():
    module = networks.vgg()
    groups = AxisGroups.of(module, networks.IMAGES)
    permutations = groups.random_permutations(4)
    moved = groups.permute(module.state_dict(), permutations)
    back = groups.permute(moved, {name: np.argsort(order) for name, order in permutations.items()})
    assert all(torch.equal(back[name], tensor) for name, tensor in module.state_dict().items())
    assert not all(torch.equal(moved[name], tensor) for name, tensor in module.state_dict().items())


def test_a_slice_of_another_axis_is_moved_alone():
    member = Member("w", 1, Layout.plain(2), only=(0, 1, 3, 1))
    groups = AxisGroups((Group("part", 2, (member,)),))
    moved = groups.permute({"w": torch.arange(8.0).view(4, 2)}, {"part": np.array([1, 0])})
    assert moved["w"].tolist() == [[0, 1], [3, 2], [5, 4], [6, 7]]


@given(st.integers(0, 2**32 - 1), st.integers(2, 9))
@settings(max_examples=30, deadline=None)
def test_random_permutations_move_something(seed, size):
    groups = AxisGroups((Group("a", size, ()), Group("one", 1, ())))
    permutations = groups.random_permutations(seed)
    assert sorted(permutations["a"]) == list(range(size))
    assert list(permutations["a"]) != list(range(size))
    assert list(permutations["one"]) == [0]
    again = groups.random_permutations(seed)
    assert all(np.array_equal(again[name], permutations[name]) for name in again)


@pytest.mark.parametrize("wrong", [[0, 0], [0, 1, 2], [1, 2], []])
def test_what_is_no_permutation_is_refused(wrong):
    with pytest.raises(BadInput, match="no permutation of its 2 units"):
        AxisGroups.from_dict(HEADS).permute(state(), {"heads": np.array(wrong, dtype=np.int64)})


def test_a_group_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(BadInput, match=r"no axis group 'tails'.*heads, contents\[0\]"):
        AxisGroups.from_dict(HEADS).permute(state(), {"tails": np.array([0, 1])})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"w": None}, "has no tensor 'w'"),
        ({"w": torch.zeros(())}, "w has 0 axes"),
        ({"w": torch.zeros(5, 2)}, "up to position 5, but the axis has 5 positions"),
    ],
)
def test_a_state_dict_of_another_network_is_refused(changed, message):
    other = {name: tensor for name, tensor in (state() | changed).items() if tensor is not None}
    with pytest.raises(BadInput, match=message):
        AxisGroups.from_dict(HEADS).permute(other, {"heads": np.array([1, 0])})


def test_another_width_is_refused_with_the_tensor():
    groups = AxisGroups.of(networks.mlp(), networks.WORDS)
    wider = {name: torch.cat([tensor, tensor]) for name, tensor in networks.mlp().state_dict().items()}
    with pytest.raises(BadInput, match=r"0.weight has shape \(20, 6\), but the groups are for \(10, 6\)"):
        groups.permute(wider, groups.random_permutations(0))


# Files


@pytest.mark.parametrize("build", [networks.vgg, networks.ResNeXt, networks.UNet])
def test_a_file_gives_back_what_was_saved(tmp_path, build):
    groups = AxisGroups.of(build(), networks.IMAGES)
    groups.save(tmp_path / "groups.json")
    loaded = AxisGroups.load(tmp_path / "groups.json")
    assert loaded.groups == groups.groups
    assert loaded.frozen == groups.frozen
    assert loaded.stops == groups.stops
    assert loaded.shapes == groups.shapes
    assert loaded.digest == groups.digest
    assert loaded.to_dict() == groups.to_dict()


def test_a_file_is_short_enough_to_be_written_by_hand(tmp_path):
    AxisGroups.of(networks.mlp(), networks.WORDS).save(tmp_path / "groups.json")
    values = json.loads((tmp_path / "groups.json").read_text())
    assert values["groups"][0]["members"] == [
        {"tensor": "0.weight", "axis": 0},
        {"tensor": "0.bias", "axis": 0},
        {"tensor": "2.weight", "axis": 1, "role": "in"},
    ]


def test_the_digest_follows_the_groups():
    groups = AxisGroups.from_dict(HEADS)
    assert groups.digest == AxisGroups.from_dict(copy.deepcopy(HEADS)).digest
    other = copy.deepcopy(HEADS)
    other["groups"][0]["members"][1]["axis"] = 1
    assert groups.digest != AxisGroups.from_dict(other).digest


def damaged(path, value):
    """The hand-written groups with one entry replaced, or removed where the value is None."""
    values = copy.deepcopy(HEADS)
    *way, last = path
    place = values
    for step in way:
        place = place[step]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return values


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("groups",), None, "no axis groups.*KeyError"),
        (("groups",), 3, "no axis groups"),
        (("groups", 0, "size"), None, "no axis groups.*size"),
        (("groups", 0, "size"), 3, "'heads' has 3 units, but w axis 0 lays out 2"),
        (("groups", 0, "members", 0, "tensor"), None, "no axis groups.*tensor"),
        (("groups", 0, "members", 0, "axis"), -1, "w has no axis -1"),
        (("groups", 0, "members", 0, "axis"), "first", "no axis groups"),
        (("groups", 0, "members", 0, "units"), [[0, 6]], "no axis groups"),
        (("groups", 0, "members", 0, "units"), [[0, 6, 0]], "lays out no units"),
        (("groups", 0, "members", 0, "copies"), [[3, 0]], "no copies"),
        (("groups", 0, "members", 0, "role"), "both ways", "role of w"),
        (("groups", 1, "name"), "heads", "two axis groups have the same name"),
        (("groups", 1, "within"), ["tails", 0], "within unit 0 of 'tails'"),
        (("groups", 1, "within"), ["heads", 2], "within unit 2 of 'heads'"),
        (("groups", 1, "within"), ["contents[0]", 0], "within itself"),
        (("groups", 1, "within"), "heads", "no axis groups"),
        (("shapes",), {"w": [5, 2]}, "reaches position 5 of w axis 0, which has 5"),
        (("shapes",), {"w": ["six"]}, "no axis groups"),
        (("frozen",), [{"tensor": "w"}], "no axis groups"),
        (("stops",), [{"place": "w"}], "no axis groups"),
    ],
)
def test_damaged_groups_are_refused(tmp_path, as_installed, path, value, message):
    values = damaged(path, value)
    with pytest.raises(BadInput, match=message):
        AxisGroups.from_dict(values)
    (tmp_path / "groups.json").write_text(json.dumps(values))
    with pytest.raises(BadInput, match=r"groups\.json"):
        AxisGroups.load(tmp_path / "groups.json")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"null", b'{"groups": {"a": 1}}'])
def test_a_file_that_holds_no_groups_is_refused(tmp_path, as_installed, content):
    (tmp_path / "groups.json").write_bytes(content)
    with pytest.raises(BadInput, match=r"groups\.json"):
        AxisGroups.load(tmp_path / "groups.json")


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(BadInput, match="cannot read"):
        AxisGroups.load(tmp_path / "nothing.json")


def test_units_that_overlap_are_refused():
    groups = AxisGroups.from_dict(
        {"groups": [{"name": "a", "size": 2, "members": [{"tensor": "b", "axis": 0, "units": [[0, 1, 1], [0, 1, 1]]}]}]}
    )
    with pytest.raises(BadInput, match="two units out on one position"):
        groups.permute(state(), {"a": np.array([1, 0])})
