"""The values that a recipe's parameters may have."""

import math

Limits = tuple[float, float] | tuple[str, ...]
"""The least and the largest value of a number, or the words to choose from."""

ANY: Limits = (-math.inf, math.inf)
SHARE: Limits = (0.0, 1.0)
NOT_NEGATIVE: Limits = (0.0, math.inf)
_ABOVE_0 = math.ulp(0.0)
POSITIVE: Limits = (_ABOVE_0, math.inf)
POSITIVE_SHARE: Limits = (_ABOVE_0, 1.0)


def should_be(limits: Limits, value: int | float | str) -> str | None:
    """What a value that its limits refuse has to be, for within a sentence; None where they allow it.

    Numbers have to be finite, whatever their limits.

    Example:
        >>> should_be(SHARE, 1.5), should_be(("sum", "count"), "most"), should_be((1.0, math.inf), 1)
        ('from 0 to 1', 'sum or count', None)
    """
    if isinstance(value, str):
        return None if value in limits else " or ".join(map(str, limits))
    low, high = map(float, limits)
    if low <= value <= high and math.isfinite(value):
        return None
    if math.isinf(low):
        return "finite"
    if math.isinf(high):
        return {0.0: "zero or more", _ABOVE_0: "above zero"}.get(low, f"{low:g} or more")
    return f"above 0 and not above {high:g}" if low == _ABOVE_0 else f"from {low:g} to {high:g}"
