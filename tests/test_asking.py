"""Which rows score where images that stay, and so are neither pruned nor text, stand beside the video."""

import dataclasses

import brute_force
import pytest
import torch
from pruner_inputs import DIM, GRID, SEGMENTS, TWO_STAGES, kept_of, pruner_of

from adatp_kernels import VisualLayout, ops
from adatp_kernels.batch import Batch

LENGTH = 64  # GRID, and twelve columns behind it
OTHER = VisualLayout.grid(6, 8, start=7)  # nine behind it


def attended(rows, seed=1):
    """Random queries and keys, and the LSE."""
    generator = torch.Generator().manual_seed(seed)
    query = 3 * torch.randn(rows, 4, LENGTH, DIM, generator=generator)
    key = torch.randn(rows, 2, LENGTH, DIM, generator=generator)
    return query, key, ops.row_lse(query, key, query_start=0)


def chosen(query, key, layout, plan, rows, key_mask=None):
    """What the first stage keeps of one prompt by the attention of those `rows`, of the whole map in float64."""
    whole = torch.zeros(1, LENGTH, dtype=torch.bool)
    whole[0, rows] = True
    scores = brute_force.column_sums(
        query, key, query_start=0, key_range=(0, LENGTH), query_mask=whole, key_mask=key_mask
    )
    picked = brute_force.select(
        scores[:, layout.index], SEGMENTS[layout.frame][None], layout.position[None], [plan.stages[0].budgets]
    )[0]
    return layout.index[picked].tolist()


def of_video(kept, layout):
    return [place for place in kept.tolist() if place in set(layout.index.tolist())]


@pytest.mark.parametrize("lse", [False, True])
@pytest.mark.parametrize("queries", ["text", "last"])
@pytest.mark.parametrize(
    ("images", "first"),
    [(None, 52), ([], 52), ([0, 1], 52), ([54, 55, 56], 57), ([2, 52, 53, 61], 62), ([62], 63)],
)
def test_the_text_behind_the_last_image_asks(images, first, queries, lse):
    pruner = pruner_of(dataclasses.replace(TWO_STAGES, queries=queries))
    given = images if images is None else torch.tensor(images, dtype=torch.int64)
    state = pruner.begin(GRID, LENGTH, segments=SEGMENTS, images=given)
    assert state.text_tokens == (16 - len(images or ()),) and state.asking_start == (first,)
    assert state.num_visual == 48
    query, key, whole_lse = attended(1)
    following, _ = pruner(state, query, key, (), dims=1, lse=whole_lse if lse else None)
    rows = [LENGTH - 1] if queries == "last" else range(first, LENGTH)
    assert of_video(following.kept[0], GRID) == chosen(query, key, GRID, state.plan, list(rows))
    assert set(following.kept[0].tolist()) >= {*range(4), *range(52, LENGTH)}  # nothing else is pruned
    assert following.num_visual == state.plan.stages[0].total and following.text_tokens == state.text_tokens


@pytest.mark.parametrize("lse", [False, True])
@pytest.mark.parametrize("queries", ["text", "last"])
def test_every_row_of_a_batch_behind_its_own(queries, lse):
    """Images behind the video, before it, none; a row with padding, and one with a masked token in its question."""
    pruner = pruner_of(dataclasses.replace(TWO_STAGES, queries=queries))
    layouts, images = [GRID, OTHER, OTHER], [torch.tensor([54, 58]), None, torch.tensor([3, 60])]
    state = pruner.begin(layouts, LENGTH, segments=[SEGMENTS] * 3, padding=[0, 0, 2], images=images)
    assert state.text_tokens == (14, 16, 12) and state.asking_start == (59, 55, 61)
    query, key, _ = attended(3)
    mask = torch.ones(3, LENGTH, dtype=torch.bool)
    mask[2, :2] = mask[0, 61] = False
    whole_lse = ops.row_lse(query, key, query_start=0, key_mask=mask)
    following, _ = pruner(state, query, key, (), dims=1, lse=whole_lse if lse else None, key_mask=mask)
    for row, (layout, first) in enumerate(zip(layouts, state.asking_start, strict=True)):
        rows = [LENGTH - 1] if queries == "last" else [k for k in range(first, LENGTH) if mask[row, k]]
        expected = chosen(query[row : row + 1], key[row : row + 1], layout, state.plans[row], rows, mask[row : row + 1])
        assert of_video(following.kept[row], layout) == expected


def test_later_stages_ask_the_same():
    pruner = pruner_of(dataclasses.replace(TWO_STAGES, spatial_dedup="off"))
    state = pruner.begin(GRID, LENGTH, segments=SEGMENTS, images=torch.tensor([56]), batch_size=2)
    for number in range(2):
        before, generator = state, torch.Generator().manual_seed(number)
        query = 3 * torch.randn(2, 4, state.length, DIM, generator=generator)
        key = torch.randn(2, 2, state.length, DIM, generator=generator)
        state, _ = pruner(state, query, key, (), dims=1)
        scores = brute_force.column_sums(
            query[:, :, -7:], key, query_start=before.length - 7, key_range=(4, before.length - 12)
        )
        places = before.kept[:, 4:-12]
        segments = SEGMENTS[GRID.frame][places - 4]
        budgets = [state.plan.stages[number].budgets] * 2
        picked = brute_force.select(scores, segments, segments, budgets, dedup="off")
        for row, own in enumerate(picked):
            assert of_video(state.kept[row], GRID) == places[row][own].tolist()


def test_scores_from_elsewhere_need_no_text_behind_an_image():
    images = torch.tensor([9])
    with pytest.raises(ValueError, match="length: no text token follows the last visual token"):
        kept_of(TWO_STAGES, [0.0] * 8, images=images)
    state = pruner_of(dataclasses.replace(TWO_STAGES, score="uniform")).begin(
        GRID, 57, segments=SEGMENTS, images=torch.tensor([56])
    )
    assert state.text_tokens == (8,)


def test_which_columns_of_a_batch_ask():
    batch = Batch((GRID, OTHER), LENGTH, (0, 2), ((2, 57), (0, 0)))
    assert (batch.tails, batch.asking_tails, batch.most_asking) == ((12, 9), (7, 9), 9)
    assert batch.asking().tolist() == [[False] * 2 + [True] * 7, [True] * 9]
    assert (batch.lasting, batch.texts) == ((16, 14), (14, 14))
    # Where the images end where the longer row's video does, all ask.
    assert Batch((GRID, OTHER), LENGTH, (0, 2), ((2, 55), (0, 0))).asking() is None
