"""select on Triton: bit for bit the reference."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_inputs import ranges_of

from adatp_kernels import ops
from adatp_kernels.ops.arguments import Selection
from adatp_kernels.ops.triton import select as choosing
from adatp_kernels.ops.triton import select_held, select_split
from adatp_kernels.ops.triton import select_scattered as kernels
from adatp_kernels.ops.triton.backend import INTERPRETED
from adatp_kernels.ops.triton.ranking import Source
from adatp_kernels.ops.triton.tiles import power_of_two

AWKWARD = [math.nan, math.inf, -math.inf, -0.0, 0.0, 1e-40, 0.25, 0.5, 0.5, 1.0, -1.0]


def same(scores, segments, positions, budgets, device, *, split=True, **options):
    """The kernel's choice, checked against the reference's; where segments lie in one piece, by every way to choose.

    Without `split` by those of one launch: the interpreter takes its time for six.
    """
    arguments = [torch.as_tensor(value) for value in (scores, segments, positions, budgets)]
    ids, limits = arguments[1].expand(len(scores), -1), arguments[3].expand(len(scores), -1)
    known = ranges_of(ids, limits)
    options = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in options.items()}
    arguments = [value.to(device) for value in arguments]
    expected = ops.select(*arguments, backend="reference", **options)
    actual = ops.select(*arguments, backend="triton", **options)
    assert actual.equal(expected), (actual, expected)
    if known is not None:
        options |= {"segment_ranges": known[0].to(device), "longest_segment": known[1]}
        assert ops.select(*arguments, backend="triton", **options).equal(expected)
        if split:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(select_held, "fits", lambda *_: False)
                patch.setattr(select_split, "_BLOCK", max(32, power_of_two(scores.shape[1] // 3)))
                assert ops.select(*arguments, backend="triton", **options).equal(expected)
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
@settings(max_examples=30)
def test_select_is_the_reference(arguments):
    scores, ids, positions, budgets, options = arguments
    same(scores, ids, positions, budgets, torch.device("cpu" if INTERPRETED else "cuda"), **options)


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
        split = quantised is not scores  # ties over several blocks
        kept = same(quantised, ids, positions, budgets, device, split=split, dedup=dedup, soft_weight=0.5)
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


@pytest.mark.parametrize("dedup", ["strict", "soft"])
def test_positions_of_text_columns_do_not_matter(dedup, device):
    """Negative, or beyond the table."""
    ids, scores = torch.tensor([0] * 6 + [-1, -1] + [1] * 6), torch.rand(1, 14)
    positions = torch.tensor([0, 1, 2] * 2 + [-5, 10**6] + [0, 1, 2] * 2)
    same(scores, ids, positions, [2, 2], device, dedup=dedup, num_selected=6, num_positions=3)


@pytest.mark.parametrize("batch", [1, 2])
def test_scores_that_are_a_slice(batch, device):
    wide = torch.rand(batch, 4000)
    for scores in (wide[:, :2000], wide[:1, 5:2005].expand(batch, -1)):
        prior = torch.rand(batch, 2000)
        same(scores, torch.arange(2000) % 3, torch.arange(2000) // 20, [9, 9, 9], device, dedup="soft", prior=prior)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_prior_of_any_dtype(dtype, device):
    same(
        torch.rand(1, 30),
        torch.zeros(30, dtype=torch.long),
        torch.arange(30) % 7,
        [4],
        device,
        prior=torch.rand(30).to(dtype),
    )


@pytest.fixture(params=["scattered", "held", "split"])
def way(request, monkeypatch):
    """Every way to choose, also where another would be taken."""
    monkeypatch.setattr(select_held, "fits", lambda *_: request.param == "held")
    if request.param == "scattered":
        monkeypatch.setattr(choosing, "_way", lambda *_: kernels)
    return request.param


@pytest.mark.parametrize("num_selected", [1, 8])
@pytest.mark.parametrize("num_positions", [2, 2000])
@pytest.mark.parametrize("dedup", ["strict", "soft", "off"])
def test_what_a_caller_got_wrong_touches_no_other_memory(dedup, num_positions, num_selected, way, device):
    """Positions beyond the table, budgets beyond the columns: any choice will do, but indices must be tokens.

    With one batch row the counter of arrivals lies right behind the only table.
    """
    positions = torch.tensor([-3, 2**40, 0, num_positions, 0, 1, 5000, num_positions])
    for budget in (-1, 0, 2, 5, 8, 2**32 + 5) if way == "held" else (2, 2**32 + 5):
        kept = ops.select(
            torch.rand(1, 8).to(device),
            torch.zeros(8, dtype=torch.long, device=device),
            positions.to(device),
            [budget],
            dedup=dedup,
            num_selected=num_selected,
            num_positions=num_positions,
            backend="triton",
        )
        assert kept.shape == (1, num_selected)
        assert ((kept >= 0) & (kept < 8)).all()


@pytest.fixture
def select_by(way, device, monkeypatch):
    """Every way to choose, with small blocks: the tokens that survive of one row whose columns begin at `first`."""
    monkeypatch.setattr(kernels, "_BLOCK", 2)
    monkeypatch.setattr(select_split, "_BLOCK", 2)

    def run(scores, segments, budgets, *, first, length, known, num_selected=None, dedup="strict"):
        ids, limits = torch.tensor([segments]), torch.tensor([budgets])
        selection = Selection(
            ids.to(device), torch.arange(len(segments), device=device)[None] % 3, limits.to(device), dedup, 0.0, None,
            num_selected or sum(budgets) + segments.count(-1), 3,
        )  # fmt: skip
        if known:
            ranges, selection.longest_segment = ranges_of(ids, limits)
            selection.segment_ranges = ranges.to(device)
        source = Source(torch.tensor([scores]).to(device), None, None, None)
        return choosing.Selecting(selection, 3).run(source, first, length)[0].tolist()

    return run


@pytest.mark.parametrize("known", [False, True])
def test_too_few_repeat_the_last_token_of_the_columns(known, select_by):
    """A budget that no segment can fill leaves no index to chance, and none that is no token."""
    scores, segments = [0.5, 0.25, 1.0, 0.75, 0.125, 0.0], [0] * 5 + [-1]
    kept = select_by(scores, segments, [5], first=3, length=12, known=known, num_selected=6)
    assert kept == [0, 1, 2, 4, 5, 6, 8, 8, 8, 9, 10, 11]


@pytest.mark.parametrize("known", [False, True])
def test_more_places_than_budgets_repeat_the_last_token_of_the_columns(known, select_by):
    kept = select_by(
        [0.5, 0.25, 1.0, 0.75, 0.125, 0.0],
        [0] * 3 + [1] * 2 + [-1],
        [1, 1],
        first=3,
        length=12,
        known=known,
        num_selected=5,
    )
    assert kept == [0, 1, 2, 5, 6, 8, 8, 8, 9, 10, 11]


@pytest.mark.parametrize("dedup", ["strict", "off"])
def test_zeros_of_both_signs_are_equal(dedup, select_by):
    assert select_by([-0.0, 0.0, 0.0], [0, 0, 0], [1], first=0, length=3, known=True, dedup=dedup) == [0]


def test_more_text_than_a_block(select_by):
    kept = select_by([0.5, 0.25, 1.0, 0.75], [0, 0, 0, 1], [1, 1], first=300, length=604 + 257, known=True)
    assert kept == [*range(300), 302, 303, *range(304, 604 + 257)]


@pytest.mark.parametrize("dedup", ["strict", "soft", "off"])
@pytest.mark.parametrize("told", [False, True])
def test_no_program_has_more_than_a_32nd_of_a_long_segment(told, dedup, monkeypatch):
    """FastV's, and a still video's; without ranges, too, where it is the only one."""
    columns, launches = 100_352, []
    for name in ("enter", "rank", "narrow", "count", "write"):
        monkeypatch.setattr(
            select_split,
            f"_launch_{name}",
            lambda grid, _, __, constants, **___: launches.append((grid, constants["BLOCK"])),
        )
    ids, budgets = torch.zeros(1, columns, dtype=torch.int64), torch.tensor([[9]])
    selection = Selection(ids, ids, budgets, dedup, 0.5, None, 9, 196)
    if told:
        selection.segment_ranges, selection.longest_segment = torch.tensor([[[0, columns, 0]]]), columns
    choosing.Selecting(selection, 196).run(Source(torch.zeros(1, columns), None, None, None), 0, columns)
    assert len(launches) == (5 if dedup == "off" else 6)
    assert all(grid[0] * block >= columns and block <= columns // 32 for grid, block in launches)


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_the_first_and_last_of_many_ties(kept, select_by):
    """Equal scores over several blocks, with columns between them that always stay."""
    segments = [-1, 0, 0, 0, -1, 0, 0, -1, 1, 1, 1, 1, 1, -1]
    columns = select_by([0.5] * 14, segments, [kept, 2], first=0, length=14, known=True, dedup="off")
    assert columns == sorted([0, 4, 7, 13, *[1, 2, 3][:kept], 8, 9])


@pytest.mark.parametrize("start", [0x40490FDA, 0x3F800000, -0x3FB6F026, -0x40800000])
@pytest.mark.parametrize("digits", [False, True])
def test_neighbouring_floats_are_told_apart(start, digits, device, monkeypatch):
    if digits:
        monkeypatch.setattr(kernels, "_SORTED_POSITIONS", 0)
    scores = (torch.tensor([0, 1, 2, 3, 3, 2, 1, 0], dtype=torch.int32) + start).view(torch.float32)[None]
    for dedup in ("strict", "soft", "off"):
        for k, values in ((1, scores), (2, scores.flip(1)), (3, scores)):
            ids, positions = torch.zeros(8, dtype=torch.long), torch.arange(8) % 4
            same(values, ids, positions, [k], device, split=not digits, dedup=dedup, soft_weight=1.0)


@pytest.mark.parametrize("dedup", ["strict", "soft", "off"])
def test_rows_of_a_batch_have_segments_and_budgets_of_their_own(dedup, device):
    ids = torch.tensor([[0] * 5 + [1] * 6 + [-1], [1, 0, -1, 0, 1, 1, 0, 0, 1, 0, 1, 1]])
    budgets = torch.tensor([[2, 3], [3, 2]]).repeat_interleave(2, 1)[:, ::2]
    same(torch.rand(2, 12), ids, torch.arange(12) % 6, budgets, device, dedup=dedup, soft_weight=0.5)


def test_segments_in_one_piece_that_lie_elsewhere_in_every_row(device):
    """With positions and budgets of their own; and their ranges need not be dense."""
    ids = torch.tensor([[0] * 5 + [1] * 6 + [-1], [1] * 3 + [0] * 8 + [-1]])
    positions = torch.stack([torch.arange(12) % 4, torch.arange(12) * 5 % 12 // 2])
    budgets, scores = torch.tensor([[2, 3], [3, 2]]), torch.rand(2, 12)
    kept = same(scores, ids, positions, budgets, device)
    ranges, longest = ranges_of(ids, budgets)
    strided = ranges.permute(2, 0, 1).contiguous().permute(1, 2, 0).to(device)
    assert strided.stride(2) != 1
    arguments = [value.to(device) for value in (scores, ids, positions, budgets)]
    known = {"segment_ranges": strided, "longest_segment": longest}
    assert ops.select(*arguments, **known, backend="triton").equal(kept)


def test_more_blocks_than_are_added_up_at_once(device, monkeypatch):
    monkeypatch.setattr(select_held, "fits", lambda *_: False)
    monkeypatch.setattr(select_split, "_BLOCK", 2)
    columns = torch.arange(2 * 257 + 1)
    ids = torch.where(columns % 5 == 3, -1, 0)
    scores = (columns * 37 % 11)[None].float()
    arguments = [value.to(device) for value in (scores, ids, columns % 7)]
    kept = [ops.select(*arguments, [200], dedup="off", backend=backend) for backend in ("triton", "reference")]
    assert kept[0].equal(kept[1])


def test_segments_that_are_strided_and_scattered(device):
    same(torch.rand(1, 20), (torch.arange(40) * 7 % 3)[::2], torch.arange(20), [2, 2, 2], device)


def test_a_segment_ends_before_the_last_block(device, monkeypatch):
    monkeypatch.setattr(kernels, "_BLOCK", 16)
    monkeypatch.setattr(kernels, "_ROW_BLOCK", 16)
    ids = torch.tensor([2] * 20 + [0] * 30 + [1] * 20)
    same(torch.rand(1, 70), ids, torch.arange(70), [3, 3, 3], device)


def test_any_negative_segment_is_kept(device):
    ids, positions = torch.tensor([-9, 0, 0, -2]).to(device), torch.arange(4).to(device)
    options = {"num_selected": 2, "num_positions": 4, "backend": "triton"}
    assert ops.select(torch.rand(1, 4).to(device), ids, positions, [0], **options)[0].tolist() == [0, 3]


@pytest.mark.parametrize("dedup", ["strict", "soft", "off"])
def test_segments_that_no_budget_knows_are_not_kept(dedup, way, device):
    ids, positions = torch.tensor([7, 0, 0, 1, -1, 1, 0, -9]), torch.arange(8)
    kept = ops.select(
        torch.rand(1, 8).to(device), ids.to(device), positions.to(device), [3], dedup=dedup, num_selected=5,
        num_positions=8, backend="triton",
    )  # fmt: skip
    assert kept[0].tolist() == [1, 2, 4, 6, 7]


@pytest.mark.parametrize("dedup", ["strict", "soft", "off"])
def test_small_blocks(dedup, device, monkeypatch):
    """Every loop runs more than once, and strict takes the way by digits."""
    monkeypatch.setattr(kernels, "_BLOCK", 16)
    monkeypatch.setattr(kernels, "_ROW_BLOCK", 32)
    monkeypatch.setattr(kernels, "_SORTED_POSITIONS", 0)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(-1, 3, (90,), generator=generator).expand(2, -1)
    positions = torch.randint(0, 9, (90, 2), generator=generator).T
    scores = 1 + torch.randint(0, 300, (2, 90), generator=generator) * 2.0**-23  # they differ in the last bits
    for values in (scores, scores.mul(2**23).remainder(4)):
        for prior in (None, torch.ones(90)):
            same(values, ids, positions, [3, 4, 5], device, dedup=dedup, soft_weight=0.9, prior=prior)


def test_positions_out_of_proportion_are_left_to_the_reference(device):
    same(
        torch.rand(1, 8), torch.zeros(8, dtype=torch.long), torch.tensor([0, 1, 2**40, 0, 1, 2**40, 5, 5]), [3], device
    )
