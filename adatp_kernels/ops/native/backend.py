"""The native backend as dispatch sees it: each operation goes to the library for its tensors' device."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

from torch import Tensor

from adatp_kernels.ops.arguments import Pruning, Scoring, Selection
from adatp_kernels.ops.native import cpu, cuda


def details() -> str:
    """Where the libraries come from; the CUDA library's is looked for when it is first asked for."""
    gpu = cuda.load() if cuda.load.cache_info().currsize else None
    return cpu.DETAILS if gpu is None else f"{cpu.DETAILS}; {gpu if isinstance(gpu, str) else f'CUDA: {gpu.origin}'}"


def _library(tensor: Tensor) -> ModuleType:
    return cpu if tensor.is_cpu else cuda


def refuses(operation: str, *tensors: Tensor, moved: Sequence[Tensor] = ()) -> str | None:
    """Why an operation cannot run on `tensors`; None if it can.

    The tensors are those that decide: query and key, or scores, or indices; `moved` are what gather moves, or a given LSE.
    """
    return _library(tensors[0]).refuses(operation, *tensors, moved=moved)


# A GPU's tensors are refused by these.
row_lse, gather, column_sums_varlen = cpu.row_lse, cpu.gather, cpu.column_sums_varlen


def column_sums(scoring: Scoring) -> Tensor:
    """As `functional.column_sums`."""
    return _library(scoring.key).column_sums(scoring)


def select(scores: Tensor, selection: Selection) -> Tensor:
    """As `functional.select`."""
    return _library(scores).select(scores, selection)


def prune(pruning: Pruning) -> tuple[Tensor, tuple[Tensor, ...]]:
    """As `functional.prune`."""
    return _library(pruning.scoring.key).prune(pruning)
