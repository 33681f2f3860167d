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


def ranges_of(ids, budgets):
    """The ranges [B, S, 3] of segments [B, N], and the longest; None where columns of several segments are mixed."""
    rows = []
    for row, limits in zip(ids.tolist(), budgets.tolist(), strict=True):
        runs = [(segment, len(list(run))) for segment, run in itertools.groupby(s for s in row if s >= 0)]
        if len({segment for segment, _ in runs}) < len(runs) or any(segment >= len(limits) for segment, _ in runs):
            return None
        ranges, first, place = [[0, 0, 0] for _ in limits], 0, 0
        for number, (segment, _) in enumerate(runs):
            # What is always kept belongs to the segment before it, and at the beginning to the first.
            last = row.index(runs[number + 1][0]) if number + 1 < len(runs) else len(row)
            ranges[segment] = [first, last, place]
            place += limits[segment] + sum(s < 0 for s in row[first:last])
            first = last
        if not runs and limits:
            ranges[0] = [0, len(row), 0]
        rows.append(ranges)
    table = torch.tensor(rows, dtype=torch.int64).reshape(len(rows), -1, 3)
    return table, max([1, *(table[..., 1] - table[..., 0]).flatten().tolist()])
