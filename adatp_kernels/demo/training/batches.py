"""Streams of clips with questions, seeded by number, and the tensors that training and evaluation make of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from adatp_kernels.demo.clips.questions import KINDS, Question, ask
from adatp_kernels.demo.clips.scenes import Clip, draw_clip, render
from adatp_kernels.demo.training.network import ASSISTANT, CELLS, END, PAD, USER, VIDEO, WORDS

SPLITS = ("train", "calibration", "held-out")
ONE_EACH = dict.fromkeys(KINDS, 1)
_ID = {word: number for number, word in enumerate(WORDS)}


@dataclass(frozen=True)
class Example:
    """A clip, its frames uint8 [frames, H, W, 3], and questions about it."""

    clip: Clip
    frames: np.ndarray
    questions: tuple[Question, ...]


def example(
    split: str, number: int, questions: Mapping[str, int] = ONE_EACH, num_shots: int = 8, seed: int = 0
) -> Example:
    """The clip number `number` of a split, with as many questions of each kind as `questions` says, if it offers them.

    The same arguments give the same clip and questions everywhere; different splits and numbers are independent.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), number, num_shots])
    clip = draw_clip(rng, num_shots)
    asked = [question for kind, count in questions.items() for question in ask(clip, kind, rng, count)]
    return Example(clip, render(clip), tuple(asked))


def pixels(frames: np.ndarray) -> Tensor:
    """Frames as the model takes them, float [..., 3, H, W] in [-1, 1]."""
    return torch.from_numpy(frames).movedim(-1, -3).float() / 127.5 - 1


def prompt(text: str, num_frames: int) -> list[int]:
    """The token ids of a prompt with one video, as the tokenizer's chat template writes it."""
    return [USER, *[VIDEO] * (num_frames * CELLS + 1), *words(text), ASSISTANT]


def words(text: str) -> list[int]:
    """The token ids of words."""
    return [_ID[word] for word in text.split()]


@dataclass(frozen=True)
class Packed:
    """Clips, each followed by many questions that don't see one another (`reading.attend` sees to that).

    Attributes
    ----------
    pixels : Tensor [clips, frames, 3, H, W]
    ids : LongTensor [clips, video + questions · question]
    positions : LongTensor, of the same shape
        Every question's positions continue the video's, as if it were alone.
    video, question : int
        Tokens of what precedes the questions, and of each question with its answer and padding.
    where : LongTensor [answers, 2]
        Clip and token that an answer is read from.
    targets : LongTensor [answers]
        The word, and that nothing follows it, of one question after the other.
    """

    pixels: Tensor
    ids: Tensor
    positions: Tensor
    video: int
    question: int
    where: Tensor
    targets: Tensor


def pack(examples: Sequence[Example]) -> Packed:
    """Put examples with the same number of frames into one batch."""
    before = prompt("", len(examples[0].frames))[:-1]
    texts = [[[*words(q.text), ASSISTANT, *words(q.answer)] for q in one.questions] for one in examples]
    most, longest = max(map(len, texts)), max(len(text) for row in texts for text in row)
    ids = torch.full((len(texts), len(before) + most * longest), PAD)
    ids[:, : len(before)] = torch.tensor(before)
    where, targets = [], []
    for row, questions in enumerate(texts):
        for number, text in enumerate(questions):
            start = len(before) + number * longest
            end = start + len(text)
            ids[row, start:end] = torch.tensor(text)
            where += [(row, end - 2), (row, end - 1)]
            targets += [text[-1], END]
    positions = torch.cat([torch.arange(len(before)), (len(before) + torch.arange(longest)).repeat(most)])
    return Packed(
        pixels(np.stack([one.frames for one in examples])),
        ids,
        positions.expand_as(ids),
        len(before),
        longest,
        torch.tensor(where),
        torch.tensor(targets),
    )
