"""column_sums_varlen on Triton, against the float64 definition."""

import brute_force
import pytest
import torch
from brute_force import assert_as_good_as_plain
from op_inputs import packed

from adatp_kernels import ops
from adatp_kernels.ops import reference
from adatp_kernels.ops.arguments import PackedScoring
from adatp_kernels.ops.triton import column_sums_varlen as kernels

RELATIVE = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}
# Rows and keys of each sequence: blocks that end with a sequence and within, the shortest, empty ones, more rows than keys.
LENGTHS = [(3, 70), (17, 64), (1, 1), (0, 5), (2, 0), (0, 0), (9, 4), (5, 130)]


@pytest.fixture(autouse=True)
def few_splits(request, monkeypatch):
    """The interpreter takes its time for every program; one test has as many as there are."""
    if request.node.originalname != "test_a_sequence_has_the_same_bits_in_any_company":
        monkeypatch.setattr(kernels, "_SPLITS", 4)


def check(query, key, where, device, **options):
    """Both with the LSE given and recomputed."""
    expected = brute_force.column_sums_varlen(query, key, **where, **options)
    plain = brute_force.column_sums_varlen(query, key, **where, **options, dtype=query.dtype)
    moved = {name: value.to(device) for name, value in (where | options).items()}
    lse = packed_lse(query, key, where).to(device)
    query, key = query.to(device), key.to(device)
    for given in (None, lse):
        actual = ops.column_sums_varlen(query, key, lse=given, backend="triton", **moved)
        assert actual.dtype == torch.float32
        assert_as_good_as_plain(actual.cpu(), expected, plain, RELATIVE[query.dtype])
    return actual.cpu()


def packed_lse(query, key, where):
    bounds = [cumulative.tolist() for cumulative in where.values()]
    parts = [torch.full((query.shape[1], len(query)), float("nan"))]
    for row, end_row, first, end in zip(bounds[0], bounds[0][1:], bounds[1], bounds[1][1:], strict=False):
        if row < end_row and first < end:
            q, k = query[None, row:end_row].transpose(1, 2), key[None, first:end].transpose(1, 2)
            parts[0][:, row:end_row] = brute_force.row_lse(q, k, query_start=end - first - (end_row - row))[0].float()
    return parts[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dim", [64, 80, 128])
def test_column_sums_of_packed_sequences(dim, dtype, device):
    query, key, where = packed(LENGTHS, dim, dtype=dtype)
    check(query, key, where, device)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_ranges_and_mask(dtype, device):
    query, key, where = packed(LENGTHS, heads=7, kv_heads=1)
    query_range = torch.tensor([[1, 3], [4, 17], [0, 1], [0, 0], [0, 2], [0, 0], [9, 9], [0, 2]], dtype=dtype)
    key_range = torch.tensor([[5, 66], [0, 64], [0, 1], [1, 3], [0, 0], [0, 0], [1, 3], [128, 130]], dtype=dtype)
    mask = torch.rand(len(query), generator=torch.Generator().manual_seed(1)) > 0.4
    where = {name: value.to(dtype) for name, value in where.items()}
    check(query, key, where, device, query_range=query_range)
    check(query, key, where, device, key_range=key_range)
    actual = check(query, key, where, device, query_range=query_range, key_range=key_range, query_mask=mask)
    assert (actual[:5] == 0).all() and (actual[66:70] == 0).all() and (actual[5:66] > 0).all()


def test_a_sequence_has_the_same_bits_in_any_company(device):
    lengths = [(3, 70), (17, 200), (5, 600)]
    query, key, where = packed(lengths)
    together = ops.column_sums_varlen(
        query.to(device), key.to(device), backend="triton", **{n: v.to(device) for n, v in where.items()}
    )
    rows, keys = (torch.stack([cumulative[:-1], cumulative[1:]], 1).tolist() for cumulative in where.values())
    for (row, end_row), (first, end), (t, n) in zip(rows, keys, lengths, strict=True):
        alone = {"cu_seqlens_q": torch.tensor([0, t]).to(device), "cu_seqlens_k": torch.tensor([0, n]).to(device)}
        actual = ops.column_sums_varlen(
            query[row:end_row].to(device), key[first:end].to(device), backend="triton", **alone
        )
        assert actual.equal(together[first:end])


def spread(value, by):
    """The same values with a stride of `by`, and between them what is wrong."""
    wide = torch.full((len(value), by), 99, dtype=value.dtype)
    wide[:, 1] = value
    return wide[:, 1]


def test_every_stride_is_used(device):
    query, key, where = packed([(4, 50), (6, 70)], 128)
    key_range = torch.tensor([[3, 9, 40], [0, 9, 69]])[:, ::2]
    query_range = torch.tensor([[1, 2], [4, 6]]).T.contiguous().T
    mask = spread(torch.tensor([1, 0, 1, 1, 0, 1, 1, 1, 1, 1]), 2) == 1
    options = {
        "query_range": query_range,
        "key_range": key_range,
        "query_mask": spread(mask.to(torch.uint8), 3).view(torch.bool),
    }
    check(query[..., ::2], key.transpose(0, 1).contiguous().transpose(0, 1)[..., ::2], where, device, **options)


def test_strides_of_lengths_and_lse(device):
    query, key, where = packed([(4, 50), (6, 70)])
    lse = packed_lse(query, key, where).T.contiguous().T
    bounds = {n: spread(v, by).to(device) for (n, v), by in zip(where.items(), (2, 3), strict=True)}
    expected = brute_force.column_sums_varlen(query, key, **where)
    for given in (None, lse.to(device), lse.double().to(device)):
        actual = ops.column_sums_varlen(query.to(device), key.to(device), lse=given, backend="triton", **bounds)
        assert_as_good_as_plain(actual.cpu(), expected, expected, 1e-5)


def test_scale(device):
    query, key, where = packed([(3, 70), (5, 40)])
    expected = brute_force.column_sums_varlen(2 * query, key, **where)
    moved = {name: value.to(device) for name, value in where.items()}
    for lse in (None, packed_lse(2 * query, key, where).to(device)):
        actual = ops.column_sums_varlen(
            query.to(device), key.to(device), scale=0.25, lse=lse, backend="triton", **moved
        )
        assert_as_good_as_plain(actual.cpu(), expected, expected, 1e-5)


def test_ranges_that_nobody_checked_stay_within_their_sequence(device):
    """On a GPU ranges are not read; on the host the backends are asked past the checks."""
    query, key, where = packed([(4, 50), (6, 70), (2, 30)])
    wide = {
        "query_range": torch.tensor([[-3, 2], [1, 99], [7, 9]]),
        "key_range": torch.tensor([[-9, 40], [5, 999], [3, 20]]),
    }
    clipped = {
        "query_range": torch.tensor([[0, 2], [1, 6], [2, 2]]),
        "key_range": torch.tensor([[0, 40], [5, 70], [3, 20]]),
    }
    for backend in (kernels, reference):
        runs = [
            backend.column_sums_varlen(
                PackedScoring(
                    query.to(device), key.to(device), scale=0.125, lse=None, query_mask=None,
                    **{name: value.to(device) for name, value in (where | ranges).items()},
                )
            )
            for ranges in (wide, clipped)
        ]  # fmt: skip
        assert runs[0].equal(runs[1])


def test_padding_behind_the_last_sequence_scores_zero(device):
    query, key, where = packed([(4, 50), (6, 70), (3, 40)])
    expected = ops.column_sums_varlen(query[:10], key[:120], **{n: v[:3] for n, v in where.items()})
    moved = {n: v[:3].to(device) for n, v in where.items()}
    actual = ops.column_sums_varlen(query.to(device), key.to(device), backend="triton", **moved).cpu()
    torch.testing.assert_close(actual[:120], expected)
    assert (actual[120:] == 0).all()


def test_blocks_are_found_in_every_sequence(device):
    """As many sequences as a search has ways to go wrong, shorter and longer than a block."""
    generator = torch.Generator().manual_seed(0)
    for count in (1, 2, 5, 8):
        lengths = [(int(t), int(n)) for t, n in torch.randint(1, 80, (count, 2), generator=generator)]
        query, key, where = packed(lengths, heads=2, kv_heads=1)
        check(query, key, where, device)
