"""The main job: read a video, ask a model about it with and without pruning, show what pruning did."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from adatp_kernels.config import AdaTPConfig
from adatp_kernels.demo.asking import WAYS, answer, pruning, tell_times
from adatp_kernels.demo.clips.film import film
from adatp_kernels.demo.errors import DemoError, check_output
from adatp_kernels.demo.models import build_model, load_model
from adatp_kernels.demo.quiz import CLIP, run_quiz
from adatp_kernels.demo.trained import MODEL
from adatp_kernels.demo.training.batches import example
from adatp_kernels.demo.video import read_frames
from adatp_kernels.integrations.transformers import Report

FRAMES = 32
QUESTION = "What happens in the video?"
UNTRAINED = (
    "The model is a small LLaVA-OneVision with random weights: its words mean nothing. Real are the video, the\n"
    "segments, the scores, the pruning, the numbers of tokens and the times. For answers that mean something: --model"
)


@dataclass(frozen=True)
class DemoOptions:
    """What the command line asks for; see ``adatp demo --help``."""

    video: Path | None
    question: str | None
    model: str | None
    frames: int | None
    output: Path
    target_flops: float
    max_new_tokens: int
    repeats: int


def run_demo(options: DemoOptions) -> Report:
    """Do the main job and print what happened.

    Raises
    ------
    DemoError
        For a file, model or setting that cannot be used.
    """
    for name in ("frames", "max_new_tokens", "repeats"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise DemoError(f"--{name.replace('_', '-')}: expected at least 1, got {value}")
    check_output(options.output, "picture")
    if options.output.suffix.lower() != ".png":
        raise DemoError(f"--output: expected a name that ends with .png, got {options.output}")
    try:
        config = AdaTPConfig(target_flops=options.target_flops)
    except ValueError as error:
        raise DemoError(str(error)) from error
    if options.model is None and options.video is None and MODEL.exists():
        if options.question is not None or options.frames is not None:
            raise DemoError(
                "--question, --frames: the built-in model has a clip and questions of its own; give --model or --video, too"
            )
        return run_quiz(config, MODEL, options.output, options.repeats)
    return _ask_one(options, config)


def _ask_one(options: DemoOptions, config: AdaTPConfig) -> Report:
    """One question about one video."""
    frames = _frames(options)
    question = options.question or QUESTION
    print("loading the model …" if options.model else "building a model …", flush=True)
    demo = load_model(options.model) if options.model else build_model()
    if not demo.trained:
        print(UNTRAINED)
    inputs = demo.inputs(frames, question)
    answers = {}
    for way in tqdm(WAYS, desc="generating", delay=1, leave=False):
        with pruning(demo, config, way) as run:
            answers[way] = answer(demo, inputs, options.max_new_tokens)
            if run is not None:
                report = run.report()
    print(f"\n{report}\n")
    print(f"question: {question}")
    for way, text in answers.items():
        print(f"  {way:<7} {text!r}")
    tell_times(demo, config, inputs, options.repeats)
    report.draw(frames, options.output, question=question)
    print(f"picture of the survivors: {options.output}")
    return report


def _frames(options: DemoOptions) -> np.ndarray:
    count = options.frames or FRAMES
    if options.video is not None:
        frames, source = read_frames(options.video, count), str(options.video)
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "clip.mp4"
            film(path, example("held-out", CLIP).clip)
            frames, source = read_frames(path, count), "a clip of eight shots, rendered to H.264 just now"
    print(f"video: {source}: {len(frames)} frames of {frames.shape[2]}×{frames.shape[1]}")
    return frames
