"""Questions about synthetic clips: every kind has answers that are equally likely when nothing but the question is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from adatp_kernels.demo.scenes import COLORS, PATTERNS, PLACES, SHAPES, Clip

NUMBERS = ("one", "two", "three")


@dataclass(frozen=True)
class Question:
    """A question about one clip.

    Attributes
    ----------
    kind : str
        One of `KINDS`.
    text, answer : str
        The answer is one word.
    evidence : tuple of (int, int)
        Shot and place (index into `PLACES`) of everything that the answer is read from.
    """

    kind: str
    text: str
    answer: str
    evidence: tuple[tuple[int, int], ...]

    def tokens(self, clip: Clip) -> np.ndarray:
        """Which visual tokens hold the evidence: bool [frames, cells]."""
        shots = clip.shot_of_frame
        holds = np.zeros((len(shots), len(PLACES)), dtype=bool)
        for shot, place in self.evidence:
            holds[shots == shot, place] = True
        return holds


def _color(clip: Clip, rng: np.random.Generator) -> Iterator[Question]:
    for number, shot in enumerate(clip.shots):
        for thing in shot.things:
            text = f"what color is the {SHAPES[thing.shape]} in the {PATTERNS[shot.pattern]} shot"
            yield Question("color", text, COLORS[thing.color], ((number, thing.place),))


def _shape(clip: Clip, rng: np.random.Generator) -> Iterator[Question]:
    for number, shot in enumerate(clip.shots):
        for thing in shot.things:
            text = f"what shape is {COLORS[thing.color]} in the {PATTERNS[shot.pattern]} shot"
            yield Question("shape", text, SHAPES[thing.shape], ((number, thing.place),))


def _place(clip: Clip, rng: np.random.Generator) -> Iterator[Question]:
    for number, shot in enumerate(clip.shots):
        for thing in shot.things:
            text = f"where is the {COLORS[thing.color]} {SHAPES[thing.shape]}"
            yield Question("place", text, PLACES[thing.place], ((number, thing.place),))


def _shot(clip: Clip, rng: np.random.Generator) -> Iterator[Question]:
    for number, shot in enumerate(clip.shots):
        for thing in shot.things:
            text = f"which shot shows the {COLORS[thing.color]} {SHAPES[thing.shape]}"
            yield Question("shot", text, PATTERNS[shot.pattern], ((number, thing.place),))


def _count(clip: Clip, rng: np.random.Generator) -> Iterator[Question]:
    # Shots with one thing are more frequent: first the number, then one of the shots that have it.
    by_size = [[number for number, shot in enumerate(clip.shots) if len(shot.things) == size] for size in (1, 2, 3)]
    if not all(by_size):
        return
    for size, numbers in enumerate(by_size, 1):
        number = int(rng.choice(numbers))
        shot = clip.shots[number]
        text = f"how many things are in the {PATTERNS[shot.pattern]} shot"
        yield Question("count", text, NUMBERS[size - 1], tuple((number, thing.place) for thing in shot.things))


def _order(clip: Clip, rng: np.random.Generator) -> Iterator[Question]:
    for first, earlier in enumerate(clip.shots):
        for second in range(first + 1, len(clip.shots)):
            for a in earlier.things:
                for b in clip.shots[second].things:
                    if a.color == b.color:
                        continue
                    names = [f"{COLORS[thing.color]} {SHAPES[thing.shape]}" for thing in (a, b)]
                    one, other = rng.permutation(names)
                    text = f"which comes first the {one} or the {other}"
                    yield Question("order", text, COLORS[a.color], ((first, a.place), (second, b.place)))


def _next(clip: Clip, rng: np.random.Generator) -> Iterator[Question]:
    for number, (shot, following) in enumerate(zip(clip.shots, clip.shots[1:], strict=False), 1):
        text = f"which shot follows the {PATTERNS[shot.pattern]} shot"
        everywhere = tuple((number, place) for place in range(len(PLACES)))
        yield Question("next", text, PATTERNS[following.pattern], everywhere)


def _after(clip: Clip, rng: np.random.Generator) -> Iterator[Question]:
    for number, (shot, following) in enumerate(zip(clip.shots, clip.shots[1:], strict=False), 1):
        if len(following.things) == 1:
            (thing,) = following.things
            evidence = ((number, thing.place),)
            pattern = PATTERNS[shot.pattern]
            yield Question("after", f"what color follows the {pattern} shot", COLORS[thing.color], evidence)
            yield Question("after", f"what shape follows the {pattern} shot", SHAPES[thing.shape], evidence)


_ASK: dict[str, Callable[[Clip, np.random.Generator], Iterator[Question]]] = {
    "color": _color,
    "shape": _shape,
    "place": _place,
    "shot": _shot,
    "count": _count,
    "order": _order,
    "next": _next,
    "after": _after,
}
KINDS = tuple(_ASK)

CHANCE = {
    "color": 1 / len(COLORS),
    "shape": 1 / len(SHAPES),
    "place": 1 / len(PLACES),
    "shot": 1 / len(PATTERNS),
    "count": 1 / len(NUMBERS),
    "order": 1 / 2,
    "next": 1 / (len(PATTERNS) - 1),
    "after": 1 / len(COLORS),
}
"""Accuracy of the best policy that knows the question but not the clip, per kind, for clips of eight shots."""


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
