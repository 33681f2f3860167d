"""Text-to-visual column sums against what a user would otherwise do, at a size a CPU bears."""

import pytest
import torch
from baselines import materialised_map, text_rows

from adatp_kernels import ops

VISUAL, TEXT, BEFORE = 1568, 64, 14
HEADS, KV_HEADS, HEAD_DIM = 28, 4, 128
COLUMNS = slice(BEFORE, BEFORE + VISUAL)


def reference(query, key, rows, columns):
    start = key.shape[2] - rows
    return ops.column_sums(
        query[:, :, -rows:], key, query_start=start, key_range=(columns.start, columns.stop), backend="reference"
    )  # fmt: skip


@pytest.mark.parametrize("function", [materialised_map, text_rows, reference], ids=lambda function: function.__name__)
@pytest.mark.benchmark(group=f"column_sums: {VISUAL} visual tokens, {TEXT} text rows, float32, CPU", min_rounds=3)
def test_column_sums(benchmark, function):
    generator = torch.Generator().manual_seed(0)
    length = BEFORE + VISUAL + TEXT
    query = torch.randn(1, HEADS, length, HEAD_DIM, generator=generator)
    key = torch.randn(1, KV_HEADS, length, HEAD_DIM, generator=generator)
    exact = text_rows(query.double(), key.double(), TEXT, COLUMNS)
    result = benchmark(function, query, key, TEXT, COLUMNS)
    torch.testing.assert_close(result.double(), exact, rtol=1e-4, atol=1e-9)
