"""Batches of different prompts, padded on the left, in other ways than one greedy `generate`; see also test_matrix."""

import dataclasses

import pytest
import torch
from family_models import ALONG_TOKENS, CELLS, VIDEO, batch_of, build, prompt
from masked_reference import TOLERANCE, MaskedReference, generate, survivors_of
from small_models import ATTENTION

import adatp_kernels as adatp

CONFIG = adatp.AdaTPConfig(target_flops=0.5, stages=(2, 3, 6, 9))


def check(family, inputs, survivors, run, *, compact=False):
    """Generate under `run`, whose survivors a function then tells, and compare with the masked full sequence."""
    sequences, logits = run
    full = build(family, "eager")
    MaskedReference(full, compact=compact).add(survivors, 0, inputs["input_ids"].shape[1])
    expected_sequences, expected, _ = generate(full, inputs, max_new_tokens=logits.shape[0])
    assert (logits - expected).abs().max() <= TOLERANCE
    assert sequences.equal(expected_sequences)


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl", "video_llama_3", "internvl"])
def test_videos_of_different_lengths(family, attention, compact):
    """The padding beside a short video goes with the first stage, but for what a longer text needs."""
    prompts = [
        prompt(family, frames=4, shots=2),
        prompt(family, frames=12, shots=6, seed=1, after=(7, 8)),
        prompt(family, frames=6, seed=2, after=(7, 8, 9, 10)),
    ]
    inputs, model = batch_of(prompts), build(family, attention)
    with adatp.accelerate(model, dataclasses.replace(CONFIG, compact_cache=compact)) as run:
        sequences, logits, cache = generate(model, inputs, max_new_tokens=6)
    reports = [run.report(row) for row in range(3)]
    assert [report.actual_tokens[0] // CELLS for report in reports] == [4, 12, 6]
    texts = [report.text_tokens for report in reports]
    assert texts == [one["input_ids"].shape[1] - CELLS * f for one, f in zip(prompts, (4, 12, 6), strict=True)]
    assert [report.actual_tokens for report in reports] == [report.planned_tokens for report in reports]
    left = [text + report.actual_tokens[-1] for text, report in zip(texts, reports, strict=True)]
    # No column more than the row with most text needs.
    assert cache.layers[-1].keys.shape[2] == max(left) + 5
    check(family, inputs, survivors_of(run, 3), (sequences, logits), compact=compact)


def test_a_row_is_pruned_as_it_would_be_alone():
    """Where the totals are those of the prompt alone: the same tokens, the same logits."""
    prompts = [prompt("llava_onevision", seed=seed, after=tuple(range(7, 12 + seed))) for seed in range(3)]
    model, alone = build("llava_onevision"), []
    with adatp.accelerate(model, CONFIG) as run:
        for one in prompts:
            _, logits, _ = generate(model, one, max_new_tokens=4)
            alone.append((logits, run.report()))
        _, logits, _ = generate(model, batch_of(prompts), max_new_tokens=4)
        assert not run.report().plan.shared
        length = max(one["input_ids"].shape[1] for one in prompts)
        for row, (own, report) in enumerate(alone):
            assert (logits[:, row] - own[:, 0]).abs().max() <= TOLERANCE
            pad = length - prompts[row]["input_ids"].shape[1]
            kept = [(kept[kept >= pad] - pad).tolist() for _, kept in run.report(row).survivors]
            assert kept == [kept.tolist() for _, kept in report.survivors]


def test_the_smallest_total_is_everyones():
    still, busy = prompt("llava_onevision", shots=1), prompt("llava_onevision", shots=6)
    model = build("llava_onevision")
    with adatp.accelerate(model, CONFIG) as run:
        generate(model, still, max_new_tokens=1)
        alone = run.report().plan
        generate(model, batch_of([busy, still]), max_new_tokens=1)
    assert run.report(1).plan == alone and alone.capped and not alone.shared
    assert [stage.total for stage in run.report(0).plan.stages] == [stage.total for stage in alone.stages]
    assert run.report(0).plan.shared and "other prompts of the batch keep fewer" in str(run.report(0))
    assert run.report(0).actual_flops_ratio == run.report(1).actual_flops_ratio < CONFIG.target_flops


@pytest.mark.parametrize("preset", ["fastv", "pyramiddrop", "random", "uniform"])
def test_presets_in_a_batch(preset):
    prompts = [prompt("internvl", frames=4, shots=2), prompt("internvl", frames=7, seed=1, after=(7, 8))]
    inputs, model = batch_of(prompts), build("internvl")
    with adatp.accelerate(model, adatp.AdaTPConfig.preset(preset, target_flops=0.6)) as run:
        sequences, logits, _ = generate(model, inputs, max_new_tokens=4)
    survivors = survivors_of(run, 2)
    check("internvl", inputs, survivors, (sequences, logits))
    if preset == "uniform":  # among the tokens of the longer video, as evenly as it goes
        layout = run.report(1).layout
        kept = torch.isin(layout.index, survivors[0][1][1]).nonzero()[:, 0].diff()
        assert kept.max() - kept.min() <= 1


def test_two_videos_in_one_row_and_one_in_the_other():
    first, second = prompt("qwen2_vl", frames=3, shots=3), prompt("qwen2_vl", frames=3, shots=1, seed=1)
    both = {name: torch.cat([first[name], second[name]], 1 if name in ALONG_TOKENS else 0) for name in first}
    other = prompt("qwen2_vl", frames=6, shots=2, seed=2)
    for rows, segments in (([both, other], ((0, 1, 2, 3, 3, 3), (0, 0, 0, 1, 1, 1))), ([other, both], ())):
        inputs, model = batch_of(rows), build("qwen2_vl")
        with adatp.accelerate(model, CONFIG) as run:
            sequences, logits, _ = generate(model, inputs, max_new_tokens=4)
        assert (run.report(0).segments, run.report(1).segments) == (
            segments or ((0, 0, 0, 1, 1, 1), (0, 1, 2, 3, 3, 3))
        )
        check("qwen2_vl", inputs, survivors_of(run, 2), (sequences, logits))


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_vl"])
def test_several_answers_to_each_prompt(family, compact):
    prompts = [prompt(family), prompt(family, shots=2, seed=1, after=(7, 8))]

    def answers(model):
        torch.manual_seed(3)
        return generate(model, batch_of(prompts), max_new_tokens=5, num_return_sequences=2, do_sample=True)[:2]

    model = build(family)
    with adatp.accelerate(model, dataclasses.replace(CONFIG, compact_cache=compact)) as run:
        sequences, logits = answers(model)
    assert [run.report(row).segments[-1] for row in range(4)] == [2, 2, 1, 1]
    full = build(family, "eager")
    length = batch_of(prompts)["input_ids"].shape[1]
    MaskedReference(full, compact=compact).add(survivors_of(run, 4), 0, length)
    expected_sequences, expected = answers(full)
    assert sequences.equal(expected_sequences)
    assert (logits - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize("compact", [False, True])
def test_beams_of_two_prompts(compact):
    """Beams of a row stay within the row, so masks by row stay right."""
    prompts = [prompt("llava_onevision"), prompt("llava_onevision", seed=1, after=(7, 8))]

    def beams(model):
        return generate(model, batch_of(prompts), max_new_tokens=5, num_beams=2)[:2]

    model = build("llava_onevision")
    with adatp.accelerate(model, dataclasses.replace(CONFIG, compact_cache=compact)) as run:
        sequences, logits = beams(model)
    full = build("llava_onevision", "eager")
    length = batch_of(prompts)["input_ids"].shape[1]
    MaskedReference(full, compact=compact).add(survivors_of(run, 4), 0, length)
    expected_sequences, expected = beams(full)
    assert sequences.equal(expected_sequences)
    assert (logits - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize("second_video", [False, True])
@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("attention", ATTENTION)
def test_a_second_turn_of_a_batch(attention, compact, second_video):
    first = batch_of([prompt("llava_onevision"), prompt("llava_onevision", shots=2, seed=1, after=(7, 8))])
    if second_video:
        more = batch_of(
            [
                prompt("llava_onevision", frames=4, shots=2, seed=2, before=(12,), after=(14, 15)),
                prompt("llava_onevision", frames=4, shots=4, seed=3, before=(12,), after=(14, 15, 16, 17)),
            ]
        )
    else:
        more = batch_of([{"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids)).long()}
                         for ids in ((12, 13, 14), (15, 16))])  # fmt: skip

    def turns(model, between=lambda: None):
        sequences, _, cache = generate(model, first, max_new_tokens=3)
        between()
        seen = torch.ones_like(sequences)
        seen[:, : first["input_ids"].shape[1]] = first["attention_mask"]
        again = {
            **more,
            "input_ids": torch.cat([sequences, more["input_ids"]], 1),
            "attention_mask": torch.cat([seen, more["attention_mask"]], 1),
            "past_key_values": cache,
        }
        return sequences.shape[1] - 1, again["input_ids"].shape[1], generate(model, again, max_new_tokens=4)[1]

    model, kept = build("llava_onevision", attention), []
    with adatp.accelerate(model, dataclasses.replace(CONFIG, compact_cache=compact)) as run:
        seen, total, logits = turns(model, lambda: kept.append(survivors_of(run, 2)))
        kept.append(survivors_of(run, 2))
    full = build("llava_onevision", "eager")
    reference = MaskedReference(full, compact=compact)
    reference.add(kept[0], 0, first["input_ids"].shape[1])
    if second_video:
        reference.add(kept[1], seen, total - seen)
    assert (logits - turns(full)[2]).abs().max() <= TOLERANCE


def test_relevance_of_a_batch():
    prompts = [prompt("qwen2_vl", frames=4, shots=2), prompt("qwen2_vl", frames=6, seed=1)]
    model = build("qwen2_vl")
    with adatp.accelerate(model, CONFIG, relevance=[0, 0, 1, 1, 1, 1, 0, 0, 0, 0]) as run:
        generate(model, batch_of(prompts), max_new_tokens=1)
        assert (run.report(0).salient, run.report(1).salient) == ((1,), (0,))
        run.relevance = [0.0, 1.0, 0.0]
        with pytest.raises(ValueError, match=r"relevance: .*each of the video's 4 \+ 6 frames, got shape \[3\]"):
            generate(model, batch_of(prompts), max_new_tokens=1)


def test_refusals_of_a_batch():
    short, long = (
        prompt("qwen2_vl", frames=4, shots=1, after=tuple(range(7, 27))),
        prompt("qwen2_vl", frames=12, shots=2),
    )
    model = build("qwen2_vl")
    with adatp.accelerate(model, CONFIG) as run:
        # The long video's row has no padding, so it would have to keep 15 tokens more than the other, of 8 it may.
        message = "padding: beside the longest text of the batch row 1 has to keep 15 visual tokens more.* at least 15 columns"
        with pytest.raises(ValueError, match=message):
            generate(model, batch_of([short, long]), max_new_tokens=1)
        padded = batch_of([short, long])
        padded |= {name: torch.nn.functional.pad(padded[name], (15, 0)) for name in ALONG_TOKENS}
        sequences, logits, _ = generate(model, padded, max_new_tokens=3)
        check("qwen2_vl", padded, survivors_of(run, 2), (sequences, logits))
        for row, error in ((2, ValueError), (-1, ValueError), (0.5, TypeError)):
            with pytest.raises(error, match="row: "):
                run.report(row)
        swapped = batch_of([long, short])
        swapped["input_ids"][1, -1] = VIDEO
        with pytest.raises(ValueError, match="input_ids: expected 16 video tokens for 4 frames in row 1, got 17"):
            generate(model, swapped, max_new_tokens=1)
