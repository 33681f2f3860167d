"""Which implementation of an operation runs: the fastest that can, or the one the caller named."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import ModuleType

import torch
from torch import Tensor

from adatp_kernels.config import BACKENDS
from adatp_kernels.errors import choice
from adatp_kernels.ops.native import measured

# A backend is a module with one function per operation, called with checked arguments, and `refuses(operation,
# *tensors, moved)`, which says why it cannot run on some tensors. Its `details()`, if it has any, go into the report.
_MODULES = {
    "native": "adatp_kernels.ops.native.backend",
    "triton": "adatp_kernels.ops.triton.backend",
    "reference": "adatp_kernels.ops.reference",
}
# What "auto" tries, fastest first; the reference runs anything. What cannot run on a kind of tensors is not even loaded:
# Triton's interpreter could run CPU tensors, slowly, and the native library would have to be compiled.
_ON_CPU: tuple[str, ...] = ("native", "reference")
_ON_GPU: tuple[str, ...] = ("triton", "reference")
_ON_GPU_WHERE_MEASURED = ("native", *_ON_GPU)

# Loaded backends, or why they could not be loaded.
_loaded: dict[str, ModuleType | str] = {}
# The choice each operation made last, for `backend_report`; written, never read, on the hot path.
_last: dict[str, str] = {}


@dataclass(frozen=True)
class BackendReport:
    """What `backend_report` returns; prints as a table.

    Attributes
    ----------
    available : dict of str to bool
        Every backend, fastest first, and whether it can run here at all.
    reasons : dict of str to str
        Why each unavailable backend is so.
    last_used : dict of str to str
        The backend that each operation ran on last; operations not yet called are absent.
    details : dict of str to str
        What else is known of a backend, such as where its compiled library is.
    """

    available: dict[str, bool]
    reasons: dict[str, str]
    last_used: dict[str, str] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = []
        for name, here in self.available.items():
            state = f"available: {self.details[name]}" if name in self.details else "available"
            lines.append(f"{name:<10} {state if here else 'not available: ' + self.reasons[name]}")
        used = ", ".join(f"{operation} on {backend}" for operation, backend in self.last_used.items())
        return "\n".join([*lines, f"last used: {used or 'nothing yet'}"])


def backend_report() -> BackendReport:
    """Which backends can run here, why the others cannot, and which one each operation ran on last.

    Returns
    -------
    BackendReport
    """
    gpu = torch.empty(1, 1, 1, 1, device="cuda" if torch.cuda.is_available() else "cpu")
    reasons = {name: _refusal(name, "gather", (gpu.cpu() if name == "native" else gpu,)) for name in _MODULES}
    unavailable = {name: reason for name, reason in reasons.items() if reason is not None}
    details = {name: module.details() for name, module in _loaded.items() if hasattr(module, "details")}
    return BackendReport({name: name not in unavailable for name in reasons}, unavailable, dict(_last), details)


def last_used() -> dict[str, str]:
    """The backend that each operation ran on last."""
    return dict(_last)


def implementation(operation: str, backend: str, *tensors: Tensor, moved: Sequence[Tensor] = ()) -> Callable:
    """The function that runs `operation` on `tensors`, those that decide which backend can, and on what else is `moved` or read.

    Raises
    ------
    ValueError
        If `backend` is no backend's name.
    RuntimeError
        If the caller named a backend that cannot run; ``"auto"`` falls back in silence instead.
    """
    choice("backend", backend, BACKENDS)
    if backend == "auto":
        names = _ON_CPU if tensors[0].is_cpu else _ON_GPU
        if measured.FASTER and names is _ON_GPU and measured.is_faster(operation, *tensors):
            names = _ON_GPU_WHERE_MEASURED
        for name in names:
            if _refusal(name, operation, tensors, moved) is None:
                break
    else:
        name = backend
        reason = _refusal(name, operation, tensors, moved)
        if reason is not None:
            raise RuntimeError(f"backend: {backend!r} cannot run {operation} here: {reason}")
    _last[operation] = name
    return getattr(_loaded[name], operation)


def _refusal(name: str, operation: str, tensors: Sequence[Tensor], moved: Sequence[Tensor] = ()) -> str | None:
    module = _loaded.get(name)
    if module is None:
        module = _loaded[name] = _load(name)
    return module if isinstance(module, str) else module.refuses(operation, *tensors, moved=moved)


def _load(name: str) -> ModuleType | str:
    try:
        return importlib.import_module(_MODULES[name])
    except ImportError as error:
        return f"it cannot be loaded: {error}"
