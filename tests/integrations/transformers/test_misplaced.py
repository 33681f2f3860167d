"""A prompt in which time outruns space is told once, where the installed transformers puts its question amid the video."""

import functools
import warnings
from contextlib import nullcontext

import pytest
import torch
import transformers
from family_models import BUILDERS, batch_of, build, joined, prompt
from masked_reference import generate

import adatp_kernels as adatp
from adatp_kernels.integrations.transformers import families
from adatp_kernels.integrations.transformers.misplaced import MisplacedText, host_grids
from adatp_kernels.integrations.transformers.mrope import _place, text_behind

CONFIG = adatp.AdaTPConfig(target_flops=0.5, stages=(2, 3, 6, 9))
BY_TIME = ("qwen2_vl", "qwen2_5_vl")
# Frames of 2 × 2 tokens; Qwen2-VL's take a position each, Qwen2.5-VL's as many as `tokens_per_second`.
LONG, SHORT = {"qwen2_vl": 3, "qwen2_5_vl": 2}, {"qwen2_vl": 2, "qwen2_5_vl": 1}


def told(model, use, around=lambda model: nullcontext()):
    """What is told while `use` is called with the model, and where."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with around(model), adatp.accelerate(model, CONFIG), torch.no_grad():
            use(model)
    mine = [warning for warning in caught if str(warning.message).startswith("mrope_positions:")]
    assert all(warning.category is UserWarning and warning.filename == __file__ for warning in mine)
    return [str(warning.message) for warning in mine]


def ask(model, inputs, how="generate"):
    if how == "generate":
        generate_here(model, inputs)
    else:
        model(**inputs)


def generate_here(model, inputs):
    model.generate(**inputs, max_new_tokens=2, do_sample=False)


@pytest.mark.parametrize("how", ["generate", "forward"])
@pytest.mark.parametrize("family", BY_TIME)
def test_what_outruns_space_is_told_once(family, how):
    model = build(family)
    long, short = (prompt(family, frames=frames[family]) for frames in (LONG, SHORT))
    assert told(model, lambda model: ask(model, short, how)) == []

    def use(model):
        for inputs in (short, long, long, short, long):
            ask(model, inputs, how)

    (message,) = told(model, use)
    right = {"qwen2_vl": 3, "qwen2_5_vl": 5}[family]
    assert (
        f"transformers {transformers.__version__} begins the text behind a video of {LONG[family]} frames 2 " in message
    )
    assert f"{type(model.model).__name__} was trained to read it {right} after" in message
    assert "adatp.mrope_positions(model)" in message
    assert len(told(model, use)) == 1  # of every acceleration


@pytest.mark.parametrize("family", BY_TIME)
@pytest.mark.parametrize("many", [batch_of, joined])
def test_any_video_of_a_prompt_is_looked_at(family, many):
    model = build(family)
    short = prompt(family, frames=SHORT[family])
    assert told(model, lambda model: ask(model, many([short, short]))) == []
    assert len(told(model, lambda model: ask(model, many([short, prompt(family, frames=LONG[family])])))) == 1


@pytest.mark.parametrize("family", BY_TIME)
def test_what_is_placed_rightly_is_not_told(family):
    model, inputs = build(family), prompt(family, frames=9)
    assert told(model, lambda model: ask(model, inputs), adatp.mrope_positions) == []

    def within(model):
        with adatp.mrope_positions(model):
            ask(model, inputs)
            ask(model, inputs, "forward")

    assert told(model, within) == []

    def turns(model):
        within(model)
        ask(model, inputs)
        within(model)

    assert len(told(model, turns)) == 1


@pytest.mark.parametrize("family", BY_TIME)
def test_positions_of_the_users_own_are_not_told(family):
    model, inputs = build(family), prompt(family, frames=9)
    names = ("input_ids", "mm_token_type_ids", "video_grid_thw", "second_per_grid_ts", "attention_mask")
    with adatp.mrope_positions(model):
        right, _ = model.model.get_rope_index(**{name: inputs[name] for name in names if name in inputs})
    assert told(model, lambda model: ask(model, {**inputs, "position_ids": right}, "forward")) == []


def test_a_version_that_is_right_is_not_told(monkeypatch):
    model, inputs = build("qwen2_vl"), prompt("qwen2_vl", frames=9)
    original = type(model.model).get_rope_index

    def mended(self, input_ids, mm_token_type_ids, **rest):
        given = {"input_ids": input_ids, "mm_token_type_ids": mm_token_type_ids, **rest}
        return _place(functools.partial(original, self), (), given)

    monkeypatch.setattr(type(model.model), "get_rope_index", mended)
    assert told(model, lambda model: ask(model, inputs)) == []


def test_a_version_that_tells_videos_by_their_ids_is_not_asked(monkeypatch):
    """Such as transformers 4, which is right."""
    model, inputs = build("qwen2_vl"), prompt("qwen2_vl", frames=9)

    def by_ids(self, input_ids, image_grid_thw=None, video_grid_thw=None, attention_mask=None):
        raise AssertionError

    monkeypatch.setattr(type(model.model), "get_rope_index", by_ids)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MisplacedText(families.find(model), model).look(inputs, inputs)


def test_fractions_of_seconds_are_told_as_this_version_counts_them():
    """5.17 drops them: frames that are a quarter of a second apart stand at one time, and outrun nothing."""
    model, inputs = build("qwen2_5_vl"), prompt("qwen2_5_vl", frames=5)
    inputs["second_per_grid_ts"] = torch.tensor([0.25])
    begins, right = text_behind(model.model, [5, 4, 4], 0.25)
    assert (begins, right) in ((2, 2), (2, 5))
    assert len(told(model, lambda model: ask(model, inputs))) == (right == 5)
    inputs["second_per_grid_ts"] = [1.0]  # a list, as processors may leave it
    assert len(told(model, lambda model: ask(model, inputs, "forward"))) == 1


@pytest.mark.parametrize("family", sorted(set(BUILDERS) - set(BY_TIME)))
def test_other_families_are_not_told(family):
    assert told(build(family), lambda model: ask(model, prompt(family, frames=12))) == []


def test_a_warning_that_is_an_error_leaves_all_in_order():
    model, inputs = build("qwen2_vl"), prompt("qwen2_vl", frames=9)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with adatp.accelerate(model, CONFIG), torch.no_grad():
            with pytest.raises(UserWarning, match="mrope_positions:"):
                generate_here(model, inputs)
            again = generate(model, inputs, max_new_tokens=2)[1]
    with adatp.accelerate(model, CONFIG):
        assert generate(model, inputs, max_new_tokens=2)[1].equal(again)


def test_sizes_are_brought_to_the_host_once():
    class Elsewhere(torch.Tensor):
        is_cpu = False

        def cpu(self):
            return grids

    grids = torch.tensor([[9, 4, 4]])
    arguments = {"video_grid_thw": grids, "other": 1}
    assert host_grids(arguments) is arguments and host_grids({"other": 1}) == {"other": 1}
    elsewhere = {**arguments, "video_grid_thw": grids.as_subclass(Elsewhere)}
    assert host_grids(elsewhere)["video_grid_thw"] is grids and host_grids(elsewhere).keys() == arguments.keys()
    assert elsewhere["video_grid_thw"] is not grids  # what the caller gave is left as it was


def test_nothing_is_read_where_nothing_can_be_told():
    """Not from a device, on which it would wait: of other families, where text is placed rightly, after the warning."""

    class Unread(dict):
        def __getitem__(self, name):
            raise AssertionError(name)

        get = __getitem__

    look = lambda model: MisplacedText(families.find(model), model)  # noqa: E731
    look(build("qwen3_vl")).look(Unread(), Unread())
    model, inputs = build("qwen2_vl"), prompt("qwen2_vl", frames=9)
    with adatp.mrope_positions(model):
        mine = look(model)
        mine.look(inputs, inputs)
        mine.look(Unread(), Unread())
    with adatp.mrope_positions(model):  # anew
        mine.look(inputs, inputs)
        mine.look(Unread(), Unread())
    with pytest.warns(UserWarning, match="mrope_positions:"):
        mine.look(inputs, inputs)
    mine.look(Unread(), Unread())


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"num_return_sequences": 2, "num_beams": 2}])
def test_seconds_are_those_of_the_same_video_in_beams_too(options):
    """Of copies, some versions give the forward grids or seconds once, and some once a copy."""

    def clip(frames, seconds, **options):
        return {**prompt("qwen2_5_vl", frames, **options), "second_per_grid_ts": torch.tensor([seconds])}

    # All at one time, but for a frame alone, which is as long as it likes.
    batch = batch_of([clip(6, 0.01), joined([clip(1, 2.0, before=(1, 5)), clip(5, 0.01, seed=1, before=(6,))])])
    model = build("qwen2_5_vl")
    with adatp.accelerate(model, CONFIG), warnings.catch_warnings():
        warnings.filterwarnings("error", "mrope_positions", UserWarning)
        generate(model, batch, max_new_tokens=1, **options)
