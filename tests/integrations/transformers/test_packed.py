"""Prompts packed in one row are refused by their positions; positions of one prompt never are."""

import pytest
import torch
from family_models import BUILDERS, batch_of, build, joined, prompt
from masked_reference import generate

import adatp_kernels as adatp

CONFIG = adatp.AdaTPConfig(target_flops=0.5, stages=(2, 3, 6, 9))
PACKED = "^position_ids: expected those of one prompt in a row, which count up.* and then 0 in row {row}; .*give each a row of a batch"
QWEN = [family for family in BUILDERS if family.startswith("qwen")]


def lengths(prompts):
    return [one["input_ids"].shape[1] for one in prompts]


def planes_of(family, prompts):
    """The positions of time, height and width that transformers gives each prompt by itself, one after the other: [3, 1, N]."""
    model, names = build(family).model, ("mm_token_type_ids", "video_grid_thw", "second_per_grid_ts")
    return torch.cat(
        [model.get_rope_index(one["input_ids"], **{n: one[n] for n in names if n in one})[0] for one in prompts], 2
    )


def packed(family, planes=0, mask=False):
    """Two prompts in one row, and positions that begin anew for the second: of text, of M-RoPE, or of both."""
    prompts = [prompt(family), prompt(family, seed=1, after=(12, 13))]
    inputs = joined(prompts)
    if not mask:
        del inputs["attention_mask"]
    text = torch.cat([torch.arange(length) for length in lengths(prompts)])[None]
    inputs["position_ids"] = text
    if planes:
        of_rope = planes_of(family, prompts)
        inputs["position_ids"] = of_rope if planes == 3 else torch.cat([text[None], of_rope])
    return inputs


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize(
    ("family", "planes"), [*((family, 0) for family in BUILDERS), *((family, n) for family in QWEN for n in (3, 4))]
)
def test_a_packed_neighbour_is_refused(family, planes, use_cache, mask):
    model, inputs = build(family), packed(family, planes, mask)
    with adatp.accelerate(model, CONFIG) as run, torch.no_grad():
        with pytest.raises(ValueError, match=PACKED.format(row=0)):
            model(**inputs, use_cache=use_cache)
        generate(model, prompt(family), max_new_tokens=1)
    assert run.report().survivors


def test_a_neighbour_in_one_row_of_a_padded_batch_is_refused():
    first, second = prompt("llava_onevision", before=(1,)), prompt("llava_onevision")
    inputs = batch_of([first, second])
    positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    positions[1, -4:] -= positions[1, -4].item()
    with (
        adatp.accelerate(build("llava_onevision"), CONFIG) as run,
        pytest.raises(ValueError, match=PACKED.format(row=1)),
    ):
        run._model(**inputs, position_ids=positions)


def test_lengths_of_packed_prompts_are_refused():
    ends = torch.tensor([0, 20, 37], dtype=torch.int32)
    model = build("llava_onevision")
    for name in ("cu_seq_lens_q", "cu_seq_lens_k"):
        with (
            adatp.accelerate(model, CONFIG),
            pytest.raises(ValueError, match=f"^{name}: expected no lengths of packed prompts"),
        ):
            model(**prompt("llava_onevision"), **{name: ends})


def test_a_gap_is_a_neighbour_where_transformers_takes_it_for_one():
    """Without a mask and a cache it lets no token see past a step that is not one; with a mask positions may have gaps."""
    model, inputs = build("llava_onevision"), prompt("llava_onevision")
    positions = torch.arange(inputs["input_ids"].shape[1])[None]
    positions[:, -3:] += 10
    with adatp.accelerate(model, CONFIG) as run, torch.no_grad():
        model(**inputs, position_ids=positions)
        run.report()
        del inputs["attention_mask"]
        with pytest.raises(ValueError, match=r"^position_ids: .* which count up by one, got 29 and then 40 in row 0"):
            model(**inputs, position_ids=positions, use_cache=False)


def survivors(family, inputs, **options):
    model = build(family)
    with adatp.accelerate(model, CONFIG) as run, torch.no_grad():
        model(**inputs, **options)
    return [kept.tolist() for _, kept in run.report().survivors]


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("family", BUILDERS)
def test_positions_of_one_prompt_are_not_refused(family, mask):
    inputs = prompt(family)
    text = torch.arange(inputs["input_ids"].shape[1])[None]
    given = [text, text + 7]
    if family in QWEN:
        of_rope = planes_of(family, [inputs])
        given = [of_rope, torch.cat([text[None], of_rope])]
    if not mask:
        del inputs["attention_mask"]
    expected = survivors(family, inputs)
    for positions in given:
        for use_cache in (False, True):
            assert survivors(family, inputs, position_ids=positions, use_cache=use_cache) == expected


@pytest.mark.parametrize("family", QWEN)
def test_nor_are_those_of_a_long_video_that_outruns_its_frames(family):
    """M-RoPE's own positions go down behind it, and on from frame to frame; the text's do not."""
    inputs = prompt(family, frames=40)
    if family == "qwen2_5_vl":
        inputs["second_per_grid_ts"] = 4 * torch.ones(1)
    positions = planes_of(family, [inputs])
    assert (positions.diff() < 0).any()
    survivors(family, inputs, position_ids=positions)


@pytest.mark.parametrize("fill", [0, 1, -1])
@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl"])
def test_nor_are_those_of_padding(family, fill):
    inputs = batch_of([prompt(family), prompt(family, before=(1, 5, 6, 12, 13, 14))])
    real = inputs["attention_mask"]
    positions = (real.cumsum(1) - 1).masked_fill(real == 0, fill)
    if family in QWEN:
        names = ("mm_token_type_ids", "video_grid_thw", "second_per_grid_ts", "attention_mask")
        of_rope = build(family).model.get_rope_index(
            inputs["input_ids"], **{n: inputs[n] for n in names if n in inputs}
        )[0]
        positions = torch.cat([positions[None], of_rope])
    assert survivors(family, inputs, position_ids=positions) == survivors(family, inputs)


@pytest.mark.parametrize("family", BUILDERS)
def test_nor_are_those_of_a_later_turn(family):
    """They begin where the cache ends; in a batch, a shorter turn has padding between its own tokens."""
    model = build(family)
    with adatp.accelerate(model, CONFIG) as run:
        first = batch_of(
            [
                {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
                for ids in (torch.tensor([[1, 5, 6]]), torch.tensor([[1, 5, 6, 7]]))
            ]
        )
        sequences, _, cache = generate(model, first, max_new_tokens=3)
        more = batch_of([prompt(family, seed=1), prompt(family, seed=2, before=(1, 5, 6, 12))])
        ids = torch.cat([sequences, more["input_ids"]], 1)
        written = torch.ones(2, sequences.shape[1] - first["input_ids"].shape[1], dtype=torch.int64)
        more |= {
            "input_ids": ids,
            "attention_mask": torch.cat([first["attention_mask"], written, more["attention_mask"]], 1),
        }
        if "mm_token_type_ids" in more:
            more["mm_token_type_ids"] = torch.nn.functional.pad(more["mm_token_type_ids"], (sequences.shape[1], 0))
        generate(model, {**more, "past_key_values": cache}, max_new_tokens=2)
    texts = [run.report(row).text_tokens for row in range(2)]
    assert texts[1] == texts[0] + 1
