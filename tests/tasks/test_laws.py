"""Every way to split holds to its laws, and a way that does not is found out."""

import numpy as np
import pytest

from taskatlas.tasks import Split, adversarial_split
from taskatlas.testing import SPLIT_LAWS, SplitLaws, check_split


@pytest.mark.parametrize("laws", SPLIT_LAWS, ids=lambda laws: laws.name)
@pytest.mark.parametrize("seed", range(4))
def test_laws_hold(laws, seed):
    check_split(laws, seed)


def made_of(parts):
    return lambda target, task: Split("mine", target.ids, parts(target, task), target.labels)


BREAKERS = {
    "the target's samples": lambda target, task: adversarial_split(task, target),
    "sample order": made_of(lambda target, task: np.arange(len(target)) % 2),
    "adversarial": made_of(lambda target, task: target.labels),
    "mirrored": made_of(lambda target, task: target.labels),
}


@pytest.mark.parametrize("law", BREAKERS)
def test_a_way_that_breaks_a_law_is_named(law):
    laws = SplitLaws("mine", BREAKERS[law], adversarial=law == "adversarial", mirrored=law == "mirrored")
    with pytest.raises(AssertionError, match=f"mine breaks the law .{law}"):
        check_split(laws)


def test_an_uneven_split_is_not_balanced():
    with pytest.raises(AssertionError, match="breaks the law 'balanced'"):
        check_split(SplitLaws("plain", adversarial_split, balanced=True))
