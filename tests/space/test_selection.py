"""Greedy selection against the plain greedy of the references, every option, and what it must refuse."""

import json

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.references import space as reference
from tests.space.make import covariance, features, space_of

from taskatlas.errors import BadInput
from taskatlas.space import Selection, Step, TaskSpace, map_features, pick_probabilities, select

SEEDS = st.integers(0, 2**32 - 1)


def gains(selection):
    return [step.gain for step in selection.steps]


def numbers(selection, space):
    return [space.names.index(name) for name in selection.names]


def shuffled(space, seed):
    return space.subset([str(name) for name in np.random.default_rng(seed).permutation(space.names)])


# Against the references


@given(SEEDS, st.integers(2, 14), st.floats(-0.5, 1.5), st.data())
@settings(max_examples=30, deadline=None)
def test_mutual_information_is_the_reference(seed, m, mixed, data):
    matrix = covariance(seed, m, mixed)
    space = space_of(matrix)
    order = data.draw(st.permutations(range(m)))
    starts, excluded = data.draw(st.integers(0, m // 3)), data.draw(st.integers(0, m // 3))
    start, exclude = order[:starts], order[starts : starts + excluded]
    k = data.draw(st.integers(max(1, starts), m - excluded))
    cost = list(np.random.default_rng(seed).uniform(0.5, 2, m)) if data.draw(st.booleans()) else None
    picked, expected = reference.greedy_mutual_information(matrix, k - starts, start, exclude, cost)
    found = select(
        shuffled(space, seed),
        k,
        start=[space.names[i] for i in start],
        exclude=[space.names[i] for i in exclude],
        cost=None if cost is None else dict(zip(space.names, cost, strict=True)),
    )
    assert numbers(found, space) == [*start, *picked]
    assert gains(found) == pytest.approx(expected, abs=1e-9)
    assert found.start_total == pytest.approx(reference.mutual_information(matrix, start), abs=1e-9)
    totals = [reference.mutual_information(matrix, [*start, *picked[: i + 1]]) for i in range(len(picked))]
    assert found.totals == pytest.approx(totals, abs=1e-9)


@given(SEEDS, st.integers(2, 10))
@settings(max_examples=25, deadline=None)
def test_entropy_is_the_reference(seed, m):
    matrix = covariance(seed, m) * np.outer(*[np.linspace(0.5, 2, m)] * 2)  # variances need not be one
    picked, expected = reference.greedy_entropy(matrix, m)
    found = select(space_of(matrix), m, method="entropy")
    assert numbers(found, space_of(matrix)) == picked
    assert gains(found) == pytest.approx(expected, abs=1e-9)


@given(SEEDS, st.integers(2, 9), st.booleans())
@settings(max_examples=25, deadline=None)
def test_weighted_coverage_is_the_reference(seed, m, weighted):
    matrix = covariance(seed, m) * np.outer(*[np.linspace(0.5, 2, m)] * 2)
    weights = np.random.default_rng(seed).integers(0, 4, m) if weighted else np.ones(m)
    space = space_of(matrix)
    picked, expected = reference.greedy_weighted_coverage(matrix, m, weights)
    by_name = {name: float(w) for name, w in zip(space.names, weights, strict=True)} if weighted else None
    found = select(space, m, method="coverage", weights=by_name)
    assert gains(found) == pytest.approx(expected, abs=1e-8)
    assert numbers(found, space) == picked
    assert found.totals[-1] == pytest.approx(0, abs=1e-8)


@given(SEEDS, st.integers(2, 9), st.booleans())
@settings(max_examples=25, deadline=None)
def test_facility_location_is_the_reference(seed, m, weighted):
    matrix = covariance(seed, m)
    weights = np.random.default_rng(seed).integers(0, 4, m) if weighted else np.ones(m)
    space = space_of(np.abs(matrix))  # as published: similarities are not negative
    picked, expected = reference.greedy_facility_location(np.abs(matrix), m, weights)
    by_name = {name: float(w) for name, w in zip(space.names, weights, strict=True)} if weighted else None
    found = select(space, m, method="facility_location", weights=by_name)
    assert numbers(found, space) == picked
    assert gains(found) == pytest.approx(expected, abs=1e-9)


def test_missing_weights_are_one():
    space = space_of(covariance(0, 6))
    all_named = dict.fromkeys(space.names, 1.0) | {"task-02": 5.0}
    for method in ("coverage", "facility_location"):
        found = select(space, 4, method=method, weights={"task-02": 5.0})
        assert found == select(space, 4, method=method, weights=all_named)


# Order, ties


@given(SEEDS, st.sampled_from(["mutual_information", "coverage", "entropy", "facility_location"]))
@settings(max_examples=25, deadline=None)
def test_the_order_of_the_names_changes_no_bit(seed, method):
    space = space_of(covariance(seed, 11))
    expected = select(space, 11, method=method)
    found = select(shuffled(space, seed), 11, method=method)
    assert found == expected
    assert found.digest == expected.digest


@pytest.mark.parametrize("rho", [0.5, 0.7])
@pytest.mark.parametrize("method", ["mutual_information", "entropy"])
def test_ties_go_to_the_name_that_sorts_first(rho, method):
    ring = [[rho ** min(abs(i - j), 8 - abs(i - j)) for j in range(8)] for i in range(8)]
    space = space_of(ring)
    for seed in range(5):
        assert numbers(select(shuffled(space, seed), 5, method=method), space) == [0, 4, 2, 6, 1]


@pytest.mark.parametrize("method", ["mutual_information", "coverage", "entropy", "facility_location"])
def test_unrelated_tasks_are_all_tied(method):
    found = select(space_of(np.eye(5)), 5, method=method)
    assert list(found.names) == sorted(found.names)
    assert found.steps[0].runner_up == "task-01"
    assert found.steps[0].margin == 0
    assert (found.steps[-1].runner_up, found.steps[-1].margin) == (None, None)


def test_names_sort_by_code_point():
    space = space_of(np.eye(4), ["b", "Z", "é", "a"])
    assert select(space, 4).names == ("Z", "a", "b", "é")


# Stopping


@given(SEEDS, st.integers(3, 12))
@settings(max_examples=30, deadline=None)
def test_stop_at_peak_stops_where_mutual_information_is_largest(seed, m):
    space = space_of(covariance(seed, m))
    everything = select(space, m)
    assume(min(abs(np.array(gains(everything)))) > 1e-9)
    stopped = select(space, stop_at_peak=True)
    assert stopped.names == everything.names[: int(np.argmax(everything.totals)) + 1]
    assert select(space, 1, stop_at_peak=True).names == everything.names[:1]


def test_nothing_is_worth_picking_among_unrelated_tasks():
    found = select(space_of(np.eye(4)), stop_at_peak=True)
    assert found.names == ()
    assert repr(found) == "Selection(; mutual_information 0.000)"


def test_a_budget_passes_over_what_no_longer_fits():
    space = space_of(covariance(1, 6))
    price = dict(zip(space.names, [5.0, 1.0, 1.0, 5.0, 1.0, 1.0], strict=True))
    found = select(space, cost=price, budget=3.0)
    assert sum(price[name] for name in found.names) == 3
    assert not {"task-00", "task-03"} & set(found.names)
    whole = select(space, cost=price, budget=14.0)
    assert len(whole.names) == 6


def test_a_budget_counts_the_start_set():
    space = space_of(covariance(2, 5))
    price = dict.fromkeys(space.names, 0.1)
    found = select(space, cost=price, budget=0.3, start=["task-04"])
    assert len(found.names) == 3  # 0.1 three times is a little more than 0.3
    assert select(space, cost=price, budget=0.05, start=["task-04"]).names == ("task-04",)


def test_cost_takes_the_largest_gain_per_cost_and_tells_the_gain():
    chain = [[1, 0.5, 0.25], [0.5, 1, 0.5], [0.25, 0.5, 1]]
    found = select(space_of(chain), 1, cost={"task-00": 2.0, "task-01": 2.0, "task-02": 1.0})
    assert found.names == ("task-02",)
    assert found.steps[0].gain == pytest.approx(np.log(1 / 0.75) / 2)
    assert found.steps[0].runner_up == "task-01"
    assert found.steps[0].margin == pytest.approx(np.log(0.75 / 0.6) / 2 * -1)


# Start and exclude


def test_the_start_comes_first_in_its_order():
    space = space_of(covariance(3, 7))
    found = select(space, 4, start=["task-05", "task-01"])
    assert found.names[:2] == found.start == ("task-05", "task-01")
    assert len(found.steps) == 2
    assert select(space, 2, start=["task-05", "task-01"]).steps == ()
    assert repr(select(space, 1, start=["task-05"])).startswith("Selection(task-05; mutual_information 0.")


def test_the_excluded_are_not_picked_and_still_count():
    space = space_of(covariance(4, 7))
    best = select(space, 1).names[0]
    found = select(space, 3, exclude=[best])
    assert best not in found.names
    assert found.left_out == {best: "excluded"}
    # Without that task at all the gains would be others.
    assert gains(found) != pytest.approx(gains(select(space.subset([n for n in space.names if n != best]), 3)))
    assert all(best != step.runner_up for step in found.steps)


# Duplicates and noise


def doubled(seed, m, copies):
    """A space with copies: (position, name) pairs."""
    matrix = covariance(seed, m)
    rows = [*range(m), *(i for i, _ in copies)]
    names = [f"task-{i:02d}" for i in range(m)] + [name for _, name in copies]
    return TaskSpace(tuple(names), matrix[np.ix_(rows, rows)])


def test_of_several_that_are_the_same_the_first_name_stands_for_all():
    space = doubled(5, 5, [(2, "a copy"), (2, "z copy"), (4, "task-99")])
    found = select(space, 5)
    assert found.left_out == {
        "task-02": "duplicate of a copy",
        "z copy": "duplicate of a copy",
        "task-99": "duplicate of task-04",
    }
    renamed = {"a copy": "task-02"}
    expected = select(space_of(covariance(5, 5)), 5)
    assert gains(found) == pytest.approx(gains(expected), abs=1e-12)
    assert sorted(renamed.get(name, name) for name in found.names) == sorted(expected.names)


def test_a_start_stands_for_its_duplicates():
    space = doubled(6, 5, [(2, "a copy")])
    assert select(space, 3, start=["task-02"]).left_out == {"a copy": "duplicate of task-02"}
    with pytest.raises(BadInput, match=r"start holds .* are the same task. Drop one"):
        select(space, 3, start=["task-02", "a copy"])


def test_a_name_that_may_be_picked_stands_for_one_that_may_not():
    space = doubled(7, 5, [(2, "a copy")])
    found = select(space, 5, exclude=["a copy"])
    assert found.left_out == {"a copy": "duplicate of task-02"}
    assert "task-02" in found.names
    nobody = select(space, 4, exclude=["a copy", "task-02"])
    assert nobody.left_out == {"a copy": "excluded", "task-02": "duplicate of a copy"}


def test_duplicates_do_not_count_towards_k():
    space = doubled(8, 3, [(0, "x"), (1, "y")])
    assert len(select(space, 3).names) == 3
    with pytest.raises(BadInput, match="k is 4, but only 3 distinct checkpoints may be picked"):
        select(space, 4)
    with pytest.raises(BadInput, match="k is 3, but only 2 distinct"):
        select(space, 3, exclude=["task-02"])


@pytest.mark.parametrize("method", ["coverage", "facility_location"])
def test_a_duplicate_brings_its_weight_along(method):
    space = doubled(9, 5, [(2, "zz")])
    found = select(space, 4, method=method, weights={"zz": 3.0, "task-02": 0.5})
    expected = select(space_of(covariance(9, 5)), 4, method=method, weights={"task-02": 3.5})
    assert found.names == expected.names
    assert gains(found) == pytest.approx(gains(expected), abs=1e-12)


def test_nearly_the_same_is_still_picked_to_full_accuracy():
    matrix = covariance(10, 6)
    close = 1 - 1e-4
    row = close * matrix[0]
    matrix = np.block([[matrix, row[:, None]], [row[None], np.ones((1, 1))]])
    picked, expected = reference.greedy_mutual_information(matrix, 7)
    found = select(space_of(matrix), 7)
    assert numbers(found, space_of(matrix)) == picked
    assert gains(found) == pytest.approx(expected, abs=1e-6)


def test_noise_rescues_an_indefinite_covariance():
    matrix = np.array([[1, 0.9, 0.1], [0.9, 1, 0.9], [0.1, 0.9, 1]])
    with pytest.raises(BadInput, match=r"not positive definite: its smallest eigenvalue is -0\.2.*noise"):
        select(space_of(matrix), 2)
    smallest = np.linalg.eigvalsh(matrix)[0]
    found = select(space_of(matrix), 2, noise=-2 * smallest)
    picked, expected = reference.greedy_mutual_information(matrix - 2 * smallest * np.eye(3), 2)
    assert numbers(found, space_of(matrix)) == picked
    assert gains(found) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("method", ["mutual_information", "coverage", "entropy"])
def test_the_suggested_noise_is_enough(method):
    matrix = np.array([[1, 0.9, 0.1], [0.9, 1, 0.9], [0.1, 0.9, 1]])
    with pytest.raises(BadInput) as caught:
        select(space_of(matrix), 2, method=method)
    suggested = float(str(caught.value).split("at least ")[1].split()[0])
    assert len(select(space_of(matrix), 2, method=method, noise=suggested).names) == 2


def test_a_singular_covariance_is_refused():
    factors = np.random.default_rng(11).standard_normal((6, 4))
    matrix = factors @ factors.T
    scale = np.sqrt(np.diagonal(matrix))
    with pytest.raises(BadInput, match="not positive definite"):
        select(space_of(matrix / np.outer(scale, scale)), 2)


def test_facility_location_needs_no_definite_covariance():
    matrix = np.array([[1, 0.9, 0.1], [0.9, 1, 0.9], [0.1, 0.9, 1]])
    assert select(space_of(matrix), 1, method="facility_location").names == ("task-01",)


def test_a_hundred_tasks_are_the_naive_picks():
    space = space_of(covariance(12, 60))
    picked, expected = reference.greedy_mutual_information(space.covariance, 12)
    found = select(space, 12)
    assert numbers(found, space) == picked
    assert gains(found) == pytest.approx(expected, abs=1e-8)


# Replicates


def test_pick_probabilities_are_shares_of_replicates():
    space = map_features(features(13, 200, (6, 7, 8, 9, 10)), bootstrap=8, seed=1)
    found = pick_probabilities(space, 2)
    assert set(found) == set(space.names)
    assert sum(found.values()) == pytest.approx(2)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    counts = dict.fromkeys(space.names, 0)
    for replicate in space.replicates:
        picked, _ = reference.greedy_mutual_information(replicate.astype(np.float64), 2)
        for i in picked:
            counts[space.names[i]] += 1
    assert found == {name: counts[name] / 8 for name in found}


def test_pick_probabilities_need_replicates():
    with pytest.raises(BadInput, match="no bootstrap replicates"):
        pick_probabilities(space_of(np.eye(3)), 2)


# What is refused


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"k": 0}, "k is 0.*from 1 to 5"),
        ({"k": -1}, "k is -1"),
        ({"k": 6}, "k is 6, but the task space holds 5"),
        ({}, "say how many to pick"),
        ({"cost": {"task-00": 1.0}, "k": 1}, r"cost says nothing of 'task-01' \(4 missing\)"),
        ({"k": 2, "start": ["task-0"]}, "start names 'task-0'.*Did you mean 'task-0"),
        ({"k": 2, "start": ["quite else"]}, "not in the task space. There are: task-00, task-01"),
        ({"k": 2, "exclude": ["tosk-03"]}, "exclude names 'tosk-03'.*Did you mean 'task-03'"),
        ({"k": 2, "start": ["task-01", "task-01"]}, "start names a checkpoint twice"),
        ({"k": 1, "start": ["task-01", "task-02"]}, "2 checkpoints are picked by start already"),
        ({"k": 3, "start": ["task-01"], "exclude": ["task-01"]}, "'task-01' is both in start and in exclude"),
        ({"k": 3, "exclude": ["task-00", "task-01", "task-02"]}, "only 2 distinct checkpoints may be picked"),
        ({"k": 2, "budget": 3.0}, "a budget needs costs"),
        ({"k": 2, "method": "entropy", "stop_at_peak": True}, "entropy has no peak"),
        ({"k": 2, "weights": {"task-00": 2.0}}, "weights have no meaning for mutual_information"),
        ({"k": 2, "weights": {"task-00": 2.0}, "method": "entropy"}, "weights have no meaning for entropy"),
        ({"k": 2, "weights": {"task-00": -1.0}, "method": "coverage"}, "weights must be finite and not negative"),
        ({"k": 2, "weights": {"task-00": np.nan}, "method": "coverage"}, "weights must be finite"),
        ({"k": 2, "weights": {"task-9": 1.0}, "method": "coverage"}, "weights names 'task-9'"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(request_, words):
    with pytest.raises(BadInput, match=words):
        select(space_of(covariance(14, 5)), **request_)


@pytest.mark.parametrize("price", [0.0, -1.0, np.nan, np.inf])
def test_costs_are_positive_numbers(price):
    space = space_of(covariance(15, 4))
    costs = dict.fromkeys(space.names, 1.0) | {"task-02": price}
    with pytest.raises(BadInput, match=f"cost of 'task-02' is {price}; costs must be positive"):
        select(space, 2, cost=costs)


@pytest.mark.parametrize("budget", [0.0, -1.0, 0.5, np.nan])
def test_a_budget_that_fits_nothing_is_refused(budget):
    space = space_of(covariance(16, 4))
    with pytest.raises(BadInput, match=rf"budget is {budget}, but the cheapest checkpoint costs 1\."):
        select(space, cost=dict.fromkeys(space.names, 1.0), budget=budget)


def test_costs_of_strangers_are_refused():
    space = space_of(covariance(17, 4))
    with pytest.raises(BadInput, match=r"cost names 'task-07'.*Did you mean 'task-0"):
        select(space, 2, cost=dict.fromkeys([*space.names, "task-07"], 1.0))


def test_an_unknown_method_is_refused(as_installed):
    with pytest.raises(BadInput, match=r"no method 'greedy'.*mutual_information, coverage"):
        select(space_of(np.eye(3)), 2, method="greedy")


# Files


@given(
    st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=5, unique=True),
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=5),
)
@settings(max_examples=30, deadline=None)
def test_a_saved_selection_loads_the_same(tmp_path_factory, names, values):
    assume(not any("\ud800" <= c <= "\udfff" for name in names for c in name))
    steps = tuple(Step(name, x, -x, None, None) for name, x in zip(names, values, strict=False))
    selection = Selection(tuple(names), steps, tuple(names[:1]), 0.5, {"other": "excluded"}, "coverage", "a digest")
    path = tmp_path_factory.mktemp("selection") / "selection.json"
    selection.save(path)
    assert Selection.load(path) == selection
    assert Selection.load(path).digest == selection.digest


def test_a_selection_from_select_survives_its_file(tmp_path):
    space = doubled(18, 5, [(2, "a copy")])
    selection = select(space, 4, start=["task-01"], exclude=["task-03"])
    selection.save(tmp_path / "deep" / "selection.json")
    assert Selection.load(str(tmp_path / "deep" / "selection.json")) == selection
    assert selection.space == space.digest


def test_the_digest_is_of_what_was_picked():
    space = space_of(covariance(19, 5))
    selections = [
        select(space, 2),
        select(space, 3),
        select(space, 3, method="entropy"),
        select(space, 3, start=["task-04"]),
    ]
    selections.append(select(space_of(covariance(20, 5)), 2))
    assert len({selection.digest for selection in selections}) == len(selections)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b"null",
        b'"text"',
        b"{}",
        b"\xff\xfe\x00",
        b"[" * 100_000,
    ],
)
def test_a_file_that_is_no_selection_is_refused(tmp_path, content):
    path = tmp_path / "selection.json"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"selection\.json holds no selection .*`taskatlas select`"):
        Selection.load(path)


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 3},
        {"steps": [{"picked": "a"}]},
        {"steps": [[1]]},
        {"steps": [{"picked": "a", "gain": "much", "total": 1, "runner_up": None, "margin": None}]},
        {"names": 3},
        {"names": "abc"},
        {"names": ["a", 3]},
        {"start": None},
        {"start_total": "none"},
        {"left_out": ["a"]},
    ],
)
def test_a_selection_with_a_wrong_field_is_refused(tmp_path, as_installed, change):
    path = tmp_path / "selection.json"
    select(space_of(covariance(22, 3)), 2).save(path)
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | change))
    with pytest.raises(BadInput, match="holds no selection"):
        Selection.load(path)
    del fields[next(iter(change))]
    path.write_text(json.dumps(fields))
    with pytest.raises(BadInput, match="holds no selection"):
        Selection.load(path)


def test_a_truncated_or_missing_selection_is_refused(tmp_path):
    selection = select(space_of(covariance(21, 5)), 3)
    selection.save(tmp_path / "a.json")
    whole = (tmp_path / "a.json").read_bytes()
    json.loads(whole)
    (tmp_path / "a.json").write_bytes(whole[: len(whole) // 2])
    for path in (tmp_path / "a.json", tmp_path / "none.json", tmp_path):
        with pytest.raises(BadInput, match="holds no selection"):
            Selection.load(path)


def test_past_the_peak_the_smallest_loss_is_taken_whatever_it_costs():
    covariance = np.array([[1.0, 0.6, 0.5], [0.6, 1.0, 0.4], [0.5, 0.4, 1.0]])
    space = TaskSpace(("a", "b", "c"), covariance)
    gains = {name: select(space, 2, start=["a"], exclude=[other]).steps[0].gain for name, other in ("bc", "cb")}
    assert max(gains.values()) < 0
    dear = dict.fromkeys("abc", 1.0) | {min(gains, key=gains.get): 1e9}
    assert select(space, 2, start=["a"], cost=dear).names[1] == max(gains, key=gains.get)
