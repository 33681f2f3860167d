"""The compiled kernels, for every set of instructions that this CPU has, against the definition and the reference."""

import importlib
import math

import brute_force
import pytest
import torch
from awkward_inputs import AWKWARD_SCORES, awkward_selection, awkward_tensors, same_bits
from brute_force import assert_as_good_as_plain
from compiler import compiler_or_skip
from hypothesis import given, settings
from hypothesis import strategies as st
from op_inputs import inputs, left_padding

from adatp_kernels import ops

compiler_or_skip()
native = importlib.import_module("adatp_kernels.ops.native.cpu")
AVAILABLE = range(torch.ops.adatp_cpu.best_isa() + 1)


@pytest.fixture(params=AVAILABLE, ids=lambda number: native.INSTRUCTIONS[number])
def instructions(request, monkeypatch):
    """The kernels for one set of instructions, whatever else this CPU has."""
    monkeypatch.setattr(native, "_limit", request.param)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("rows", "columns", "dim", "heads", "kv_heads"),
    [
        (1, 1, 1, 1, 1),
        (3, 37, 7, 4, 2),
        (17, 199, 64, 3, 3),
        (64, 1000, 80, 7, 1),
        (33, 6273, 128, 2, 1),
        (5, 49, 256, 4, 4),
    ],
)
@pytest.mark.usefixtures("instructions")
def test_column_sums_and_row_lse(rows, columns, dim, heads, kv_heads, dtype):
    query, key = inputs(rows, columns, dim, heads=heads, kv_heads=kv_heads, dtype=dtype)
    where = {"query_start": max(0, columns - rows), "key_range": (columns // 3, columns)}
    expected = brute_force.column_sums(query, key, **where)
    plain = brute_force.column_sums(query, key, **where, dtype=dtype)
    lse = ops.row_lse(query, key, query_start=where["query_start"], backend="native")
    exact = brute_force.row_lse(query, key, query_start=where["query_start"])
    torch.testing.assert_close(lse.double(), exact, rtol=1e-6, atol=1e-5)
    for given_lse in (None, lse, exact, lse.transpose(1, 2).contiguous().transpose(1, 2)):
        actual = ops.column_sums(query, key, lse=given_lse, backend="native", **where)
        assert_as_good_as_plain(actual, expected, plain, 1e-5)


@pytest.mark.usefixtures("instructions")
def test_masks_padding_and_strides():
    wide = torch.randn(3, 90, 4, 160, generator=torch.Generator().manual_seed(0))
    query, _ = inputs(6, 1, 80, batch=3)
    key = wide.transpose(1, 2)[:, ::2, :, ::2]
    masks = {
        "key_mask": left_padding([0, 17, 90], 90)[:, :, None].expand(-1, -1, 2).contiguous()[:, :, 1],
        "query_mask": torch.rand(3, 6, generator=torch.Generator().manual_seed(1)) > 0.4,
    }
    masks["query_mask"][1] = False
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for start in (0, 84, 2**40):
            q, k, where = query.to(dtype), key.to(dtype), {"query_start": start, "key_range": (2, 89), **masks}
            expected, plain = (
                brute_force.column_sums(q, k, **where | {"query_start": min(start, 90)}, dtype=d)
                for d in (torch.float64, dtype)
            )
            assert_as_good_as_plain(ops.column_sums(q, k, backend="native", **where), expected, plain, 1e-5)


@pytest.mark.usefixtures("instructions")
def test_the_exponential_is_right_to_two_millionths_and_never_hides_a_nan():
    """One row, one dimension and an LSE of 0: the score of a column is e to its key."""
    powers = torch.cat([torch.linspace(-87, 88, 40001), torch.linspace(-1, 1, 40001)])
    edges = torch.tensor([-1e30, -math.inf, -150.0, -104.5, 89.5, 1e30, math.inf, math.nan])
    below_normal = torch.linspace(-104, -87.4, 1001)
    one, zero = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1)
    where = {"query_start": 10**6, "scale": 1.0, "lse": zero, "backend": "native"}
    actual = ops.column_sums(one, powers[None, None, :, None], key_range=(0, len(powers)), **where)[0]
    # The product with log2(e) is rounded: an error of half a unit in the last place of up to 127.
    allowed = 3e-7 + powers.abs().double() * 1.5e-7
    assert ((actual.double() / powers.double().exp() - 1).abs() <= allowed).all()
    near = powers.abs() <= 1
    assert ((actual.double() / powers.double().exp() - 1).abs()[near] <= 3e-7).all()
    actual = ops.column_sums(one, edges[None, None, :, None], key_range=(0, 8), **where)[0]
    assert actual[:4].tolist() == [0.0] * 4 and actual[4:7].tolist() == [math.inf] * 3 and actual[7].isnan()
    actual = ops.column_sums(one, below_normal[None, None, :, None], key_range=(0, 1001), **where)[0].double()
    right = below_normal.double().exp()
    assert ((actual == 0) | ((actual - right).abs() <= 2e-5 * right + 2.0**-150)).all()


def test_the_number_of_threads_changes_no_bit():
    query, key = inputs(9, 3000, 64, heads=4, kv_heads=2)
    where = {"query_start": 2991, "key_range": (0, 2990), "backend": "native"}
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(ops.column_sums(query, key, **where))
    finally:
        torch.set_num_threads(before)
    assert results[0].equal(results[1]) and results[0].equal(results[2])
    alone = ops.column_sums(query[1:], key[1:], **where)
    assert alone[0].equal(results[0][1])


def test_what_it_refuses():
    query, key = inputs(2, 9, 64, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="^backend: 'native' cannot run column_sums here: .*not in float64"):
        ops.column_sums(query, key, query_start=7, key_range=(0, 9), backend="native")
    with pytest.raises(RuntimeError, match="^backend: 'native' cannot run row_lse here: it has no gradient"):
        ops.row_lse(query.float().requires_grad_(), key.float(), query_start=7, backend="native")
    with pytest.raises(RuntimeError, match="^backend: 'native' cannot run gather here: .*not on meta"):
        ops.gather(
            torch.zeros(1, 1, dtype=torch.long, device="meta"),
            torch.zeros(1, 2, device="meta"),
            dims=1,
            backend="native",
        )


def test_what_a_caller_got_wrong_touches_no_other_memory():
    """With the number of columns given, budgets and ids are trusted; any choice will do, but indices must be tokens."""
    positions = torch.tensor([-3, 2**40, 0, 1, 0, 1, 5000, 7])
    for dedup in ("strict", "soft", "off"):
        for budget in (-1, 0, 5, 8, 2**40):
            for ids in (torch.zeros(8, dtype=torch.long), torch.tensor([5, 0, -7, 0, 2**40, 0, 0, -1])):
                kept = ops.select(
                    torch.rand(1, 8), ids, positions, [budget], dedup=dedup, num_selected=8, backend="native"
                )
                assert kept.shape == (1, 8) and (kept >= 0).all() and (kept < 8).all()


@given(st.integers(0, 2**32), st.sampled_from(["strict", "soft", "off"]), st.booleans())
@settings(max_examples=1000, deadline=None)
def test_select_is_the_reference_on_ten_thousand_cases(seed, dedup, double):
    """A thousand examples of ten batch rows each, which are cases of their own."""
    *given, options = awkward_selection(seed, dedup, dtype=torch.float64 if double else torch.float32)
    expected = ops.select(*given, backend="reference", **options)
    assert ops.select(*given, backend="native", **options).equal(expected)


@given(st.integers(0, 2**32))
@settings(max_examples=1000, deadline=None)
def test_gather_is_the_reference(seed):
    indices, tensors, dims = awkward_tensors(seed)
    expected = ops.gather(indices, *tensors, dims=dims, backend="reference")
    actual = ops.gather(indices, *tensors, dims=dims, backend="native")
    for moved, right in zip(actual, expected, strict=True):
        assert moved.shape == right.shape and moved.dtype == right.dtype and moved.is_contiguous()
        assert same_bits(moved, right)


@given(st.integers(0, 2**32))
@settings(max_examples=1000, deadline=None)
def test_column_sums_are_the_references(seed):
    random = torch.Generator().manual_seed(seed)
    draw = lambda *bounds: int(torch.randint(*bounds, (), generator=random))  # noqa: E731
    rows, columns, dim, kv_heads, batch = draw(1, 20), draw(1, 120), draw(1, 40), draw(1, 3), draw(1, 3)
    dtype = [torch.float32, torch.float16, torch.bfloat16][draw(0, 3)]
    query = torch.randn(batch, rows, kv_heads * draw(1, 4), dim, generator=random).to(dtype).transpose(1, 2)
    key = torch.randn(batch, kv_heads, columns, dim, generator=random).to(dtype)
    if draw(0, 4) == 0:
        key[draw(0, batch), draw(0, kv_heads), draw(0, columns), draw(0, dim)] = AWKWARD_SCORES[draw(0, 3)]
    first = draw(0, columns)
    where = {"query_start": draw(0, columns + 5), "key_range": (first, draw(first + 1, columns + 1))}
    if draw(0, 2):
        where["key_mask"] = torch.rand(batch, columns, generator=random) > 0.3
    if draw(0, 2):
        where["query_mask"] = torch.rand(batch, rows, generator=random) > 0.3
    if draw(0, 2):
        mask = {"key_mask": where["key_mask"]} if "key_mask" in where else {}
        where["lse"] = ops.row_lse(query, key, query_start=where["query_start"], backend="reference", **mask)
    expected = ops.column_sums(query, key, backend="reference", **where)
    actual = ops.column_sums(query, key, backend="native", **where)
    torch.testing.assert_close(actual, expected, rtol=2e-5, atol=1e-7, equal_nan=True)
