"""Checks of arguments, with errors that name the argument, what came and what is allowed."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def choice(name: str, value: Any, allowed: Sequence[str]) -> str:
    """`value` if it is one of `allowed`, else a ValueError."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name}: expected one of {list(allowed)}, got {value!r}")
    return value


def integer(name: str, value: Any, *, low: int) -> int:
    """`value` as an int of at least `low`; TypeError if it is no integer, ValueError if it is smaller."""
    # The plain types first: the abstract ones cost a microsecond, and an operation checks several.
    if type(value) is not int and (isinstance(value, bool) or not isinstance(value, numbers.Integral)):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    if value < low:
        raise ValueError(f"{name}: expected an integer of at least {low}, got {value}")
    return int(value)


def number(name: str, value: Any, *, low: float, high: float = math.inf, open_low: bool = False) -> float:
    """`value` as a finite float between `low` and `high`; TypeError if it is no number."""
    if type(value) is not float and (isinstance(value, bool) or not isinstance(value, numbers.Real)):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    result = float(value)
    if not math.isfinite(result) or not low <= result <= high or (open_low and result == low):
        upper = "∞)" if high == math.inf else f"{high}]"
        raise ValueError(f"{name}: expected a number in {'(' if open_low else '['}{low}, {upper}, got {value}")
    return result


def as_tensor(name: str, value: Any) -> Tensor:
    """`value` as a tensor; TypeError if it is nothing that a tensor can be made of."""
    try:
        if isinstance(value, Tensor):
            return value
        tensor = torch.as_tensor(value, device="cpu")
        if tensor.is_floating_point():  # in the default dtype, which may be coarser than numbers are
            tensor = torch.as_tensor(value, dtype=torch.float64, device="cpu")
        return tensor
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name}: expected a tensor or numbers, got {value!r}") from error


def host_integers(name: str, value: Any, meaning: str) -> Tensor:
    """`value` as a LongTensor of one dimension on the host, every entry at least 0.

    `meaning` names the shape in the error, for instance ``"[V]"``.
    """
    tensor = host_vector(name, value, meaning)
    if tensor.numel():
        not_negative(name, int(tensor.min()))
    return tensor


def not_negative(name: str, least: int) -> None:
    """An error unless `least`, the smallest of some integers, is at least 0."""
    if least < 0:
        raise ValueError(f"{name}: expected values of at least 0, got {least}")


def host_vector(name: str, value: Any, meaning: str) -> Tensor:
    """`host_integers` of any sign."""
    tensor = as_tensor(name, value)
    if tensor.numel() and (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool):
        raise TypeError(f"{name}: expected integers, got {tensor.dtype}")
    if tensor.dim() != 1:
        raise ValueError(f"{name}: expected shape {meaning}, got {list(tensor.shape)}")
    return tensor.to("cpu", torch.int64)
