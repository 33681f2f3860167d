"""What a family says of a prompt's videos is held against the prompt's tokens and what the vision tower made of them."""

import pytest
import torch
import transformers
from family_models import (
    BUILDERS,
    CELLS,
    IDS,
    IMAGE,
    ROPE,
    TEXT,
    VISION_END,
    VISION_START,
    batch_of,
    build,
    for_tests,
    joined,
    prompt,
)
from masked_reference import generate

import adatp_kernels as adatp
from adatp_kernels.integrations.transformers import families

CONFIG = adatp.AdaTPConfig(target_flops=0.5, stages=(2, 3, 6, 9))
FRAMES_AS_IMAGES = ("internvl", "smolvlm")
WITH_VIDEOS = [family for family in BUILDERS if family not in FRAMES_AS_IMAGES]
# What LLaVA-OneVision's newline, one a video, gives away already is refused for the tokens' number.
REFUSED = (
    r"(video_grid_thw|pixel_values_videos): expected one for each of the \d videos that Mistaken.frame_sizes has, got \d"
    r"|mm_encoder_outputs: expected videos of \[.*\] tokens, as Mistaken.frame_sizes has them, got \[.*\]"
    r"|input_ids: expected (33|more) video tokens"
)
# generate encodes beforehand in newer versions; forward never does.
WAYS = {
    "generate": lambda model, inputs: generate(model, inputs, max_new_tokens=1),
    "forward": lambda model, inputs: model(**inputs),
}


@pytest.fixture
def mistaken(monkeypatch):
    """A function that makes a family's `frame_sizes` (or `frame_cells`) another function of what it returned."""
    monkeypatch.setattr(families, "FAMILIES", dict(families.FAMILIES))

    def change(name, sizes=None, cells=None, **attributes):
        right = type(families.FAMILIES[name])
        methods = dict(attributes)
        if sizes is not None:
            methods["frame_sizes"] = lambda self, *arguments: sizes(right.frame_sizes(self, *arguments))
        if cells is not None:
            methods["frame_cells"] = lambda self, *arguments: cells
        adatp.register_family(type("Mistaken", (right,), methods)())

    return change


def refused(name, inputs, match, way="forward", error=ValueError):
    model = build(name)
    with adatp.accelerate(model, CONFIG), torch.no_grad(), pytest.raises(error, match=match):
        WAYS[way](model, inputs)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", WITH_VIDEOS)
def test_frames_are_no_videos(mistaken, name, way):
    mistaken(name, lambda videos: [[size] for sizes in videos for size in sizes])
    refused(name, prompt(name), REFUSED, way)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", WITH_VIDEOS)
def test_two_videos_are_not_one(mistaken, name, way):
    mistaken(name, lambda videos: [[size for sizes in videos for size in sizes]])
    inputs = joined([prompt(name, frames=4), prompt(name, frames=4, seed=1)])
    refused(name, inputs, REFUSED, way)


@pytest.mark.parametrize("name", ["qwen3_vl", *FRAMES_AS_IMAGES])
def test_text_within_a_frame(mistaken, name):
    def other(videos):
        return [[6] * (sum(sizes) // 6) for sizes in videos]

    mistaken(name, other)
    refused(
        name,
        prompt(name),
        r"input_ids: expected the 6 video tokens that Mistaken.frame_sizes has in frame 0 without text between them, "
        r"got them from \d+ to \d+",
    )
    if name == "internvl":  # the others' frames would not be those of the tower
        return
    mistaken(name, other, gaps=True)
    with adatp.accelerate(build(name), CONFIG) as run, torch.no_grad():
        run._model(**prompt(name))
    assert run.report().layout.num_frames == 4


@pytest.mark.parametrize(
    ("sizes", "match"),
    [
        ([[]], "expected at least one frame in every video, got none in video 0"),
        ([[24, 0]], "frame 1 of video 0: expected an integer of at least 1, got 0"),
        ([[28, -4]], "frame 1 of video 0: expected an integer of at least 1, got -4"),
        ([[12.0, 12.0]], "frame 0 of video 0: expected an integer, got 12.0"),
    ],
)
def test_sizes_that_are_none(mistaken, sizes, match):
    mistaken("qwen2_vl", lambda videos: sizes)
    refused("qwen2_vl", prompt("qwen2_vl"), f"Mistaken.frame_sizes: {match}", error=(ValueError, TypeError))


@pytest.mark.parametrize(
    ("cells", "match"),
    [
        ([], "expected the cells of 1 videos, got those of 0"),
        ([torch.arange(23)], "expected 24 cells in video 0, one for each token, got 23"),
        ([torch.zeros(24).long()], "expected another cell for every token of a frame, got one twice in video 0"),
        ([torch.arange(24) - 1], "video 0: expected values of at least 0, got -1"),
        ([torch.arange(24.0)], "video 0: expected integers, got torch.float32"),
    ],
)
def test_cells_that_are_none(mistaken, cells, match):
    mistaken("qwen2_vl", cells=cells)
    refused("qwen2_vl", prompt("qwen2_vl"), f"Mistaken.frame_cells: {match}", error=(ValueError, TypeError))


def test_any_family_may_say_which_cells(mistaken):
    mistaken("llava_next_video", cells=[torch.tensor([3, 0, 7, 5]).repeat(6)])
    with adatp.accelerate(build("llava_next_video"), CONFIG) as run:
        generate(run._model, prompt("llava_next_video"), max_new_tokens=1)
    assert run.report().layout.position.tolist() == [3, 0, 7, 5] * 6


@pytest.mark.parametrize("name", BUILDERS)
def test_a_row_of_a_batch_that_has_no_video(name):
    """The error says so, and which."""
    inputs = prompt(name)
    text = {key: value for key, value in inputs.items() if key in ("input_ids", "attention_mask", "mm_token_type_ids")}
    text = {key: value[:, :3] for key, value in text.items()}
    batch = batch_of([{key: inputs[key] for key in text}, text])
    refused(name, {**inputs, **batch}, "input_ids: row 1 of the batch has no video, but others have")


@pytest.mark.parametrize("name", BUILDERS)
def test_a_prompt_that_lost_its_video_tokens(name):
    inputs = prompt(name)
    ids = torch.tensor([[1, 5, 6, 7, 8]])
    refused(name, {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}, "input_ids: expected .* got")


class Recipe(adatp.Family):
    """README's recipe, with the id of the tokens that GLM's frames become."""

    model_type = "glm4v"

    def decoder(self, model):
        return model.model.language_model

    def token_id(self, model):
        return model.config.image_token_id

    def vision_tower(self, model):
        return model.model.visual

    def remember(self, model, arguments, args, kwargs, output):
        return {"video_grid_thw": kwargs["grid_thw"]}

    def frame_sizes(self, model, arguments, counts):
        return [[height * width // 4] * frames for frames, height, width in arguments["video_grid_thw"].tolist()]


@pytest.mark.parametrize("way", WAYS)
def test_six_frames_of_glm_do_not_become_six_videos(monkeypatch, way):
    """Its tower is given a grid for every frame."""
    monkeypatch.setattr(families, "FAMILIES", dict(families.FAMILIES))
    adatp.register_family(Recipe())
    text = {key: value for key, value in TEXT.items() if key not in ("bos_token_id", "eos_token_id")}
    vision = {"depth": 2, "hidden_size": 48, "intermediate_size": 96, "num_heads": 4, "patch_size": 7}
    config = transformers.Glm4vConfig(
        text_config={**text, "rope_parameters": {**ROPE, "partial_rotary_factor": 1.0}},
        vision_config={**vision, "out_hidden_size": 64, "image_size": 28},
        **IDS, image_start_token_id=VISION_START, image_end_token_id=VISION_END, video_start_token_id=294,
        video_end_token_id=295,
    )  # fmt: skip
    torch.manual_seed(0)
    model = for_tests(
        transformers.Glm4vForConditionalGeneration._from_config(config, attn_implementation="sdpa"), "sdpa"
    )
    frame = [VISION_START, *[IMAGE] * CELLS, VISION_END, 30]
    ids = torch.tensor([[1, 294, *frame * 6, 295, 7, 8, 9]])
    inputs = {**prompt("qwen2_vl"), "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    inputs["mm_token_type_ids"] = 2 * (ids == IMAGE).int()
    refusal = ""
    with adatp.accelerate(model, CONFIG) as run, torch.no_grad():
        try:
            WAYS[way](model, inputs)
        except ValueError as error:
            refusal = str(error)
    if way == "generate" and refusal:
        expected = (
            "mm_encoder_outputs: expected videos of [4, 4, 4, 4, 4, 4] tokens, as Recipe.frame_sizes has them, got [24]"
        )
        assert refusal == expected
    else:
        assert not refusal and run.report().segments == (0, 0, 1, 1, 2, 2) and run._visuals[0].frames == (6,)
