"""What `generate` was given, where the forwards that it makes do not show it."""

import threading

import pytest
import torch
import transformers
from family_models import build, prompt
from masked_reference import generate

import adatp_kernels as adatp
from adatp_kernels.integrations.transformers.families.base import Family
from adatp_kernels.integrations.transformers.generation import GenerateWatch
from adatp_kernels.integrations.transformers.turns import Turns

CONFIG = adatp.AdaTPConfig(target_flops=0.5, stages=(2, 3, 6, 9))
SIZES = {
    "qwen2_vl": ("video_grid_thw",),
    "qwen2_5_vl": ("video_grid_thw",),
    "qwen3_vl": ("video_grid_thw",),
    "video_llama_3": ("video_grid_thw", "video_merge_sizes"),
}
encodes_before = pytest.mark.skipif(
    not hasattr(transformers.GenerationMixin, "_supports_mm_encoder_outputs"),
    reason="this version of transformers encodes within the forward",
)


def encoded(model, inputs):
    """The video encoded beforehand, and the rest of the prompt."""
    names = ("pixel_values_videos", "video_grid_thw", "video_merge_sizes")
    with torch.no_grad():
        video = model.model.get_video_features(**{n: inputs[n] for n in names if n in inputs}, return_dict=True)
    return {**{n: v for n, v in inputs.items() if n != "pixel_values_videos"}, "mm_encoder_outputs": {"video": video}}


@pytest.mark.parametrize("how", ["generate", "forward"])
@pytest.mark.parametrize(("family", "missing"), [(family, name) for family in SIZES for name in SIZES[family]])
def test_a_missing_argument_is_named(family, missing, how):
    model, inputs = build(family), prompt(family)
    del inputs[missing]
    with (
        adatp.accelerate(model, CONFIG),
        torch.no_grad(),
        pytest.raises(
            ValueError, match=f"{missing}: expected with a video, .* got only .*input_ids.*pixel_values_videos"
        ),
    ):
        model(**inputs) if how == "forward" else generate(model, inputs, max_new_tokens=1)


@encodes_before
@pytest.mark.parametrize("family", SIZES)
def test_a_video_that_was_encoded_before_is_as_one_that_was_not(family):
    """Before accelerate, so that nobody saw the vision tower: the sizes are those that `generate` is given."""
    model, inputs = build(family), prompt(family)
    before = encoded(model, inputs)
    with adatp.accelerate(model, CONFIG) as run:
        expected = generate(model, inputs, max_new_tokens=3)[1]
        layout = run.report().layout
    with adatp.accelerate(model, CONFIG) as run:
        assert generate(model, before, max_new_tokens=3)[1].equal(expected)
        assert run.report().layout.frame.equal(layout.frame)
        for missing in SIZES[family]:
            rest = {name: value for name, value in before.items() if name != missing}
            message = f"{missing}: expected with a video, .* got only .*input_ids.*mm_encoder_outputs"
            with pytest.raises(ValueError, match=message):
                generate(model, rest, max_new_tokens=1)


class Talker(torch.nn.Module):
    """Something with a `generate`."""

    def generate(self, inputs=None, generation_config=None, **kwargs):
        return kwargs["inside"]()


ENCODED = {"mm_encoder_outputs": {"video": object()}}


def test_a_thread_knows_the_generate_that_it_is_in():
    model = Talker()
    watch = GenerateWatch(model, Family(), Turns())
    seen = []

    def look():
        seen.append((watch.before_encoding(ENCODED).get("video_grid_thw"), watch.chunk_size))

    def inner():
        look()
        model.generate(video_grid_thw=2, inside=look)
        look()
        with pytest.raises(ZeroDivisionError):
            model.generate(video_grid_thw=3, prefill_chunk_size=9, inside=lambda: look() or 1 / 0)
        look()
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()

    look()
    model.generate(video_grid_thw=1, prefill_chunk_size=7, inside=inner)
    look()
    assert seen == [(None, None), (1, 7), (2, None), (1, 7), (3, 9), (1, 7), (None, None), (None, None)]
    watch.remove()
    assert "generate" not in vars(model)


def test_only_what_was_encoded_before_takes_from_generate():
    """A forward of the user's own, within a generate, has its own arguments."""
    model = Talker()
    watch, given = GenerateWatch(model, Family(), Turns()), []
    model.generate(
        torch.ones(1, 3), video_grid_thw=1, none=None, inside=lambda: given.append(watch.before_encoding({}))
    )
    model.generate(
        torch.ones(1, 3), video_grid_thw=1, none=None, inside=lambda: given.append(watch.before_encoding(ENCODED))
    )
    assert given[0] == {} and set(given[1]) == {"inputs", "video_grid_thw", "inside"}
