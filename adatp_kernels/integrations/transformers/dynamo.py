"""Keeps torch.compile out of what stands around a model, next to free where nothing is compiled."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch.compiler import is_dynamo_compiling

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

# What dynamo put before the frames of this thread; None: nothing, so that no frame has to be kept from it. Where torch does
# not tell, every frame is.
eval_frame_callback: Callable[[], object] = getattr(
    torch._C._dynamo.eval_frame, "get_eval_frame_callback", lambda: NotImplemented
)


def out_of_dynamo(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Decorator: `function` under ``torch.compiler.disable``, past that where there is nothing to keep out.

    That costs several microseconds, as much as what it stands around.
    """
    disabled = torch.compiler.disable(function)

    @functools.wraps(function)
    def run(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        if is_dynamo_compiling() or eval_frame_callback() is not None:
            return disabled(*args, **kwargs)
        return function(*args, **kwargs)

    return run
