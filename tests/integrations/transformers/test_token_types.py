"""Visual tokens of Qwen's get positions in time and space, or the prompt is refused, or the user is told."""

import warnings

import masked_reference
import pytest
import torch
import transformers
from family_models import BUILDERS, IMAGE, VIDEO, build, prompt
from masked_reference import generate

import adatp_kernels as adatp

CONFIG = adatp.AdaTPConfig(target_flops=0.5, stages=(2, 3, 6, 9))
QWEN = [name for name in BUILDERS if name.startswith("qwen")]
WAYS = ["forward", "generate"]
KINDS = "mm_token_type_ids"


def ask(model, inputs, way):
    if way == "generate":
        return generate(model, inputs, max_new_tokens=2)[1]
    with torch.no_grad():
        return model(**inputs, use_cache=True).logits


def positions_of(model):
    """The positions that the decoder of `model` is given from now on."""
    seen = []
    hook = lambda _, args, kwargs: seen.append(kwargs.get("position_ids"))  # noqa: E731
    model.model.language_model.register_forward_pre_hook(hook, with_kwargs=True)
    return seen


def rope_index(model, inputs):
    return model.model.get_rope_index(**{name: value for name, value in inputs.items() if "pixel" not in name})[0]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", QWEN)
def test_a_video_without_them_is_refused(family, way):
    model, inputs = build(family), prompt(family)
    del inputs[KINDS]
    with (
        adatp.accelerate(model, CONFIG) as run,
        pytest.raises(
            ValueError, match=f"{KINDS}: expected with a video or image, .* or position_ids instead, got neither"
        ),
    ):
        ask(model, inputs, way)
    assert run._last is None


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", QWEN)
def test_or_comes_with_positions(family, way):
    model, inputs = build(family), prompt(family)
    places = rope_index(model, inputs)
    with adatp.accelerate(model, CONFIG) as run:
        expected = ask(model, inputs, way)
        survivors = run.report().survivors
        del inputs[KINDS]
        text = torch.arange(places.shape[2]).expand(1, 1, -1)
        logits = ask(model, {**inputs, "position_ids": torch.cat([text, places])}, way)
        assert all(mine.equal(other) for (_, mine), (_, other) in zip(run.report().survivors, survivors, strict=True))
    assert logits.equal(expected)


def with_image(family):
    """A prompt with an image beside the video."""
    inputs = prompt(family, before=(1, *[IMAGE] * 4, 5))
    grid = torch.tensor([[1, 4, 4]])
    width = inputs["pixel_values_videos"].shape[1]
    pixels = torch.randn(16, width, generator=torch.Generator().manual_seed(0))
    ids = inputs["input_ids"]
    return {
        **inputs,
        KINDS: (ids == IMAGE).int() + 2 * (ids == VIDEO).int(),
        "pixel_values": pixels,
        "image_grid_thw": grid,
    }


MISTAKES = {
    "zeros": lambda kinds: torch.zeros_like(kinds),
    "one video token is text": lambda kinds: kinds.index_fill(1, (kinds[0] == 2).nonzero()[3], 0),
    "text is a video token": lambda kinds: kinds.index_fill(1, torch.tensor([0]), 2),
    "the image is a video": lambda kinds: 2 * (kinds != 0).int(),
    "both the other way round": lambda kinds: (3 - kinds) * (kinds != 0),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("family", QWEN)
def test_what_they_say_has_to_be_what_the_ids_say(family, mistake):
    """Unless transformers itself finds fault with it before."""
    model, inputs = build(family), with_image(family)
    with adatp.accelerate(model, CONFIG):
        ask(model, inputs, "forward")
        wrong = {**inputs, KINDS: MISTAKES[mistake](inputs[KINDS])}
        with pytest.raises(ValueError, match=f"{KINDS}: expected 2 at every video token of input_ids .* got others"):
            ask(model, wrong, "forward")
        for shape in ([1, 3], [34], [2, 34]):
            with pytest.raises(
                ValueError, match=rf"{KINDS}: expected a tensor of the shape of input_ids \[1, .*, got \["
            ):
                ask(model, {**inputs, KINDS: torch.zeros(shape, dtype=torch.int)}, "forward")


@pytest.mark.parametrize("mistake", ["zeros", "one video token is text"])
@pytest.mark.parametrize("family", QWEN)
def test_nor_does_generate_take_them_for_text(family, mistake):
    model, inputs = build(family), prompt(family)
    with adatp.accelerate(model, CONFIG), pytest.raises(ValueError, match=KINDS):
        ask(model, {**inputs, KINDS: MISTAKES[mistake](inputs[KINDS])}, "generate")


@pytest.mark.parametrize("family", sorted(set(BUILDERS) - set(QWEN)))
def test_families_that_count_columns_need_none(family):
    with adatp.accelerate(build(family), CONFIG) as run:
        assert KINDS not in prompt(family)
        ask(run._model, prompt(family), "forward")
        assert run.report().survivors


def turns(model, family, first):
    """A turn, and another with a video on its cache; returns the arguments of the second."""
    sequences, _, cache = generate(model, first, max_new_tokens=2)
    more = prompt(family, frames=4, shots=2, seed=1, before=(12, 13), after=(14, 15, 16))
    ids = torch.cat([sequences, more["input_ids"]], 1)
    return {
        **more,
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        KINDS: 2 * (ids == VIDEO).int(),
        "past_key_values": cache,
    }


def as_text(places):
    """Whether tokens were placed as text is, each one further than the one before on every axis."""
    return places.dim() == 2 or len(places) == 1 or bool((places[-3:, 0].diff() == 1).all())


@pytest.mark.parametrize("first", ["a video", "text"])
@pytest.mark.parametrize("family", QWEN)
def test_a_video_behind_a_cache_is_placed_or_told_of(family, first):
    """5.17.0 places it as text, 5.24.0 fails where there was a video before."""
    model, error = build(family), None
    ids = torch.tensor([[1, 5, 6, 7]])
    before = prompt(family) if first == "a video" else {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with adatp.accelerate(model, CONFIG), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        second = turns(model, family, before)
        seen = positions_of(model)
        try:
            generate(model, second, max_new_tokens=1)
            generate(model, turns(model, family, before), max_new_tokens=1)
        except ValueError as refused:
            error = refused
    if error is not None:
        assert "past_key_values: transformers" in str(error)
        assert isinstance(error.__cause__, StopIteration)
        return
    told = [warning for warning in caught if "cannot place visual tokens behind a cache" in str(warning.message)]
    assert len(told) == as_text(seen[0])  # once for both
    assert all(transformers.__version__ in str(warning.message) for warning in told)
    assert all(warning.filename == masked_reference.__file__ for warning in told)  # whose `generate` it was


@pytest.mark.parametrize("family", QWEN)
def test_a_forward_behind_a_cache_too(family):
    model, first = build(family), prompt(family)
    with adatp.accelerate(model, CONFIG):
        second = turns(model, family, first)
        past = second["past_key_values"].get_seq_length()
        del second["attention_mask"]
        second |= {name: second[name][:, past:] for name in ("input_ids", KINDS)}
        with torch.no_grad(), pytest.warns(UserWarning, match="past_key_values: transformers .* cannot place"):
            model(**second)
        second["past_key_values"].crop(past - second["past_key_values"].get_seq_length())
        places = rope_index(model, {name: value for name, value in second.items() if name != "past_key_values"}) + 40
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("error", "accelerate: ", UserWarning)
            model(**second, position_ids=places)


@pytest.mark.parametrize("family", QWEN)
def test_another_question_behind_a_cache_is_nothing_to_tell(family):
    model = build(family)
    with adatp.accelerate(model, CONFIG), warnings.catch_warnings():
        warnings.filterwarnings("error", "accelerate: ", UserWarning)
        sequences, _, cache = generate(model, prompt(family), max_new_tokens=2)
        ids = torch.cat([sequences, torch.tensor([[40, 41]])], 1)
        again = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "past_key_values": cache}
        generate(model, again, max_new_tokens=1)


@pytest.mark.parametrize("family", BUILDERS)
def test_what_is_no_cache_is_refused_as_such(family):
    model = build(family)
    with adatp.accelerate(model, CONFIG), torch.no_grad():
        cache = model(**prompt(family), use_cache=True).past_key_values
        pairs = tuple((layer.keys, layer.values) for layer in cache.layers)
        with pytest.raises(TypeError, match="past_key_values: expected a transformers Cache, got tuple"):
            model(**prompt(family), past_key_values=pairs)
