"""What ``adatp ask`` does, in order: refuse what cannot be, read the videos, load the model, ask, tell."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from tqdm import tqdm

from adatp_kernels.ask.answering import WAYS, Answer, answer, prefill_times, told_times
from adatp_kernels.ask.checkpoint import Checkpoint, device_of
from adatp_kernels.ask.once import encode_once
from adatp_kernels.ask.options import AskOptions, checked, pictures
from adatp_kernels.ask.result import Asked, result
from adatp_kernels.config import AdaTPConfig
from adatp_kernels.integrations.transformers import mrope_positions
from adatp_kernels.mistakes import Mistake, first_line
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
    device = device_of(options.device)
    checkpoint = Checkpoint(options.model)
    _check_stages(config, checkpoint)
    checkpoint.check_together(len(options.videos), len(options.images), drawn=options.output is not None)
    videos = [_read(path, options, checkpoint) for path in options.videos]
    images = [_open(path) for path in options.images]
    prompts = [checkpoint.inputs(question, videos, images) for question in options.questions]

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
            with tqdm(ways, desc="generating", delay=1, leave=False) as bar:
                answers = {way: answer(model, inputs, config, way, options.max_new_tokens, keep) for way in bar}
            asked.append(_told(checkpoint, question, answers))
        times = None
        if options.dense and options.repeats:
            inputs = prompts[0].to(device, model.dtype)
            times = prefill_times(model, config, inputs, options.repeats, keep)
            print(f"\n{told_times(model, times, options.repeats)}")
    if options.output is not None:
        _draw(pictures(options), asked, videos, checkpoint)
    if options.json is not None:
        options.json.write_text(
            result(checkpoint, model, config, [*zip(options.videos, videos, strict=True)], asked, times),
            encoding="utf-8",
        )
        print(f"answers, plan, kept cells, times and memory: {options.json}")
    return asked


def _check_stages(config: AdaTPConfig, checkpoint: Checkpoint) -> None:
    try:
        config.stage_layers(checkpoint.num_layers)
    except ValueError as error:
        raise Mistake(f"{first_line(error)} (--stages 1,2)") from error


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
    except (OSError, ValueError) as error:
        raise Mistake(f"not an image that can be read: {path or 'an empty name'} ({first_line(error)})") from error


def _told(checkpoint: Checkpoint, question: str, answers: dict[str, Answer]) -> Asked:
    words = {way: checkpoint.decode(reply.ids) for way, reply in answers.items()}
    report = answers["pruned"].report
    assert report is not None
    print(f"\nquestion: {question}")
    for way, text in words.items():
        print(f"  {way:<7} {text!r}")
    whole, left = len(report.layout), report.actual_tokens[-1]
    print(
        f"  {_many(len(report.segments), 'frame')} in {_many(report.segments[-1] + 1, 'segment')}; of {whole:,} visual tokens "
        f"{left:,} reach the last layer; {report.actual_flops_ratio:.3f} of their FLOPs, planned {report.planned_flops_ratio:.3f}"
    )
    print("  cache: " + ", ".join(f"{way} {reply.cache_bytes / 1e6:,.1f} MB" for way, reply in answers.items()))
    return Asked(question, words, answers)


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
