"""Hidden states, cos, sin and one layer's KV moved together, at several shares kept."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import baselines
import torch

from adatp_kernels import ops
from cases.case import DIMS, Case, Scale, Variant, moved_bytes, travelling


def suite(scale: Scale, visual: tuple[int, ...]) -> Iterator[Case]:
    """All sizes and shares."""
    for columns, share in itertools.product(visual, (10, 25, 50)):
        yield gather(scale, columns, share)


def gather(scale: Scale, visual: int, share: int, batch: int = 1) -> Case:
    """`share` percent of the columns, at random, other ones in every batch row."""
    kept = max(1, visual * share // 100)

    def make(seed: int) -> tuple:
        generator = torch.Generator().manual_seed(seed)
        rows = [torch.randperm(visual, generator=generator)[:kept].sort().values for _ in range(batch)]
        return torch.stack(rows).to(scale.device), travelling(scale, visual, batch, seed)

    def check(name: str, result: Any, inputs: tuple) -> None:
        indices, tensors = inputs
        for actual, wanted in zip(result, ops.gather(indices, *tensors, dims=DIMS, backend="reference"), strict=True):
            assert actual.equal(wanted), f"{name} moves something else"

    expanded = lambda tensors: [t.expand(batch, *t.shape[1:]) for t in tensors]  # noqa: E731
    backend = scale.backends[""]  # on a GPU the native backend moves tokens in a whole stage only
    variants = {
        "adatp": Variant(lambda indices, t: ops.gather(indices, *t, dims=DIMS, backend=backend), backend),
        "gather each": Variant(lambda indices, tensors: baselines.gather_each(indices, expanded(tensors), DIMS)),
    }
    if batch == 1:
        variants["index_select each"] = Variant(lambda indices, t: baselines.index_select(indices, t, DIMS))
    shape = {"N": visual, "batch": batch, "kept": f"{share} %"}
    return Case("gather", shape, make, variants, check, moved_bytes(scale, kept, batch), 0)
