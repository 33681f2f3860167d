"""Checks of scalar arguments, with errors that name the argument, what came and what is allowed."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any


def choice(name: str, value: Any, allowed: Sequence[str]) -> str:
    """`value` if it is one of `allowed`, else a ValueError."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name}: expected one of {list(allowed)}, got {value!r}")
    return value


def integer(name: str, value: Any, *, low: int) -> int:
    """`value` as an int of at least `low`; TypeError if it is no integer, ValueError if it is smaller."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    if value < low:
        raise ValueError(f"{name}: expected an integer of at least {low}, got {value}")
    return int(value)


def number(name: str, value: Any, *, low: float, high: float = math.inf, open_low: bool = False) -> float:
    """`value` as a finite float between `low` and `high`; TypeError if it is no number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    result = float(value)
    if not math.isfinite(result) or not low <= result <= high or (open_low and result == low):
        upper = "∞)" if high == math.inf else f"{high}]"
        raise ValueError(f"{name}: expected a number in {'(' if open_low else '['}{low}, {upper}, got {value}")
    return result
