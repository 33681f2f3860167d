"""column_sums_varlen on the reference backend, and how select and gather take a packed batch."""

import math

import brute_force
import pytest
import torch
from brute_force import assert_as_good_as_plain, names
from op_inputs import HALF, packed

from adatp_kernels import ops
from adatp_kernels.ops import column_sums_varlen

pytestmark = pytest.mark.usefixtures("backend_of_auto")

LENGTHS = [(3, 70), (17, 64), (1, 1), (0, 5), (2, 0), (0, 0), (9, 4)]


def ranges(*pairs):
    return torch.tensor(pairs)


QUERY_RANGE = ranges((1, 3), (4, 17), (0, 1), (0, 0), (0, 2), (0, 0), (9, 9))
KEY_RANGE = ranges((5, 66), (0, 64), (0, 1), (1, 3), (0, 0), (0, 0), (1, 3))


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("with_ranges", [False, True])
def test_packed_sequences_do_not_see_each_other(dtype, with_ranges):
    query, key, where = packed(LENGTHS, dtype=dtype)
    if with_ranges:
        mask = torch.arange(len(query)) % 3 != 1
        where = where | {"query_range": QUERY_RANGE, "key_range": KEY_RANGE, "query_mask": mask}
    expected, plain = (brute_force.column_sums_varlen(query, key, **where, dtype=d) for d in (torch.float64, dtype))
    actual = column_sums_varlen(query, key, **where)
    assert actual.dtype == torch.float32
    assert_as_good_as_plain(actual, expected, plain, 1e-5)


def test_lse_as_flash_attention_returns_it():
    query, key, where = packed([(3, 70), (17, 64)])
    lse = torch.cat(
        [
            ops.row_lse(query[None, rows].transpose(1, 2), key[None, keys].transpose(1, 2), query_start=start)[0]
            for rows, keys, start in ((slice(3), slice(70), 67), (slice(3, 20), slice(70, 134), 47))
        ],
        dim=1,
    )
    torch.testing.assert_close(
        column_sums_varlen(query, key, lse=lse, **where), column_sums_varlen(query, key, **where)
    )


def test_float64_is_computed_in_float64():
    query, key, where = packed(LENGTHS, dtype=torch.float64)
    actual = column_sums_varlen(query, key, **where)
    torch.testing.assert_close(actual, brute_force.column_sums_varlen(query, key, **where), rtol=1e-12, atol=0)


def test_nothing_leaks_from_rows_and_keys_out_of_range():
    query, key, where = packed([(5, 40), (6, 30)])
    where |= {"query_range": ranges((2, 5), (1, 4)), "key_range": ranges((3, 30), (0, 20))}
    clean = column_sums_varlen(query, key, **where)
    query[[0, 1, 5, 9, 10]] = math.nan
    key[69] = math.nan  # no row that scores may look at the last key of the second sequence
    assert column_sums_varlen(query, key, **where).equal(clean)


def test_select_and_gather_take_the_packed_batch_as_one_row():
    """Segments numbered on from video to video, text of segment −1: as each sequence alone."""
    cells, lengths = 4, [(2, 2 + 5 * 4 + 2), (3, 1 + 3 * 4 + 3)]
    query, key, where = packed(lengths)
    ids = [[0] * 12 + [1] * 8, [0] * 12]
    segments = torch.tensor([-1] * 2 + ids[0] + [-1] * 2 + [-1] + [2] * 12 + [-1] * 3)
    positions = torch.tensor([0] * 2 + list(range(cells)) * 5 + [0] * 2 + [0] + list(range(cells)) * 3 + [0] * 3)
    scores = column_sums_varlen(query, key, **where)
    kept = ops.select(scores[None], segments, positions, [2, 1, 3])
    alone = []
    for first, (t, n), before, chosen, budget in (
        (0, lengths[0], 2, ids[0], [2, 1]),
        (24, lengths[1], 1, ids[1], [3]),
    ):
        rows = slice(0, t) if first == 0 else slice(2, 2 + t)
        own = ops.column_sums(
            query[None, rows].transpose(1, 2),
            key[None, first : first + n].transpose(1, 2),
            query_start=n - t,
            key_range=(before, before + len(chosen)),
        )
        best = ops.select(own, torch.tensor(chosen), torch.arange(len(chosen)) % cells, budget)[0]
        alone += [
            *range(first, first + before),
            *(best + first + before).tolist(),
            *range(first + before + len(chosen), first + n),
        ]
    assert kept[0].tolist() == alone
    hidden = torch.randn(len(key), 8)
    assert ops.gather(kept, hidden[None], dims=1)[0][0].equal(hidden[alone])


GOOD = {"cu_seqlens_q": [0, 2, 5], "cu_seqlens_k": [0, 40, 60]}


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("query", torch.zeros(5, 4)),
        ("query", torch.zeros(5, 3, 64)),
        ("key", torch.zeros(60, 2, 32)),
        ("key", torch.zeros(60, 2, 64, dtype=torch.float16)),
        ("cu_seqlens_q", torch.tensor([0, 2, 6])),
        ("cu_seqlens_q", torch.tensor([0, 5])),
        ("cu_seqlens_q", torch.tensor([0.0, 2, 5])),
        ("cu_seqlens_k", torch.tensor([1, 40, 60])),
        ("cu_seqlens_k", torch.tensor([0, 61, 60])),
        ("cu_seqlens_k", torch.tensor([60])),
        ("cu_seqlens_k", [0, 40, 60]),
        ("query_range", ranges((0, 2))),
        ("query_range", ranges((0, 3), (0, 3))),
        ("key_range", ranges((-1, 40), (0, 20))),
        ("key_range", ranges((9, 8), (0, 20))),
        ("key_range", (0, 20)),
        ("lse", torch.zeros(5, 4)),
        ("lse", torch.zeros(4, 5, dtype=torch.float16)),
        ("query_mask", torch.ones(4, dtype=torch.bool)),
        ("query_mask", torch.ones(5)),
        ("scale", 0.0),
        ("backend", "cuda"),
    ],
)
def test_mistakes_are_named(argument, value):
    given = {"query": torch.zeros(5, 4, 64), "key": torch.zeros(60, 2, 64)}
    given |= {name: torch.tensor(bounds) for name, bounds in GOOD.items()} | {argument: value}
    with names(argument):
        column_sums_varlen(**given)
