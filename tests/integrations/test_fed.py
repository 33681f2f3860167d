"""What a model is fed is counted: prompts, frames, and neighbours that are the same picture, in the layout of every family."""

import family_models
import pytest
import torch
from family_models import _patches

from adatp_kernels.integrations.lmms_eval.fed import watch

FAMILIES = ("llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl")


def film(*shown):
    """Pictures of 28 pixels, by the numbers `shown`; the same number is the same picture."""
    pictures = torch.randn(max(shown) + 1, 3, 28, 28, generator=torch.Generator().manual_seed(3))
    return pictures[list(shown)]


def prompt(family, pictures, **options):
    """A prompt with a video of these `pictures`, an even number."""
    qwen = family.startswith("qwen")
    inputs = family_models.prompt(family, len(pictures) // 2 if qwen else len(pictures), **options)
    if qwen:
        inputs["pixel_values_videos"] = _patches(pictures, 2)
    elif family == "internvl":
        inputs["pixel_values"] = pictures
    else:
        inputs["pixel_values_videos"] = pictures[None]
    return inputs


def fed(model, *prompts):
    with watch(model) as seen:
        for inputs in prompts:
            model.generate(**inputs, max_new_tokens=1, do_sample=False)
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_neighbours_are_compared_in_every_layout(family):
    model = family_models.build(family)
    nearly = film(0, 1, 1, 2, 2, 3)
    nearly[4, 2, 27, 27] += 1e-3  # one value of the last picture but one
    seen = fed(
        model,
        prompt(family, film(0, 1, 2, 0)),  # no neighbours
        prompt(family, film(0, 0, 1, 2, 2, 2, 3, 4, 4, 5)),  # in Qwen's pairs of pictures, and between two of them
        prompt(family, nearly),
    )
    assert seen.frames == [4, 10, 6]
    assert seen.repeats == [0, 4, 1]
    assert str(seen).startswith(
        "3 of 3 prompts had a video; clips: 3, of 4 / 6 / 10 frames (least / median / most). 5 of 17 pairs of neighbouring frames, in "
        "2 of the clips, are the same picture"
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_clips_of_a_prompt_and_of_a_batch_are_told_apart(family):
    """Where families tell them apart: the last picture of one is the first of the next, and no neighbour."""
    model = family_models.build(family)
    one, other = prompt(family, film(0, 1, 1, 2)), prompt(family, film(2, 3, 4, 4))
    for together in (family_models.joined([one, other]), family_models.batch_of([one, other])):
        seen = fed(model, together)
        together_as_one = family == "internvl"
        assert seen.frames == ([8] if together_as_one else [4, 4])
        assert seen.repeats == ([3] if together_as_one else [1, 1])
        assert seen.with_video == seen.prompts == len(together["input_ids"])


def test_prompts_without_a_video_count_as_prompts():
    model = family_models.build("llava_onevision")
    text = torch.tensor([[1, 5, 6]])
    seen = fed(model, prompt("llava_onevision", film(0, 1)), {"input_ids": text})
    assert (seen.prompts, seen.with_video, seen.frames) == (2, 1, [2])
    assert "1 of 2 prompts had a video; clips: 1, of 2 / 2 / 2 frames" in str(seen)
    assert str(seen).endswith("none of which is the same picture as the one before it")
    assert str(fed(model)) == "0 of 0 prompts had a video"


def test_one_frame_has_no_neighbour():
    seen = fed(family_models.build("llava_onevision"), prompt("llava_onevision", film(0)))
    assert (seen.frames, seen.repeats) == ([1], [0])


def test_the_model_is_left_as_it_was():
    model = family_models.build("qwen2_vl")
    before = dict(vars(model))
    with pytest.raises(ValueError, match="no_such_argument"), watch(model) as seen:
        model.generate(input_ids=torch.tensor([[1]]), no_such_argument=1)
    assert vars(model) == before and seen.prompts == 0
