"""Symbolic axes against arrays of labels: what is joined, split and cut lies where the arrays say."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskatlas.merge.axes import (
    Mismatch,
    blank,
    chosen,
    cut,
    fixed,
    free,
    freeze,
    join,
    leaves,
    merge_cases,
    product,
    regroup,
    split,
    stray_cases,
    total,
)
from taskatlas.merge.axis_collect import spread


def labels(axis):
    """For every position of an axis, what it is made of: (leaf, index) pairs. Straight from the places of its parts."""
    found = [None] * axis.size
    for start, places in spread(axis):
        for index in np.ndindex(*(leaf.size for leaf, _ in places)):
            position = start + sum(i * stride for i, (_, stride) in zip(index, places, strict=True))
            assert found[position] is None
            found[position] = tuple((id(leaf), i) for i, (leaf, _) in zip(index, places, strict=True))
    assert None not in found
    return found


@st.composite
def shapes(draw, most=4):
    return [draw(st.integers(1, 4)) for _ in range(draw(st.integers(1, most)))]


@given(shapes())
@settings(max_examples=50, deadline=None)
def test_a_product_lies_as_a_row_major_view(sizes):
    axes = [free(size) for size in sizes]
    expected = [
        tuple((id(axis), i) for i, axis in zip(index, axes, strict=True) if axis.size > 1)
        for index in np.ndindex(*sizes)
    ]
    assert labels(product(axes)) == expected


@given(shapes())
@settings(max_examples=50, deadline=None)
def test_a_sum_lies_end_to_end(sizes):
    axes = [free(size) for size in sizes]
    assert labels(total(axes)) == [label for axis in axes for label in labels(axis)]


@given(shapes(), st.data())
@settings(max_examples=100, deadline=None)
def test_regrouping_keeps_every_position(sizes, data):
    """A view there and back gives the axes that were, whatever was split on the way."""
    axes = [free(size) for size in sizes]
    whole = product(axes)
    other = data.draw(st.permutations(sizes))
    try:
        viewed = regroup(axes, other)
    except Mismatch:
        return
    assert [axis.size for axis in viewed] == list(other)
    back = regroup(viewed, sizes)
    assert [labels(axis) for axis in back] == [labels(axis) for axis in axes]
    assert labels(product(viewed)) == labels(whole)


@given(st.integers(2, 4), st.integers(2, 4), st.integers(2, 4))
@settings(max_examples=30, deadline=None)
def test_joining_two_divisions_refines_both(a, b, c):
    """(a·b) × c and a × (b·c) are both a × b × c."""
    one, two = product([free(a * b), free(c)]), product([free(a), free(b * c)])
    join(one, two)
    assert labels(one) == labels(two)
    assert [leaf.size for leaf in leaves(one)] == [a, b, c]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.lists(st.integers(1, 5), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_joining_two_sums_refines_both(first, second):
    missing = sum(first) - sum(second)
    one = total([free(size) for size in [*first, *([-missing] if missing < 0 else [])]])
    two = total([free(size) for size in [*second, *([missing] if missing > 0 else [])]])
    join(one, two)
    assert labels(one) == labels(two)


def test_joined_axes_are_one():
    a, b, c = free(4), free(4), free(4)
    join(a, b)
    join(b, c)
    assert a.find() is c.find()
    freeze(c, "because")
    assert a.find().kind == "fixed"
    assert a.find().why == "because"


def test_what_meets_a_fixed_axis_is_fixed_to_the_last_part():
    whole = free(12)
    heads, contents = split(whole, 3)
    left, _ = cut(contents, [2, 2])
    join(whole, fixed(12, "an input"))
    assert {leaf.kind for leaf in leaves(whole)} == {"fixed"}
    assert heads.find().why == left.find().why == "an input"


def test_a_blank_axis_joins_nothing():
    padding, a, b = blank(4), free(4), free(4)
    assert join(padding, a) is a
    join(padding, b)
    assert a.find() is not b.find()


def test_padding_leaves_room_for_others():
    """A stream of 4 within one of 8, zeros before and after: the middle is joined, what stands around it is free."""
    narrow, wide = free(4), free(8)
    join(wide, total([blank(2), narrow, blank(2)]))
    assert [(leaf.size, leaf.kind) for leaf in leaves(wide)] == [(2, "free"), (4, "free"), (2, "free")]
    assert labels(wide)[2:6] == labels(narrow)


def test_repeated_heads_leave_a_group_for_each():
    """Key-value heads that are repeated for their query heads: query heads are these times what is free."""
    keys, queries = free(2), free(6)
    join(queries, product([keys, blank(3)]))
    outer, inner = leaves(queries)
    assert outer is keys.find()
    assert (inner.size, inner.kind) == (3, "free")


def test_a_fused_projection_is_unpacked_into_cases():
    parts = [free(6), free(6), free(6)]
    fused = total(parts)
    which, contents = split(fused, 3)
    assert which.find().kind == "fixed"
    heads, _ = split(contents, 2)
    assert [labels(chosen(contents, which, i)) for i in range(3)] == [labels(part) for part in parts]
    assert labels(product([which, contents])) == labels(fused)
    assert stray_cases([heads]) == [heads]
    merge_cases(heads)
    assert len({id(chosen(heads, which, i).find()) for i in range(3)}) == 1


def test_a_case_that_meets_an_axis_without_cases_is_one_for_all():
    fused = total([free(4), free(4)])
    which, contents = split(fused, 2)
    shared = free(4)
    join(contents, shared)
    assert all(chosen(contents, which, i).find() is shared.find() for i in range(2))
    assert labels(fused) == labels(shared) * 2


@pytest.mark.parametrize(
    "act",
    [
        lambda: join(free(3), free(4)),
        lambda: split(free(6), 4),
        lambda: split(product([free(4), free(3)]), 6),
        lambda: cut(product([free(2), free(3)]), [2, 4]),
        lambda: join(product([free(4), free(3)]), product([free(3), free(4)])),
        lambda: regroup([free(4), free(3)], [3, 4]),
    ],
)
def test_what_does_not_fit_is_said_to_mismatch(act):
    with pytest.raises(Mismatch):
        act()


def test_cutting_through_whole_blocks_keeps_them():
    heads, contents = free(4), free(3)
    left, right = cut(product([heads, contents]), [3, 9])
    assert labels(product([heads, contents])) == labels(left) + labels(right)
    assert math.prod(axis.size for axis in leaves(right)) == 9
