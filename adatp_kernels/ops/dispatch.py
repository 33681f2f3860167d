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

# Fastest first; the reference runs anything. A backend is a module with one function per operation, called with
# checked arguments, and `refuses(operation, *tensors, moved)`, which says why it cannot run on some tensors.
_MODULES = {"triton": "adatp_kernels.ops.triton.backend", "reference": "adatp_kernels.ops.reference"}
_MISSING = "this version of adatp_kernels does not contain it"

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
    """

    available: dict[str, bool]
    reasons: dict[str, str]
    last_used: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [
            f"{name:<10} {'available' if here else 'not available: ' + self.reasons[name]}"
            for name, here in self.available.items()
        ]
        used = ", ".join(f"{operation} on {backend}" for operation, backend in self.last_used.items())
        return "\n".join([*lines, f"last used: {used or 'nothing yet'}"])


def backend_report() -> BackendReport:
    """Which backends can run here, why the others cannot, and which one each operation ran on last.

    Returns
    -------
    BackendReport
    """
    probe = torch.empty(1, 1, 1, 1, device="cuda" if torch.cuda.is_available() else "cpu")
    reasons = {name: _refusal(name, "gather", (probe,)) for name in ("native", "triton", "reference")}
    unavailable = {name: reason for name, reason in reasons.items() if reason is not None}
    return BackendReport({name: name not in unavailable for name in reasons}, unavailable, dict(_last))


def last_used() -> dict[str, str]:
    """The backend that each operation ran on last."""
    return dict(_last)


def implementation(operation: str, backend: str, *tensors: Tensor, moved: Sequence[Tensor] = ()) -> Callable:
    """The function that runs `operation` on `tensors`, those that decide which backend can, moving `moved`.

    Raises
    ------
    ValueError
        If `backend` is no backend's name.
    RuntimeError
        If the caller named a backend that cannot run; ``"auto"`` falls back in silence instead.
    """
    choice("backend", backend, BACKENDS)
    if backend == "auto":
        # Triton is not even loaded for CPU tensors, though its interpreter could run them, slowly.
        on_cpu = tensors[0].device.type == "cpu"
        names = (name for name in _MODULES if not (on_cpu and name == "triton"))
        name = next(name for name in names if _refusal(name, operation, tensors, moved) is None)
    else:
        name = backend
        reason = _refusal(name, operation, tensors, moved)
        if reason is not None:
            raise RuntimeError(f"backend: {backend!r} cannot run {operation} here: {reason}")
    _last[operation] = name
    return getattr(_loaded[name], operation)


def _refusal(name: str, operation: str, tensors: Sequence[Tensor], moved: Sequence[Tensor] = ()) -> str | None:
    if name not in _loaded:
        _loaded[name] = _load(name)
    module = _loaded[name]
    return module if isinstance(module, str) else module.refuses(operation, *tensors, moved=moved)


def _load(name: str) -> ModuleType | str:
    if name not in _MODULES:
        return _MISSING
    try:
        return importlib.import_module(_MODULES[name])
    except ImportError as error:
        return f"it cannot be loaded: {error}"
