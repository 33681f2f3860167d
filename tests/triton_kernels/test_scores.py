"""column_sums and row_lse on Triton, against the float64 definition."""

import brute_force
import pytest
import torch
from brute_force import assert_as_good_as_plain
from op_inputs import inputs, left_padding

from adatp_kernels import ops
from adatp_kernels.ops.arguments import Scoring
from adatp_kernels.ops.triton import column_sums as kernels
from adatp_kernels.ops.triton import row_lse as lse_kernels
from adatp_kernels.ops.triton import tiles

RELATIVE = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}


def check(query, key, device, *, relative=None, **where):
    """Both the scores and, recomputed or given, the LSE they stand on."""
    expected = brute_force.column_sums(query, key, **where)
    plain = brute_force.column_sums(query, key, **where, dtype=query.dtype)
    moved = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in where.items()}
    query, key = query.to(device), key.to(device)
    lse = ops.row_lse(
        query, key, backend="reference", **{n: moved[n] for n in ("query_start", "key_mask") if n in moved}
    )
    for given in (None, lse):
        actual = ops.column_sums(query, key, lse=given, backend="triton", **moved)
        assert actual.dtype == torch.float32
        assert_as_good_as_plain(actual.cpu(), expected, plain, relative or RELATIVE[query.dtype])
    return actual


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("rows", "columns", "dim"),
    [(1, 1, 64), (3, 37, 64), (17, 199, 64), (64, 37, 80), (1, 199, 96), (3, 70, 128), (5, 40, 256)],
)
def test_column_sums(rows, columns, dim, dtype, device):
    query, key = inputs(rows, columns, dim, heads=4, kv_heads=2, dtype=dtype)
    actual = check(query, key, device, query_start=max(0, columns - rows), key_range=(0, columns))
    torch.testing.assert_close(actual.sum(1).cpu(), torch.ones(2), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 3), (4, 2), (7, 1)])
def test_query_heads_that_share_a_key_head(heads, kv_heads, device):
    query, key = inputs(5, 90, 64, heads=heads, kv_heads=kv_heads)
    check(query, key, device, query_start=85, key_range=(3, 83))


@pytest.mark.parametrize(
    "query_start", [0, 20, 30, 36, 1000]
)  # 30: the first row does not see the last of a tile's keys
def test_causal_offset(query_start, device):
    query, key = inputs(3, 37, 64)
    actual = check(query, key, device, query_start=query_start, key_range=(0, 37))
    assert (actual[:, query_start + 3 :] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masks_per_batch_row(dtype, device):
    query, key = inputs(6, 90, 64, batch=3, dtype=dtype)
    query_mask = torch.rand(3, 6, generator=torch.Generator().manual_seed(1)) > 0.4
    query_mask[2] = False
    key_mask = left_padding([0, 17, 60], 90)
    actual = check(query, key, device, query_start=84, key_range=(2, 80), key_mask=key_mask, query_mask=query_mask)
    assert (actual[2] == 0).all()


def test_rows_that_see_nothing_and_nan_that_is_hidden(device):
    query, key = inputs(4, 40, 64)
    key_mask, query_mask = left_padding([38, 0], 40), torch.tensor([[True] * 4, [True, True, False, True]])
    query[1, :, 2] = float("nan")
    where = {"query_start": 36, "key_range": (0, 40), "key_mask": key_mask, "query_mask": query_mask}
    clean = query.clone()
    clean[1, :, 2] = 0.0
    expected = brute_force.column_sums(clean, key, **where)
    moved = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in where.items()}
    actual = ops.column_sums(query.to(device), key.to(device), backend="triton", **moved)
    torch.testing.assert_close(actual.double().cpu(), expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("rows", [3, 16])
@pytest.mark.parametrize("masked", [False, True])
def test_a_key_that_no_row_looks_at_for_its_infinite_logit(masked, rows, device):
    """It scores 0, also beside rows that fill up a tile or are masked, whose zeros make NaN of it."""
    query, key = inputs(rows, 40, 64)
    query, key[:, :, 5, 0] = -query.abs(), float("inf")
    query_mask = (torch.arange(rows) % 3 > 0).expand(2, -1).to(device) if masked else None
    where = {"query_start": 40, "key_range": (0, 40), "query_mask": query_mask}
    expected = ops.column_sums(query.to(device), key.to(device), backend="reference", **where)
    actual = ops.column_sums(query.to(device), key.to(device), backend="triton", **where)
    assert (actual[:, 5] == 0).all()
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-8)


def test_nan_that_is_not_hidden_shows(device):
    query, key = (tensor.to(device) for tensor in inputs(4, 40, 64))
    query[1, :, 2] = float("nan")
    actual = ops.column_sums(query, key, query_start=40, key_range=(0, 40), backend="triton")
    assert actual[1].isnan().all()
    assert not actual[0].isnan().any()


def test_strided_views(device):
    wide = torch.randn(2, 9, 8, 128, generator=torch.Generator().manual_seed(0))
    query = wide.transpose(1, 2)[:, ::2, 2:, ::2]
    key = torch.randn(50, 2, 2, 64, generator=torch.Generator().manual_seed(1)).permute(1, 2, 0, 3)
    assert not query.is_contiguous() and not key.is_contiguous()
    check(query, key, device, query_start=43, key_range=(5, 45))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_row_lse_over_several_splits(dtype, device, monkeypatch):
    monkeypatch.setattr(lse_kernels, "num_splits", lambda *_: (3, 4))
    query, key = inputs(5, 600, 64, dtype=dtype, batch=1)
    key_mask = left_padding([300], 600)
    for start, mask in ((595, None), (595, key_mask), (100, None)):
        expected = brute_force.row_lse(query, key, query_start=start, key_mask=mask)
        moved = mask if mask is None else mask.to(device)
        actual = ops.row_lse(query.to(device), key.to(device), query_start=start, key_mask=moved, backend="triton")
        torch.testing.assert_close(actual.double().cpu(), expected, rtol=1e-5, atol=1e-5)
        check(
            query, key, device, query_start=start, key_range=(90, 400), **({} if mask is None else {"key_mask": mask})
        )


def test_same_input_same_bits(device):
    query, key = (tensor.to(device) for tensor in inputs(9, 300, 64, heads=4, kv_heads=2, dtype=torch.bfloat16))
    runs = [ops.column_sums(query, key, query_start=291, key_range=(0, 290), backend="triton") for _ in range(2)]
    assert runs[0].equal(runs[1])
    alone = ops.column_sums(query[1:], key[1:], query_start=291, key_range=(0, 290), backend="triton")
    assert alone[0].equal(runs[0][1])  # wherever in the batch


def test_top_quarter_agrees_with_float64_in_bfloat16(device):
    columns = 400
    query, key = inputs(64, columns, 128, heads=4, kv_heads=1, batch=1, dtype=torch.bfloat16)
    where = {"query_start": columns, "key_range": (0, columns)}
    expected = brute_force.column_sums(query, key, **where)[0]
    actual = ops.column_sums(query.to(device), key.to(device), backend="triton", **where)[0].cpu()
    top = [set(scores.topk(columns // 4).indices.tolist()) for scores in (expected, actual.double())]
    assert len(top[0] & top[1]) / (columns // 4) >= 0.999


def test_what_it_refuses(device):
    query, key = (tensor.to(device) for tensor in inputs(2, 9, 64))
    with pytest.raises(RuntimeError, match="backend: 'triton' cannot run column_sums here: .*float64"):
        ops.column_sums(query.double(), key.double(), query_start=7, key_range=(0, 9), backend="triton")
    query, key = (tensor.to(device) for tensor in inputs(2, 9, 260))
    with pytest.raises(RuntimeError, match="backend: 'triton' cannot run row_lse here: .*at most 256"):
        ops.row_lse(query, key, query_start=7, backend="triton")


def far_apart(tensor, dim):
    """The same values with 2**30 elements between neighbours along `dim`; most of that memory is never touched."""
    rest = tensor.movedim(dim, 0)
    memory = torch.empty((len(rest) - 1) * 2**30 + rest[0].numel(), dtype=tensor.dtype, device=tensor.device)
    return memory.as_strided(rest.shape, (2**30, *rest[0].contiguous().stride())).movedim(0, dim).copy_(tensor)


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_offsets_beyond_32_bits(dim, device):
    query, key = inputs(3, 3, 64, heads=4, kv_heads=4, batch=3, dtype=torch.float16)
    where = {"query_start": 0, "key_range": (0, 3), "backend": "triton"}
    expected = ops.column_sums(query.to(device), key.to(device), **where)
    assert ops.column_sums(query.to(device), far_apart(key.to(device), dim), **where).equal(expected)
    assert ops.column_sums(far_apart(query.to(device), dim), key.to(device), **where).equal(expected)
    if dim:
        lse = ops.row_lse(query.to(device), key.to(device), query_start=0, backend="triton")
        given = ops.column_sums(query.to(device), key.to(device), lse=far_apart(lse, dim), **where)
        torch.testing.assert_close(given, expected)


def test_every_stride_is_used(device):
    wide = torch.randn(2, 2, 50, 128, generator=torch.Generator().manual_seed(1))
    query, _ = inputs(5, 1, 64)
    key_mask = left_padding([3, 20], 50)[:, :, None].expand(-1, -1, 3).contiguous()[:, :, 1]
    query_mask = (
        torch.tensor([[True, False, True, True, False]] * 2)[:, :, None].expand(-1, -1, 2).contiguous()[:, :, 0]
    )
    assert key_mask.stride(1) == 3 and query_mask.stride(1) == 2
    check(query, wide[..., ::2], device, query_start=45, key_range=(5, 45), key_mask=key_mask, query_mask=query_mask)


def test_lse_in_float64_and_of_a_row_that_shall_not_count(device):
    query, key = (tensor.to(device) for tensor in inputs(4, 40, 64))
    lse = ops.row_lse(query, key, query_start=36, backend="reference")
    lse[0, 1, 2] = float("-inf")
    where = {"query_start": 36, "key_range": (0, 40)}
    expected = ops.column_sums(query, key, lse=lse, backend="reference", **where)
    for given in (lse, lse.double()):
        actual = ops.column_sums(query, key, lse=given, backend="triton", **where)
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-8)


def test_splits_of_unlike_size(device, monkeypatch):
    monkeypatch.setattr(lse_kernels, "num_splits", lambda *_: (3, 4))
    query, key = inputs(5, 600, 64, batch=1)
    query[:] = 1.0
    key[:, :, :160], key[:, :, 160:] = -8.0, 8.0 + 0.01 * key[:, :, 160:]
    check(query, key, device, query_start=595, key_range=(90, 400), relative=1e-3)


def test_workspace_is_zeroed_and_nothing_else(device):
    query, key = (tensor.to(device) for tensor in inputs(2, 40, 64))
    memory = torch.full((5000 + 512,), -1, dtype=torch.int64, device=device)
    scoring = Scoring(query, key, 38, (0, 20), scale=1.0, lse=None, key_mask=None, query_mask=None)
    kernels.partial_column_sums(scoring, memory[:5000])
    assert (memory[:5000] == 0).all() and (memory[5000:] == -1).all()


def test_many_rows_under_a_mask(device):
    query, key = inputs(150, 170, 64, heads=2, kv_heads=1)
    query_mask = torch.rand(2, 150, generator=torch.Generator().manual_seed(1)) > 0.4
    check(query, key, device, query_start=20, key_range=(0, 170), query_mask=query_mask)


@pytest.mark.parametrize("query_start", [2**31 - 1, 2**40])
def test_all_keys_lie_before_the_rows(query_start, device):
    query, key = (t.to(device) for t in inputs(3, 37, 64))
    runs = [ops.column_sums(query, key, query_start=s, key_range=(0, 37), backend="triton") for s in (37, query_start)]
    assert runs[0].equal(runs[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_head_dims_below_a_matrix_products_least(dtype, device):
    query, key = inputs(3, 20, 8, dtype=dtype)
    check(query, key, device, query_start=17, key_range=(0, 20))


def test_choice_of_tiles_and_splits():
    assert [tiles.num_splits(1, keys, 64) for keys in (100, 512, 100_000)] == [(1, 64), (4, 64), (64, 64)]
    assert [tiles.num_splits(programs, 100_000, 64) for programs in (60, 64, 1000)] == [(8, 8), (4, 4), (1, 1)]
    tile = tiles.tile_for(torch.device("cpu"), torch.bfloat16, 100)
    assert tile == tiles.TILES["any", 2, 128]
    # One row; few, of several heads; as many as fill a tile; more; heads that do not fill one.
    chosen = [tiles.row_tile(tile, group, rows) for group, rows in ((7, 1), (7, 20), (7, 64), (7, 80), (4, 33), (1, 5))]
    assert chosen == [(16, 1), (4, 16), (1, 64), (4, 16), (4, 16), (1, 16)]
    assert tiles.row_tile(tiles.TILES["any", 4, 128], 7, 64) == (1, 16)


def test_gradients_are_refused_rather_than_cut(device):
    query, key = (tensor.to(device) for tensor in inputs(2, 9, 64))
    with pytest.raises(RuntimeError, match="it has no gradient"):
        ops.column_sums(query.requires_grad_(), key, query_start=7, key_range=(0, 9), backend="triton")
    with torch.no_grad():
        ops.column_sums(query, key, query_start=7, key_range=(0, 9), backend="triton")
