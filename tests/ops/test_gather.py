"""gather on the reference backend, against indexing one token at a time."""

import pytest
import torch
from brute_force import names
from op_inputs import counted, picked

from adatp_kernels.ops import gather

pytestmark = pytest.mark.usefixtures("backend_of_auto")

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
]
DTYPES += [torch.complex64, torch.float8_e4m3fn]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [1, 3])
def test_gather_of_any_dtype(batch, dtype):
    tensor = counted(batch, 5, 2, dtype=dtype)
    indices = torch.tensor([[0, 2, 4], [1, 2, 3], [4, 4, 0]])[:batch]
    (moved,) = gather(indices, tensor, dims=1)
    assert moved.dtype == dtype
    assert moved.view(torch.uint8).equal(picked(tensor.view(torch.uint8), indices, 0, 1))


@pytest.mark.parametrize(
    ("shape", "dims", "batch", "token"),
    [
        ((3, 5), 1, 0, 1),
        ((3, 5), -1, 0, 1),
        ((3, 5, 4), 1, 0, 1),
        ((3, 2, 5, 4), 2, 0, 2),
        ((3, 2, 5, 4), -2, 0, 2),
        ((2, 3, 5), (1, 2), 1, 2),
        ((2, 3, 5), (-2, -1), 1, 2),
        ((5, 3), (1, 0), 1, 0),
        ((5, 2, 3, 4), (2, 0), 2, 0),
        ((1, 5, 4), 1, 0, 1),  # one for all rows
        ((2, 1, 5), (1, 2), 1, 2),
        ((5, 1), (1, 0), 1, 0),
    ],
)
@pytest.mark.parametrize("kept", [0, 1, 3])
def test_gather_along_any_dimension(shape, dims, batch, token, kept):
    tensor = counted(*shape)
    indices = torch.tensor([[0, 2, 4], [1, 2, 3], [0, 1, 4]])[:, :kept]
    (moved,) = gather(indices, tensor, dims=[dims])
    assert moved.is_contiguous()
    assert moved.equal(picked(tensor, indices, batch, token))


@pytest.mark.parametrize(
    ("shape", "token"), [((1, 5), 1), ((1, 2, 5, 4), 2), ((5,), 0), ((5, 7), 0), ((3, 1, 5), -1), ((3, 2, 5), 2)]
)
@pytest.mark.parametrize("kept", [0, 3])
def test_one_batch_row_serves_any_tensor(shape, token, kept):
    tensor, indices = counted(*shape), torch.tensor([[0, 2, 4]])[:, :kept]
    (moved,) = gather(indices, tensor, dims=token)
    assert moved.is_contiguous()
    assert moved.equal(tensor.index_select(token, indices[0]))


@pytest.mark.parametrize("batch", [1, 2])
def test_gather_moves_all_tensors_together(batch):
    indices = torch.tensor([[1, 3], [0, 4]])[:batch]
    hidden, cos, ids = counted(batch, 5, 3), counted(1, 5, 2), counted(3, batch, 5, dtype=torch.int64)
    moved = gather(indices, hidden, cos, ids, dims=(1, -2, (1, 2)))
    for got, (tensor, axes) in zip(moved, [(hidden, (0, 1)), (cos, (0, 1)), (ids, (1, 2))], strict=True):
        assert got.equal(picked(tensor, indices, *axes))
    assert gather(indices, dims=1) == ()


@pytest.mark.parametrize("batch", [1, 2])
def test_gather_of_strided_views(batch):
    indices = torch.tensor([[1, 3, 4], [0, 2, 4]])[:batch]
    base = counted(2 * batch, 10, 4, 6)
    for view in (
        base[::2, ::2],
        base[:batch, 5:, ::3],
        base[:batch].transpose(1, 2)[:, :, :5].transpose(1, 2),
        base[:1, :5].expand(batch, -1, -1, -1),
    ):
        (moved,) = gather(indices, view, dims=1)
        assert moved.is_contiguous()
        assert moved.equal(picked(view, indices, 0, 1))
    (moved,) = gather(indices[:, ::2], base[:batch], dims=1)
    assert moved.equal(picked(base[:batch], indices[:, ::2], 0, 1))


def test_gather_returns_copies():
    tensor = counted(1, 4, 2)
    (moved,) = gather(torch.tensor([[0, 1, 2, 3]]), tensor, dims=1)
    moved.zero_()
    assert tensor.sum() > 0


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"indices": [[0, 1], [2, 3]]}, "indices"),
        ({"indices": torch.tensor([[0, 1], [2, 3]], dtype=torch.int32)}, "indices"),
        ({"indices": torch.tensor([0, 1])}, "indices"),
        ({"indices": torch.tensor([[0, 1], [2, 5]])}, "indices"),
        ({"indices": torch.tensor([[0, 1], [2, -1]])}, "indices"),
        ({"tensor": None}, "tensors"),
        ({"tensor": [[1.0]]}, "tensors"),
        ({"tensor": torch.ones(3, 5)}, "tensors"),
        ({"tensor": torch.ones(2, 5, device="meta")}, "tensors"),
        ({"dims": None}, "dims"),
        ({"dims": 1.0}, "dims"),
        ({"dims": True}, "dims"),
        ({"dims": []}, "dims"),
        ({"dims": [1, 1]}, "dims"),
        ({"dims": [(0, 1, 2)]}, "dims"),
        ({"dims": ["1"]}, "dims"),
        ({"dims": [None]}, "dims"),
        ({"dims": 3}, "dims"),
        ({"dims": -4}, "dims"),
        ({"dims": 0}, "dims"),
        ({"dims": [(1, 1)]}, "dims"),
        ({"tensor": torch.tensor(1.0), "dims": 0}, "dims"),
        ({"backend": "cuda"}, "backend"),
    ],
)
def test_gather_mistakes(changes, argument):
    options = {"indices": torch.tensor([[0, 1], [2, 3]]), "tensor": torch.ones(2, 5, 3), "dims": 1} | changes
    with names(argument):
        gather(options.pop("indices"), options.pop("tensor"), **options)
