"""``adatp calibrate``: a positional prior from videos in which there is nothing to see."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from adatp_kernels.config import AdaTPConfig
from adatp_kernels.demo.errors import DemoError, check_output
from adatp_kernels.demo.models import DemoModel, build_model, load_model
from adatp_kernels.integrations.transformers import calibrate_prior
from adatp_kernels.prior import save_prior


@dataclass(frozen=True)
class CalibrateOptions:
    """What the command line asks for; see ``adatp calibrate --help``."""

    model: str | None
    question: str
    frames: int
    clips: int
    output: Path


def run_calibrate(options: CalibrateOptions) -> None:
    """Write the prior and say what is in it.

    Raises
    ------
    DemoError
        For a model or setting that cannot be used.
    """
    for name in ("frames", "clips"):
        if getattr(options, name) < 1:
            raise DemoError(f"--{name}: expected at least 1, got {getattr(options, name)}")
    check_output(options.output, "prior")
    demo = load_model(options.model) if options.model else build_model()
    prompts = tqdm(_prompts(demo, options), total=options.clips, desc="content-free clips", delay=1, leave=False)
    try:
        prior = calibrate_prior(demo.model, prompts, AdaTPConfig())
    except ValueError as error:
        raise DemoError(f"this model cannot be calibrated so: {error}") from error
    about = {"model": options.model or "built in", "question": options.question, "clips": str(options.clips)}
    save_prior(prior, options.output, about)
    frames, positions = prior.shape
    print(
        f"prior for {frames} frames of {positions} positions, from {options.clips} content-free clips: {options.output}"
    )
    print(f"factors from {float(prior.min()):.3f} to {float(prior.max()):.3f}")
    print(f"use it: AdaTPConfig(prior={str(options.output)!r})")


def _prompts(demo: DemoModel, options: CalibrateOptions) -> Iterator[dict[str, Any]]:
    """Prompts whose every frame is grey, each clip another grey, with grain that differs from frame to frame."""
    rng = np.random.default_rng(0)
    for grey in np.linspace(32, 224, options.clips):
        grain = rng.normal(0, 8, (options.frames, demo.image_size, demo.image_size, 3))
        yield demo.inputs((grey + grain).clip(0, 255).astype(np.uint8), options.question)
