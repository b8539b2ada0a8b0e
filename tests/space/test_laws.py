"""Every kernel and every selector holds to the laws; and the laws catch what does not."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.references import space as reference
from tests.space.make import covariance

from taskatlas.space import KERNELS, Selection, Step, cka_matrix, procrustes_matrix, select
from taskatlas.space.selection import Method
from taskatlas.testing import KERNEL_LAWS, SELECTION_LAWS, KernelLaws, SelectionLaws, check_kernel, check_selection
from taskatlas.testing.space import _coverage, _entropy, _facility_location, _mutual_information

SEEDS = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize("laws", KERNEL_LAWS, ids=lambda laws: laws.name)
@given(seed=SEEDS)
@settings(max_examples=8, deadline=None)
def test_kernels_hold_to_their_laws(laws, seed):
    check_kernel(laws, seed)


@pytest.mark.parametrize("laws", SELECTION_LAWS, ids=lambda laws: laws.name)
@given(seed=SEEDS)
@settings(max_examples=8, deadline=None)
def test_selectors_hold_to_their_laws(laws, seed):
    check_selection(laws, seed)


def test_every_method_has_a_row():
    assert {laws.name for laws in KERNEL_LAWS} == set(KERNELS)
    assert {laws.name for laws in SELECTION_LAWS} == set(Method.__args__)


def test_procrustes_is_rightly_declared_indefinite():
    rng = np.random.default_rng(0)
    smallest = min(
        np.linalg.eigvalsh(procrustes_matrix([rng.standard_normal((4, 1 + i % 3)) for i in range(12)]))[0]
        for _ in range(50)
    )
    assert smallest < -1e-3


def test_the_objectives_of_the_table_are_the_references():
    matrix = covariance(1, 7)
    for picked in ([], [3], [5, 0, 2]):
        assert _mutual_information(matrix, picked) == pytest.approx(reference.mutual_information(matrix, picked))
        expected = reference.weighted_coverage(matrix, picked, np.ones(7))
        assert _coverage(matrix, picked) == pytest.approx(expected, abs=1e-12)
    picked, gains = reference.greedy_entropy(matrix, 3)
    assert _entropy(matrix, picked) == pytest.approx(sum(gains))
    assert _entropy(matrix, []) == 0
    picked, gains = reference.greedy_facility_location(matrix, 3)
    assert _facility_location(matrix, picked) == pytest.approx(sum(gains))
    assert _facility_location(matrix, []) == 0


# Kernels that each break one law, and hold to those that are tried before it.


def through(transform):
    """CKA of transformed features."""
    return lambda features, against=None: cka_matrix(
        [transform(x) for x in features], None if against is None else [transform(x) for x in against]
    )


def afterwards(change):
    """CKA whose matrix is changed where it is a whole one."""
    return lambda features, against=None: (
        change(cka_matrix(features)) if against is None else cka_matrix(features, against)
    )


def marks_its_input(features, against=None):
    features[0] += 1
    return cka_matrix(features, against)


def uncentred(features, against=None):
    def gram(x):
        return (x @ x.T).ravel() / np.linalg.norm(x @ x.T)

    return np.array([[gram(x) @ gram(y) for y in (against or features)] for x in features])


def noisy(matrix):
    noise = 1e-12 * np.random.default_rng().standard_normal(matrix.shape)
    return matrix + noise + noise.T


BROKEN_KERNELS = {
    "one value a pair": afterwards(lambda matrix: matrix[:-1]),
    "finite": afterwards(lambda matrix: np.where(matrix == 1, matrix, np.nan)),
    "symmetric": afterwards(np.triu),
    "unit diagonal": afterwards(lambda matrix: matrix * (1 - 1e-3 * np.eye(5))),
    "at most 1": afterwards(lambda matrix: matrix + 10 * (1 - np.eye(5))),
    "leaves its input alone": marks_its_input,
    "deterministic": afterwards(noisy),
    "against": afterwards(lambda matrix: 0.9 * matrix + 0.1 * np.eye(5)),
    "network order": lambda features, against=None: cka_matrix([abs(features[0]), *features[1:]], against),
    "rotation": through(lambda x: (x - x.mean(axis=0)) / x.std(axis=0)),
    "scale": through(lambda x: np.hstack([x, (x - x.mean(axis=0)) @ (x - x.mean(axis=0)).T])),
    "shift": uncentred,
    "sample order": through(lambda x: np.diff(x, axis=0)),
    "positive semi-definite": lambda features, against=None: 2 * cka_matrix(features, against) ** 2 - 1,
}


@pytest.mark.parametrize(("law", "kernel"), BROKEN_KERNELS.items(), ids=list(BROKEN_KERNELS))
def test_a_kernel_that_breaks_a_law_is_told_which(law, kernel):
    with pytest.raises(AssertionError, match=f"mine breaks the law '{law}' with seed 4: "):
        check_kernel(KernelLaws("mine", kernel), seed=4)


@pytest.mark.parametrize(
    ("law", "declared"),
    [
        ("rotation", {"rotation": False}),
        ("scale", {"scale": False}),
        ("shift", {"shift": False}),
        ("sample order", {"sample_order": False}),
        ("positive semi-definite", {"psd": False}),
    ],
)
def test_what_is_not_declared_is_not_asked(law, declared):
    check_kernel(KernelLaws("mine", BROKEN_KERNELS[law], **declared), seed=4)


# Selectors likewise. Each takes a right selection and spoils it.


def spoiled(change):
    """Greedy mutual information whose result is changed: (selection, space, start, exclude) -> selection."""

    def selector(space, k, start=(), exclude=()):
        return change(select(space, k, start=start, exclude=exclude), space, start, exclude)

    return selector


def steps_changed(change):
    return spoiled(lambda found, *_: replace(found, steps=tuple(change(step) for step in found.steps)))


def last_resort(space, k, start=(), exclude=()):
    """The candidate with the smallest gain, told truthfully."""
    picked, steps = list(start), []
    names = sorted(space.names)
    matrix = space.subset(names).covariance
    worth = reference.mutual_information(matrix, [names.index(name) for name in picked])
    begin = worth
    while len(picked) < k:
        totals = {
            name: reference.mutual_information(matrix, [names.index(one) for one in [*picked, name]])
            for name in names
            if name not in picked and name not in exclude
        }
        pick = min(totals, key=totals.get)
        steps.append(Step(pick, totals[pick] - worth, totals[pick], None, None))
        worth = totals[pick]
        picked.append(pick)
    return Selection(tuple(picked), tuple(steps), tuple(start), begin, dict.fromkeys(exclude, "excluded"))


def both_twins(space, k, start=(), exclude=()):
    if len(space) <= 9:
        return select(space, k, start=start, exclude=exclude)
    return Selection(tuple(sorted(space.names)[:k]), ())


BROKEN_SELECTORS = {
    "k different picks": lambda space, k, start=(), exclude=(): select(space, k + 1, start=start, exclude=exclude),
    "start first": spoiled(lambda found, _, start, __: replace(found, names=found.names[::-1]) if start else found),
    "exclude": lambda space, k, start=(), exclude=(): select(space, k, start=start),
    "exclusions are reported": spoiled(lambda found, *_: replace(found, left_out={})),
    "one step a pick": spoiled(lambda found, *_: replace(found, steps=found.steps[:-1])),
    "input order": spoiled(
        lambda found, space, *_: replace(found, steps=tuple(replace(s, runner_up=space.names[0]) for s in found.steps))
    ),
    "start total": spoiled(lambda found, *_: replace(found, start_total=found.start_total + 0.1)),
    "gain": steps_changed(lambda step: replace(step, gain=2 * step.gain)),
    "the best candidate": last_resort,
    "total": steps_changed(lambda step: replace(step, total=step.total + 0.1)),
    "runner-up": steps_changed(lambda step: replace(step, margin=step.margin + 0.1)),
    "duplicates": both_twins,
}


@pytest.mark.parametrize(("law", "selector"), BROKEN_SELECTORS.items(), ids=list(BROKEN_SELECTORS))
def test_a_selector_that_breaks_a_law_is_told_which(law, selector):
    with pytest.raises(AssertionError, match=f"mine breaks the law '{law}' with seed 4: "):
        check_selection(SelectionLaws("mine", selector, reference.mutual_information), seed=4)


def test_a_law_is_told_with_its_values():
    kernel = afterwards(lambda matrix: matrix * (1 - 1e-3 * np.eye(5)))
    with pytest.raises(AssertionError, match=r"0\.999 in place of 1 at \(0,\)"):
        check_kernel(KernelLaws("mine", kernel))


def test_a_method_of_ones_own_can_be_checked():
    check_kernel(KernelLaws("debiased", partial(cka_matrix, debiased=True)), seed=5)
    check_selection(SelectionLaws("mine", partial(select, method="entropy"), _entropy), seed=5)
