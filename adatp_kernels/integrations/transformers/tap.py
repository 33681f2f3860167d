"""Reads query and key out of an attention layer, whatever its attention implementation.

Position-encoded queries exist only inside the attention function. So for the one call that scores, the
layer is shown its configuration with another name in it, the tap's, as its attention implementation; the tap
puts the layer's own configuration back, runs the layer's own implementation on the same arguments,
and keeps what it saw.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from adatp_kernels.integrations.transformers import attention
from adatp_kernels.integrations.transformers.dynamo import out_of_dynamo

_NAME = "adatp_tap"

# An attention function of transformers', and those that were found, by the class of a module and its configuration's id.
Function = Callable[..., tuple[Tensor, Any]]
Functions = dict[tuple[type, int], Function | None]


@dataclass(eq=False, slots=True)
class Seen:
    """What one attention call worked on.

    Attributes
    ----------
    query : Tensor [B, Hq, T, D]
    key : Tensor [B, Hkv, N, D]
    scale : float or None
    lse : Tensor [B, Hq, T] or None
        Only from the implementation ``"adatp"``.
    """

    query: Tensor
    key: Tensor
    scale: float | None
    lse: Tensor | None


class _Tapped:
    """A layer's configuration, but for the name of the attention implementation."""

    _attn_implementation = _attn_implementation_internal = _NAME

    def __init__(self, config: Any, tap: AttentionTap) -> None:
        self._adatp_config, self._adatp_tap = config, tap

    def __getattr__(self, name: str) -> Any:
        return getattr(self._adatp_config, name)


class AttentionTap:
    """A tap on one attention module: `open` before its forward, `close` after it.

    Parameters
    ----------
    module : Module
    functions : dict, optional
        Where taps that are opened within one forward share what they looked up. To be emptied after it: until then nobody
        is expected to give the model another attention function.
    """

    def __init__(self, module: Any, functions: Functions | None = None) -> None:
        self.module = module
        self.seen: Seen | None = None
        self._functions: Functions = {} if functions is None else functions
        self._config: Any = None  # the module's own, while the tap is open
        self._tapped: _Tapped | None = None

    def open(self) -> None:
        """Make the next forward of the module record what it sees."""
        self.seen = None
        # Past nn.Module's __setattr__, which looks for parameters and submodules first, here and below.
        fields = vars(self.module)
        self._config = config = fields["config"]
        if self._tapped is None or self._tapped._adatp_config is not config:
            self._tapped = _Tapped(config, self)
        fields["config"] = self._tapped

    def close(self) -> None:
        """Leave the module as it was, also if its forward failed half way."""
        if self._config is not None:
            vars(self.module)["config"], self._config = self._config, None

    def take(self) -> Seen | None:
        """What was recorded since `open`, once."""
        seen, self.seen = self.seen, None
        return seen

    def function(self, config: Any) -> Function | None:
        """The attention function that the module has by `config`; None for ``"adatp"``, whose LSE is wanted, too."""
        kind = type(self.module)
        found = (kind, id(config))
        if found not in self._functions:
            name = config._attn_implementation
            # Every modelling file has an eager attention of its own.
            eager = getattr(sys.modules[kind.__module__], "eager_attention_forward", None)
            self._functions[found] = (
                None if name == attention.NAME else ALL_ATTENTION_FUNCTIONS.get_interface(name, eager)
            )
        return self._functions[found]


@out_of_dynamo
def _tapped_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """The module's own attention, seen."""
    tap = module.config._adatp_tap
    tap.close()
    function, lse = tap.function(module.config), None
    if function is None:
        output, lse = attention.attention_with_lse(module, query, key, value, attention_mask, **options)
        result: tuple[Tensor, Tensor | None] = (output, None)
    else:
        result = function(module, query, key, value, attention_mask, **options)
    # Scored in the dtype that the attention computed in, to which an LSE of it belongs.
    if _any_autocast():
        query, key = attention.under_autocast(query, key)
    tap.seen = Seen(query, key, options.get("scaling"), lse)
    return result


# Whether autocast is on for any device; where torch does not tell, it is looked up for the tensors' own.
_any_autocast: Callable[[], bool] = getattr(torch._C, "_is_any_autocast_enabled", lambda: True)

AttentionInterface.register(_NAME, _tapped_attention)
