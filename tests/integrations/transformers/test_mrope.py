"""Text behind a video of Qwen2-VL or Qwen2.5-VL begins behind all of the video's moments, as the model was trained to read it."""

import math
import random

import pytest
import torch
from family_models import BUILDERS, IMAGE, VIDEO, batch_of, build, prompt
from masked_reference import TOLERANCE, generate
from mrope_prompts import SHAPES, given, image, positions_of, video
from snapshots import assert_unchanged, snapshot

import adatp_kernels as adatp

CONFIG = adatp.AdaTPConfig(target_flops=0.5, stages=(2, 3, 6, 9))
BY_TIME = ("qwen2_vl", "qwen2_5_vl")
PACE = {"qwen2_vl": None, "qwen2_5_vl": 2}  # numbers a second; Qwen2-VL counts frames


# What get_rope_index of transformers 4.57.6 makes of them: of each row, the number at which every text begins, and the one after
# the prompt's largest. Made with pip install --target old transformers==4.57.6 and models of the configuration of
# findings/qwen_vl_positions.sh, to which SHAPES were given without mm_token_type_ids; it counts padding into rope_deltas, so
# the last is rope_deltas and the number of columns together there, and rope_deltas and the number of tokens here.
RECORDED = {
    "qwen2_vl": {
        "square": [[0, 20, 26]],
        "short": [[0, 8, 14]],
        "wide": [[0, 11, 16]],
        "tall": [[0, 11, 14]],
        "one frame": [[0, 6, 10]],
        "two videos": [[0, 9, 26, 31]],
        "images": [[0, 8, 17, 22]],
        "images and videos": [[0, 9, 23, 36, 41, 48]],
        "batch": [[0, 20, 26], [0, 6, 15, 17], [0, 15, 29, 32]],
        "fractions": [[0, 10, 18, 29, 32]],
    },
    "qwen2_5_vl": {
        "square": [[0, 35, 41]],
        "short": [[0, 8, 14]],
        "wide": [[0, 19, 24]],
        "tall": [[0, 20, 23]],
        "one frame": [[0, 6, 10]],
        "two videos": [[0, 24, 52, 57]],
        "images": [[0, 8, 17, 22]],
        "images and videos": [[0, 9, 73, 86, 93, 100]],
        "batch": [[0, 35, 41], [0, 6, 27, 29], [0, 57, 71, 74]],
        "fractions": [[0, 31, 42, 49, 52]],
    },
}
# Fractions of a second count from #48669 on, which is in 5.24: 2.5 s are five numbers, not four.
KEPT_FRACTIONS = [[0, 38, 49, 60, 63]]
UNCHANGED = ("short", "one frame", "images")


def numbers(row, pace, whole_seconds):
    """The definition, token by token: [(time, height, width)], and the number that is next."""
    places, following = [], 0
    for part in row:
        if isinstance(part, int):
            places += [(following + n,) * 3 for n in range(part)]
            following += part
            continue
        _, frames, height, width, seconds = part
        places.append((following,) * 3)
        begin = following + 1
        for frame in range(frames):
            moment = frame
            if pace is not None and seconds is not None:
                moment = frame * pace * int(seconds) if whole_seconds else math.floor(frame * pace * seconds)
            places += [(begin + moment, begin + y, begin + x) for y in range(height) for x in range(width)]
        following = max(map(max, places)) + 1
        places.append((following,) * 3)
        following += 1
    return places, following


@pytest.fixture(scope="module")
def models():
    """A model a family, whose positions are asked for, and which reads nothing."""
    found = {family: build(family) for family in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")}
    found["qwen2_5_vl"].config.vision_config.tokens_per_second = PACE["qwen2_5_vl"]  # as the checkpoints
    return found


@pytest.fixture(scope="module")
def whole_seconds(models):
    """Whether this transformers drops fractions of seconds."""
    positions, _ = models["qwen2_5_vl"].model.get_rope_index(**given([[video(2, 1, 1, 1.5)]]))
    return {1 + 2: True, 1 + 3: False}[positions[0, 0, 2].item()]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", BY_TIME)
def test_positions_are_those_of_transformers_4(family, shape, models, whole_seconds):
    inputs, expected = given(SHAPES[shape]), RECORDED[family][shape]
    if (family, shape) == ("qwen2_5_vl", "fractions") and not whole_seconds:
        expected = KEPT_FRACTIONS
    with adatp.mrope_positions(models[family]):
        rows, following = positions_of(models[family], inputs)
    seen = []
    for row, mask, ids in zip(rows, inputs["attention_mask"].bool(), inputs["input_ids"], strict=True):
        text = (ids[mask] != IMAGE) & (ids[mask] != VIDEO)
        begins = text & ~torch.cat([torch.tensor([False]), text[:-1]])
        assert row[:, text].equal(row[:1, text].expand(3, -1))
        seen.append(row[0, begins].tolist())
    assert [[*row, end] for row, end in zip(seen, following, strict=True)] == expected
    plain = positions_of(models[family], inputs)
    assert (plain[1] == following) == (shape in UNCHANGED)


@pytest.mark.parametrize("family", BY_TIME)
def test_positions_of_any_prompt(family, models, whole_seconds):
    """Against the definition, token by token; what transformers places rightly itself, bit for bit."""
    choose, model, same = random.Random(0), models[family], 0

    def seen():
        sides = choose.randint(1, 5), choose.randint(1, 5)
        if choose.random() < 0.3:
            return image(*sides)
        return video(choose.randint(1, 7), *sides, choose.choice([0.25, 0.5, 1.0, 1.0, 1.7, 3.0]))

    for _ in range(150):
        rows = [[choose.randint(0, 4)] for _ in range(choose.randint(1, 3))]
        for row in rows:
            for _ in range(choose.randint(0, 3)):
                row += [seen(), choose.randint(0, 3)]
        if any(row == [0] for row in rows) or all(len(row) == 1 for row in rows):
            continue
        inputs = given(rows)
        if choose.random() < 0.3 and len(rows) == 1:
            del inputs["attention_mask"]
        plain = model.model.get_rope_index(**inputs)
        with adatp.mrope_positions(model):
            answer = model.model.get_rope_index(**inputs)
        inputs.setdefault("attention_mask", torch.ones_like(inputs["input_ids"]))
        for row, (parts, mask) in enumerate(zip(rows, inputs["attention_mask"].bool(), strict=True)):
            places, following = numbers(parts, PACE[family], whole_seconds)
            assert answer[0][:, row, mask].T.tolist() == [list(place) for place in places]
            assert answer[1][row].item() + len(places) == following
            assert answer[0][:, row, ~mask].equal(plain[0][:, row, ~mask])
        same += answer[0].equal(plain[0])
    assert 20 <= same <= 100


@pytest.mark.parametrize("shape", UNCHANGED)
@pytest.mark.parametrize("family", BY_TIME)
def test_what_is_right_already_is_handed_on(family, shape, models):
    inputs = given(SHAPES[shape])
    plain = models[family].model.get_rope_index(**inputs)
    with adatp.mrope_positions(models[family]):
        assert all(map(torch.equal, models[family].model.get_rope_index(**inputs), plain))


def test_a_version_that_is_right_is_left_alone(models, monkeypatch):
    """Nothing is moved twice."""
    model, inputs = models["qwen2_vl"], given(SHAPES["batch"])
    with adatp.mrope_positions(model):
        right = model.model.get_rope_index(**inputs)
    monkeypatch.setattr(type(model.model), "get_rope_index", lambda self, mm_token_type_ids, **_: right)
    with adatp.mrope_positions(model):
        assert model.model.get_rope_index(**inputs) is right
    # One that tells videos by their ids, as transformers 4 does.
    monkeypatch.setattr(type(model.model), "get_rope_index", lambda self, input_ids, **_: right)
    with adatp.mrope_positions(model):
        assert model.model.get_rope_index(inputs["input_ids"]) is right


def test_arguments_may_come_by_their_order(models):
    inputs = given(SHAPES["batch"])
    with adatp.mrope_positions(models["qwen2_vl"]):
        expected = models["qwen2_vl"].model.get_rope_index(**inputs)
        order = ("input_ids", "mm_token_type_ids", "image_grid_thw", "video_grid_thw", "attention_mask")
        answer = models["qwen2_vl"].model.get_rope_index(*(inputs[name] for name in order))
    assert all(map(torch.equal, answer, expected))


def test_time_is_told_by_the_frames_of_qwen3_vl(models):
    """Each is a video of its own, between timestamps: nothing outruns its side."""
    inputs = prompt("qwen3_vl", frames=12)
    names = ("input_ids", "mm_token_type_ids", "video_grid_thw", "attention_mask")
    positions, deltas = models["qwen3_vl"].model.get_rope_index(**{name: inputs[name] for name in names})
    at = 0
    for token, place in zip(inputs["input_ids"][0].tolist(), positions[:, 0].T.tolist(), strict=True):
        if token != VIDEO:
            assert place == [at] * 3
            at += 1
        else:
            assert at <= min(place) and max(place) <= at + 1
            at += place == [at, at + 1, at + 1] and 2
    assert deltas.item() + inputs["input_ids"].shape[1] == at


@pytest.mark.parametrize("family", sorted(set(BUILDERS) - set(BY_TIME)))
def test_other_families_are_left_alone(family):
    model = build(family)
    before = snapshot(model)
    with adatp.mrope_positions(model):
        assert_unchanged(model, before)


class Seen:
    """The positions [B, n] of text that reach the decoder, forward by forward."""

    def __init__(self, model):
        self.forwards = []
        self.hook = model.model.language_model.register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, module, args, kwargs):
        self.forwards.append(kwargs["position_ids"][-3:].expand(3, -1, -1))


@pytest.mark.parametrize("family", BY_TIME)
def test_an_answer_follows_its_question(family):
    """Token by token, in a batch with padding, and over another turn."""
    model = build(family)
    prompts = [prompt(family, frames=9), prompt(family, frames=5, seed=1, after=(7, 8))]
    inputs, seen = batch_of(prompts), Seen(model)
    pace = 1 if family == "qwen2_vl" else model.config.vision_config.tokens_per_second
    # Behind text, the video's moments, its end's token and the question.
    first = torch.tensor([[4 + (9 - 1) * pace + 1 + 1 + 5], [4 + (5 - 1) * pace + 1 + 1 + 2]])
    with adatp.mrope_positions(model):
        sequences, _, cache = generate(model, inputs, max_new_tokens=4)
        assert seen.forwards[0][:, :, -1].equal((first - 1).T.expand(3, -1))
        for step, places in enumerate(seen.forwards[1:]):
            assert places.equal((first + step)[None].expand(3, -1, -1))
        del seen.forwards[:]
        ids = torch.cat([sequences, torch.tensor([[12, 13]]).expand(2, -1)], 1)
        mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 6), value=1)
        generate(model, {"input_ids": ids, "attention_mask": mask, "past_key_values": cache}, max_new_tokens=2)
        places = torch.cat(seen.forwards, -1)
        assert places.equal((first + torch.arange(3, 3 + places.shape[-1]))[None].expand(3, -1, -1))


@pytest.mark.parametrize("family", BY_TIME)
def test_a_forward_and_a_generate_read_the_same(family):
    model, inputs = build(family), prompt(family, frames=9)
    names = ("input_ids", "mm_token_type_ids", "video_grid_thw", "second_per_grid_ts", "attention_mask")
    with adatp.mrope_positions(model), torch.no_grad():
        right, _ = model.model.get_rope_index(**{name: inputs[name] for name in names if name in inputs})
        logits = model(**inputs).logits
        assert (generate(model, inputs, max_new_tokens=1)[1][0] - logits[:, -1]).abs().max() <= TOLERANCE
    with torch.no_grad():
        assert model(**inputs, position_ids=right).logits.equal(logits)
        assert (model(**inputs).logits - logits).abs().max() > 1e-2
