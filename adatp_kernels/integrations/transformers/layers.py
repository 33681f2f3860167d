"""Stands before the forward of decoder layers, and lets each pass as long as there is nothing to do.

Hooks would do, too, but a module that has any pays several microseconds a call, decoded tokens included, and compiled code
does not notice hooks that come and go. What stands here is always there, and while it is idle costs a function call.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from adatp_kernels.integrations.transformers.methods import refuse_copy

# Runs a layer: its number, its own forward, and the arguments of this call.
Around = Callable[[int, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


class LayerWatch:
    """Watches the decoder layers `layers` until removed.

    Attributes
    ----------
    around : callable, optional
        Runs every layer from now on, as `Around`; None lets them run by themselves.
    """

    def __init__(self, layers: list[nn.Module]) -> None:
        self.around: Around | None = None
        self.removed = False
        self._layers, self._mine = layers, [_Watched(self, number, layer) for number, layer in enumerate(layers)]
        for layer, mine in zip(layers, self._mine, strict=True):
            layer.forward = mine

    def remove(self) -> None:
        """Put every forward back as it was; one before which somebody has put another since lets all pass from now on."""
        self.around, self.removed = None, True
        for layer, mine in zip(self._layers, self._mine, strict=True):
            if vars(layer).get("forward") is mine:
                del layer.forward
                before = mine.before
                while isinstance(before, _Watched) and before.watch.removed:
                    before = before.before
                if before is not None:
                    layer.forward = before


class _Watched:
    """A layer's forward.

    Attributes
    ----------
    watch : LayerWatch
    before : callable, optional
        What somebody else had put before the forward of the class.
    """

    def __init__(self, watch: LayerWatch, number: int, layer: Any) -> None:
        functools.update_wrapper(self, layer.forward)
        self.watch, self.before = watch, vars(layer).get("forward")
        self._number, self._forward = number, layer.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        around = self.watch.around
        if around is None:
            return self._forward(*args, **kwargs)
        return around(self._number, self._forward, args, kwargs)

    # Somebody may put it back after it was removed. A copy of the layer has what it stands before.

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., Any]:
        self._check_removed()
        return copy.deepcopy(self._forward, memo)

    def __reduce__(self) -> tuple[Any, ...]:
        self._check_removed()
        return _passed, (self._forward,)

    def _check_removed(self) -> None:
        if not self.watch.removed:
            refuse_copy()


def _passed(forward: Callable[..., Any]) -> Callable[..., Any]:
    return forward
