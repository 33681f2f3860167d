"""Questions: answers are true and balanced, and neither the question nor any single frame gives them away."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from adatp_kernels.demo.clips.questions import CHANCE, KINDS, NUMBERS, ask, best_guess
from adatp_kernels.demo.clips.scenes import COLORS, PATTERNS, PLACES, SHAPES, draw_clip
from adatp_kernels.demo.training.batches import example
from adatp_kernels.demo.training.network import WORDS

CLIPS = 1500


@pytest.fixture(scope="module")
def asked():
    """One question of every kind about many clips: {kind: [(clip, question)]}."""
    found = defaultdict(list)
    for seed in range(CLIPS):
        rng = np.random.default_rng([7, seed])
        clip = draw_clip(rng)
        for kind in KINDS:
            found[kind] += [(clip, question) for question in ask(clip, kind, rng)]
    return found


def test_every_clip_of_eight_shots_has_every_kind(asked):
    assert {kind: len(asked[kind]) >= 0.99 * CLIPS for kind in KINDS} == dict.fromkeys(KINDS, True)


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_balanced(asked, kind):
    answers = Counter(question.answer for _, question in asked[kind])
    share = np.array(list(answers.values())) / len(asked[kind])
    assert set(answers) <= set(WORDS)
    assert abs(share - 1 / len(answers)).max() < 4 * np.sqrt(0.25 / CLIPS) * 2 * np.sqrt(1 / len(answers))


@pytest.mark.parametrize("kind", KINDS)
def test_the_question_does_not_tell_the_answer(asked, kind):
    """The commonest answer to each wording on one half of the clips, scored on the other half."""
    halves = asked[kind][::2], asked[kind][1::2]
    seen = defaultdict(Counter)
    for _, question in halves[0]:
        seen[question.text][question.answer] += 1
    known = [(seen[q.text].most_common(1)[0][0], q.answer) for _, q in halves[1] if q.text in seen]
    if known:
        right = np.mean([guess == answer for guess, answer in known])
        assert right < CHANCE[kind] + 4 * np.sqrt(CHANCE[kind] / len(known))


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_frame_does_not_tell_the_answer(asked, kind):
    """However clever the policy: a fixed frame that shows none of the evidence leaves it at chance."""
    for frame in (0, 7, 8, 15):
        shown = np.mean([question.tokens(clip)[frame].any() for clip, question in asked[kind]])
        assert shown < 0.35


def test_evidence_is_where_the_answer_is(asked):
    for clip, question in asked["place"]:
        ((shot, (place,)),) = question.evidence
        tokens = question.tokens(clip)
        assert question.answer == PLACES[place]
        assert (tokens.any(1) == (clip.shot_of_frame == shot)).all() and tokens[:, place].sum() == tokens.sum()


def test_answers_are_true(asked):
    for clip, question in asked["color"] + asked["shape"]:
        pairs = {(COLORS[shot.thing.color], SHAPES[shot.thing.shape]) for shot in clip.shots if shot.thing}
        asked_for = question.text.split()[-1]
        assert ((question.answer, asked_for) if question.kind == "color" else (asked_for, question.answer)) in pairs
    for clip, question in asked["next"] + asked["scene"] + asked["count"]:
        order = [PATTERNS[shot.pattern] for shot in clip.shots]
        number = order.index(question.text.split()[-2])
        shot = clip.shots[number]
        if question.kind == "next":
            assert question.answer == order[number + 1]
            assert question.evidence == ((number, tuple(range(9))), (number + 1, tuple(range(9))))
        elif question.kind == "scene":
            asked_for, name = (COLORS, shot.thing.color) if "color" in question.text else (SHAPES, shot.thing.shape)
            assert question.answer == asked_for[name] and question.evidence == ((number, (shot.thing.place,)),)
        else:
            assert question.answer == NUMBERS[len(shot.blobs) - 1]
            assert question.evidence == tuple((number, (place,)) for place in range(9))
    for clip, question in asked["order"]:
        when = {COLORS[shot.thing.color]: number for number, shot in enumerate(clip.shots) if shot.thing}
        colors = sorted((word for word in question.text.split() if word in when), key=when.__getitem__)
        assert len(colors) == 2 and question.answer == colors[0]


def test_best_guess_without_the_question():
    """By hand for every kind: what is asked most, of everything that can be asked about a clip."""
    clip = draw_clip(np.random.default_rng(0))
    places = Counter(shot.thing.place for shot in clip.shots if shot.thing)
    blobs = Counter(len(shot.blobs) for shot in clip.shots)
    by_hand = {"color": 1 / 6, "shape": 1 / 6, "place": max(places.values()) / 6, "shot": 1 / 6, "scene": 1 / 12}
    by_hand |= {"order": 1 / 3, "next": 1 / 7, "count": max(blobs.values()) / 8}
    assert {kind: best_guess(clip, kind) for kind in KINDS} == pytest.approx(by_hand)


def test_splits_and_numbers_are_independent_and_repeatable():
    same = example("train", 5), example("train", 5)
    assert (same[0].frames == same[1].frames).all() and same[0].questions == same[1].questions
    for other in (example("held-out", 5), example("train", 6), example("train", 5, seed=1)):
        assert other.questions != same[0].questions
