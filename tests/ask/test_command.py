"""Several questions about one video share its pixels."""

import torch

from adatp_kernels.ask.command import share


def test_equal_tensors_are_kept_once():
    pixels = torch.rand(2, 3)
    first = {"pixel_values": pixels, "input_ids": torch.tensor([[1, 2]]), "grid": torch.tensor([1]), "names": ["a"]}
    other = {
        "pixel_values": pixels.clone(),
        "input_ids": torch.tensor([[1, 3, 4]]),
        "grid": torch.tensor([2]),
        "names": ["a"],
    }
    ids, grid = other["input_ids"], other["grid"]
    share(other, first)
    assert other["pixel_values"] is pixels and other["input_ids"] is ids and other["grid"] is grid
    assert list(other) == list(first) and first["pixel_values"] is pixels
    alone = {"video": torch.ones(1)}
    share(alone, first)
    assert list(alone) == ["video"]
