"""The CUDA kernels where indices, strides, sizes and widths are at their edges; see test_cuda.py."""

import ctypes
import math
import mmap

import pytest
import torch
from awkward_inputs import drawing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from op_inputs import inputs, on

from adatp_kernels import Stage, ops
from adatp_kernels.config import DEDUPLICATION

FUZZ = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def strided(tensor, seed, whole=0):
    """The same numbers on the tensor's device in another layout: dimensions in another order, with gaps; the last `whole` as they are."""
    random, draw = drawing(seed)
    free = tensor.dim() - whole
    order = [*torch.randperm(free, generator=random).tolist(), *range(free, tensor.dim())]
    wide = [size * (draw(1, 3) if d < free else 1) for d, size in enumerate(tensor.shape)]
    memory = torch.zeros([wide[d] for d in order], dtype=tensor.dtype, device=tensor.device)
    memory.fill_(math.nan if tensor.is_floating_point() else 1)
    view = memory.permute([order.index(d) for d in range(tensor.dim())])
    return view[tuple(slice(None, None, w // s) for w, s in zip(wide, tensor.shape, strict=True))].copy_(tensor)


@given(st.integers(0, 2**32), st.integers(1, 3), st.booleans())
@settings(FUZZ, max_examples=40)
def test_any_attention(machine, seed, multiprocessors, cooperative):
    """Any shape, strides, masks, an LSE or none, rows from anywhere, even behind the last key."""
    machine.change(seed, multiprocessors, cooperative)
    random, draw = drawing(seed)
    batch, kv_heads, group, rows, columns = draw(1, 4), draw(1, 3), draw(1, 4), draw(1, 50), draw(1, 200)
    query, key = inputs(
        rows, columns, (64, 96, 128)[draw(0, 3)], heads=group * kv_heads, kv_heads=kv_heads, batch=batch, seed=seed,
        dtype=(torch.float16, torch.bfloat16)[draw(0, 2)],
    )  # fmt: skip
    first = draw(0, columns)
    where = {
        "query_start": 2**40 if draw(0, 8) == 0 else draw(0, columns + 20),
        "key_range": (first, draw(first, columns) + 1),
    }
    tensors = {
        "key_mask": torch.rand(batch, columns, generator=random) < 0.7,
        "query_mask": torch.rand(batch, rows, generator=random) < 0.6,
    }
    tensors = {name: tensor for name, tensor in tensors.items() if draw(0, 2)}
    if draw(0, 2):
        lse = ops.row_lse(
            query, key, query_start=where["query_start"], key_mask=tensors.get("key_mask"), backend="reference"
        )
        tensors["lse"] = lse.double() if draw(0, 2) else lse
    expected = ops.column_sums(query, key, **where, **tensors, backend="reference")
    query, key = (strided(tensor.to(machine.device), seed + i, whole=1) for i, tensor in enumerate((query, key)))
    tensors = {name: strided(tensor.to(machine.device), seed) for name, tensor in tensors.items()}
    actual = ops.column_sums(query, key, **where, **tensors, backend="native")
    torch.testing.assert_close(actual.cpu(), expected, rtol=3e-4, atol=1e-7)
    # A stage selects by just these scores.
    ids = torch.arange(expected.shape[1], device=machine.device) // 50
    stage = Stage(1, (1,) * (int(ids[-1]) + 1), int(ids[-1]) + 1)
    common = {"stage": stage, "dims": 1, "segments": ids, "positions": ids * 0, **where}
    numbers = torch.arange(columns, device=machine.device).expand(batch, -1)
    kept, (moved,) = ops.prune(query, key, [numbers], **tensors, **common, backend="native")
    assert kept.equal(moved)
    assert kept.equal(ops.prune(query, key, [], scores=actual, **{**common, "dims": 1}, backend="reference")[0])


@pytest.mark.parametrize("dedup", DEDUPLICATION)
@pytest.mark.parametrize("multiprocessors", [1, 8])
@pytest.mark.parametrize("cells", [40, 4096, 4097, 5000])
def test_every_batch_row_has_its_own_of_everything(dedup, multiprocessors, cells, machine):
    """Segments, positions, budgets, prior, each with strides of its own."""
    machine.change(cells, multiprocessors)
    random, columns = torch.Generator().manual_seed(cells), 9000
    order = torch.stack([torch.randperm(columns, generator=random) for _ in range(3)])
    ids, positions = (torch.arange(columns) // 3000 - 1)[order], (torch.arange(columns) % cells)[order]
    budgets = torch.tensor([[30, 9], [7, 32], [39, 0]])
    case = [torch.rand(3, columns, generator=random), ids, positions, budgets]
    options = {"dedup": dedup, "soft_weight": 0.5}
    prior = torch.rand(3, columns, generator=random).to(
        {40: torch.float16, 4096: torch.float64}.get(cells, torch.float32)
    )
    expected = ops.select(*case, prior=prior, **options, backend="reference")
    case = [strided(tensor.to(machine.device), seed) for seed, tensor in enumerate(case)]
    prior = strided(prior.to(machine.device), 4)
    assert ops.select(*case, prior=prior, **options, backend="native").cpu().equal(expected)


@pytest.mark.parametrize("dedup", DEDUPLICATION)
def test_segments_in_two_runs(dedup, machine):
    ids = torch.tensor([0] * 40 + [1] * 30 + [0] * 45 + [1] * 5 + [-1])
    scores = torch.rand(2, 121, generator=torch.Generator().manual_seed(0))
    case = (scores, ids, torch.arange(121) % 50, torch.tensor([19, 20]))
    expected = ops.select(*case, dedup=dedup, soft_weight=0.5, backend="reference")
    assert ops.select(*on(machine.device, *case), dedup=dedup, soft_weight=0.5, backend="native").cpu().equal(expected)


@pytest.mark.parametrize("columns", [1, 100, 500])
def test_very_negative_logits(columns, machine):
    query = torch.full((1, 1, 1, 64), 1.0, dtype=torch.bfloat16, device=machine.device)
    key = torch.full((1, 1, columns, 64), -100.0, dtype=torch.bfloat16, device=machine.device)
    actual = ops.column_sums(query, key, query_start=columns, key_range=(0, columns), scale=1.0, backend="native")
    torch.testing.assert_close(actual, torch.full_like(actual, 1 / columns), rtol=1e-3, atol=0)


def test_double_scores_are_refused(machine):
    query, key = on(machine.device, *inputs(2, 9, 64, dtype=torch.bfloat16))
    zeros = torch.zeros(9, dtype=torch.long, device=machine.device)
    common = {
        "stage": Stage(1, (1,), 1),
        "dims": 1,
        "segments": zeros,
        "positions": zeros,
        "query_start": 7,
        "key_range": (0, 9),
    }
    scores = torch.rand(2, 9, dtype=torch.float64, device=machine.device)
    with pytest.raises(RuntimeError, match="scores must be float32, not torch.float64"):
        ops.prune(query, key, [], scores=scores, **common, backend="native")


def test_divisions_are_exact(played_library):
    """By any number, at every edge where a quotient changes."""
    largest, remainder = 2**31 - 1, ctypes.c_int32()
    powers = [2**k + d for k in range(32) for d in (-1, 0, 1)]
    random = torch.Generator().manual_seed(0)
    numbers = {*powers, *torch.randint(1, largest, (200,), generator=random).tolist(), *range(1, 200), largest // 3}
    for number in sorted(number for number in numbers if 0 < number <= largest):
        most = largest // number
        quotients = {0, 1, 2, most // 3, most // 2, most - 1, most, *(q for q in powers if q <= most)}
        for n in {q * number + d for q in quotients for d in (-1, 0, 1)} | {largest}:
            if 0 <= n <= largest:
                quotient = played_library.divide(n, number, ctypes.byref(remainder))
                assert (quotient, remainder.value) == divmod(n, number), (n, number)


def guarded(tensor):
    """A copy whose last element is the last before a page that cannot be read."""
    page, size = mmap.PAGESIZE, tensor.numel() * tensor.element_size()
    pages = -(-size // page)
    memory = mmap.mmap(-1, (pages + 1) * page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address + pages * page), page, 0) == 0
    copy = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=pages * page - size).view(
        tensor.shape
    )
    copy.copy_(tensor)
    copy.memory = memory
    return copy


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize(("rows", "columns", "start"), [(1, 1, 0), (5, 129, 124), (43, 63, 63), (3, 190, 500)])
def test_nothing_behind_the_tensors_is_read(rows, columns, start, dim, machine):
    if machine.device != "cpu":
        pytest.skip("pages of a CPU")
    query, key = inputs(rows, columns, dim, dtype=torch.bfloat16)
    tensors = {
        "key_mask": torch.rand(2, columns) < 0.8,
        "query_mask": torch.rand(2, rows) < 0.8,
        "lse": torch.rand(2, 4, rows),
    }
    for names in (("key_mask", "query_mask"), ("key_mask", "query_mask", "lse")):
        options = {name: guarded(tensors[name]) for name in names}
        for key_range in ((0, columns), (columns // 2, columns)):
            where = {"query_start": start, "key_range": key_range, "backend": "native"}
            actual = ops.column_sums(guarded(query), guarded(key), **where, **options)
            assert actual.equal(ops.column_sums(query, key, **where, **options))


@pytest.mark.parametrize("cooperative", [True, False])
def test_more_tokens_than_a_unit_of_work_has(cooperative, machine):
    """And pieces that are more than one, and as wide as none."""
    machine.change(1, 3, cooperative)
    query, key = on(machine.device, *inputs(2, 1300, 64, batch=2, dtype=torch.bfloat16))
    random = torch.Generator().manual_seed(0)
    ids = torch.arange(1200, device=machine.device) // 600
    moved = [
        torch.randn(2, 1300, generator=random),
        torch.randn(2, 1300, 300, generator=random).to(torch.bfloat16),
        torch.randn(2, 3, 1300, 5, generator=random),
        torch.randn(1, 1300, 10007, generator=random).to(torch.bfloat16).view(torch.int16),
        torch.randint(0, 99, (2, 1300, 35000), generator=random, dtype=torch.uint8),
        torch.randn(5, 2, 1300, generator=random).transpose(0, 1),
    ]
    moved, dims = on(machine.device, *moved), [1, 1, 2, 1, 1, 2]
    common = {
        "query_start": 1298, "key_range": (50, 1250), "stage": Stage(1, (300, 350), 650), "dims": dims, "segments": ids,
        "positions": torch.arange(1200, device=machine.device), "scores": torch.rand(2, 1200, generator=random).to(machine.device),
    }  # fmt: skip
    expected, wanted = ops.prune(query, key, moved, **common, backend="reference")
    actual, results = ops.prune(query, key, moved, **common, backend="native")
    assert actual.equal(expected)
    assert all(result.equal(right) for result, right in zip(results, wanted, strict=True))


@pytest.mark.parametrize("columns", [2047 * 32, 2048 * 32 - 1, 2048 * 32, 2048 * 32 + 1])
def test_as_many_words_as_groups_of_them(columns, machine):
    machine.change(multiprocessors=1)  # a block for a batch row, which leaves zeros where the last group's count goes
    scores = torch.rand(2, columns, generator=torch.Generator().manual_seed(0))
    case = (scores, torch.zeros(columns, dtype=torch.long), torch.arange(columns) % 800, torch.tensor([799]))
    known = {"num_selected": 799, "num_positions": 1000}
    expected = ops.select(*case, **known, backend="reference")
    assert ops.select(*on(machine.device, *case), **known, backend="native").cpu().equal(expected)


@pytest.mark.parametrize("offset", [1, 2, 4, 8])
def test_tensors_that_are_not_aligned(offset, machine):
    """In where they begin, or where their rows, heads or tokens do."""
    query, key = on(machine.device, *inputs(6, 170, 64, batch=2, dtype=torch.bfloat16))
    ids = torch.zeros(157, dtype=torch.long, device=machine.device)
    random = torch.Generator().manual_seed(0)
    bytes_ = lambda *shape: torch.randint(0, 256, shape, generator=random, dtype=torch.uint8).to(machine.device)  # noqa: E731
    moved = [
        bytes_(2 * 170 * 64 + 16)[offset : offset + 2 * 170 * 64].view(2, 170, 64),
        bytes_(2, 170, 64 + offset)[:, :, :64],
        bytes_(2, 170 * 64 + offset)[:, : 170 * 64].view(2, 170, 64),
        bytes_(1, 3, 170 * 64 + offset)[:, :, : 170 * 64].view(1, 3, 170, 64),
    ]
    common = {
        "query_start": 164, "key_range": (7, 164), "stage": Stage(1, (15,), 15), "dims": [1, 1, 1, 2], "segments": ids,
        "positions": torch.arange(157, device=machine.device), "scores": torch.rand(2, 157).to(machine.device),
    }  # fmt: skip
    _, wanted = ops.prune(query, key, moved, **common, backend="reference")
    _, results = ops.prune(query, key, moved, **common, backend="native")
    assert all(result.equal(right) for result, right in zip(results, wanted, strict=True))


def test_a_prompts_scores_do_not_depend_on_the_company_that_would_fill_the_gpu(machine):
    query, key = on(machine.device, *inputs(1, 100, 64, heads=45, kv_heads=45, batch=3, dtype=torch.float16))
    where = {"query_start": 99, "key_range": (0, 100), "backend": "native"}
    assert ops.column_sums(query, key, **where)[1:2].equal(ops.column_sums(query[1:2], key[1:2], **where))


@pytest.mark.parametrize("budget", [0, 3])
def test_nothing_to_move_and_nobody_left(budget, machine):
    query, key = on(machine.device, *inputs(2, 9, 64, dtype=torch.bfloat16))
    zeros = torch.zeros(9, dtype=torch.long, device=machine.device)
    common = {
        "stage": Stage(1, (budget,), budget),
        "dims": 1,
        "segments": zeros,
        "positions": torch.arange(9, device=machine.device),
    }
    moved = on(machine.device, torch.zeros(2, 9, 0), torch.zeros(2, 9, 0, 3), torch.arange(18).view(2, 9))
    kept, results = ops.prune(query, key, moved, **common, query_start=7, key_range=(0, 9), backend="native")
    assert [tuple(tensor.shape) for tensor in results] == [(2, budget, 0), (2, budget, 0, 3), (2, budget)]
    assert results[2].equal(kept + 9 * torch.arange(2, device=machine.device)[:, None])


@pytest.mark.parametrize("dedup", DEDUPLICATION)
@pytest.mark.parametrize("kinds", [1, 3])
@pytest.mark.parametrize("turns", range(3))
def test_many_ties_stay(turns, kinds, dedup, machine):
    machine.change(turns, 2)
    random, columns = torch.Generator().manual_seed(turns), 3000
    scores = torch.randint(0, kinds, (2, columns), generator=random).float()
    case = (scores, torch.arange(columns) // 1500, torch.arange(columns) % 1490, torch.tensor([1400, 1301]))
    expected = ops.select(*case, dedup=dedup, soft_weight=1.0, backend="reference")
    assert ops.select(*on(machine.device, *case), dedup=dedup, soft_weight=1.0, backend="native").cpu().equal(expected)


def test_one_batch_row_takes_the_same_tokens_of_all(machine):
    query, key = on(machine.device, *inputs(2, 9, 64, batch=1, dtype=torch.bfloat16))
    zeros = torch.zeros(9, dtype=torch.long, device=machine.device)
    common = {
        "stage": Stage(1, (3,), 3),
        "dims": [1, 0, (2, 1)],
        "segments": zeros,
        "positions": torch.arange(9, device=machine.device),
    }
    moved = on(machine.device, torch.arange(45).view(5, 9), torch.arange(9), torch.arange(54).view(2, 9, 3))
    kept, results = ops.prune(query, key, moved, **common, query_start=7, key_range=(0, 9), backend="native")
    for tensor, result, dim in zip(moved, results, (1, 0, 1), strict=True):
        assert result.equal(tensor.index_select(dim, kept[0]))


def test_rows_at_odd_distances_are_refused(machine):
    query, _ = on(machine.device, *inputs(2, 9, 64, dtype=torch.bfloat16))
    odd = torch.zeros(2, 2, 9, 68, dtype=torch.bfloat16, device=machine.device)[..., :64]
    with pytest.raises(RuntimeError, match="the rows of key must lie in one piece"):
        ops.column_sums(query, odd, query_start=7, key_range=(0, 9), backend="native")


def test_stages_that_it_leaves_to_others(machine):
    """Positions that reach too far go to the reference; six dimensions are refused."""
    query, key = on(machine.device, *inputs(2, 9, 64, dtype=torch.bfloat16))
    zeros, far = (torch.arange(9, device=machine.device) * step for step in (0, 10**9))
    common = {
        "stage": Stage(1, (3,), 3),
        "dims": 1,
        "segments": zeros,
        "positions": far,
        "query_start": 7,
        "key_range": (0, 9),
    }
    scores = torch.rand(2, 9, device=machine.device)
    expected = ops.prune(query, key, [], scores=scores, **common, backend="reference")[0]
    assert ops.prune(query, key, [], scores=scores, **common, backend="native")[0].equal(expected)
    many = torch.zeros(2, 9, 1, 1, 1, 1, device=machine.device)
    with pytest.raises(RuntimeError, match="at most 5 dimensions, not 6"):
        ops.prune(query, key, [many], **common, backend="native")


def test_tensors_of_other_layouts_are_refused(machine):
    query, key = on(machine.device, *inputs(2, 9, 64, dtype=torch.bfloat16))
    zeros = torch.zeros(9, dtype=torch.long, device=machine.device)
    common = {
        "stage": Stage(1, (1,), 1),
        "dims": 1,
        "segments": zeros,
        "positions": zeros,
        "query_start": 7,
        "key_range": (0, 9),
    }
    with pytest.raises(RuntimeError, match="it takes plain strided tensors"):
        ops.prune(query, key, [torch.eye(9, device=machine.device)[:2].to_sparse()], **common, backend="native")


def test_a_stage_with_given_scores_reads_no_query(machine):
    query, key = on(machine.device, *inputs(2, 9, 80, batch=1))
    zeros = torch.zeros(9, dtype=torch.long, device=machine.device)
    common = {
        "stage": Stage(1, (2,), 2),
        "dims": 1,
        "segments": zeros,
        "positions": torch.arange(9, device=machine.device),
    }
    scores = torch.tensor([[0.0, 3.0, 1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0]], device=machine.device)
    kept, _ = ops.prune(query, key, [], scores=scores, **common, query_start=7, key_range=(0, 9), backend="native")
    assert kept.tolist() == [[1, 3]]


def test_an_infinite_logit_stays_in_its_column(machine):
    query, key = inputs(3, 40, 64, batch=1, dtype=torch.bfloat16)
    key[0, :, 17] = torch.inf
    query = query.abs()
    where = {"query_start": 37, "key_range": (0, 40)}
    expected = ops.column_sums(query, key, **where, backend="reference")
    actual = ops.column_sums(*on(machine.device, query, key), **where, backend="native")
    assert expected.isnan().sum() == 1
    torch.testing.assert_close(actual.cpu(), expected, equal_nan=True)
