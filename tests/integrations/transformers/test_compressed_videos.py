"""VideoLLaMA3's processor leaves out patches that did not change: which cell of its frame every token is that came in."""

import dataclasses
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from default_contexts import answers, check_same, of_defaults
from family_models import ALONG_TOKENS, VIDEO, batch_of, build, compressed, joined, prompt
from masked_reference import TOLERANCE, MaskedReference, generate

import adatp_kernels as adatp
from adatp_kernels.integrations.transformers import families
from adatp_kernels.integrations.transformers.visuals import find_visuals

CONFIG = adatp.AdaTPConfig(target_flops=0.5, stages=(2, 3, 6, 9))
FAMILY = "video_llama_3"


FEW = [[0, 1, 2, 3], [1], [0, 3], [2, 3], [0, 1, 2, 3], [3]]
WIDE = [list(range(32)), [31], [4, 5, 17], [0, 8, 16, 24]]


def cells_of(layout):
    """Of each frame of a layout, its cells."""
    return [layout.position[layout.frame == frame].tolist() for frame in range(layout.num_frames)]


@pytest.mark.parametrize("compact", [False, True])
def test_a_token_is_the_cell_that_the_mask_says(compact):
    model, inputs = build(FAMILY), compressed(FEW)
    with adatp.accelerate(model, dataclasses.replace(CONFIG, compact_cache=compact)) as run:
        sequences, logits, _ = generate(model, inputs, max_new_tokens=6)
    report = run.report()
    assert cells_of(report.layout) == FEW
    assert report.layout.index.tolist() == (inputs["input_ids"][0] == VIDEO).nonzero()[:, 0].tolist()
    assert report.actual_tokens[-1] < report.actual_tokens[0] == sum(map(len, FEW))
    full = build(FAMILY, "eager")
    MaskedReference(full, compact=compact).add(report.survivors, 0, inputs["input_ids"].shape[1])
    expected_sequences, expected, _ = generate(full, inputs, max_new_tokens=6)
    assert sequences.equal(expected_sequences)
    assert (logits - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize("kept", [[[0], [1], [2], [3], [0]], [[0, 1], [0, 1], [0]], [[1, 2, 3], [3], [3]]])
def test_only_the_same_cells_are_copies_of_each_other(kept):
    """All frames in one segment, of which one token of every cell may stay."""
    strict = adatp.AdaTPConfig(
        target_flops=None, stages=(2,), schedule=(0.8,), spatial_dedup="strict", segment_threshold=-1.0
    )
    with adatp.accelerate(build(FAMILY), strict) as run:
        generate(run._model, compressed(kept), max_new_tokens=1)
    report = run.report()
    left = report.layout.position[torch.isin(report.layout.index, report.survivors[-1][1])].tolist()
    assert sorted(left) == sorted({cell for cells in kept for cell in cells})


def test_videos_of_a_batch_have_their_own_cells_and_merge_sizes():
    wide, few = compressed(WIDE, grid=(4, 8), merge=1, seed=1), compressed(FEW)
    whole = {**prompt(FAMILY, seed=2), "video_compression_mask": torch.ones(24, dtype=torch.bool)}
    rows = [joined([wide, few]), whole]
    with adatp.accelerate(build(FAMILY), CONFIG) as run:
        generate(run._model, batch_of(rows), max_new_tokens=2)
    assert cells_of(run.report(0).layout) == WIDE + FEW
    assert cells_of(run.report(1).layout) == [[0, 1, 2, 3]] * 6


def test_another_mask_of_as_many_cells_is_another_layout():
    model = build(FAMILY)
    family, layouts, before = families.find(model), [], ()
    for kept in ([[0, 1], [2]], [[0, 1], [3]], [[0, 1], [3]], [[0, 1], [0]]):
        before = find_visuals(family, model, compressed(kept), before=before)
        layouts.append(before[0].layout)
        assert cells_of(layouts[-1]) == kept
    assert layouts[1] is layouts[2]
    # Nothing left out, of frames of two cells: the same places and sizes as two of four.
    part = find_visuals(family, model, compressed([[0, 2], [1, 3]]))
    small = compressed([[0, 2], [1, 3]])
    small |= {"video_grid_thw": torch.tensor([[2, 4, 2]]), "video_compression_mask": torch.ones(4, dtype=torch.bool)}
    whole = find_visuals(family, model, small, before=part)
    assert whole[0].layout.index.equal(part[0].layout.index)
    assert cells_of(whole[0].layout) == [[0, 1], [0, 1]]
    assert cells_of(find_visuals(family, model, compressed([[0, 2], [1, 3]]), before=whole)[0].layout) == [
        [0, 2],
        [1, 3],
    ]


def test_an_encoding_has_all_cells_and_counts_as_the_mask_leaves_it():
    family = families.FAMILIES[FAMILY]

    def encoded(*sizes):
        output = SimpleNamespace(pooler_output=tuple(torch.zeros(size, 1) for size in sizes))
        both = joined([compressed(FEW), compressed([[0], [1, 2]])])
        return {"mm_encoder_outputs": {"video": output}, **both}

    assert family.encoded_tokens(encoded(24, 8)) == [14, 3]
    with pytest.raises(ValueError, match="mm_encoder_outputs: expected the features of all 32 cells of .*, got 24"):
        family.encoded_tokens(encoded(24))


def test_a_mask_that_leaves_nothing_out_changes_nothing():
    inputs = prompt(FAMILY)
    masks = ({}, {"video_compression_mask": torch.ones(24, dtype=torch.bool)})
    found = []
    for mask in masks:
        with adatp.accelerate(build(FAMILY), CONFIG) as run:
            found.append(generate(run._model, {**inputs, **mask}, max_new_tokens=4)[1])
    assert found[0].equal(found[1])


def test_copies_of_a_compressed_prompt():
    model, inputs = build(FAMILY), compressed(FEW)
    with adatp.accelerate(model, CONFIG) as run:
        # Newer versions repeat the mask entry by entry, and mix up the copies' features, pruned or not.
        mixed = not hasattr(type(model), "_get_image_nums_and_video_nums")
        message = "video_compression_mask: expected an entry for each of the 24 cells of video_grid_thw, got 48"
        with pytest.raises(ValueError, match=message) if mixed else nullcontext():
            generate(model, inputs, max_new_tokens=3, num_beams=2)
        if not mixed:
            assert cells_of(run.report(0).layout) == cells_of(run.report(1).layout) == FEW


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda mask: mask[:-1], "expected an entry for each of the 24 cells of video_grid_thw, got 23"),
        (lambda mask: mask.long(), r"expected a bool tensor of shape \[cells\], got torch.int64"),
        (lambda mask: mask.view(6, 4), r"expected a bool tensor of shape \[cells\], got torch.bool of shape \[6, 4\]"),
        (lambda mask: mask.tolist(), "expected a bool tensor .* got list"),
        (
            lambda mask: mask & (torch.arange(24) // 4 != 5),
            "expected at least one cell of every frame.* got none of frame 5 of video 0",
        ),
    ],
)
def test_refused_masks(change, message):
    model, inputs = build(FAMILY), compressed(FEW)
    inputs["video_compression_mask"] = change(inputs["video_compression_mask"])
    with (
        adatp.accelerate(model, CONFIG),
        pytest.raises((ValueError, TypeError), match=f"video_compression_mask: {message}"),
    ):
        model.model(**inputs)


def test_tokens_that_the_mask_does_not_leave_are_refused():
    inputs = compressed(FEW)
    gone = {name: value[:, :-6] if name in ALONG_TOKENS else value for name, value in inputs.items()}
    whole = {name: value for name, value in inputs.items() if name != "video_compression_mask"}
    model = build(FAMILY)
    for wrong in (gone, whole):
        with adatp.accelerate(model, CONFIG), pytest.raises(ValueError, match="input_ids: expected .* video tokens"):
            model.model(**wrong)


@of_defaults
def test_cells_are_read_the_same_whatever_new_tensors_have_by_default(default):
    model, inputs = build(FAMILY), compressed(FEW)
    check_same(default, lambda: answers(model, inputs, CONFIG))
