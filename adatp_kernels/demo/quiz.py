"""Questions about clips that the shipped model has never seen, asked with and without pruning, right or wrong."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from adatp_kernels.ask.answering import WAYS, answer
from adatp_kernels.config import AdaTPConfig
from adatp_kernels.demo.clips.film import film
from adatp_kernels.demo.clips.questions import Question
from adatp_kernels.demo.models import DemoModel
from adatp_kernels.demo.training.batches import example
from adatp_kernels.integrations.transformers import Report
from adatp_kernels.video import Video, read_video

LONGEST = 3  # tokens of an answer: a word, and its end


@dataclass(frozen=True)
class Filmed:
    """A clip as a video file has it, and questions about it, one of each kind."""

    video: Video
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Asked:
    """A question, what was answered by each way of running, and the pruned run's report."""

    question: Question
    replies: dict[str, str]
    report: Report

    def right(self, way: str) -> bool:
        """Whether the answer was."""
        return self.replies[way] == self.question.answer


def film_clip(number: int, kinds: Sequence[str]) -> Filmed:
    """The held-out clip of this number, filmed to H.264 and read back."""
    one = example("held-out", number, dict.fromkeys(kinds, 1))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        film(path, one.clip)
        return Filmed(read_video(path, num_frames=len(one.frames)), one.questions)


def ask(demo: DemoModel, config: AdaTPConfig, clip: Filmed) -> list[Asked]:
    """All questions about a clip.

    Raises
    ------
    Mistake
        If the configuration cannot prune them.
    """
    asked = []
    with tqdm(clip.questions, desc="asking", delay=1, disable=None, leave=False) as questions:
        for question in questions:
            inputs = demo.inputs(clip.video.frames, question.text)
            answers = {way: answer(demo.model, inputs, config, way, LONGEST) for way in WAYS}
            replies = {way: demo.decode(given.ids).strip() for way, given in answers.items()}
            report = answers["pruned"].report
            assert report is not None
            asked.append(Asked(question, replies, report))
    return asked


def table(asked: Sequence[Asked]) -> list[str]:
    """Lines with a question, its answer and the replies each."""
    widest = max(len(one.question.text) for one in asked)
    lines = [f"{'question':<{widest}}  {'answer':<14} " + "".join(f"{way:<15}" for way in WAYS)]
    for one in asked:
        replies = "".join(f"{'✓' if one.right(way) else '✗'} {one.replies[way]:<13}" for way in WAYS)
        lines.append(f"{one.question.text:<{widest}}  {one.question.answer:<14} {replies}")
    right = "".join(f"{sum(one.right(way) for one in asked)} of {len(asked)}".ljust(15) for way in WAYS)
    return [line.rstrip() for line in (*lines, f"{'right':<{widest + 16}} {right}")]
