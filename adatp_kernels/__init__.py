"""Prune the visual tokens of a Video LLM inside its decoder, without training (AdaTP)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adatp_kernels import ops
from adatp_kernels.attention import flash_attention, flash_attention_varlen
from adatp_kernels.config import AdaTPConfig
from adatp_kernels.integrations.registration import register_when_imported
from adatp_kernels.layout import VisualLayout
from adatp_kernels.ops import backend_report
from adatp_kernels.plan import PruningPlan, Stage, make_plan, visual_flops
from adatp_kernels.prior import save_prior
from adatp_kernels.pruner import AdaTPPruner
from adatp_kernels.segments import salient_segments, segment_frames
from adatp_kernels.state import PruningState

if TYPE_CHECKING:
    from adatp_kernels.integrations.transformers import (
        Acceleration,
        BiasReport,
        Family,
        Report,
        accelerate,
        bias_report,
        calibrate_prior,
        mrope_positions,
        register_family,
    )

__version__ = "0.1.0"

__all__ = [
    "Acceleration",
    "AdaTPConfig",
    "AdaTPPruner",
    "BiasReport",
    "Family",
    "PruningPlan",
    "PruningState",
    "Report",
    "Stage",
    "VisualLayout",
    "accelerate",
    "backend_report",
    "bias_report",
    "calibrate_prior",
    "flash_attention",
    "flash_attention_varlen",
    "make_plan",
    "mrope_positions",
    "ops",
    "register_family",
    "salient_segments",
    "save_prior",
    "segment_frames",
    "visual_flops",
]

# Importing transformers takes seconds, so it waits until somebody needs it.
_LAZY = (
    "Acceleration",
    "BiasReport",
    "Family",
    "Report",
    "accelerate",
    "bias_report",
    "calibrate_prior",
    "mrope_positions",
    "register_family",
)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from adatp_kernels.integrations import transformers

        return getattr(transformers, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


register_when_imported()
