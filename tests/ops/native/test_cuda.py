"""The CUDA kernels against the definition and the reference: on a GPU, or on a CPU that plays one."""

import importlib

import brute_force
import pytest
import torch
from awkward_inputs import awkward_selection, awkward_tensors, same_bits
from brute_force import assert_as_good_as_plain
from compiler import compiler_or_skip
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from op_inputs import inputs, left_padding, on

from adatp_kernels import Stage, ops
from adatp_kernels.config import DEDUPLICATION
from adatp_kernels.ops.native import cuda

FUZZ = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("rows", "columns", "dim", "heads", "kv_heads"),
    [(1, 1, 64, 1, 1), (3, 37, 96, 4, 2), (17, 199, 64, 3, 3), (64, 1000, 128, 7, 1), (5, 129, 128, 28, 4)],
)
def test_column_sums(rows, columns, dim, heads, kv_heads, dtype, machine):
    query, key = inputs(rows, columns, dim, heads=heads, kv_heads=kv_heads, dtype=dtype)
    where = {"query_start": max(0, columns - rows), "key_range": (columns // 3, columns)}
    expected = brute_force.column_sums(query, key, **where)
    plain = brute_force.column_sums(query, key, **where, dtype=dtype)
    lse = brute_force.row_lse(query, key, query_start=where["query_start"])
    query, key, lse = on(machine.device, query, key, lse)
    for given_lse in (None, lse, lse.transpose(1, 2).contiguous().transpose(1, 2).float()):
        actual = ops.column_sums(query, key, lse=given_lse, backend="native", **where)
        assert_as_good_as_plain(actual.cpu(), expected, plain, 1e-5)


def test_many_keys_are_split(machine):
    """More tiles than one unit of work takes, with the last split and the last tile partly filled."""
    query, key = inputs(3, 2500, 64, heads=2, kv_heads=1, batch=1, dtype=torch.bfloat16)
    where = {"query_start": 2480, "key_range": (11, 2470)}
    expected = brute_force.column_sums(query, key, **where)
    plain = brute_force.column_sums(query, key, **where, dtype=torch.bfloat16)
    query, key = on(machine.device, query, key)
    assert_as_good_as_plain(ops.column_sums(query, key, backend="native", **where).cpu(), expected, plain, 1e-5)


@pytest.mark.parametrize("given", [False, True])
def test_many_rows_for_each_column(given, machine):
    """More tiles of rows than splits, so that several pass in a unit of work, the last one partly filled."""
    query, key = inputs(107, 40, 64, heads=29, kv_heads=1, batch=1, dtype=torch.bfloat16)
    where = {"query_start": 20, "key_range": (1, 39), "query_mask": torch.arange(107)[None] % 5 != 2}
    expected = brute_force.column_sums(query, key, **where)
    plain = brute_force.column_sums(query, key, **where, dtype=torch.bfloat16)
    lse = brute_force.row_lse(query, key, query_start=20).to(machine.device) if given else None
    query, key, where["query_mask"] = on(machine.device, query, key, where["query_mask"])
    actual = ops.column_sums(query, key, lse=lse, backend="native", **where)
    assert_as_good_as_plain(actual.cpu(), expected, plain, 1e-5)


def test_masks_padding_and_strides(machine):
    wide = torch.randn(3, 90, 4, 160, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    query, _ = inputs(6, 1, 64, batch=3, dtype=torch.bfloat16)
    key = wide.transpose(1, 2)[:, ::2, :, 32:96]
    masks = {
        "key_mask": left_padding([0, 17, 90], 90)[:, :, None].expand(-1, -1, 2).contiguous()[:, :, 1],
        "query_mask": torch.tensor([[1, 1, 1, 1, 1, 1], [0, 1, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0]]).bool(),
    }
    where = {"query_start": 80, "key_range": (3, 88), **masks}
    expected = brute_force.column_sums(query, key, **where)
    plain = brute_force.column_sums(query, key, **where, dtype=torch.bfloat16)
    # What nobody may look at holds NaN.
    query = torch.where(masks["query_mask"][:, None, :, None], query, torch.nan)
    wide[1, :17], wide[2] = torch.nan, torch.nan
    device = {name: value.to(machine.device) if name in masks else value for name, value in where.items()}
    actual = ops.column_sums(*on(machine.device, query, key), backend="native", **device)
    assert_as_good_as_plain(actual.cpu(), expected, plain, 1e-5)
    assert (actual[2] == 0).all()


def test_scores_do_not_depend_on_company_turns_or_size(machine):
    query, key = on(machine.device, *inputs(9, 400, 64, batch=3, dtype=torch.float16))
    where = {"query_start": 391, "key_range": (5, 391), "backend": "native"}
    first = ops.column_sums(query, key, **where)
    for turns, multiprocessors, cooperative in [(1, 1, True), (2, 5, True), (3, 3, False)]:
        machine.change(turns, multiprocessors, cooperative)
        assert ops.column_sums(query, key, **where).equal(first)
    assert ops.column_sums(query[1:2], key[1:2], **where)[0].equal(first[1])


@given(st.integers(0, 2**32), st.sampled_from(DEDUPLICATION), st.integers(1, 4), st.booleans())
@settings(FUZZ, max_examples=300)
def test_select_is_the_reference(machine, seed, dedup, multiprocessors, cooperative):
    machine.change(seed, multiprocessors, cooperative)
    *case, options = awkward_selection(seed, dedup, batch=3, most_columns=300)
    expected = ops.select(*case, backend="reference", **options)
    options = {name: value.to(machine.device) if name == "prior" else value for name, value in options.items()}
    assert ops.select(*on(machine.device, *case), backend="native", **options).cpu().equal(expected)


@pytest.mark.parametrize("dedup", DEDUPLICATION)
@pytest.mark.parametrize("positions", [50, 3000, 6000])
@pytest.mark.parametrize("ties", ["few", "many", "all"])
def test_several_blocks_for_a_segment(dedup, positions, ties, machine):
    machine.change(turns=positions, multiprocessors=4)
    random = torch.Generator().manual_seed(positions)
    scores = torch.randint(0, {"few": 2**24, "many": 40, "all": 1}[ties], (2, 9001), generator=random).float()
    case = (scores, torch.zeros(9001, dtype=torch.long), torch.arange(9001) % positions, torch.tensor([49]))
    expected = ops.select(*case, dedup=dedup, soft_weight=0.5, backend="reference")
    actual = ops.select(*on(machine.device, *case), dedup=dedup, soft_weight=0.5, backend="native")
    assert actual.cpu().equal(expected)


def test_scattered_segments_in_several_blocks(machine):
    machine.change(multiprocessors=8)
    random = torch.Generator().manual_seed(0)
    segments = torch.randint(-1, 2, (20000,), generator=random)
    case = (torch.rand(1, 20000, generator=random), segments, torch.arange(20000) % 777, torch.tensor([300, 777]))
    expected = ops.select(*case, backend="reference")
    assert ops.select(*on(machine.device, *case), backend="native").cpu().equal(expected)


def test_more_columns_than_groups_of_bits(machine):
    columns = 2 * 2048 * 32 + 77
    scores = torch.rand(1, columns, generator=torch.Generator().manual_seed(0))
    case = (
        scores,
        torch.arange(columns) // 30000,
        torch.zeros(columns, dtype=torch.long),
        torch.tensor([99, 0, 3, 1, 20]),
    )
    expected = ops.select(*case, dedup="off", backend="reference")
    assert ops.select(*on(machine.device, *case), dedup="off", backend="native").cpu().equal(expected)


def test_a_score_beyond_all_others(machine):
    """Orders then differ from the first bit on, and most digits are alike."""
    scores = torch.full((1, 700), 0.001)
    scores[0, 300], scores[0, 10], scores[0, 500] = torch.inf, -1.0, torch.nan
    case = (scores, torch.zeros(700, dtype=torch.long), torch.arange(700))
    for budget in (1, 2, 5, 698, 699, 700):
        expected = ops.select(*case, torch.tensor([budget]), backend="reference")
        assert ops.select(*on(machine.device, *case, torch.tensor([budget])), backend="native").cpu().equal(expected)


def test_what_a_caller_got_wrong_ends_in_the_last_column(machine):
    positions = torch.tensor([-3, 2**40, 0, 1, 0, 1, 5000, 7])
    ids = torch.tensor([5, 0, -7, 0, 2**40, 0, 0, -1])
    for dedup in DEDUPLICATION:
        for budget in (-1, 0, 5, 2**40):
            case = on(machine.device, torch.rand(1, 8), ids, positions, torch.tensor([budget]))
            known = {"num_selected": 8, "num_positions": 3, "dedup": dedup, "backend": "native"}
            kept = ops.select(*case, **known)[0].tolist()
            assert kept == sorted(kept) and len(kept) == 8 and kept[-1] == 7 and kept[0] >= 0
            assert {2, 7} <= set(kept) and not {0, 4} & set(kept)


def stage(*, batch, dtype, dim, dedup, text, given_lse, masks, given_scores, tensors, dims):
    """Arguments of a stage of 157 columns in three segments, a timestamp between the first two."""
    first, older = text
    columns, rows = 157, 6
    length = older + first + columns + rows
    query, key = inputs(rows, length, dim, batch=batch, dtype=dtype)
    segments = torch.arange(columns) // 60
    segments[59] = -1
    positions = torch.arange(columns) % 20
    start = length - rows
    where = {"query_start": start, "key_range": (older + first, start), "sequence_start": older}
    options = {}
    if masks:
        options["key_mask"] = left_padding([3 * b for b in range(batch)], length)
        options["query_mask"] = torch.arange(batch * rows).reshape(batch, rows) % 4 != 1
    if given_lse:
        options["lse"] = ops.row_lse(
            query, key, query_start=start, key_mask=options.get("key_mask"), backend="reference"
        )
    if given_scores:
        options = {"scores": torch.rand(batch, columns, generator=torch.Generator().manual_seed(1))}
    if dedup == "off":
        options["prior"] = (torch.arange(columns) % 3).float()
    return query, key, tensors(length - older), options, {
        **where, "stage": Stage(1, (9, 5, 4), 18), "dims": dims, "segments": segments, "positions": positions,
        "dedup": dedup, "soft_weight": 0.5,
    }  # fmt: skip


@pytest.mark.parametrize("cooperative", [True, False])
@pytest.mark.parametrize("dedup", DEDUPLICATION)
@pytest.mark.parametrize(
    ("batch", "dtype", "dim", "given_lse", "masks", "given_scores"),
    [
        (1, torch.bfloat16, 128, False, False, False),
        (2, torch.float16, 64, True, False, False),
        (3, torch.bfloat16, 96, False, True, False),
        (2, torch.bfloat16, 64, True, True, False),
        (2, torch.float16, 64, False, False, True),
    ],
)
def test_prune_is_its_operations(batch, dtype, dim, given_lse, masks, given_scores, dedup, cooperative, machine):
    """Which tokens: those the reference selects by this backend's own scores. What moves: their bits."""
    machine.change(turns=batch, cooperative=cooperative)

    def tensors(length):
        random = torch.Generator().manual_seed(2)
        return [
            torch.randn(batch, length, 24, generator=random),
            torch.randn(1, 2, length, 40, generator=random).to(dtype),
            torch.arange(length).expand(batch, length),
        ]

    text = (7, 5 if batch == 2 else 0)
    query, key, moved, options, common = stage(
        batch=batch, dtype=dtype, dim=dim, dedup=dedup, text=text, given_lse=given_lse, masks=masks,
        given_scores=given_scores, tensors=tensors, dims=[1, 2, 1],
    )  # fmt: skip
    to = lambda value: value.to(machine.device) if isinstance(value, torch.Tensor) else value  # noqa: E731
    query, key, moved = to(query), to(key), [to(tensor) for tensor in moved]
    options = {name: to(value) for name, value in options.items()}
    common = {name: to(value) for name, value in common.items()}
    actual, results = ops.prune(query, key, moved, **options, **common, backend="native")
    scoring = {name: options[name] for name in ("lse", "key_mask", "query_mask") if name in options}
    scores = options.get("scores")
    if scores is None:
        place = {name: common[name] for name in ("query_start", "key_range")}
        scores = ops.column_sums(query, key, **place, **scoring, backend="native")
    prior = {"prior": options["prior"]} if "prior" in options else {}
    expected, wanted = ops.prune(query, key, moved, scores=scores, **prior, **common, backend="reference")
    assert actual.equal(expected)
    assert all(same_bits(result, right) for result, right in zip(results, wanted, strict=True))


@given(st.integers(0, 2**32), st.integers(1, 4))
@settings(FUZZ, max_examples=100)
def test_any_tensors_move(machine, seed, batch):
    """Up to thirty together, which is more than one launch moves."""
    machine.change(seed)
    _, moved, dims = awkward_tensors(seed, tokens=170, batch=batch, most_tensors=30)
    query, key = on(machine.device, *inputs(6, 170, 64, batch=batch, dtype=torch.bfloat16))
    ids, positions = on(machine.device, torch.arange(157) // 60, torch.arange(157) % 20)
    common = {
        "query_start": 164, "key_range": (7, 164), "stage": Stage(1, (9, 5, 4), 18), "dims": dims, "segments": ids,
        "positions": positions, "scores": torch.rand(batch, 157).to(machine.device),
    }  # fmt: skip
    moved = on(machine.device, *moved)
    expected, wanted = ops.prune(query, key, moved, **common, backend="reference")
    actual, results = ops.prune(query, key, moved, **common, backend="native")
    assert actual.equal(expected)
    for result, right in zip(results, wanted, strict=True):
        assert result.shape == right.shape and result.dtype == right.dtype and same_bits(result, right)


def test_what_it_refuses(machine):
    query, key = on(machine.device, *inputs(2, 9, 64, dtype=torch.bfloat16))
    where = {"query_start": 7, "key_range": (0, 9), "backend": "native"}
    odd = torch.zeros(2, 2, 9, 72, dtype=torch.bfloat16, device=machine.device)[..., 4:68]
    for message, (q, k) in {
        "it scores float16 and bfloat16, not torch.float32": (query.float(), key.float()),
        r"head dim must be one of \(64, 96, 128\), not 80": (
            torch.cat([query, query], 3)[..., :80],
            torch.cat([key, key], 3)[..., :80],
        ),
        "the rows of key must lie in one piece": (query, odd),
        "the rows of query must lie in one piece": (query.mT.contiguous().mT, key),
    }.items():
        with pytest.raises(RuntimeError, match=f"^backend: 'native' cannot run column_sums here: .*{message}"):
            ops.column_sums(q, k, **where)
    with pytest.raises(RuntimeError, match="scores must be float32, not torch.float64"):
        zeros = torch.zeros(1, 4, dtype=torch.long, device=machine.device)
        ops.select(torch.rand(1, 4, dtype=torch.float64, device=machine.device), zeros, zeros, [1], backend="native")
    assert "it runs column_sums, select and prune, not row_lse" in cuda.refuses("row_lse", query, key)


def test_the_report_says_what_became_of_the_cuda_library(monkeypatch):
    compiler_or_skip()
    backend = importlib.import_module("adatp_kernels.ops.native.backend")
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CUDA_HOME", raising=False)
    cuda.load.cache_clear()
    assert "CUDA" not in backend.details()
    assert "no CUDA compiler" in cuda.load()
    assert "its CUDA library cannot be loaded: no CUDA compiler: nvcc is not on PATH" in backend.details()
    cuda.load.cache_clear()
