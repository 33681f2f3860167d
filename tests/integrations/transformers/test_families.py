"""What families of models differ in: their tokens, their videos and images, their layers."""

import dataclasses

import pytest
import torch
import transformers
from family_models import BUILDERS, CELLS, IMAGE, LAYERS, VIDEO, VISION_END, VISION_START, build, joined, prompt
from masked_reference import TOLERANCE, MaskedReference, generate, survivors_of
from packaging.version import parse

import adatp_kernels as adatp
from adatp_kernels.integrations.transformers import families

CONFIG = adatp.AdaTPConfig(target_flops=0.5, stages=(2, 3, 6, 9))


def masked(family, inputs, survivors, *, compact=False, **options):
    model = build(family, "eager")
    reference = MaskedReference(model, compact=compact)
    reference.add(survivors, 0, inputs["input_ids"].shape[1])
    return generate(model, inputs, **options)


@pytest.mark.parametrize("family", BUILDERS)
def test_a_second_turn_with_another_video(family):
    def turns(model, between=lambda: None):
        inputs = prompt(family)
        sequences, _, cache = generate(model, inputs, max_new_tokens=3)
        between()
        more = prompt(family, frames=4, shots=2, seed=1, before=(12, 13), after=(14, 15, 16))
        ids = torch.cat([sequences, more["input_ids"]], dim=1)
        again = {**more, "input_ids": ids, "attention_mask": torch.ones_like(ids), "past_key_values": cache}
        if "mm_token_type_ids" in again:
            again["mm_token_type_ids"] = 2 * (ids == VIDEO).int()
        return sequences.shape[1] - 1, ids.shape[1], generate(model, again, max_new_tokens=5)[1]

    try:
        turns(build(family))
    except StopIteration:
        pytest.skip("this version of transformers cannot place a second video, pruned or not")
    model, kept = build(family), []
    with adatp.accelerate(model, CONFIG) as run:
        seen, total, second = turns(model, lambda: kept.append(run.report().survivors))
        kept.append(run.report().survivors)
    full = build(family, "eager")
    reference = MaskedReference(full)
    reference.add(kept[0], 0, prompt(family)["input_ids"].shape[1])
    reference.add(kept[1], seen, total - seen)
    assert (second - turns(full)[2]).abs().max() <= TOLERANCE


@pytest.mark.parametrize("family", BUILDERS)
def test_a_prompt_without_a_video_passes_through(family):
    model = build(family)
    ids = torch.tensor([[1, 5, 6, 7, 8]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if family.startswith("qwen"):
        inputs["mm_token_type_ids"] = torch.zeros_like(ids).int()
    expected = generate(model, inputs, max_new_tokens=3)[1]
    with adatp.accelerate(model, CONFIG) as run:
        assert generate(model, inputs, max_new_tokens=3)[1].equal(expected)
    with pytest.raises(RuntimeError, match="no video prompt"):
        run.report()


@pytest.mark.parametrize("family", BUILDERS)
def test_tokens_that_do_not_fit_the_frames_are_refused(family):
    model, inputs = build(family), prompt(family)
    place = int(
        inputs["input_ids"][0].tolist().index(model.config.image_token_id if "pixel_values" in inputs else VIDEO)
    )
    short = {
        name: torch.cat([value[:, :place], value[:, place + 1 :]], 1)
        if name in ("input_ids", "attention_mask", "mm_token_type_ids")
        else value
        for name, value in inputs.items()
    }
    with (
        adatp.accelerate(model, CONFIG),
        pytest.raises(ValueError, match=r"input_ids: expected .* video tokens.*, got"),
    ):
        model.model(**short)


def test_frames_are_told_apart_by_what_the_decoder_is_fed():
    """Families whose tower is not looked at: a frame's feature is the mean of its visual features."""
    model, inputs = build("internvl"), prompt("internvl", frames=5, shots=5)
    with adatp.accelerate(model, CONFIG) as run:
        generate(model, inputs, max_new_tokens=1)
    assert run.report().segments == (0, 1, 2, 3, 4)


def test_qwen3_vl_is_pruned_only_after_deepstack():
    model = build("qwen3_vl")
    with pytest.raises(ValueError, match="stages: in this model the first stage may be layer 2, got 1"):
        adatp.accelerate(model, dataclasses.replace(CONFIG, stages=(1, 3)))
    for stages, layers in (("single", (2,)), ("three", (2, 5, 8))):
        with adatp.accelerate(model, adatp.AdaTPConfig(target_flops=0.6, stages=stages)) as run:
            generate(model, prompt("qwen3_vl"), max_new_tokens=1)
        assert tuple(stage.layer for stage in run.report().plan.stages) == layers


def test_relevance_of_frames():
    inputs = prompt("qwen2_vl")
    with adatp.accelerate(build("qwen2_vl"), CONFIG, relevance=[0.0, 0.0, 1.0, 1.0, 0.0, 0.0]) as run:
        generate(run._model, inputs, max_new_tokens=1)
    assert run.report().salient == (1,)
    pair = (type("Siglip", (), {"get_image_features": None, "get_text_features": None})(), print)
    with pytest.raises(
        ValueError, match="relevance: a SiglipModel needs the frames' pixels, which qwen2_vl does not show"
    ):
        adatp.accelerate(build("qwen2_vl"), CONFIG, relevance=pair, question="what?")


class TwoByTwo(adatp.Family):
    """A family of one's own, as README's recipe has it."""

    model_type = "llava_next_video"

    def frame_sizes(self, model, arguments, counts):
        return [[2] * (count // 2) for count in counts]


def test_a_family_of_ones_own(monkeypatch):
    monkeypatch.setattr(families, "FAMILIES", dict(families.FAMILIES))
    adatp.register_family(TwoByTwo())
    model = build("llava_next_video")
    with adatp.accelerate(model, CONFIG) as run:
        generate(model, prompt("llava_next_video"), max_new_tokens=1)
    assert run.report().layout.num_frames == 6 * CELLS // 2
    for wrong, message in (
        (TwoByTwo, "family: expected an instance"),
        (adatp.Family(), "family: Family needs a model_type"),
    ):
        with pytest.raises(TypeError, match=message):
            adatp.register_family(wrong)
    assert max(CONFIG.stages) < LAYERS


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_return_sequences": 2, "do_sample": True}], ids=str)
@pytest.mark.parametrize("family", BUILDERS)
def test_copies_of_one_prompt(family, options, compact):
    """Beams, and several answers to one prompt."""

    def run(model):
        torch.manual_seed(3)
        return generate(model, prompt(family), max_new_tokens=6, **options)[:2]

    model = build(family)
    copies = options.get("num_beams") or options["num_return_sequences"]
    with adatp.accelerate(model, dataclasses.replace(CONFIG, compact_cache=compact)) as acceleration:
        sequences, logits = run(model)
    survivors = survivors_of(acceleration, copies)
    # InternVL's copies get one another's frames before transformers 5.23, pruned or not.
    alike = family != "internvl" or parse(transformers.__version__) >= parse("5.23")
    assert all((kept == kept[0]).all() for _, kept in survivors) == alike
    if not alike and "num_beams" in options:
        return  # beams change rows, and the reference masks a row's own tokens
    full = build(family, "eager")
    MaskedReference(full, compact=compact).add(survivors, 0, prompt(family)["input_ids"].shape[1])
    expected_sequences, expected = run(full)
    assert torch.equal(sequences, expected_sequences)
    assert (logits - expected).abs().max() <= TOLERANCE


WITH_VIDEOS = [
    family for family in BUILDERS if family not in ("internvl", "smolvlm")
]  # these see images, frame by frame


def two_videos(family):
    """A prompt with two videos of two and three shots, with text between them."""
    first = prompt(family, frames=4, shots=2, seed=0)
    second = prompt(family, frames=4 if family.startswith("llava") else 6, shots=3 if family[0] != "l" else 2, seed=1)
    return joined([first, second])


@pytest.mark.parametrize("family", WITH_VIDEOS)
def test_two_videos_in_a_prompt(family):
    model, inputs = build(family), two_videos(family)
    with adatp.accelerate(model, CONFIG) as run:
        sequences, logits, _ = generate(model, inputs, max_new_tokens=8)
    report = run.report()
    # No segment goes from one video into the next, and every one keeps its share.
    shots = (0, 0, 1, 1, 2, 2, 3, 3) if family.startswith("llava") else (0, 0, 1, 1, 2, 2, 3, 3, 4, 4)
    assert report.segments == shots
    assert all(budget >= 1 for budget in report.plan.stages[-1].budgets)
    expected_sequences, expected, _ = masked(family, inputs, report.survivors, max_new_tokens=8)
    assert (logits - expected).abs().max() <= TOLERANCE
    assert torch.equal(sequences, expected_sequences)


def test_the_same_shot_in_two_videos_makes_two_segments():
    inputs = prompt("qwen2_vl", frames=4, shots=1)
    model = build("qwen2_vl")
    with adatp.accelerate(model, CONFIG) as run:
        generate(model, joined([inputs, inputs]), max_new_tokens=1)
    assert run.report().segments == (0, 0, 0, 0, 1, 1, 1, 1)


@pytest.mark.parametrize("family", ["internvl", "smolvlm"])
def test_frames_that_come_as_images_are_all_of_one_video(family):
    """What the table of ways says of these: nothing tells a video's first frame from another video's next."""
    one, two = (prompt(family, frames=4, shots=1, before=before) for before in ((1, 5), (12, 13)))
    inputs = joined([one, two])
    inputs["pixel_values"] = torch.cat([one["pixel_values"], two["pixel_values"]], dim=1 if family == "smolvlm" else 0)
    model = build(family)
    with adatp.accelerate(model, CONFIG) as run:
        _, logits, _ = generate(model, inputs, max_new_tokens=3)
    report = run.report()
    assert report.segments == (0,) * 8
    assert (logits - masked(family, inputs, report.survivors, max_new_tokens=3)[1]).abs().max() <= TOLERANCE


def with_an_image(inputs, *, video=True):
    """Before the prompt, or instead of it, a question about an image."""
    image = torch.tensor([[1, VISION_START, *[IMAGE] * CELLS, VISION_END, 40, 41]])
    extra = {
        "pixel_values": torch.randn(16, 3 * 2 * 49, generator=torch.Generator().manual_seed(5)),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
    }
    ids = torch.cat([image, inputs["input_ids"]], 1) if video else image
    rest = {name: inputs[name] for name in ("pixel_values_videos", "video_grid_thw") if video}
    kinds = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": kinds, **extra, **rest}


def test_an_image_beside_a_video_is_kept_and_alone_passes_through():
    model, inputs = build("qwen2_vl"), with_an_image(prompt("qwen2_vl"))
    with adatp.accelerate(model, CONFIG) as run:
        _, logits, _ = generate(model, inputs, max_new_tokens=6)
        report = run.report()
        alone = with_an_image(None, video=False)
        _, of_image, _ = generate(model, alone, max_new_tokens=4)
    image = (inputs["input_ids"][0] == IMAGE).nonzero()[:, 0].tolist()
    assert len(image) == CELLS and all(set(image) <= set(kept.tolist()) for _, kept in report.survivors)
    assert report.actual_tokens[-1] < report.actual_tokens[0] == 6 * CELLS
    _, expected, _ = masked("qwen2_vl", inputs, report.survivors, max_new_tokens=6)
    assert (logits - expected).abs().max() <= TOLERANCE
    assert of_image.equal(generate(build("qwen2_vl"), alone, max_new_tokens=4)[1])


@pytest.mark.parametrize("video", [True, False])
def test_images_are_pruned_if_asked(video):
    model, inputs = build("qwen2_vl"), with_an_image(prompt("qwen2_vl") if video else None, video=video)
    with adatp.accelerate(model, CONFIG, images="prune") as run:
        sequences, logits, _ = generate(model, inputs, max_new_tokens=6)
    report = run.report()
    # The image comes first, as a segment of its own.
    assert report.segments == ((0, 1, 1, 2, 2, 3, 3) if video else (0,))
    assert report.layout.index[:CELLS].tolist() == list(range(2, 2 + CELLS))
    left = {*report.survivors[-1][1].tolist()} & {*range(2, 2 + CELLS)}
    assert 1 <= len(left) < CELLS
    expected_sequences, expected, _ = masked("qwen2_vl", inputs, report.survivors, max_new_tokens=6)
    assert sequences.equal(expected_sequences)
    assert (logits - expected).abs().max() <= TOLERANCE


def test_images_between_the_videos_of_a_family_that_shows_its_frames():
    """LLaVA-OneVision's features come from its vision tower, which sees images at another time."""
    model, inputs = build("llava_onevision"), prompt("llava_onevision", shots=2)
    picture = {"pixel_values": torch.randn(1, 2, 3, 28, 28), "image_sizes": torch.tensor([[28, 28]])}
    with torch.no_grad():
        size = len(model.model.get_image_features(**picture).pooler_output[0])
    ids = inputs["input_ids"]
    inputs["input_ids"] = torch.cat([ids[:, :-2], torch.full((1, size), IMAGE), ids[:, -2:]], dim=1)
    inputs = {**inputs, **picture, "attention_mask": torch.ones_like(inputs["input_ids"])}
    with adatp.accelerate(model, CONFIG, images="prune") as run:
        sequences, logits, _ = generate(model, inputs, max_new_tokens=4)
    report = run.report()
    assert report.segments == (0, 0, 0, 1, 1, 1, 2)
    assert report.layout.frame.bincount().tolist() == [*[CELLS] * 6, size]
    expected_sequences, expected, _ = masked("llava_onevision", inputs, report.survivors, max_new_tokens=4)
    assert sequences.equal(expected_sequences)
    assert (logits - expected).abs().max() <= TOLERANCE
    with adatp.accelerate(model, CONFIG, images="prune", relevance=[0, 0, 0, 0, 0, 0, 1]) as run:
        generate(model, inputs, max_new_tokens=1)
    assert run.report().salient == (2,)


def test_refused_choices_about_images():
    model = build("llava_onevision")
    with pytest.raises(ValueError, match=r"images: expected one of \['keep', 'prune'\], got 'drop'"):
        adatp.accelerate(model, CONFIG, images="drop")
    pair = (type("Siglip", (), {"get_image_features": None, "get_text_features": None})(), print)
    with pytest.raises(
        ValueError, match='relevance: a SiglipModel sees the frames of videos alone; with images="prune"'
    ):
        adatp.accelerate(model, CONFIG, relevance=pair, question="what?", images="prune")


def test_frames_of_different_sizes():
    """Two videos of different resolution: each frame's feature is the mean of its own tokens."""
    small, large = prompt("qwen2_vl", frames=3, shots=3, seed=0), prompt("qwen2_vl", frames=4, shots=2, seed=1)
    # The second video's frames are 28 × 56: the patches of two pictures of 28 × 28 beside each other.
    large["video_grid_thw"] = torch.tensor([[2, 8, 4]])
    inputs = joined([small, large])
    model = build("qwen2_vl")
    with adatp.accelerate(model, CONFIG) as run:
        _, logits, _ = generate(model, inputs, max_new_tokens=3)
    report = run.report()
    assert report.layout.frame.bincount().tolist() == [CELLS] * 3 + [2 * CELLS] * 2
    assert report.segments == (0, 1, 2, 3, 4)
    assert (logits - masked("qwen2_vl", inputs, report.survivors, max_new_tokens=3)[1]).abs().max() <= TOLERANCE


@pytest.mark.parametrize("family", BUILDERS)
def test_the_inner_module_may_be_accelerated(family):
    """Prompts that come by the outer model are pruned alike."""
    model, kept, logits = build(family), [], []
    for accelerated in (model, model.model):
        with adatp.accelerate(accelerated, CONFIG) as run:
            logits.append(generate(model, prompt(family), max_new_tokens=2)[1])
            kept.append(run.report().survivors)
    assert logits[0].equal(logits[1])
    assert all(one.equal(other) for (_, one), (_, other) in zip(*kept, strict=True))
