"""Warns at the line of the user's that led here, past all that libraries run in between."""

from __future__ import annotations

import sys
import warnings

_LIBRARIES = ("adatp_kernels", "contextlib", "torch", "transformers")


def warn_user(message: str) -> None:
    """A UserWarning where the innermost code that is of none of these libraries called them."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _LIBRARIES:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)
