"""What lies beside the tensors of the compiled kernels is neither read nor written, and what they can't take is refused."""

import ctypes
import importlib
import math
import mmap

import pytest
import torch
from compiler import compiler_or_skip

from adatp_kernels import ops

compiler_or_skip()
native = importlib.import_module("adatp_kernels.ops.native.cpu")


@pytest.fixture(
    params=range(torch.ops.adatp_cpu.best_isa() + 1), ids=lambda number: native.INSTRUCTIONS[number], autouse=True
)
def instructions(request, monkeypatch):
    monkeypatch.setattr(native, "_limit", request.param)


def guarded(tensor):
    """A copy whose last element is the last before a page that cannot be read."""
    page, size = mmap.PAGESIZE, tensor.numel() * tensor.element_size()
    pages = -(-size // page)
    memory = mmap.mmap(-1, (pages + 1) * page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address + pages * page), page, 0) == 0
    offset = pages * page - size
    copy = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=offset).view(tensor.shape)
    copy.copy_(tensor)
    copy.memory = memory
    return copy


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dim", [1, 7, 8])
def test_nothing_behind_query_and_key_is_read(dim, dtype):
    query, key = torch.randn(1, 3, 5, dim).to(dtype), torch.randn(1, 1, 49, dim).to(dtype)
    where = {"query_start": 44, "key_range": (0, 49), "backend": "native"}
    assert ops.column_sums(guarded(query), guarded(key), **where).equal(ops.column_sums(query, key, **where))


def test_an_odd_head_dim_beside_nan():
    query = torch.full((1, 2, 3, 8), math.nan, dtype=torch.bfloat16)
    query[..., :7] = torch.randn(1, 2, 3, 7)
    key = torch.randn(1, 2, 20, 7, dtype=torch.bfloat16)
    assert ops.row_lse(query[..., :7], key, query_start=20, backend="native").isfinite().all()


@pytest.mark.parametrize("columns", [1, 100, 2000])
def test_very_negative_logits(columns):
    query, key = torch.ones(1, 1, 1, 1), torch.full((1, 1, columns, 1), -1000.0)
    expected = torch.full((1, 1, 1), -1000 + math.log(columns))
    torch.testing.assert_close(ops.row_lse(query, key, query_start=columns, scale=1.0, backend="native"), expected)


def test_packed_rows_that_lie_far_before_the_keys():
    query, key = torch.randn(4000, 2, 8), torch.randn(10, 1, 8)
    where = {"cu_seqlens_q": torch.tensor([0, 4000]), "cu_seqlens_k": torch.tensor([0, 10])}
    where["query_range"] = torch.tensor([[0, 100]])
    assert (ops.column_sums_varlen(query, key, backend="native", **where) == 0).all()


def test_a_mask_of_other_bytes_than_one():
    query, key = torch.randn(1, 2, 3, 8), torch.randn(1, 2, 20, 8)
    mask = torch.tensor([[2, 0, 7]], dtype=torch.uint8).view(torch.bool)
    where = {"query_start": 20, "key_range": (0, 20), "backend": "native"}
    expected = ops.column_sums(query, key, query_mask=torch.tensor([[True, False, True]]), **where)
    assert ops.column_sums(query, key, query_mask=mask, **where).equal(expected)


def both(*arguments, **options):
    """The native choice, which must be the reference's."""
    kept = ops.select(*arguments, backend="native", **options)
    assert kept.equal(ops.select(*arguments, backend="reference", **options))
    return kept


@pytest.mark.parametrize("dedup", ["strict", "soft", "off"])
def test_a_strided_prior(dedup):
    random = torch.Generator().manual_seed(0)
    scores, prior = torch.rand(2, 60, generator=random), torch.rand(2, 120, generator=random)[:, ::2]
    both(scores, torch.arange(60) // 30, torch.arange(60) % 7, [5, 6], prior=prior, dedup=dedup, soft_weight=0.7)


@pytest.mark.parametrize("columns", [31, 63])
@pytest.mark.parametrize("dedup", ["strict", "off"])
def test_runs_that_end_where_the_row_does(columns, dedup):
    scores = torch.rand(3, columns, generator=torch.Generator().manual_seed(0))
    both(scores, torch.zeros(3, columns, dtype=torch.long), torch.arange(columns), [columns - 1], dedup=dedup)


def test_runs_of_strided_segments():
    ids = torch.tensor([0] * 40 + [1] * 88)[::2]
    both(torch.rand(1, 64, generator=torch.Generator().manual_seed(0)), ids, torch.arange(64), [5, 7])


def frames(seed, dedup):
    """Frames of consecutive positions, the first one cut, the last one out of order, which segments need not respect."""
    random = torch.Generator().manual_seed(seed)
    draw = lambda *bounds: int(torch.randint(*bounds, (), generator=random))  # noqa: E731
    cells = draw(30, 80)
    columns = draw(3 * cells, 7 * cells)
    number = torch.arange(columns) + draw(0, cells)
    positions = number % cells + draw(0, 3)
    if draw(0, 2):
        positions[draw(columns - cells, columns)] = draw(0, 2 * cells)
    if draw(0, 2):  # strides
        positions = torch.stack([positions, positions * 0], 1)[:, 0]
    cuts = torch.randint(0, columns, (2,), generator=random).sort().values
    ids = torch.bucketize(number, cuts) if draw(0, 3) else number // cells % 3
    if draw(0, 2):
        ids[draw(0, columns)] = -1
    scores = torch.randint(0, [3, 1000][draw(0, 2)], (1, columns), generator=random).float()  # many ties, or few
    groups = [positions[ids == segment] for segment in range(3)]
    budgets = [draw(0, (len(mine.unique()) if dedup == "strict" else len(mine)) + 1) for mine in groups]
    return scores, ids, positions, budgets


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dedup", ["strict", "soft", "off"])
def test_frames(dedup, dtype):
    for seed in range(60):
        scores, *others = frames(seed, dedup)
        both(scores.to(dtype), *others, dedup=dedup, soft_weight=0.5)


def test_ties_go_to_the_smaller_column_whatever_the_positions():
    positions = torch.arange(50).flip(0).repeat(3)
    kept = both(torch.ones(1, 150), torch.zeros(150, dtype=torch.long), positions, [7])
    assert kept.tolist() == [[0, 1, 2, 3, 4, 5, 6]]


@pytest.mark.parametrize("promised", [1, 64, 195])
@pytest.mark.parametrize("first", [0, 2**63 - 196])
def test_frames_beyond_what_the_caller_promised(first, promised):
    positions = torch.arange(196).repeat(4) + first
    options = {"num_selected": 1, "num_positions": promised, "backend": "native"}
    ids = torch.zeros(784, dtype=torch.long)
    kept = ops.select(torch.arange(784)[None].float(), ids, positions, [1], **options)
    assert kept.tolist() == [[783 - (196 - promised) if first == 0 else 783]]


@pytest.mark.parametrize("dedup", ["strict", "soft"])
def test_positions_beyond_what_the_caller_promised(dedup):
    positions = torch.tensor([0, 1, 2, 3, 4, 2**40, -5, 2**61])
    options = {"dedup": dedup, "num_selected": 3, "num_positions": 4, "backend": "native"}
    kept = ops.select(torch.rand(1, 8), torch.zeros(8, dtype=torch.long), positions, [3], **options)
    assert ((kept >= 0) & (kept < 8)).all()


@pytest.mark.parametrize("dedup", ["strict", "soft", "off"])
@pytest.mark.parametrize("room", [0, 3, 9])
def test_more_stays_than_there_is_room_for(dedup, room):
    options = {"dedup": dedup, "num_selected": room, "backend": "native"}
    ids = torch.zeros(4096, dtype=torch.long)
    assert ops.select(torch.rand(1, 4096), ids, torch.arange(4096), [4096, 5], **options).shape == (1, room)


def test_what_it_leaves_to_the_reference():
    """Sparse and quantized tensors, vmap, and whatever needs a gradient."""
    indices = torch.tensor([[1, 3]])
    moved = ops.gather(indices, torch.eye(5).to_sparse(), dims=0)[0]
    assert moved.to_dense().equal(torch.eye(5)[[1, 3]])
    with pytest.raises(RuntimeError, match="^backend: 'native' cannot run gather here: it takes plain strided tensors"):
        ops.gather(indices, torch.eye(5).to_sparse(), dims=0, backend="native")
    query, key = torch.randn(4, 1, 2, 3, 8), torch.randn(4, 1, 2, 9, 8)
    together = torch.vmap(lambda q, k: ops.row_lse(q, k, query_start=6))(query, key)
    torch.testing.assert_close(together[2], ops.row_lse(query[2], key[2], query_start=6))
    leaf = torch.randn(1, 5, requires_grad=True)
    assert ops.gather(indices, leaf, dims=1)[0].requires_grad
    lse = torch.zeros(1, 2, 3, requires_grad=True)
    assert ops.column_sums(query[0], key[0], query_start=6, key_range=(0, 9), lse=lse).requires_grad


@pytest.mark.parametrize("batch", [1, 3])
def test_gather_in_chunks_of_any_size(batch):
    """Tokens of 2 bytes, of a few hundred and of more than a chunk; together, and without any that stay."""
    random = torch.Generator().manual_seed(0)
    shapes, dims = [(batch, 1000), (2, batch, 1000, 70), (1, 1000, 9000), (batch, 3, 1000)], [1, (1, 2), 1, 2]
    tensors = [torch.randint(-99, 99, shape, generator=random, dtype=torch.int16) for shape in shapes]
    for count in (0, 1, 255, 256, 257, 700):
        indices = torch.randint(0, 1000, (batch, count), generator=random)
        expected = ops.gather(indices, *tensors, dims=dims, backend="reference")
        actual = ops.gather(indices, *tensors, dims=dims, backend="native")
        assert all(a.equal(b) for a, b in zip(actual, expected, strict=True))


def test_an_empty_batch():
    with pytest.raises(ValueError, match="^dims: batch and token dimension"):
        ops.gather(torch.zeros(0, 3, dtype=torch.long), torch.ones(5), dims=0)
    assert ops.gather(torch.zeros(0, 3, dtype=torch.long), torch.ones(0, 5), dims=1)[0].shape == (0, 3)
