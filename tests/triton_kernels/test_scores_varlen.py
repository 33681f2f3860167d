"""column_sums_varlen on Triton, against the float64 definition."""

import brute_force
import pytest
import torch
from brute_force import assert_as_good_as_plain
from op_inputs import packed

from adatp_kernels import ops

RELATIVE = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}
# Rows and keys of each sequence: blocks that end with a sequence and within, the shortest, empty ones, more rows than keys.
LENGTHS = [(3, 70), (17, 64), (1, 1), (0, 5), (2, 0), (0, 0), (9, 4), (5, 130)]


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


def test_every_stride_is_used(device):
    query, key, where = packed([(4, 50), (6, 70)], 128)
    bounds = {name: value[:, None].expand(-1, 3).contiguous()[:, 1] for name, value in where.items()}
    key_range = torch.tensor([[3, 9, 40], [0, 9, 69]])[:, ::2]
    query_range = torch.tensor([[1, 2], [4, 6]]).T.contiguous().T
    mask = (
        torch.tensor([True, False, True, True, False, True, True, True, True, True])[:, None]
        .expand(-1, 2)
        .contiguous()[:, 0]
    )
    assert mask.stride(0) == 2
    options = {"query_range": query_range, "key_range": key_range, "query_mask": mask}
    check(query[..., ::2], key.transpose(0, 1).contiguous().transpose(0, 1)[..., ::2], bounds, device, **options)


def test_blocks_are_found_in_every_sequence(device):
    """As many sequences as a search has ways to go wrong, shorter and longer than a block."""
    generator = torch.Generator().manual_seed(0)
    for count in (1, 2, 5, 8):
        lengths = [(int(t), int(n)) for t, n in torch.randint(1, 80, (count, 2), generator=generator)]
        query, key, where = packed(lengths, heads=2, kv_heads=1)
        check(query, key, where, device)
