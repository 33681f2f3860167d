"""gather on Triton: bit for bit the reference, and many tensors in few launches of few kernels."""

import functools
import math

import pytest
import torch
from op_inputs import counted

from adatp_kernels import ops
from adatp_kernels.ops.triton import folding
from adatp_kernels.ops.triton import gather as kernels
from adatp_kernels.ops.triton.folding import fold


def same(indices, tensors, dims, device):
    indices, tensors = indices.to(device), [tensor.to(device) for tensor in tensors]
    expected = ops.gather(indices, *tensors, dims=dims, backend="reference")
    for actual, wanted in zip(ops.gather(indices, *tensors, dims=dims, backend="triton"), expected, strict=True):
        assert actual.dtype == wanted.dtype
        assert actual.shape == wanted.shape
        assert actual.contiguous().view(torch.uint8).equal(wanted.contiguous().view(torch.uint8))


def fold_of(tensor, token, *, kept=None, batch=None):
    """How a tensor folds of whose tokens `kept` stay."""
    shape = list(tensor.shape)
    shape[token] = shape[token] if kept is None else kept
    aligned = math.gcd(16, tensor.data_ptr())
    return fold(tensor.shape, tensor.stride(), tensor.element_size(), aligned, tuple(shape), batch, token)


def indices_of(batch, kept, length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(length, generator=generator)[:kept].sort().values for _ in range(batch)])


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kept", [1, 7, 20])
def test_everything_that_travels_with_a_token(batch, kept, device):
    length = 20
    tensors = [
        torch.randn(batch, length, 96).bfloat16(),  # hidden states
        torch.randn(1, length, 32),  # cos, the same for all rows
        torch.randn(batch, length, 30).half(),  # sin of a width that no 16-byte word divides
        counted(3, batch, length, dtype=torch.int64),  # position ids of three planes
        torch.rand(batch, 1, length, 37) > 0.5,  # rows of a mask
        torch.rand(batch, 1, 5, length) > 0.5,  # columns of a mask
        torch.randn(batch, 2, length, 16),  # keys
        torch.randn(batch, 2, length, 700).bfloat16(),  # values wider than a program's block
        counted(batch, length, dtype=torch.int32),
    ]
    same(indices_of(batch, kept, length), tensors, [1, 1, 1, (1, 2), 2, 3, 2, 2, 1], device)


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.int8, torch.uint8, torch.float8_e4m3fn, torch.complex64, torch.complex128, torch.bool],
)
def test_any_dtype(dtype, device):
    tensor = torch.arange(2 * 9 * 6).reshape(2, 9, 6).remainder(7).to(torch.float32).to(dtype)
    same(indices_of(2, 4, 9), [tensor, tensor[..., 0].contiguous()], 1, device)


def test_strided_views(device):
    wide = torch.randn(3, 11, 4, 24)
    tensors = [
        wide.transpose(1, 2),  # token dimension 2, as attention lays keys out
        wide[:, :, 1:3, ::2],  # elements apart
        wide[:, :, :, 1:9],  # not aligned to a word
        wide.permute(1, 0, 2, 3),  # tokens first
        wide[..., 0].permute(0, 2, 1),  # outer dimension innermost in memory
        wide[:, :, 0, :1].expand(3, 11, 5),  # stride 0
    ]
    same(indices_of(3, 6, 11), tensors, [2, 1, 1, (1, 0), 2, 1], device)
    same(indices_of(1, 6, 11), [wide, wide.transpose(0, 1), wide[0, :, 0, 0]], [1, 0, (0, 0)], device)


def test_what_does_not_fold_is_moved_all_the_same(device):
    tensor = torch.randn(2, 3, 4, 7, 6)[:, :, :3]
    assert fold_of(tensor, 3, kept=4, batch=0) is None
    same(indices_of(2, 4, 7), [tensor, torch.randn(2, 7)], [3, 1], device)


def test_keeping_nothing(device):
    same(torch.zeros(2, 0, dtype=torch.int64), [torch.randn(2, 5, 3), torch.randn(2, 5)], 1, device)
    same(indices_of(2, 3, 5), [torch.randn(2, 5, 0)], 1, device)


def test_every_element_is_written(device):
    out = ops.gather(indices_of(2, 13, 40).to(device), torch.randn(2, 40, 65).to(device), dims=1, backend="triton")[0]
    assert not out.isnan().any()


def test_layouts_that_only_one_stride_tells_apart(device):
    wide = torch.randn(2, 9, 8)
    tensors = [
        wide[..., :5],
        torch.randn(2, 9, 7)[..., :6],
        torch.randn(3, 2, 5, 9),
        torch.randn(9, 6, 2),
        torch.randn(2, 2, 9, 1100),
    ]
    same(indices_of(2, 4, 9).T.contiguous().T, tensors, [1, 1, (1, 3), (2, 0), 2], device)


def test_no_batch_and_lazy_views(device):
    same(torch.zeros(0, 3, dtype=torch.int64), [torch.randn(0, 5, 3)], 1, device)
    conjugate = torch.randn(2, 5, 4, dtype=torch.complex64).conj()
    same(indices_of(2, 3, 5), [conjugate, conjugate[..., 0].imag], 1, device)


@pytest.fixture
def launches(monkeypatch):
    """What every launch moves: its runs of tensors that fold alike."""
    seen, launch = [], kernels._launch
    kernels._plan.cache_clear()
    monkeypatch.setattr(
        kernels, "_launch", lambda indices, chosen, *rest: (seen.append(chosen.runs), launch(indices, chosen, *rest))
    )
    yield seen
    kernels._plan.cache_clear()


def compiled(runs):
    """What of a launch Triton compiles a kernel for."""
    return tuple((run.fold.kind, run.slots) for run in runs)


def stage(length, layers, batch=1, heads=4, head_dim=128, rotary_dtype=torch.bfloat16):
    """What the integrations move after a stage, in their order, and the dimensions; none of it has values."""
    empty = functools.partial(torch.empty, device="meta")
    tensors = [empty(batch, length, 896, dtype=torch.bfloat16)]
    tensors += [empty(1, length, head_dim, dtype=rotary_dtype) for _ in range(2)]
    tensors += [empty(batch, heads, length, head_dim, dtype=torch.bfloat16) for _ in range(2 * layers)]
    tensors.append(empty(2, batch, length, dtype=torch.int64))
    return tensors, [(0, 1)] * 3 + [(0, 2)] * 2 * layers + [(1, 2)]


@pytest.mark.parametrize(
    "model", [{}, {"heads": 1}, {"batch": 3}, {"head_dim": 80}, {"head_dim": 256}, {"rotary_dtype": torch.float32}]
)
@pytest.mark.parametrize(
    ("stages", "compact", "most_kernels", "most_launches"), [(15, False, 1, 1), (15, True, 3, 1), (67, True, 4, 3)]
)
def test_the_stages_of_a_prompt_share_few_kernels(model, stages, compact, most_kernels, most_launches, monkeypatch):
    launches = []
    monkeypatch.setattr(kernels, "_launch", lambda indices, chosen, *_: launches.append(chosen.runs))
    for number in range(1, stages + 1):
        length, before = 2000 - 23 * number, len(launches)
        tensors, dims = stage(length, number + 1 if compact else 0, **model)
        kernels.gather(torch.zeros(model.get("batch", 1), length - 23, dtype=torch.int64), tensors, dims)
        assert len(launches) - before <= most_launches
    assert len(set(map(compiled, launches))) <= most_kernels


def test_tensors_of_several_kinds_in_any_order(launches, device):
    length, generator = 9, torch.Generator().manual_seed(1)
    kinds = [
        lambda: (torch.randn(2, 3, length, 16, generator=generator).bfloat16(), 2),
        lambda: (torch.randint(1 << 40, (2, length), generator=generator), 1),
        lambda: (torch.randn(2, length, 16, generator=generator).bfloat16(), 1),  # the first's kind, another layout
        lambda: (torch.randn(2, length, 5, generator=generator), 1),
        lambda: (torch.randn(2, length, 5, generator=generator), 1),
        lambda: (torch.randint(100, (2, length, 7), generator=generator, dtype=torch.uint8), 1),
    ]
    many = [kinds[i % len(kinds)]() for i in range(27)] + [kinds[0]() for _ in range(15)]
    many = [many[i] for i in torch.randperm(len(many), generator=generator)]
    same(indices_of(2, 4, length), [tensor for tensor, _ in many], [token for _, token in many], device)
    (runs,) = launches
    assert sorted((len(run.tensors), run.slots) for run in runs) == [(4, 4), (5, 16), (5, 16), (8, 16), (20, 64)]


def test_more_tensors_than_a_launch_has_slots(launches, device):
    generator = torch.Generator().manual_seed(2)
    alike = [torch.randn(1, 2, 6, 8, generator=generator) for _ in range(131)]
    other = [torch.randn(1, 6, generator=generator), torch.randn(1, 6, 3, generator=generator)]
    tensors = [other[0], *alike, other[1]]
    same(indices_of(1, 3, 6), tensors, [1, *[2] * len(alike), 1], device)
    assert [[(len(run.tensors), run.slots) for run in runs] for runs in launches] == [
        [(64, 64)],
        [(3, 64)],
        [(1, 1), (64, 64), (1, 1)],
    ]


def test_more_layouts_than_a_launch_has_slots(launches, monkeypatch, device):
    monkeypatch.setattr(kernels, "_LAUNCH_SLOTS", 5)
    tensors = [torch.randn(2, 6, width) for width in (1, 2, 2, 3, 5, 6, 7, 7, 9)]
    same(indices_of(2, 3, 6), tensors, 1, device)
    assert [sum(run.slots for run in runs) for runs in launches] == [5, 3, 5]


def test_slots_that_are_left_over_have_no_programs(launches, monkeypatch, device):
    grids, run = [], kernels._launch_kernel.run
    monkeypatch.setattr(
        kernels._launch_kernel,
        "run",
        lambda key, grid, *rest, **options: (grids.append(grid), run(key, grid, *rest, **options)),
    )
    tensors = [*[torch.randn(2, 3, 8, 16) for _ in range(5)], torch.randn(2, 8, 300)]
    same(indices_of(2, 4, 8), tensors, [*[2] * 5, 1], device)
    assert grids == [(5 * 3 + 5, 1, 2)]  # heads, then parts of 64 elements of the 300


def test_more_tokens_than_a_program_moves(device):
    tensors = [torch.randn(2, 200, 40).bfloat16(), torch.randn(2, 3, 200), counted(2, 200, 3, dtype=torch.int64)]
    same(indices_of(2, 150, 200), tensors, [1, 2, 1], device)
    same(indices_of(1, 128, 200), tensors, [1, 2, 1], device)


def test_rows_of_parts_of_several_heads(device):
    wide = torch.randn(2, 3, 7, 280)
    tensors = [
        wide,  # wider than a program, and no multiple of it
        wide[..., :100],  # another row stride
        wide[..., ::2],  # elements apart
        torch.randn(2, 7, 6, 8)[:, :, ::2].bfloat16(),
        torch.randn(2, 7, 6, 8).bfloat16()[:, :, ::2],  # 16 bytes side by side, which lie apart
    ]
    same(indices_of(2, 4, 7), tensors, [2, 2, 2, 1, 1], device)


def test_words_are_as_wide_as_alignment_allows():
    def bytes_of(tensor, token=1):
        kind = fold_of(tensor, token).kind
        return kind.word * kind.unit

    flat = torch.zeros(4 * 6 * 64 + 8, dtype=torch.bfloat16)
    assert [bytes_of(flat[shift : shift + 4 * 6 * 64].view(4, 6, 64)) for shift in (0, 1, 2, 4, 8)] == [16, 2, 4, 8, 16]
    assert bytes_of(torch.zeros(2, 6, 20, dtype=torch.bfloat16)) == 8
    assert bytes_of(torch.zeros(2, 6, dtype=torch.int64)) == 8


def test_rows_are_wide():
    hidden, keys, mask = torch.empty(1, 6, 896).half(), torch.empty(1, 4, 6, 128).half(), torch.empty(1, 20, 6) > 0
    folds = [fold_of(tensor, token) for tensor, token in ((hidden, 1), (keys, 2), (mask, 2))]
    assert [(fold.rows // 16, fold.kind.block) for fold in folds] == [(7, 32), (4, 32), (1, 32)]
    assert folds[0].kind == folds[1].kind


def test_more_tokens_than_an_int32_counts_do_not_fold():
    assert fold_of(torch.zeros(1, dtype=torch.int8).expand(1 << 31), 0, kept=3) is None


@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        ((1, 1, 3, 5), (1, 1, (1 << 30) + 1, 1)),
        ((1, 2, 3, 5), (1, (1 << 31) + 7, 5, 1)),
        ((1, 18, 3, 5), (1, (1 << 27) - 3, 5, 1)),
        ((2, 1, 3, 5), ((1 << 31) + 7, 1, 5, 1)),
        ((18, 1, 3, 5), ((1 << 27) - 3, 1, 5, 1)),
        ((1, 1, 3, 3), (1, 1, 1, (1 << 30) + 1)),
    ],
    ids=["token", "outer", "outer of short stride", "batch", "batch of short stride", "inner"],
)
def test_offsets_beyond_32_bits(shape, strides, device):
    span = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    tensor = torch.empty(span, dtype=torch.int8, device=device).as_strided(shape, strides)
    tensor.copy_(torch.arange(tensor.numel()).view(shape))
    same(torch.tensor([[0, 2]] * shape[0]), [tensor], 2, device)


@pytest.mark.parametrize("limit", ["_TENSOR_ROWS", "_GRID"])
def test_what_no_grid_holds_is_moved_by_torch(limit, launches, monkeypatch, device):
    monkeypatch.setattr(folding if limit == "_TENSOR_ROWS" else kernels, limit, 1)
    fold.cache_clear()
    same(indices_of(2, 3, 8), [torch.randn(2, 3, 8, 16)], 2, device)
    fold.cache_clear()
    assert not launches
