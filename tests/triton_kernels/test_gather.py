"""gather on Triton: bit for bit the reference, all tensors in one launch."""

import pytest
import torch
from op_inputs import counted

from adatp_kernels import ops
from adatp_kernels.ops.triton import gather as kernels


def same(indices, tensors, dims, device):
    indices, tensors = indices.to(device), [tensor.to(device) for tensor in tensors]
    expected = ops.gather(indices, *tensors, dims=dims, backend="reference")
    for actual, wanted in zip(ops.gather(indices, *tensors, dims=dims, backend="triton"), expected, strict=True):
        assert actual.dtype == wanted.dtype
        assert actual.shape == wanted.shape
        assert actual.contiguous().view(torch.uint8).equal(wanted.contiguous().view(torch.uint8))


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
    assert kernels._fold(tensor, torch.empty(2, 3, 3, 4, 6), 0, 3) is None
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
