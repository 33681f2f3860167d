"""Synthetic clips: the same seed gives the same clip, shots differ, things stay in their cells, any scale shows the same."""

import numpy as np
import pytest

from adatp_kernels.demo.clips.scenes import CELL, PATTERNS, SIZE, draw_clip, render


def clip(seed, **options):
    return draw_clip(np.random.default_rng(seed), **options)


def test_same_seed_same_clip_and_another_seed_another():
    assert (render(clip(1)) == render(clip(1))).all()
    assert (render(clip(1)) != render(clip(2))).any()


@pytest.mark.parametrize(("num_shots", "num_frames"), [(1, None), (2, 5), (8, None), (8, 24)])
def test_shots_fill_the_frames_and_differ_in_pattern(num_shots, num_frames):
    one = clip(3, num_shots=num_shots, num_frames=num_frames)
    frames = num_frames or 2 * num_shots
    assert render(one).shape == (frames, SIZE, SIZE, 3)
    assert one.starts[-1] == frames == len(one.shot_of_frame)
    assert np.diff(one.starts).min() >= 1 and np.diff(one.starts).max() <= 3
    assert len({shot.pattern for shot in one.shots}) == num_shots <= len(PATTERNS)


def test_one_word_finds_a_thing():
    for seed in range(50):
        shots = clip(seed).shots
        things = [shot.thing for shot in shots if shot.thing]
        assert len(things) == 6
        assert {len(shot.blobs) for shot in shots} <= {1, 2, 3}
        assert len({thing.color for thing in things}) == len({thing.shape for thing in things}) == len(things)
        for shot in shots:
            places = [thing.place for thing in (*shot.blobs, *([shot.thing] if shot.thing else []))]
            assert len(set(places)) == len(places)


def test_what_holds_the_answer_can_be_in_any_frame():
    clips = [clip(seed) for seed in range(400)]
    red = [[bool(shot.thing) and shot.thing.color == 0 for shot in one.shots] for one in clips]
    shown = np.mean([np.array(of_shot)[one.shot_of_frame] for one, of_shot in zip(clips, red, strict=True)], axis=0)
    assert abs(shown - 1 / 8).max() < 4 * np.sqrt(1 / 8 / len(clips))


def test_a_thing_leaves_background_visible_in_its_cell():
    one = clip(5)
    for start, shot in zip(one.starts, one.shots, strict=False):
        if shot.thing:
            row, column = divmod(shot.thing.place, 3)
            frame = render(one)[start].astype(int)
            cell = frame[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL].reshape(-1, 3)
            distance = np.abs(cell[:, None] - shot.tones[None]).max(-1).min(1)
            assert 0.2 < (distance < 40).mean() < 0.9


def test_a_larger_picture_shows_the_same():
    one = clip(6)
    small, large = render(one).astype(float), render(one, scale=4).astype(float)
    shrunk = large.reshape(len(small), SIZE, 4, SIZE, 4, 3).mean((2, 4))
    assert large.shape[1:3] == (4 * SIZE, 4 * SIZE)
    assert np.abs(shrunk - small).mean() < 12
