"""Inputs of `flash_attention`, masks of every shape, and the comparison with float64."""

import math

import brute_force
import torch
from brute_force import assert_as_good_as_plain

from adatp_kernels import flash_attention

# The output is rounded to its dtype once, and half-precision kernels may round the probabilities too.
RELATIVE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-4, torch.bfloat16: 3e-3}
# In half precision PyTorch's CPU operator sums a fast approximation of exp, off by up to 6e-5.
LSE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-4, torch.bfloat16: 1e-4}


def inputs(rows, columns, *, heads=4, kv_heads=2, batch=2, dim=64, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, dim, generator=generator).to(dtype)  # noqa: E731
    return 2 * draw(batch, heads, rows), draw(batch, kv_heads, columns), draw(batch, kv_heads, columns)


def expected(query, key, value, *, causal=True, scale=None, mask=None):
    """Output and LSE in float64, the output of plain PyTorch in the inputs' dtype, and what each row sees."""
    rows, columns = query.shape[2], key.shape[2]
    start = columns - rows if causal else columns
    visible = torch.tensor([[j <= start + i for j in range(columns)] for i in range(rows)])
    visible = (visible if mask is None else visible & mask).expand(*query.shape[:3], columns)
    scale = query.shape[3] ** -0.5 if scale is None else scale
    out, lse = brute_force.attention(query.double(), key.double(), value.double(), visible, scale)
    return out, lse, brute_force.attention(query, key, value, visible, scale)[0], visible


def check(query, key, value, provider, **options):
    out, lse = flash_attention(query, key, value, provider=provider, **options)
    want_out, want_lse, plain, visible = expected(query, key, value, **options)
    assert out.dtype == query.dtype
    assert lse.dtype == (torch.float64 if query.dtype == torch.float64 else torch.float32)
    assert_as_good_as_plain(out, want_out, plain, RELATIVE[query.dtype])
    blind = ~visible.any(-1)
    assert (out[blind] == 0).all()
    assert (lse[blind] == -math.inf).all()
    torch.testing.assert_close(lse.double()[~blind], want_lse[~blind], rtol=0, atol=LSE[query.dtype])


def masks(rows, columns):
    """Random masks of every broadcastable shape; some rows of the full one see nothing."""
    draw = lambda *shape: torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.7  # noqa: E731
    padding = torch.tensor([[j >= n for j in range(columns)] for n in (0, columns // 2)])[:, None, None, :]
    full = draw(2, 4, rows, columns)
    full[:, :2, 0] = False
    return {
        "padding": padding,
        "per row": draw(1, 1, rows, columns),
        "per batch": draw(2, 1, rows, columns),
        "per head": draw(1, 4, rows, columns),
        "full": full,
        "keys of a head": draw(1, 4, 1, columns),
        "rows": draw(2, 1, rows, 1),
        "all": torch.ones(1, 1, 1, 1, dtype=torch.bool),
        "nothing": torch.zeros(1, 1, 1, 1, dtype=torch.bool),
    }
