"""No map of all heads exists on the CPU either: the largest piece of memory that a padded batch asks for."""

import pytest
import torch
from attention_inputs import inputs
from memory import largest_allocation

from adatp_kernels import flash_attention

BATCH, HEADS, ROWS = 3, 14, 512


def padded_batch(dtype):
    tensors = inputs(ROWS, ROWS, batch=BATCH, heads=HEADS, kv_heads=2, dtype=dtype)
    padding = torch.arange(ROWS) >= torch.tensor([0, 17, 100])[:, None]
    return tensors, padding[:, None, None] & torch.ones(ROWS, ROWS, dtype=torch.bool).tril()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_padded_batch(dtype):
    tensors, mask = padded_batch(dtype)
    one_head = BATCH * ROWS * ROWS * 4
    room = largest_allocation(lambda: flash_attention(*tensors, causal=False, mask=mask))
    assert room <= max(one_head, tensors[0].nbytes) < BATCH * HEADS * ROWS * ROWS  # the output, or a bias of one head
    reference = largest_allocation(lambda: flash_attention(*tensors, causal=False, mask=mask, provider="reference"))
    assert reference >= HEADS * one_head  # this measure can tell


def test_keys_hidden_from_all_rows_take_no_row_each():
    tensors = inputs(ROWS, ROWS, batch=BATCH, dim=16)
    mask = (torch.arange(ROWS) >= torch.tensor([0, 17, 100])[:, None])[:, None, None]
    room = largest_allocation(lambda: flash_attention(*tensors, causal=False, mask=mask))
    assert room < BATCH * ROWS * ROWS  # a byte of every row and key would be this much
