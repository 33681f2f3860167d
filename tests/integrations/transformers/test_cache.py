"""Caches of pruned prompts: columns per layer, and layers with a logical length."""

import torch
from transformers.cache_utils import DynamicLayer

from adatp_kernels.integrations.transformers.cache import CompactedLayer, PrunedColumns, take_columns, take_rows


def test_compacted_layer_counts_logically_and_holds_physically():
    layer = DynamicLayer()
    layer.update(torch.randn(1, 2, 5, 4), torch.randn(1, 2, 5, 4))
    compacted = CompactedLayer.of(layer)
    assert compacted.keys is layer.keys and CompactedLayer.of(compacted) is compacted
    compacted.dropped = 7
    assert compacted.get_seq_length() == 12 and compacted.physical_length == 5
    assert compacted.get_mask_sizes(3) == (8, 7)
    compacted.update(torch.randn(1, 2, 1, 4), torch.randn(1, 2, 1, 4))
    assert compacted.get_seq_length() == 13
    compacted.reset()
    assert compacted.dropped == 0


def test_columns_of_several_turns():
    columns = PrunedColumns()
    first = columns.extended(3, 0, torch.tensor([[0, 2, 5]]))
    assert first.tolist() == [[0, 2, 5]]
    columns.layers[3], columns.covered = first, 6
    mask = torch.arange(10.0).view(1, 1, 1, 10)
    assert columns.of_mask(3, mask).flatten().tolist() == [0, 2, 5, 6, 7, 8, 9]
    # Two new tokens were generated (6, 7), then a prompt of four of which two are kept.
    assert columns.extended(3, 8, torch.tensor([[1, 3]])).tolist() == [[0, 2, 5, 6, 7, 9, 11]]
    assert columns.extended(4, 8, torch.tensor([[1, 3]])).tolist() == [[*range(8), 9, 11]]


def test_rows_and_columns_of_a_mask():
    mask = torch.arange(2 * 3 * 4).view(2, 1, 3, 4)
    rows, columns = torch.tensor([[0, 2], [1, 2]]), torch.tensor([[3], [0]])
    picked = take_columns(take_rows(mask, rows), columns)
    assert picked.flatten().tolist() == [mask[0, 0, 0, 3], mask[0, 0, 2, 3], mask[1, 0, 1, 0], mask[1, 0, 2, 0]]
    assert take_columns(mask[:1, 0, 0], torch.tensor([[1, 2], [3, 0]])).tolist() == [[1, 2], [3, 0]]
