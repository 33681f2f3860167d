"""What ``adatp ask`` does, in order: refuse what cannot be, read the videos, load the model, ask, tell."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from adatp_kernels.ask.answering import WAYS, Answer, answer, prefill_times, told_times
from adatp_kernels.ask.checkpoint import Checkpoint, device_of
from adatp_kernels.ask.once import encode_once
from adatp_kernels.ask.options import AskOptions, checked, pictures
from adatp_kernels.ask.quiet import quiet
from adatp_kernels.ask.result import Asked, result
from adatp_kernels.config import AdaTPConfig
from adatp_kernels.integrations.transformers import Report, mrope_positions
from adatp_kernels.mistakes import Mistake, first_line
from adatp_kernels.prior import load_prior
from adatp_kernels.video import Video, VideoError, read_video

FRAMES = 32  # if nobody says how many


def run_ask(options: AskOptions) -> list[Asked]:
    """Ask, and tell what came of it.

    Raises
    ------
    Mistake
        For a file, model or setting that cannot be used.
    """
    config = checked(options)
    with quiet():
        return _ask(options, config)


def _ask(options: AskOptions, config: AdaTPConfig) -> list[Asked]:
    device = device_of(options.device)
    checkpoint = Checkpoint(options.model)
    _check_stages(config, checkpoint)
    checkpoint.check_together(len(options.videos), len(options.images), drawn=options.output is not None)
    videos = [_read(path, options, checkpoint) for path in options.videos]
    images = [_open(path) for path in options.images]
    prompts: list[Any] = []
    for question in options.questions:
        prompts.append(checkpoint.inputs(question, videos, images))
        share(prompts[-1], prompts[0])

    print(f"loading {checkpoint.name} …", flush=True)
    model = checkpoint.load(device, options.dtype, options.attention)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"model: {type(model).__name__}, {_large(parameters)} parameters, {str(model.dtype)[6:]}, on {device}")

    keep = "keep" if videos else "prune"
    ways = WAYS if options.dense else WAYS[1:]
    asked = []
    with mrope_positions(model), encode_once(model):
        for number, question in enumerate(options.questions):
            inputs = prompts[number].to(device, model.dtype)
            with tqdm(ways, desc="generating", delay=1, disable=None, leave=False) as bar:
                answers = {way: answer(model, inputs, config, way, options.max_new_tokens, keep) for way in bar}
            asked.append(_told(checkpoint, question, answers))
            _check_prior(config, asked[-1].report, videos)
        times = None
        if options.dense and options.repeats:
            inputs = prompts[0].to(device, model.dtype)
            times = prefill_times(model, config, inputs, options.repeats, keep)
            print(f"\n{told_times(model, times, options.repeats)}")
    if options.output is not None:
        _draw(pictures(options), asked, videos, checkpoint)
    if options.json is not None:
        named = [*zip(options.videos, videos, strict=True)]
        text = result(checkpoint, model, config, named, options.images, asked, times)
        options.json.write_text(text, encoding="utf-8", errors="replace")  # names of files may be of any bytes
        print(f"answers, plan, kept cells, times and memory: {options.json}")
    return asked


def share(prompt: MutableMapping[str, Any], first: Mapping[str, Any]) -> None:
    """Let a prompt have the `first` one's tensors where they are equal: pixels of the same videos are kept once."""
    for name, value in prompt.items():
        other = first.get(name)
        if isinstance(value, Tensor) and isinstance(other, Tensor) and torch.equal(value, other):
            prompt[name] = other


def _check_stages(config: AdaTPConfig, checkpoint: Checkpoint) -> None:
    try:
        config.stage_layers(checkpoint.num_layers)
    except ValueError as error:
        raise Mistake(f"{first_line(error)}; here: --stages 1,2") from error


def _read(path: str, options: AskOptions, checkpoint: Checkpoint) -> Video:
    count = options.frames or (None if options.fps else FRAMES)
    try:
        video = read_video(path, num_frames=count, fps=options.fps, max_pixels=checkpoint.max_pixels(count or FRAMES))
    except VideoError as error:
        raise Mistake(str(error)) from error
    print(f"video: {path}: {video.describe()}")
    return video


def _open(path: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise Mistake(f"no such image file: {path or 'an empty name'}") from error
    except (OSError, ValueError) as error:
        raise Mistake(f"not an image that can be read: {path} ({first_line(error)})") from error


def _told(checkpoint: Checkpoint, question: str, answers: dict[str, Answer]) -> Asked:
    words = {way: checkpoint.decode(reply.ids) for way, reply in answers.items()}
    report = answers["pruned"].report
    assert report is not None
    print(f"\nquestion: {question}")
    for way, text in words.items():
        print(f"  {way:<7} {text!r}")
    print(
        f"  {_many(len(report.segments), 'frame')} in {_many(report.segments[-1] + 1, 'segment')}; {report.plan.describe()}"
    )
    print("  cache: " + ", ".join(f"{way} {reply.cache_bytes / 1e6:,.1f} MB" for way, reply in answers.items()))
    return Asked(question, words, answers)


def _check_prior(config: AdaTPConfig, report: Report, videos: list[Video]) -> None:
    """Raise for a prior that was made for frames of other cells: a pruner takes it as long as it has as many."""
    if config.prior is None:
        return
    positions = load_prior(config.prior).shape[1]
    for frame, grid in enumerate(report.grids):
        if grid is not None and grid[0] * grid[1] != positions:
            count, height, width = videos[0].frames.shape[:3] if videos else (1, "HEIGHT", "WIDTH")
            raise Mistake(
                f"--prior: expected {grid[0]} × {grid[1]} cells, as frame {frame} has, got {positions} in {config.prior}, which is for "
                f"one number and size of frames: adatp calibrate --frames {count} --size {width}x{height}"
            )


def _draw(paths: list[Path], asked: list[Asked], videos: list[Video], checkpoint: Checkpoint) -> None:
    """A picture for each question."""
    for path, one in zip(paths, asked, strict=True):
        report = one.report
        together = report.pictures_per_frame
        frames = [frame for video in videos for frame in checkpoint.seen(video.frames[::together])]
        seconds = [second for video in videos for second in (video.seconds or ())[::together]]
        report.draw(frames, path, question=one.question, seconds=seconds if len(seconds) == len(frames) else None)
        print(f"picture of the survivors: {path}")


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count != 1 else ''}"


def _large(number: int) -> str:
    for unit, size in (("billion", 1e9), ("million", 1e6)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number:,}"
