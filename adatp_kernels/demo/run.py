"""``adatp demo``: the built-in show, or a user's video before a model whose words mean nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from adatp_kernels.ask.answering import WAYS, answer, prefill_times, told_times
from adatp_kernels.ask.quiet import quiet
from adatp_kernels.config import AdaTPConfig
from adatp_kernels.demo.models import build_model
from adatp_kernels.demo.show import run_show
from adatp_kernels.demo.trained import MODEL
from adatp_kernels.integrations.transformers import Report
from adatp_kernels.mistakes import Mistake, check_output, check_question
from adatp_kernels.video import VideoError, read_video

FRAMES = 32
QUESTION = "What happens in the video?"
UNTRAINED = (
    "The model is a small LLaVA-OneVision with random weights: its words mean nothing. Real are the video, the\n"
    "segments, the scores, the pruning, the numbers of tokens and the times. For answers that mean something: --model"
)


@dataclass(frozen=True)
class DemoOptions:
    """What the command line asks for; see ``adatp demo --help``."""

    video: str | None
    question: str | None
    frames: int | None
    output: Path
    target_flops: float | None
    max_new_tokens: int
    repeats: int


def run_demo(options: DemoOptions) -> Report:
    """Show, and print what happened.

    Raises
    ------
    Mistake
        For a file or setting that cannot be used.
    """
    for name in ("frames", "max_new_tokens", "repeats"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise Mistake(f"--{name.replace('_', '-')}: expected at least 1, got {value}")
    if options.question is not None:
        check_question(options.question)
    check_output(options.output, "picture", (".png",))
    try:
        config = AdaTPConfig() if options.target_flops is None else AdaTPConfig(target_flops=options.target_flops)
    except ValueError as error:
        raise Mistake(str(error)) from error
    if options.video is not None:
        return _ask_one(options, options.video, config)
    if options.question is not None or options.frames is not None:
        raise Mistake(
            "--question, --frames: the built-in model has a clip and questions of its own; give --model or --video, too"
        )
    with quiet():
        return run_show(MODEL, options.output, options.target_flops, options.repeats)


def _ask_one(options: DemoOptions, path: str, config: AdaTPConfig) -> Report:
    """One question about a video, to a model that cannot answer it."""
    try:
        video = read_video(path, num_frames=options.frames or FRAMES, max_pixels=2**20)
    except VideoError as error:
        raise Mistake(str(error)) from error
    print(f"video: {path}: {video.describe()}")
    question = options.question or QUESTION
    demo = build_model()
    print(UNTRAINED)
    inputs = demo.inputs(video.frames, question)
    with tqdm(WAYS, desc="generating", delay=1, disable=None, leave=False) as ways:
        answers = {way: answer(demo.model, inputs, config, way, options.max_new_tokens) for way in ways}
    report = answers["pruned"].report
    assert report is not None
    print(f"\n{report}\n")
    print(f"question: {question}")
    for way, reply in answers.items():
        print(f"  {way:<7} {demo.decode(reply.ids)!r}")
    print(told_times(demo.model, prefill_times(demo.model, config, inputs, options.repeats), options.repeats))
    report.draw(video.frames, options.output, question=question, seconds=video.seconds)
    print(f"picture of the survivors: {options.output}")
    return report
