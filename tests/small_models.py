"""The small LLaVA-OneVision on which most of the integration is tested, and its masked full sequence."""

from __future__ import annotations

import family_models
from family_models import IMAGE, VIDEO
from masked_reference import TOLERANCE, MaskedReference, generate

import adatp_kernels as adatp

__all__ = [
    "ATTENTION",
    "CELLS",
    "CONFIG",
    "IMAGE",
    "LAYERS",
    "TOLERANCE",
    "VIDEO",
    "MaskedReference",
    "generate",
    "llava_onevision",
    "masked",
    "prompt",
]

CELLS = 9  # 6 × 6 patches, pooled to 3 × 3
LAYERS = 16

ATTENTION = ("eager", "sdpa", "adatp")
CONFIG = adatp.AdaTPConfig(target_flops=0.4, stages=(1, 3, 6, 9))


def llava_onevision(attention="sdpa", *, seed=0, layers=LAYERS, vision_use_head=False):
    """A LLaVA-OneVision with random weights, float32, on the CPU."""
    return family_models.build(
        "llava_onevision", attention, seed=seed, layers=layers, image_size=42, use_head=vision_use_head, spread=0.15
    )


def prompt(frames=6, **options):
    """A prompt with a video of several shots; frames of one shot differ a little."""
    return family_models.prompt("llava_onevision", frames, size=42, **options)


def masked(inputs, survivors, *, compact=False, **options):
    """Sequences and logits of the masked full-sequence model."""
    model = llava_onevision("eager")
    reference = MaskedReference(model, compact=compact)
    reference.add(survivors, 0, inputs["input_ids"].shape[1])
    return generate(model, inputs, **options)
