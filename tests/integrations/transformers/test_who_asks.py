"""Only text asks: that of the prompt itself, behind all that is visual, and nothing that is masked."""

import dataclasses

import pytest
import torch
from family_models import (
    ALONG_TOKENS,
    IMAGE,
    VIDEO,
    WITH_IMAGES,
    batch_of,
    build,
    prompt,
    with_image,
)
from masked_reference import generate

import adatp_kernels as adatp
from adatp_kernels.integrations.transformers.observe import observe

CONFIG = adatp.AdaTPConfig(target_flops=0.5, stages=(2,))
LAYER = 2


def asking(ids):
    """The columns behind the last visual token of a row; LLaVA-OneVision's newline, of the video's id, is text."""
    visual = [k for k, token in enumerate(ids.tolist()) if token in (IMAGE, VIDEO)]
    return list(range(visual[-1] + 1, len(ids)))


def chosen_by(family, inputs, rows, report, number=0):
    """What the stage keeps of a row of a batch by the attention of those `rows`, taken from the whole map."""
    with torch.no_grad():
        maps = build(family, "eager")(**inputs, output_attentions=True).attentions[LAYER][number]
    layout = report.layout
    scores = maps[:, rows].double().mean((0, 1))[layout.index].float()
    segments = torch.tensor(report.segments)[layout.frame]
    return layout.index[adatp.ops.select(scores[None], segments, layout.position, [report.plan.stages[0].budgets])[0]]


def kept_of(report):
    left = report.survivors[0][1]
    return left[torch.isin(left, report.layout.index)]


def run(family, inputs, config=CONFIG, attention="sdpa", **options):
    model = build(family, attention)
    with adatp.accelerate(model, config) as acceleration:
        generate(model, inputs, **{"max_new_tokens": 1, **options})
    return [acceleration.report(row) for row in range(len(inputs["input_ids"]))]


@pytest.mark.parametrize("attention", ["eager", "sdpa", "adatp"])
@pytest.mark.parametrize("family", WITH_IMAGES)
def test_an_image_between_video_and_question_asks_nothing(family, attention):
    inputs = with_image(family)
    (report,) = run(family, inputs, attention=attention)
    ids = inputs["input_ids"][0]
    rows, wrong = asking(ids), list(range(int(report.layout.index[-1]) + 1, len(ids)))
    assert kept_of(report).equal(chosen_by(family, inputs, rows, report))
    assert not kept_of(report).equal(chosen_by(family, inputs, wrong, report))
    newline = family == "llava_onevision"
    assert report.text_tokens == int(((ids != IMAGE) & (ids != VIDEO)).sum()) + newline
    assert report.asking_start == rows[0]
    # No image token was dropped.
    assert set((ids == IMAGE).nonzero()[:, 0].tolist()) <= set(report.survivors[0][1].tolist())


@pytest.mark.parametrize("family", WITH_IMAGES)
def test_an_image_before_the_video_is_no_text(family):
    inputs = with_image(family, first=True)
    (report,) = run(family, inputs)
    ids = inputs["input_ids"][0]
    newline = family == "llava_onevision"
    rows = list(range(int(report.layout.index[-1]) + 1, len(ids)))  # the newline's, too
    assert kept_of(report).equal(chosen_by(family, inputs, rows, report))
    assert report.text_tokens == int(((ids != IMAGE) & (ids != VIDEO)).sum()) + newline


@pytest.mark.parametrize("queries", ["text", "last"])
@pytest.mark.parametrize("attention", ["sdpa", "adatp"])
def test_every_row_of_a_batch_asks_behind_its_own_image(attention, queries):
    """Images behind the video, before it, and none; questions of different lengths, padded on the left."""
    rows = [
        with_image("qwen2_vl", between=(40, 41, 42, 43)),
        with_image("qwen2_vl", first=True, seed=1, question=(7, 8, 9, 10, 11)),
        with_image("qwen2_vl", seed=2, question=(12, 13), between=(50,)),
    ]
    inputs = batch_of(rows)
    reports = run("qwen2_vl", inputs, dataclasses.replace(CONFIG, queries=queries), attention)
    padding = (inputs["attention_mask"] == 0).sum(1).tolist()
    assert len(set(padding)) > 1
    for number, report in enumerate(reports):
        ids = inputs["input_ids"][number]
        ask = asking(ids)
        assert report.asking_start == ask[0]
        ask = ask[-1:] if queries == "last" else ask
        assert kept_of(report).equal(chosen_by("qwen2_vl", alone(inputs, number), ask, report))
        assert report.text_tokens == int(((ids != IMAGE) & (ids != VIDEO)).sum()) - padding[number]


def alone(inputs, number):
    """One row of a batch, padding included; each has a video of as many patches and an image of as many."""
    count = len(inputs["input_ids"])
    return {
        name: value[number : number + 1] if name in ALONG_TOKENS else value.chunk(count)[number]
        for name, value in inputs.items()
    }


def test_two_rows_that_differ_only_in_where_the_image_stands_are_no_copies():
    """One layout in both, and as much text."""
    inputs = batch_of(
        [
            with_image("qwen2_vl", between=(40, 41, 42)),
            with_image("qwen2_vl", between=(40,), question=(7, 8, 9, 10, 11)),
        ]
    )
    assert inputs["attention_mask"].all()
    reports = run("qwen2_vl", inputs)
    assert reports[0].layout.index.equal(reports[1].layout.index)
    for number, report in enumerate(reports):
        rows = asking(inputs["input_ids"][number])
        assert report.asking_start == rows[0]
        assert kept_of(report).equal(chosen_by("qwen2_vl", alone(inputs, number), rows, report))


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("options", [{"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True}], ids=str)
def test_copies_of_a_prompt_with_an_image(options, compact):
    inputs, model = with_image("qwen2_vl"), build("qwen2_vl")
    with adatp.accelerate(model, dataclasses.replace(CONFIG, compact_cache=compact)) as acceleration:
        generate(model, inputs, max_new_tokens=3, **options)
    rows = asking(inputs["input_ids"][0])
    for row in range(2):
        report = acceleration.report(row)
        assert kept_of(report).equal(chosen_by("qwen2_vl", inputs, rows, report))


def test_a_second_turn_with_a_video_and_an_image():
    """The cache's text asks nothing, nor does the image."""
    family, model = "video_llama_3", build("video_llama_3")
    ids = torch.tensor([[1, 5, 6, 30, 31, 32]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with adatp.accelerate(model, CONFIG) as acceleration:
        sequences, _, cache = generate(model, inputs, max_new_tokens=3)
        more = with_image(family)
        whole = torch.cat([sequences, more["input_ids"]], 1)
        more |= {"input_ids": whole, "attention_mask": torch.ones_like(whole)}
        generate(model, {**more, "past_key_values": cache}, max_new_tokens=2)
    report, past = acceleration.report(), sequences.shape[1] - 1
    # The columns of the report are the turn's.
    shifted = dataclasses.replace(report, layout=dataclasses.replace(report.layout, index=report.layout.index + past))
    expected = chosen_by(family, more, asking(whole[0]), shifted) - past
    assert kept_of(report).equal(expected)


def test_a_masked_token_asks_nothing_and_is_no_text():
    """A hole in the question, and a masked image behind it."""
    inputs = with_image("qwen2_vl", question=(7, 8, 9, 10, 11))
    inputs["attention_mask"][0, -3:-1] = 0
    (report,) = run("qwen2_vl", inputs)
    ids = inputs["input_ids"][0]
    rows = asking(ids)
    rows = rows[:-3] + rows[-1:]
    assert kept_of(report).equal(chosen_by("qwen2_vl", inputs, rows, report))
    assert report.text_tokens == int(((ids != IMAGE) & (ids != VIDEO)).sum()) - 2
    # One that nobody sees does not stand between video and question.
    inputs = with_image("qwen2_vl")
    inputs["attention_mask"][0, (inputs["input_ids"] == IMAGE)[0]] = 0
    (report,) = run("qwen2_vl", inputs)
    last = int(report.layout.index[-1])
    assert report.asking_start == last + 1
    assert report.text_tokens == int(((inputs["input_ids"] != IMAGE) & (inputs["input_ids"] != VIDEO)).sum())
    rows = [k for k in range(last + 1, inputs["input_ids"].shape[1]) if inputs["input_ids"][0, k] != IMAGE]
    assert kept_of(report).equal(chosen_by("qwen2_vl", inputs, rows, report))


def test_a_masked_frame_stays_visual():
    inputs = prompt("llava_next_video")
    inputs["attention_mask"][0, 8:12] = 0  # of the video
    (report,) = run("llava_next_video", inputs)
    assert (inputs["input_ids"][0, 8:12] == VIDEO).all()
    assert report.text_tokens == int((inputs["input_ids"] != VIDEO).sum())


def test_audio_is_no_text_either():
    model, inputs = build("llava_next_video"), prompt("llava_next_video", after=(7, 295, 295, 8, 9))
    model.config.audio_token_id = 295
    with adatp.accelerate(model, CONFIG) as acceleration:
        generate(model, inputs, max_new_tokens=1)
    report = acceleration.report()
    assert report.asking_start == inputs["input_ids"].shape[1] - 2 and report.text_tokens == 3 + 3
    assert kept_of(report).equal(chosen_by("llava_next_video", inputs, [-2, -1], report))


def test_nothing_behind_the_image_is_refused():
    inputs, model = with_image("llava_next_video", question=()), build("llava_next_video")
    message = "input_ids: expected text behind the last visual token of row 0, which chooses what is kept, got none"
    with adatp.accelerate(model, CONFIG), pytest.raises(ValueError, match=message):
        generate(model, inputs, max_new_tokens=1)
    with adatp.accelerate(model, CONFIG), pytest.raises(ValueError, match=message):
        generate(model, prompt("llava_next_video", after=()), max_new_tokens=1)
    # Whose scores come from elsewhere needs no rows.
    with adatp.accelerate(model, dataclasses.replace(CONFIG, score="random")) as acceleration:
        generate(model, inputs, max_new_tokens=1)
    assert acceleration.report().text_tokens == 5


@pytest.mark.parametrize("queries", ["text", "last"])
def test_what_is_observed_is_what_text_attends_to(queries):
    inputs = with_image("qwen2_vl")
    seen = observe(build("qwen2_vl"), inputs, dataclasses.replace(CONFIG, queries=queries), (LAYER,))
    with torch.no_grad():
        maps = build("qwen2_vl", "eager")(**inputs, output_attentions=True).attentions[LAYER][0]
    rows = [-1] if queries == "last" else asking(inputs["input_ids"][0])
    expected = maps[:, rows].double().mean((0, 1))[seen.layout.index]
    assert (seen.scores[0] - expected).abs().max() < 1e-6 < expected.max()
