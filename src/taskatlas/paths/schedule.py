"""When to take a snapshot: often while much happens, seldom later."""

import math
from collections.abc import Callable

from taskatlas.errors import BadInput

Schedule = Callable[[int, int | None], bool]
"""(this step, the step of the last snapshot or None) -> whether to take one now."""


def geometric(ratio: float = 1.3, *, at_most: int | None = None) -> Schedule:
    """Snapshots at 0, 1, 2, ... and then each ``ratio`` times as late as the one before.

    A training of a million steps has about 55 of them. Steps need not come one by one: a snapshot is due at the first
    step on or after its time.

    Args:
        ratio: of one snapshot's step to the next one's, above 1.
        at_most: the longest way between two snapshots in steps; None for no limit.

    Raises:
        BadInput: the ratio is not finite and above 1, or the limit not at least 1.

    Example:
        >>> due, last, taken = geometric(1.5), None, []
        >>> for step in range(20):
        ...     if due(step, last):
        ...         taken.append(step)
        ...         last = step
        >>> taken
        [0, 1, 2, 3, 5, 8, 12, 18]
    """
    if not 1 < ratio < math.inf or (at_most is not None and at_most < 1):
        raise BadInput(
            f"a schedule grows by a finite ratio above 1, not {ratio}, with at least 1 step between, not {at_most}."
        )

    def due(step: int, last: int | None) -> bool:
        if last is None:
            return True
        later = max(last + 1, int(last * ratio + 0.5))
        return step >= (later if at_most is None else min(later, last + at_most))

    return due


def every(steps: int) -> Schedule:
    """Snapshots evenly, so many steps apart.

    Raises:
        BadInput: fewer than one step.

    Example:
        >>> [step for step in range(10) if every(4)(step, step - 4 if step >= 4 else None) and step % 4 == 0]
        [0, 4, 8]
    """
    if steps < 1:
        raise BadInput(f"snapshots are at least 1 step apart, not {steps}.")
    return lambda step, last: last is None or step >= last + steps
