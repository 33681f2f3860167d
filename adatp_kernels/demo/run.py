"""The main job: read a video, ask a model about it with and without pruning, show what pruning did."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from adatp_kernels.config import AdaTPConfig
from adatp_kernels.demo.clip import render_clip
from adatp_kernels.demo.errors import DemoError
from adatp_kernels.demo.models import DemoModel, build_model, load_model
from adatp_kernels.demo.picture import draw_survivors
from adatp_kernels.demo.video import read_frames
from adatp_kernels.integrations.transformers import Report, accelerate, families

UNTRAINED = (
    "The model is a small LLaVA-OneVision with random weights: its words mean nothing. Real are the video, the\n"
    "segments, the scores, the pruning, the numbers of tokens and the times. For answers that mean something: --model"
)


@dataclass(frozen=True)
class DemoOptions:
    """What the command line asks for; see ``adatp demo --help``."""

    video: Path | None
    question: str
    model: str | None
    frames: int
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
        if getattr(options, name) < 1:
            raise DemoError(f"--{name.replace('_', '-')}: expected at least 1, got {getattr(options, name)}")
    if not options.output.parent.is_dir():
        raise DemoError(f"no such directory for the picture: {options.output.parent}")
    try:
        config = AdaTPConfig(target_flops=options.target_flops)
    except ValueError as error:
        raise DemoError(str(error)) from error
    frames = _frames(options)
    print("loading the model …" if options.model else "building a model …", flush=True)
    demo = load_model(options.model) if options.model else build_model()
    if not demo.trained:
        print(UNTRAINED)
    inputs = demo.inputs(frames, options.question)

    answers = {}
    for name in tqdm(("dense", "pruned"), desc="generating", delay=1, leave=False):
        with _pruning(demo, config, name) as run:
            answers[name] = _answer(demo, inputs, options.max_new_tokens)
            if run is not None:
                report = run.report()
    times = _prefill_times(demo, config, inputs, options.repeats)

    print(f"\n{report}\n")
    print(f"question: {options.question}")
    for name, answer in answers.items():
        print(f"  {name:<7} {answer!r}")
    dense, pruned = times["dense"], times["pruned"]
    print(f"decoder prefill, median of {options.repeats} interleaved runs on {demo.model.device.type}:")
    print(f"  dense {1e3 * dense:.0f} ms, pruned {1e3 * pruned:.0f} ms: {pruned / dense:.2f} × the time")
    draw_survivors(options.output, frames, report)
    print(f"picture of the survivors: {options.output}")
    return report


def _frames(options: DemoOptions) -> np.ndarray:
    if options.video is not None:
        frames, source = read_frames(options.video, options.frames), str(options.video)
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "clip.mp4"
            render_clip(path)
            frames, source = read_frames(path, options.frames), "a clip of twelve shots, rendered to H.264 just now"
    print(f"video: {source}: {len(frames)} frames of {frames.shape[2]}×{frames.shape[1]}")
    return frames


@contextmanager
def _pruning(demo: DemoModel, config: AdaTPConfig, name: str) -> Iterator[Any]:
    """The acceleration for "pruned", nothing for "dense"."""
    if name == "dense":
        yield None
        return
    try:
        with accelerate(demo.model, config) as run:
            yield run
    except ValueError as error:
        raise DemoError(f"this prompt cannot be pruned so: {error}") from error


@torch.no_grad()
def _answer(demo: DemoModel, inputs: dict[str, Tensor], max_new_tokens: int) -> str:
    output = demo.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    return demo.decode(output[0, inputs["input_ids"].shape[1] :])


@torch.no_grad()
def _prefill_times(demo: DemoModel, config: AdaTPConfig, inputs: dict[str, Tensor], repeats: int) -> dict[str, float]:
    """Median seconds that the decoder takes to read the prompt, dense and pruned in turn."""
    decoder = families.find(demo.model).decoder(demo.model)
    times: dict[str, list[float]] = {"dense": [], "pruned": []}

    def now() -> float:
        if demo.model.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    started: list[float] = []
    for _ in tqdm(range(repeats + 1), desc="timing", delay=1, leave=False):
        for name, measured in times.items():
            with _pruning(demo, config, name):
                hooks = [
                    decoder.register_forward_pre_hook(lambda *_: started.append(now())),
                    decoder.register_forward_hook(lambda *_, measured=measured: measured.append(now() - started[-1])),
                ]
                demo.model(**inputs, logits_to_keep=1)
                for hook in hooks:
                    hook.remove()
    return {name: statistics.median(measured[1:]) for name, measured in times.items()}  # the first is a warm-up
