"""``adatp calibrate``: a positional prior from videos in which there is nothing to see."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from adatp_kernels.ask.checkpoint import Checkpoint, device_of
from adatp_kernels.ask.options import layers
from adatp_kernels.ask.quiet import quiet
from adatp_kernels.config import AdaTPConfig
from adatp_kernels.demo.trained import MODEL, load_trained
from adatp_kernels.integrations.transformers import calibrate_prior, mrope_positions
from adatp_kernels.mistakes import Mistake, check_output, check_question, first_line
from adatp_kernels.prior import save_prior
from adatp_kernels.video import Video

OURS = 16  # frames, as the clips have on which our model was trained


@dataclass(frozen=True)
class CalibrateOptions:
    """What the command line asks for; see ``adatp calibrate --help``."""

    model: str | None
    question: str
    frames: int | None
    size: str
    stages: str | None
    clips: int
    output: Path


def run_calibrate(options: CalibrateOptions) -> None:
    """Write the prior and say what is in it.

    Raises
    ------
    Mistake
        For a model or setting that cannot be used.
    """
    frames = options.frames if options.frames is not None else OURS if options.model is None else 32
    for name, value in (("--frames", frames), ("--clips", options.clips)):
        if value < 1:
            raise Mistake(f"{name}: expected at least 1, got {value}")
    width, height = _size(options.size)
    check_question(options.question)
    check_output(options.output, "prior")
    with quiet():
        model, inputs = _model(options.model)
    clips = _clips(options.clips, (frames, height, width, 3))
    prompts = (inputs(clip, options.question) for clip in clips)
    progress = tqdm(prompts, total=options.clips, desc="content-free clips", delay=1, disable=None, leave=False)
    try:
        config = AdaTPConfig() if options.stages is None else AdaTPConfig(stages=layers(options.stages))
        with mrope_positions(model):
            prior = calibrate_prior(model, progress, config)
    except (TypeError, ValueError) as error:
        raise Mistake(f"this model cannot be calibrated so: {first_line(error)}") from error
    about = {"model": options.model or "built in", "question": options.question, "clips": str(options.clips)}
    save_prior(prior, options.output, about)
    frames, positions = prior.shape
    print(
        f"prior for {frames} frames of {positions} positions, from {options.clips} content-free clips: {options.output}"
    )
    print(f"factors from {float(prior.min()):.3f} to {float(prior.max()):.3f}")
    print(f"use it: AdaTPConfig(prior={str(options.output)!r}), or adatp ask --prior {options.output}")


def _size(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise Mistake(f"--size: expected width x height, such as 640x360, got {text!r}")
    return int(parts[0]), int(parts[1])


def _model(name: str | None) -> tuple[Any, Callable[[np.ndarray, str], Any]]:
    """A model, and what makes its inputs of frames and a question."""
    if name is None:
        ours = load_trained(MODEL).demo
        return ours.model, ours.inputs
    checkpoint, device = Checkpoint(name), device_of("auto")
    model = checkpoint.load(device, "auto", None)
    return model, lambda frames, question: checkpoint.inputs(question, [_film(frames)]).to(device, model.dtype)


def _film(frames: np.ndarray) -> Video:
    """The frames as a video of one a second."""
    count, height, width, _ = frames.shape
    return Video(
        frames=frames,
        seconds=tuple(map(float, range(count))),
        duration=float(count),
        num_source_frames=count,
        damaged=0,
        size=(width, height),
        evenly="time",
    )


def _clips(count: int, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Clips whose every frame is grey, each clip another grey, with grain that differs from frame to frame."""
    rng = np.random.default_rng(0)
    for grey in np.linspace(32, 224, count):
        yield (grey + rng.normal(0, 8, shape)).clip(0, 255).astype(np.uint8)
