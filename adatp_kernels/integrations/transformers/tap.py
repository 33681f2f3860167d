"""Reads query and key out of an attention layer, whatever its attention implementation.

Position-encoded queries exist only inside the attention function. So for the one call that scores, the
layer is shown its configuration with another name in it, the tap's, as its attention implementation; the tap
puts the layer's own configuration back, runs the layer's own implementation on the same arguments,
and keeps what it saw.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from adatp_kernels.integrations.transformers import attention

_NAME = "adatp_tap"


@dataclass(frozen=True, eq=False)
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
    """A tap on one attention module: `open` before its forward, `close` after it."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.seen: Seen | None = None
        self._config: Any = None

    def open(self) -> None:
        """Make the next forward of the module record what it sees."""
        self.seen = None
        self._config = self.module.config
        # Past nn.Module's __setattr__, which looks for parameters and submodules first, here and below.
        vars(self.module)["config"] = _Tapped(self._config, self)

    def close(self) -> None:
        """Leave the module as it was, also if its forward failed half way."""
        if self._config is not None:
            vars(self.module)["config"], self._config = self._config, None

    def take(self) -> Seen | None:
        """What was recorded since `open`, once."""
        seen, self.seen = self.seen, None
        return seen

    def run(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        """The module's own attention, seen."""
        self.close()
        name = self.module.config._attn_implementation
        lse = None
        if name == attention.NAME:
            output, lse = attention.attention_with_lse(self.module, query, key, value, mask, **options)
            result: tuple[Tensor, Tensor | None] = (output, None)
        else:
            # Every modelling file has an eager attention of its own.
            eager = getattr(sys.modules[type(self.module).__module__], "eager_attention_forward", None)
            result = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager)(self.module, query, key, value, mask, **options)
        # Scored in the dtype that the attention computed in, to which an LSE of it belongs.
        query, key = attention.under_autocast(query, key)
        self.seen = Seen(query, key, options.get("scaling"), lse)
        return result


@torch.compiler.disable
def _tapped_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    return module.config._adatp_tap.run(query, key, value, attention_mask, **options)


AttentionInterface.register(_NAME, _tapped_attention)
