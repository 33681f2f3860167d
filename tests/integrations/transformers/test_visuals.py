"""Where the visual tokens stand is worked out anew only where they stand elsewhere."""

import pytest
import torch
from family_models import IMAGE, VIDEO, batch_of, build, joined, prompt

import adatp_kernels as adatp
from adatp_kernels.integrations.transformers import families
from adatp_kernels.integrations.transformers.visuals import find_visuals


def of(family, inputs, before=(), **options):
    model = build(family)
    return find_visuals(families.find(model), model, inputs, before=before, **options)


def same(one, other):
    return all(getattr(one.layout, name).equal(getattr(other.layout, name)) for name in ("index", "frame", "position"))


def test_another_question_shares_the_layout():
    first = of("llava_onevision", prompt("llava_onevision"))
    again = of("llava_onevision", prompt("llava_onevision", seed=1, after=(7, 8)), first)
    assert again[0] is first[0]
    batch = batch_of([prompt("llava_onevision"), prompt("llava_onevision", after=(7, 8))])
    rows = of("llava_onevision", batch, first)
    assert rows[0] is first[0] and not same(rows[1], first[0])


@pytest.mark.parametrize("other", [{"before": (1, 5)}, {"frames": 5}])
def test_tokens_that_stand_elsewhere_do_not(other):
    first, inputs = of("llava_onevision", prompt("llava_onevision")), prompt("llava_onevision", **other)
    found, expected = of("llava_onevision", inputs, first)[0], of("llava_onevision", inputs)[0]
    assert same(found, expected) and not same(found, first[0])


def test_nor_do_those_beside_an_image_that_stands_elsewhere():
    inputs = prompt("llava_onevision", after=(7, IMAGE, 8))
    first = of("llava_onevision", inputs)
    assert first[0].whole.tolist() == [inputs["input_ids"].shape[1] - 2]
    assert of("llava_onevision", inputs, first)[0] is first[0]
    for after, whole in (((IMAGE, 7, 8), [-3]), ((7, 8, 9), []), ((IMAGE, IMAGE, 8), [-3, -2])):
        other = prompt("llava_onevision", after=after)
        found = of("llava_onevision", other, first)[0]
        assert same(found, first[0]) and found is not first[0]
        assert found.whole.tolist() == [other["input_ids"].shape[1] + place for place in whole]


def test_nor_do_the_same_tokens_in_other_frames():
    """Two videos of six frames, one after the other; then their tokens as videos of four and eight, and of other sizes."""
    inputs = joined([prompt("qwen2_vl", before=(), after=())] * 2)
    first = of("qwen2_vl", inputs)
    for grid in ([[4, 4, 4], [8, 4, 4]], [[6, 4, 2], [6, 4, 6]]):
        other = {**inputs, "video_grid_thw": torch.tensor(grid)}
        found, expected = of("qwen2_vl", other, first)[0], of("qwen2_vl", other)[0]
        assert found.layout.index.equal(first[0].layout.index)
        assert found is not first[0] and same(found, expected)
        assert found.frames == expected.frames and (found.frames, found.sizes) != (first[0].frames, first[0].sizes)


def test_an_image_is_no_video_of_one_frame():
    """What is an image gets no relevance."""
    first = of("llava_onevision", prompt("llava_onevision", frames=1))
    image = {"input_ids": prompt("llava_onevision", frames=1)["input_ids"].clone(), "pixel_values": torch.zeros(1)}
    image["input_ids"][image["input_ids"] == VIDEO] = IMAGE
    image["input_ids"][0, 7] = 5  # in place of the newline
    found = of("llava_onevision", image, first, prune_images=True)[0]
    assert same(found, first[0]) and found.images == (True,) and first[0].images == (False,)
    assert not len(found.whole)


def test_a_report_keeps_its_layout_when_another_prompt_follows():
    model = build("llava_onevision")
    config = adatp.AdaTPConfig(target_flops=0.5, stages=(2, 3, 6, 9))
    with adatp.accelerate(model, config) as run, torch.no_grad():
        model(**prompt("llava_onevision"))
        report = run.report()
        model(**prompt("llava_onevision", after=(7, 8)))
        assert run.report().layout is report.layout
        model(**prompt("llava_onevision", before=(1, 5, 6, 6)))
        assert run.report().layout.index.equal(report.layout.index + 1)
