"""What a trained model must show before comparisons on it mean anything: one question per prompt, with controls."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from adatp_kernels.config import AdaTPConfig
from adatp_kernels.demo.clips.questions import CHANCE, KINDS, Question, best_guess
from adatp_kernels.demo.clips.scenes import Clip, render
from adatp_kernels.demo.training.answering import accuracy
from adatp_kernels.demo.training.batches import Example, example, pixels, prompt, words
from adatp_kernels.demo.training.tower import frame_features, neighbour_cosines
from adatp_kernels.integrations.transformers import accelerate

Accuracy = dict[str, float]


def _shares(hits: Iterable[tuple[str, float]]) -> Accuracy:
    """Share of right answers per kind, and their mean as "all"."""
    by_kind: dict[str, list[float]] = defaultdict(list)
    for kind, hit in hits:
        by_kind[kind].append(hit)
    shares = {kind: float(np.mean(by_kind[kind])) for kind in KINDS if kind in by_kind}
    return {kind: round(share, 4) for kind, share in {**shares, "all": float(np.mean(list(shares.values())))}.items()}


def _examples(split: str, clips: range, kinds: Sequence[str], what: str) -> Iterator[Example]:
    for number in tqdm(clips, desc=what, unit="clip", delay=1, leave=False):
        yield example(split, number, dict.fromkeys(kinds, 1))


@torch.no_grad()
def _reply(model: Any, frames: Tensor, text: str) -> int:
    ids = torch.tensor([prompt(text, len(frames))])
    mask = torch.ones_like(ids)
    output = model(input_ids=ids, attention_mask=mask, pixel_values_videos=frames[None], logits_to_keep=1)
    return int(output.logits[0, -1].argmax())


def single_question(
    model: Any, split: str, clips: range, kinds: Sequence[str] = KINDS, config: AdaTPConfig | None = None
) -> Accuracy:
    """Accuracy with one question per prompt through the model's plain forward, pruned as `config` says, if at all."""

    def hits() -> Iterator[tuple[str, bool]]:
        for one in _examples(split, clips, kinds, "asking"):
            frames = pixels(one.frames)
            for question in one.questions:
                yield question.kind, _reply(model, frames, question.text) == words(question.answer)[0]

    if config is None:
        return _shares(hits())
    with accelerate(model, config):
        return _shares(hits())


def swapped_question(model: Any, split: str, clips: range, kinds: Sequence[str] = KINDS) -> Accuracy:
    """Accuracy when every clip is asked the question of the clip before it, but its own answer is expected."""

    def hits() -> Iterator[tuple[str, bool]]:
        before: dict[str, Question] = {}
        for one in _examples(split, clips, kinds, "asking what isn't meant"):
            frames = pixels(one.frames)
            for question in one.questions:
                if question.kind in before:
                    reply = _reply(model, frames, before[question.kind].text)
                    yield question.kind, reply == words(question.answer)[0]
                before[question.kind] = question

    return _shares(hits())


def best_guesses(split: str, clips: range, kinds: Sequence[str] = KINDS) -> Accuracy:
    """What a policy reaches that sees the clip and knows the kind of question, but not which: the floor of a swapped one."""
    examples = _examples(split, clips, (), "guessing")
    return _shares((kind, best_guess(one.clip, kind)) for one in examples for kind in kinds)


def drop_all(model: Any, split: str, clips: range, after: int, kinds: Sequence[str] = KINDS) -> Accuracy:
    """Accuracy when all visual tokens are dropped after a layer (−1: before the first)."""
    shares = accuracy(model, split, clips, drop_after=after, kinds=kinds)
    return {**shares, "all": round(float(np.mean(list(shares.values()))), 4)}


def fixed_frame_bound(split: str, clips: range, kinds: Sequence[str] = KINDS) -> Accuracy:
    """About the most that a policy can reach which sees one fixed frame, the best for each kind, and guesses the rest.

    It is taken to know the answer as soon as the frame shows any of the evidence, and not to rule out answers by what else
    the frame shows. For "next" that is too much: one of its two shots is not enough.
    """
    shown: dict[str, list[Any]] = defaultdict(list)
    for one in _examples(split, clips, kinds, "looking at single frames"):
        for question in one.questions:
            shown[question.kind].append(question.tokens(one.clip).any(1))
    best = {kind: float(np.mean(frames, axis=0).max()) for kind, frames in shown.items()}
    return {kind: round(share + (1 - share) * CHANCE[kind], 4) for kind, share in best.items()}


@torch.no_grad()
def features_of(model: Any, clip: Clip) -> Tensor:
    """The tower's mean feature of each frame of a clip, [frames, d], by which adatp finds segments."""
    return frame_features(model, pixels(render(clip))[None])[1]


def calibrate_segments(model: Any, clips: range) -> dict[str, float]:
    """The segment threshold that best tells cuts from steps within a shot, on the calibration split.

    Returns
    -------
    dict
        ``threshold``, halfway between the two sides where they don't overlap, and the share of neighbouring frames
        that it puts right: ``within`` a shot and ``across`` a cut.
    """
    cosines: list[Tensor] = []
    same: list[Tensor] = []
    for one in _examples("calibration", clips, (), "finding segments"):
        features = features_of(model, one.clip)
        for found, parts in zip(neighbour_cosines(features[None], [one.clip]), (cosines, same), strict=True):
            parts.append(found)
    cosine, within = torch.cat(cosines), torch.cat(same)
    candidates = torch.linspace(float(cosine.min()), 1.0, 2001)[:-1]
    balance = torch.stack(
        [(cosine[within] >= t).float().mean() + (cosine[~within] < t).float().mean() for t in candidates]
    )
    threshold = candidates[balance >= balance.max() - 1e-6].median()
    return {
        "threshold": round(float(threshold), 4),
        "within": round(float((cosine[within] >= threshold).float().mean()), 4),
        "across": round(float((cosine[~within] < threshold).float().mean()), 4),
    }
