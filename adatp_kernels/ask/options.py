"""What ``adatp ask`` can be told, and what of it is refused before there is a video or a model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adatp_kernels.ask.checkpoint import DTYPES, check_attention
from adatp_kernels.config import AdaTPConfig
from adatp_kernels.mistakes import Mistake, check_output, check_question, first_line
from adatp_kernels.prior import load_prior


@dataclass(frozen=True)
class AskOptions:
    """What the command line asks for; see ``adatp ask --help``."""

    model: str
    videos: tuple[str, ...]
    images: tuple[str, ...]
    questions: tuple[str, ...]
    frames: int | None
    fps: float | None
    target_flops: float | None
    preset: str | None
    stages: str | None
    prior: str | None
    config: Path | None
    device: str
    dtype: str
    attention: str | None
    max_new_tokens: int
    repeats: int
    dense: bool
    json: Path | None
    output: Path | None


def checked(options: AskOptions) -> AdaTPConfig:
    """The configuration; whatever can be told to be wrong without a video or a model is refused.

    Raises
    ------
    Mistake
    """
    if not options.videos and not options.images:
        raise Mistake("--video, --image: expected at least one of either, got none")
    if options.frames is not None and options.fps is not None:
        raise Mistake("--frames, --fps: expected one of the two, got both")
    for name, value, least in (
        ("--frames", options.frames, 1),
        ("--max-new-tokens", options.max_new_tokens, 1),
        ("--repeats", options.repeats, 0),
    ):
        if value is not None and value < least:
            raise Mistake(f"{name}: expected at least {least}, got {value}")
    if options.fps is not None and not 0 < options.fps < float("inf"):
        raise Mistake(f"--fps: expected more than 0, got {options.fps}")
    for question in options.questions:
        check_question(question)
    if options.dtype not in DTYPES:
        raise Mistake(f"--dtype: expected one of {list(DTYPES)}, got {options.dtype!r}")
    check_attention(options.attention)
    if options.output is not None:
        if not options.videos:
            raise Mistake("--output: the picture shows a video's frames; expected --video with it, got images alone")
        for path in pictures(options):
            check_output(path, "picture", (".png",))
    if options.json is not None:
        check_output(options.json, "JSON")
    _check_overwritten(options)
    return _config(options)


def _check_overwritten(options: AskOptions) -> None:
    """Raise for an output that is one of the inputs, or another output."""
    known: list[str | Path] = [*options.videos, *options.images]
    known += [path for path in (options.prior, options.config) if path is not None]
    for output in [*pictures(options), *([] if options.json is None else [options.json])]:
        for other in known:
            if output.absolute() == Path(other).absolute() or _same_file(output, Path(other)):
                raise Mistake(f"--output, --json: {output} would be written over {other}")
        known.append(output)


def _same_file(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


def _config(options: AskOptions) -> AdaTPConfig:
    """What a file or a preset says, and single settings over it."""
    if options.config is not None and options.preset is not None:
        raise Mistake("--config, --preset: expected one of the two, got both")
    fields: dict[str, Any] = {}
    if options.target_flops is not None:
        fields["target_flops"] = options.target_flops
    if options.prior is not None:
        fields["prior"] = options.prior
    if options.stages is not None:
        fields["stages"] = layers(options.stages)
    try:
        preset = AdaTPConfig.preset(options.preset or "adatp")
        config = dataclasses.replace(preset if options.config is None else _from_file(options.config), **fields)
        if config.prior is not None:
            load_prior(config.prior)
    except (ValueError, TypeError) as error:
        raise Mistake(first_line(error)) from error
    return config


def _from_file(path: Path) -> AdaTPConfig:
    try:
        return AdaTPConfig.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError) as error:
        raise Mistake(f"--config: {path} holds no AdaTPConfig ({first_line(error)})") from error


def layers(text: str) -> Any:
    """Layers, or the name of a choice of them."""
    parts = [part.strip() for part in text.split(",")]
    return tuple(map(int, parts)) if all(map(str.isdecimal, parts)) else text


def pictures(options: AskOptions) -> list[Path]:
    """Where the picture for each question goes: with several, -1, -2, … stands before the suffix."""
    path, count = options.output, len(options.questions)
    if path is None or count == 1:
        return [] if path is None else [path]
    return [path.with_name(f"{path.stem}-{number}{path.suffix}") for number in range(1, count + 1)]
