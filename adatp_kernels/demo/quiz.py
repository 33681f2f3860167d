"""The main job with the model that ships: questions whose answers are known, with and without pruning, right or wrong."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

from tqdm import tqdm

from adatp_kernels.config import AdaTPConfig
from adatp_kernels.demo.asking import WAYS, answer, pruning, tell_times
from adatp_kernels.demo.clips.film import film
from adatp_kernels.demo.trained import load_trained
from adatp_kernels.demo.training.batches import example
from adatp_kernels.demo.video import read_frames
from adatp_kernels.integrations.transformers import Report

CLIP = 0  # of those that the model has never seen
DRAWN = "order"  # a kind whose evidence is two things, to be seen in the picture
LONGEST = 3  # tokens of an answer: a word, and its end


def run_quiz(config: AdaTPConfig, model: Path, output: Path, repeats: int) -> Report:
    """Film a clip, read the film, ask one question of every kind, and draw what was left for one of them.

    Parameters
    ----------
    config : AdaTPConfig
        Its segment threshold is replaced by the one that finds the shots of such clips.
    model : Path
        A folder that the training wrote.
    output : Path
        The picture.
    repeats : int
        Timed runs.

    Raises
    ------
    DemoError
        If the configuration cannot prune this clip.
    """
    trained = load_trained(model)
    demo, config = trained.demo, dataclasses.replace(config, segment_threshold=trained.threshold)
    one = example("held-out", CLIP, dict.fromkeys(trained.kinds, 1))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        film(path, one.clip)
        frames = read_frames(path, len(one.frames))
    size = f"{frames.shape[2]}×{frames.shape[1]}"
    print(
        f"video: a synthetic clip of {len(one.clip.shots)} shots, filmed to H.264 just now: {len(frames)} frames of {size}"
    )
    print(
        f"model: a LLaVA-OneVision of {sum(p.numel() for p in demo.model.parameters()) / 1e6:.1f} million parameters, trained on such clips"
    )

    answers: dict[str, list[str]] = {way: [] for way in WAYS}
    drawn = next((question for question in one.questions if question.kind == DRAWN), one.questions[0])
    for question in tqdm(one.questions, desc="asking", delay=1, leave=False):
        inputs = demo.inputs(frames, question.text)
        for way in WAYS:
            with pruning(demo, config, way) as run:
                answers[way].append(answer(demo, inputs, LONGEST).strip())
                if run is not None and question is drawn:
                    report = run.report()
    print(f"\n{report}\n")
    widest = max(len(question.text) for question in one.questions)
    print(f"{'question':<{widest}}  {'answer':<14} " + "".join(f"{way:<17}" for way in WAYS))
    for number, question in enumerate(one.questions):
        replies = "".join(f"{_mark(answers[way][number], question.answer)} {answers[way][number]:<15}" for way in WAYS)
        print(f"{question.text:<{widest}}  {question.answer:<14} {replies}")
    right = {
        way: sum(reply == question.answer for reply, question in zip(answers[way], one.questions, strict=True))
        for way in WAYS
    }
    print("right: " + ", ".join(f"{way} {count} of {len(one.questions)}" for way, count in right.items()))
    tell_times(demo, config, inputs, repeats)
    report.draw(frames, output, question=drawn.text)
    print(f'picture of what was left for "{drawn.text}": {output}')
    print("how much accuracy other budgets and methods cost, on 2,048 clips: adatp evaluate")
    return report


def _mark(reply: str, truth: str) -> str:
    return "✓" if reply == truth else "✗"
