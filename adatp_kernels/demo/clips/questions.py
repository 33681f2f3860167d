"""Questions about synthetic clips: every kind has answers that are equally likely when nothing but the question is known."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from adatp_kernels.demo.clips.scenes import COLORS, PATTERNS, PLACES, SHAPES, Clip, Thing

NUMBERS = ("one", "two", "three")


Piece = tuple[int, tuple[int, ...]]
EVERYWHERE = tuple(range(len(PLACES)))


@dataclass(frozen=True)
class Question:
    """A question about one clip.

    Attributes
    ----------
    kind : str
        One of `KINDS`.
    text, answer : str
        The answer is one word.
    evidence : tuple of (int, tuple of int)
        Everything that the answer is read from: a shot, and the places (indices into `PLACES`) of which one is enough.
    """

    kind: str
    text: str
    answer: str
    evidence: tuple[Piece, ...]

    def tokens(self, clip: Clip) -> np.ndarray:
        """Which visual tokens hold the evidence: bool [frames, cells]."""
        shots = clip.shot_of_frame
        holds = np.zeros((len(shots), len(PLACES)), dtype=bool)
        for shot, places in self.evidence:
            holds[np.ix_(shots == shot, places)] = True
        return holds


def _things(clip: Clip) -> list[tuple[str, Thing, tuple[Piece, ...]]]:
    """Pattern and thing of every shot that shows one, and where that is."""
    return [
        (PATTERNS[shot.pattern], shot.thing, ((number, (shot.thing.place,)),))
        for number, shot in enumerate(clip.shots)
        if shot.thing
    ]


def _name(thing: Thing) -> str:
    return f"{COLORS[thing.color]} {SHAPES[thing.shape]}"


def _color(clip: Clip, rng: np.random.Generator) -> Iterator[Question]:
    for _, thing, where in _things(clip):
        yield Question("color", f"what color is the {SHAPES[thing.shape]}", COLORS[thing.color], where)


def _shape(clip: Clip, rng: np.random.Generator) -> Iterator[Question]:
    for _, thing, where in _things(clip):
        yield Question("shape", f"what shape is {COLORS[thing.color]}", SHAPES[thing.shape], where)


def _place(clip: Clip, rng: np.random.Generator) -> Iterator[Question]:
    for _, thing, where in _things(clip):
        yield Question("place", f"where is the {_name(thing)}", PLACES[thing.place], where)


def _shot(clip: Clip, rng: np.random.Generator) -> Iterator[Question]:
    for pattern, thing, where in _things(clip):
        yield Question("shot", f"which shot shows the {_name(thing)}", pattern, where)


def _scene(clip: Clip, rng: np.random.Generator) -> Iterator[Question]:
    for pattern, thing, where in _things(clip):
        yield Question("scene", f"what color is in the {pattern} shot", COLORS[thing.color], where)
        yield Question("scene", f"what shape is in the {pattern} shot", SHAPES[thing.shape], where)


def _order(clip: Clip, rng: np.random.Generator) -> Iterator[Question]:
    for (_, earlier, here), (_, later, there) in itertools.combinations(_things(clip), 2):
        one, other = (earlier, later) if rng.random() < 0.5 else (later, earlier)
        text = f"which comes first the {_name(one)} or the {_name(other)}"
        yield Question("order", text, COLORS[earlier.color], here + there)


def _next(clip: Clip, rng: np.random.Generator) -> Iterator[Question]:
    for number, (shot, following) in enumerate(itertools.pairwise(clip.shots), 1):
        where = ((number - 1, EVERYWHERE), (number, EVERYWHERE))
        text = f"which shot follows the {PATTERNS[shot.pattern]} shot"
        yield Question("next", text, PATTERNS[following.pattern], where)


def _count(clip: Clip, rng: np.random.Generator) -> Iterator[Question]:
    for number, shot in enumerate(clip.shots):
        where = tuple((number, (place,)) for place in EVERYWHERE)  # blobs are a share of the cells
        text = f"how many blobs are in the {PATTERNS[shot.pattern]} shot"
        yield Question("count", text, NUMBERS[len(shot.blobs) - 1], where)


_ASK: dict[str, Callable[[Clip, np.random.Generator], Iterator[Question]]] = {
    "color": _color,
    "shape": _shape,
    "place": _place,
    "shot": _shot,
    "scene": _scene,
    "order": _order,
    "next": _next,
    "count": _count,
}
KINDS = tuple(_ASK)

CHANCE = {
    "color": 1 / len(COLORS),
    "shape": 1 / len(SHAPES),
    "place": 1 / len(PLACES),
    "shot": 1 / len(PATTERNS),
    "scene": 1 / len(COLORS),
    "order": 1 / 2,
    "next": 1 / (len(PATTERNS) - 1),
    "count": 1 / len(NUMBERS),
}
"""Accuracy of the best policy that knows the question but not the clip, per kind, for clips of eight shots."""


def best_guess(clip: Clip, kind: str) -> float:
    """Accuracy of the best policy that sees the clip and knows the kind of question, but not which one it is.

    Parameters
    ----------
    clip : Clip
    kind : str
        One of `KINDS`.
    """
    answers = Counter(question.answer for question in _ASK[kind](clip, np.random.default_rng(0)))
    return max(answers.values()) / answers.total()


def ask(clip: Clip, kind: str, rng: np.random.Generator, count: int = 1) -> list[Question]:
    """Up to `count` different questions of a kind about a clip, fewer where it doesn't offer as many.

    Parameters
    ----------
    clip : Clip
    kind : str
        One of `KINDS`.
    rng : numpy Generator
    count : int
    """
    possible = list(_ASK[kind](clip, rng))
    return [possible[i] for i in rng.permutation(len(possible))[:count]]
