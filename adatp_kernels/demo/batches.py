"""Streams of clips with questions, seeded by number, and the tensors that training and evaluation make of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from adatp_kernels.demo.network import ASSISTANT, CELLS, END, PAD, USER, VIDEO, WORDS
from adatp_kernels.demo.questions import Question, ask
from adatp_kernels.demo.scenes import Clip, draw_clip, render

SPLITS = ("train", "calibration", "held-out")
_ID = {word: number for number, word in enumerate(WORDS)}


@dataclass(frozen=True)
class Example:
    """A clip, its frames uint8 [frames, H, W, 3], and questions about it."""

    clip: Clip
    frames: np.ndarray
    questions: tuple[Question, ...]


def example(
    split: str, number: int, kinds: Sequence[str], per_kind: int = 1, num_shots: int = 8, seed: int = 0
) -> Example:
    """The clip number `number` of a split, with up to `per_kind` questions of every kind.

    The same arguments give the same clip and questions everywhere; different splits and numbers are independent.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), number, num_shots])
    clip = draw_clip(rng, num_shots)
    questions = [question for kind in kinds for question in ask(clip, kind, rng, per_kind)]
    return Example(clip, render(clip), tuple(questions))


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
    """Clips, each followed by many questions that don't see one another.

    Attributes
    ----------
    pixels : Tensor [clips, frames, 3, H, W]
    ids : LongTensor [clips, tokens]
    positions : LongTensor [clips, tokens]
        Every question's positions continue the video's, as if it were alone.
    block : LongTensor [clips, tokens]
        0 for the video and what precedes it, then the number of the question, from 1; −1 is padding.
    where : LongTensor [answers, 2]
        Clip and token that an answer is read from.
    targets : LongTensor [answers]
    """

    pixels: Tensor
    ids: Tensor
    positions: Tensor
    block: Tensor
    where: Tensor
    targets: Tensor

    @property
    def num_visual(self) -> int:
        """How many visual tokens a clip has; they follow the first token."""
        return self.pixels.shape[1] * CELLS

    def mask(self) -> Tensor:
        """What is added to the attention's logits: 0 where a token sees another, else −inf, [clips, 1, tokens, tokens]."""
        length = self.ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        seen = (self.block[:, None, :] == 0) | (self.block[:, None, :] == self.block[:, :, None])
        return torch.zeros(seen.shape).masked_fill(~(causal & seen), -torch.inf)[:, None]

    def reading(self) -> Tensor:
        """Which pairs are a question's token and a visual one: bool [clips, 1, tokens, tokens]."""
        question = self.block > 0
        visual = torch.zeros_like(question)
        visual[:, 1 : 1 + self.num_visual] = True
        return (question[:, :, None] & visual[:, None, :])[:, None]


def pack(examples: Sequence[Example]) -> Packed:
    """Put examples with the same number of frames into one batch."""
    rows, places, blocks, where, targets = [], [], [], [], []
    for row, one in enumerate(examples):
        ids = prompt("", len(one.frames))[:-1]
        video = len(ids)
        position, block = list(range(video)), [0] * video
        for number, question in enumerate(one.questions, 1):
            text = [*words(question.text), ASSISTANT, *words(question.answer)]
            where += [(row, len(ids) + len(text) - 2), (row, len(ids) + len(text) - 1)]
            targets += [text[-1], END]
            ids += text
            position += range(video, video + len(text))
            block += [number] * len(text)
        rows.append(ids)
        places.append(position)
        blocks.append(block)
    length = max(map(len, rows))
    pad = lambda lists, value: torch.tensor([row + [value] * (length - len(row)) for row in lists])  # noqa: E731
    return Packed(
        pixels(np.stack([one.frames for one in examples])),
        pad(rows, PAD),
        pad(places, 0),
        pad(blocks, -1),
        torch.tensor(where),
        torch.tensor(targets),
    )
