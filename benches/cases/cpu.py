"""The scale that a CPU bears: the layer of a GPU's cases, fewer columns, float32, and the backend that callers get there."""

import torch

from cases.case import Scale

SCALE = Scale(torch.device("cpu"), torch.float32, 28, 4, 128, 3584, 196, {"": "auto"})
SIZES, TEXT = (784, 1568), (1, 16, 64)
