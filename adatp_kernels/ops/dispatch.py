"""Which implementation of an operation runs: the fastest that can, or the one the caller named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType

from adatp_kernels.config import BACKENDS
from adatp_kernels.errors import choice
from adatp_kernels.ops import reference

OPERATIONS = ("row_lse", "column_sums", "select", "gather")

_FASTEST_FIRST = ("native", "triton", "reference")

# In the same order. A backend is a module with one function per operation, called with checked arguments.
_IMPLEMENTATIONS: dict[str, ModuleType] = {"reference": reference}
_MISSING = "this version of adatp_kernels does not contain it"

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
    missing = {name: _MISSING for name in _FASTEST_FIRST if name not in _IMPLEMENTATIONS}
    return BackendReport({name: name not in missing for name in _FASTEST_FIRST}, missing, dict(_last))


def implementation(operation: str, backend: str) -> Callable:
    """The function that runs `operation`.

    Raises
    ------
    ValueError
        If `backend` is no backend's name.
    RuntimeError
        If the caller named a backend that cannot run; ``"auto"`` falls back in silence instead.
    """
    choice("backend", backend, BACKENDS)
    name = next(iter(_IMPLEMENTATIONS)) if backend == "auto" else backend
    if name not in _IMPLEMENTATIONS:
        raise RuntimeError(f"backend: {backend!r} cannot run: {_MISSING}; available are {['auto', *_IMPLEMENTATIONS]}")
    _last[operation] = name
    return getattr(_IMPLEMENTATIONS[name], operation)
