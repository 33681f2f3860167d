"""What a family remembers of the vision tower, by the encoded video that it belongs to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary
from transformers.utils import ModelOutput

from adatp_kernels.integrations.transformers.dynamo import out_of_dynamo
from adatp_kernels.integrations.transformers.families.base import Family
from adatp_kernels.integrations.transformers.methods import MethodWatch, NotCopied, positional_names
from adatp_kernels.integrations.transformers.turns import Turns


class _Here(threading.local):
    """Of this thread: the arguments of the encoding under way, and what was remembered of it, or of the last one."""

    arguments: dict[str, Any] | None = None
    seen: dict[str, Any] = {}  # noqa: RUF012, never changed


class EncodingWatch(NotCopied):
    """Watches a model encode videos until removed.

    An encoding runs within the model's forward, or before it: newer versions of transformers let `generate` begin with it, or
    the user, who hands over its output as ``mm_encoder_outputs``. Calls of the vision tower that are no part of one are
    nobody's business.
    """

    def __init__(self, family: Family, model: nn.Module, turns: Turns) -> None:
        self._family, self._model, self._turns, self._here = family, model, turns, _Here()
        # By the tensors of an encoding: who hands it on may put them into another output, but not one in another's place.
        self._known: Any = WeakTensorKeyDictionary()
        self._method, self._handle = None, None
        tower = family.vision_tower(model)
        if tower is not None:
            name = f"get_{family.modality}_features"
            base = family.base(model)
            self._names = positional_names(getattr(base, name, lambda: None))
            # Older versions encode within the forward alone.
            self._handed_on = "mm_encoder_outputs" in positional_names(base.forward)
            self._method = MethodWatch(base, name, self._run)
            self._handle = tower.register_forward_hook(self._after_tower, with_kwargs=True)

    def forget(self) -> None:
        """Before and after a forward: what was encoded until now in this thread is not this forward's."""
        if self._here.seen:
            self._here.seen = {}

    def of(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """What is remembered of the video that comes with the `arguments` of a forward, or was encoded within it."""
        encoded = (arguments.get("mm_encoder_outputs") or {}).get(self._family.modality)
        if encoded is None:
            return self._here.seen
        found = [self._known[tensor] for tensor in _tensors(encoded) if tensor in self._known]
        known: dict[str, Any] = found[0] if found and all(other is found[0] for other in found) else {}
        for name, value in known.items():
            given = arguments.get(name)
            # If there are more or fewer, they are of another choice of videos.
            if isinstance(given, Tensor) and given.shape == value.shape and not given.cpu().equal(value.cpu()):
                raise ValueError(
                    f"{name}: expected {value.tolist()}, with which the video of mm_encoder_outputs was encoded, got {given.tolist()}"
                )
        return known

    def remove(self) -> None:
        """Leave the model as it was."""
        if self._method is not None and self._handle is not None:
            self._method.remove()
            self._handle.remove()
        self._known.clear()
        self.forget()

    def _run(self, encode: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._begin(args, kwargs)
        output = None
        try:
            output = encode(*args, **kwargs)
        finally:
            self._end(output)
        return output

    @out_of_dynamo
    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._here.arguments = {**dict(zip(self._names, args, strict=False)), **kwargs} if args else kwargs
        self._here.seen = {}

    @out_of_dynamo
    def _end(self, output: Any) -> None:
        self._here.arguments = None
        if self._handed_on and isinstance(output, ModelOutput):
            for tensor in _tensors(output):
                self._known[tensor] = self._here.seen

    @out_of_dynamo
    def _after_tower(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        arguments = self._here.arguments
        if arguments is None:
            # A model that encodes by no method of that name does so within its forward.
            if self._method is None or self._method.stands or not self._turns.in_forward():
                return
            arguments = {}
        self._here.seen = self._family.remember(self._model, arguments, args, kwargs, output)


def _tensors(encoded: Any) -> list[Tensor]:
    """Those of an encoding's tensors that the model reads, and that of the tower from which they were made."""
    pooled = getattr(encoded, "pooler_output", None)
    every = [getattr(encoded, "last_hidden_state", None), *(pooled if isinstance(pooled, (list, tuple)) else [pooled])]
    return [tensor for tensor in every if isinstance(tensor, Tensor)]
