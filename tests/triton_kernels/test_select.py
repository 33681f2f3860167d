"""select on Triton: bit for bit the reference."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adatp_kernels import ops
from adatp_kernels.ops.triton import select as kernels

AWKWARD = [math.nan, math.inf, -math.inf, -0.0, 0.0, 1e-40, 0.25, 0.5, 0.5, 1.0, -1.0]


def same(scores, segments, positions, budgets, device, **options):
    """The kernel's choice, checked against the reference's."""
    arguments = [torch.as_tensor(value) for value in (scores, segments, positions, budgets)]
    options = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in options.items()}
    arguments = [value.to(device) for value in arguments]
    expected = ops.select(*arguments, backend="reference", **options)
    actual = ops.select(*arguments, backend="triton", **options)
    assert actual.equal(expected), (actual, expected)
    return actual


@st.composite
def selections(draw):
    """Columns in any order of segments, some always kept, with budgets that can be filled."""
    batch, columns, segments = draw(st.integers(1, 2)), draw(st.integers(1, 40)), draw(st.integers(1, 4))
    dedup = draw(st.sampled_from(["strict", "soft", "off"]))
    ids = torch.tensor(draw(st.lists(st.integers(-1, segments - 1), min_size=columns, max_size=columns)))
    positions = torch.tensor(draw(st.lists(st.integers(0, 5), min_size=columns, max_size=columns)))
    budgets = []
    for segment in range(segments):
        cells = positions[ids == segment]
        most = len(cells.unique()) if dedup == "strict" else len(cells)
        budgets.append(draw(st.integers(0, most)))
    values = st.one_of(st.sampled_from(AWKWARD), st.floats(-1, 1, width=32))
    scores = [draw(st.lists(values, min_size=columns, max_size=columns)) for _ in range(batch)]
    prior = torch.tensor(draw(st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=columns, max_size=columns)))
    options = {"dedup": dedup, "soft_weight": draw(st.sampled_from([0.0, 0.3, 1.0]))}
    if draw(st.booleans()):
        options["prior"] = prior
    return torch.tensor(scores), ids, positions, budgets, options


@given(selections())
@settings(max_examples=60)
def test_select_is_the_reference(arguments):
    scores, ids, positions, budgets, options = arguments
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    same(scores, ids, positions, budgets, device, **options)


@pytest.mark.parametrize("dedup", ["strict", "soft", "off"])
@pytest.mark.parametrize(("frames", "cells", "segments"), [(8, 49, 3), (5, 196, 5), (12, 13, 1)])
def test_a_video(frames, cells, segments, dedup, device):
    columns = frames * cells
    generator = torch.Generator().manual_seed(columns)
    ids = torch.arange(frames).mul(segments).div(frames, rounding_mode="floor").repeat_interleave(cells)
    positions = torch.arange(cells).repeat(frames)
    budgets = [cells // 2] * segments
    scores = torch.rand(2, columns, generator=generator).div(3, rounding_mode="floor") + torch.rand(
        2, columns, generator=generator
    )
    for quantised in (scores, (scores * 8).round() / 8):  # with many ties
        kept = same(quantised, ids, positions, budgets, device, dedup=dedup, soft_weight=0.5)
        assert kept.shape == (2, sum(budgets))


@pytest.mark.parametrize("dedup", ["strict", "off"])
def test_more_columns_than_a_block(dedup, device):
    """Several blocks of columns, and more positions than are sorted at once."""
    columns = 2 * kernels._BLOCK + 77
    scores = torch.randint(0, 50, (1, columns), generator=torch.Generator().manual_seed(0)).float()
    ids = torch.arange(columns) % 2 - (torch.arange(columns) % 97 == 5).long() * 5
    same(scores, ids.clamp(min=-1), torch.arange(columns) // 2, [900, 3], device, dedup=dedup)


def test_what_the_caller_knows_need_not_be_read(device):
    scores = torch.rand(1, 12)
    ids, positions = torch.tensor([0] * 6 + [-1] + [1] * 5), torch.tensor([0, 1, 2, 0, 1, 2, -1, 0, 1, 2, 0, 1])
    same(scores, ids, positions, [2, 3], device, num_selected=6, num_positions=3)
    same(scores, ids, positions, [2, 3], device, num_selected=6, num_positions=2000)


def test_keeping_nothing_and_everything(device):
    scores, ids, positions = torch.rand(2, 8), torch.tensor([0, 0, 1, 1, -1, 1, 0, 1]), torch.arange(8)
    for budgets in ([0, 0], [3, 4], [0, 4]):
        for dedup in ("strict", "off"):
            same(scores, ids, positions, budgets, device, dedup=dedup)
    same(scores, torch.full((8,), -1), positions, torch.zeros(2, 0, dtype=torch.long), device)


def test_strided_arguments(device):
    wide = torch.rand(2, 40)
    ids = torch.arange(40).view(20, 2)[:, 0] % 3
    same(wide[:, ::2], ids[None].expand(2, -1), torch.arange(20).flip(0), torch.tensor([[2, 2, 2]] * 2), device)
    same(wide.T[::2].T, ids, torch.arange(20), [1, 1, 1], device, prior=wide[0, ::2])


def test_the_callers_scores_stay_as_they_are(device):
    scores = torch.rand(1, 30).to(device)
    before = scores.clone()
    same(scores, torch.zeros(30, dtype=torch.long), torch.arange(30) % 7, [4], device, prior=torch.rand(30))
    assert scores.equal(before)
