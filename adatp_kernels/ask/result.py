"""What came of asking, as JSON."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from adatp_kernels.ask.answering import Answer
from adatp_kernels.ask.checkpoint import Checkpoint
from adatp_kernels.config import AdaTPConfig
from adatp_kernels.integrations.transformers import Report
from adatp_kernels.video import Video


@dataclass(frozen=True)
class Asked:
    """One question, the answers in words by way, and what each took."""

    question: str
    words: dict[str, str]
    answers: dict[str, Answer]

    @property
    def report(self) -> Report:
        """Of the pruned prompt."""
        report = self.answers["pruned"].report
        assert report is not None
        return report


def result(
    checkpoint: Checkpoint,
    model: Any,
    config: AdaTPConfig,
    videos: Sequence[tuple[str, Video]],
    images: Sequence[str],
    asked: Sequence[Asked],
    times: Mapping[str, float] | None,
) -> str:
    """A JSON object of all of it: answers, plan, kept cells, times and memory.

    Parameters
    ----------
    checkpoint, model, config
        What was asked, and how it was pruned.
    videos : sequence of (str, Video)
        With the paths that they were read from.
    images : sequence of str
        Paths.
    asked : sequence of Asked
    times : dict of str to float, or None
        Seconds of the decoder's prefill of the first question, by way.
    """
    told = {
        "versions": {name: metadata.version(name) for name in ("adatp-kernels", "torch", "transformers")},
        "model": {
            "name": checkpoint.name,
            "model_type": checkpoint.config.model_type,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": str(model.device),
            "attention": checkpoint.family.decoder(model).config._attn_implementation,
        },
        "config": dataclasses.asdict(config),
        "videos": [_video(path, video) for path, video in videos],
        "images": list(images),
        "images_pruned": bool(images) and not videos,
        "questions": [_question(one) for one in asked],
        "prefill_seconds": times,
    }
    return _short_lists(json.dumps(told, indent=1, ensure_ascii=False)) + "\n"


def _short_lists(text: str) -> str:
    """JSON with lists of numbers in one line. (In a string there is no line's end.)"""
    return re.sub(r"\[\n[-+\d.,e\s]+\]", lambda numbers: "[" + " ".join(numbers[0][1:-1].split()) + "]", text)


def _video(path: str, video: Video) -> dict[str, Any]:
    return {
        "path": path,
        "frames": len(video.frames),
        "source_frames": video.num_source_frames,
        "seconds": video.seconds and list(video.seconds),
        "duration": video.duration,
        "evenly": video.evenly,
        "damaged": video.damaged,
        "width": video.size[0],
        "height": video.size[1],
    }


def _question(one: Asked) -> dict[str, Any]:
    return {
        "question": one.question,
        "answers": one.words,
        "cache_bytes": {way: reply.cache_bytes for way, reply in one.answers.items()},
        "peak_bytes": {way: reply.peak_bytes for way, reply in one.answers.items()},
        "pruned": one.report.to_dict(),
    }
