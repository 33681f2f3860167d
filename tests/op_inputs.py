"""Inputs for the operations, and their tokens one at a time."""

import itertools
import math

import torch

HALF = (torch.float16, torch.bfloat16)


def inputs(rows, columns, dim, *, heads=4, kv_heads=2, batch=2, dtype=torch.float32, seed=0):
    """Query and key whose softmax is uneven: logits have a standard deviation of about 2."""
    generator = torch.Generator().manual_seed(seed)
    query = 2 * torch.randn(batch, heads, rows, dim, generator=generator)
    return query.to(dtype), torch.randn(batch, kv_heads, columns, dim, generator=generator).to(dtype)


def left_padding(lengths, columns):
    return torch.tensor([[j >= n for j in range(columns)] for n in lengths])


def counted(*shape, dtype=torch.float32):
    return torch.arange(math.prod(shape)).reshape(shape).to(dtype)


def picked(tensor, indices, batch, token):
    """What `gather` is to return, one batch row at a time."""
    rows = []
    for b, row in enumerate(indices.tolist()):
        source = tensor.narrow(batch, b if tensor.shape[batch] > 1 else 0, 1)
        pieces = [source.narrow(token, i, 1) for i in row]
        rows.append(torch.cat(pieces, token) if row else source.narrow(token, 0, 0))
    return torch.cat(rows, batch)


def packed(lengths, dim=64, *, heads=4, kv_heads=2, dtype=torch.float32):
    """Packed query and key, and their cumulative lengths, of sequences with (rows, columns) `lengths`."""
    pieces = [
        inputs(max(t, 1), max(n, 1), dim, heads=heads, kv_heads=kv_heads, batch=1, dtype=dtype, seed=b)
        for b, (t, n) in enumerate(lengths)
    ]
    query = torch.cat([q[0].transpose(0, 1)[:t] for (q, _), (t, _) in zip(pieces, lengths, strict=True)])
    key = torch.cat([k[0].transpose(0, 1)[:n] for (_, k), (_, n) in zip(pieces, lengths, strict=True)])
    cumulative = [
        torch.tensor([0, *itertools.accumulate(side)], dtype=torch.int32) for side in zip(*lengths, strict=True)
    ]
    return query, key, {"cu_seqlens_q": cumulative[0], "cu_seqlens_k": cumulative[1]}


def on(device, *values):
    """The values with all tensors among them on a device."""
    return [value.to(device) if isinstance(value, torch.Tensor) else value for value in values]
