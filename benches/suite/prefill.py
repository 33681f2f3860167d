"""A whole prefill at 0.273 of the FLOPs, with torch's attention and with ours, which hands its LSE to the stages.

Before anything is timed, a pruned prefill on the backend that is timed is held against one on the reference: as many tokens
must be left after every stage, and after the first the same ones, but for a few that rounding ranks differently. In later
stages of random weights, whose attention is nearly flat, such few become more; how many of the last stage's survivors are
the same is a figure of the row.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import torch

import adatp_kernels as adatp
from suite import rows
from suite.tests import cancelled

TARGET = 0.273
LEAST_SHARED = 0.99


def verify(model: Any, prompt: dict[str, torch.Tensor]) -> float:
    """The share of the last survivors that reference and fast backend have in common.

    Raises
    ------
    AssertionError
        If they differ after the first stage, or in number.
    """
    survivors = []
    for backend in ("reference", "auto"):
        config = dataclasses.replace(adatp.AdaTPConfig(target_flops=TARGET, segment_threshold=1.0), backend=backend)
        with adatp.accelerate(model, config) as run, torch.no_grad():
            model(**prompt, logits_to_keep=1)
        survivors.append(run.report().survivors)
    shares = []
    for (layer, expected), (_, actual) in zip(*survivors, strict=True):
        assert actual.shape == expected.shape, (
            f"{list(actual.shape)} left after layer {layer}, not {list(expected.shape)}"
        )
        shares.append(torch.isin(actual.flatten(), expected.flatten()).double().mean().item())
    assert shares[0] >= LEAST_SHARED, f"only {shares[0]:.1%} of the first stage's survivors are the reference's"
    return shares[-1]


def main(dry: bool) -> int:
    """Rows for both kinds of attention."""
    why = cancelled(rows.read()).get(("triton", "prefill"))
    try:
        import decoder
    except ImportError as error:
        why = f"transformers: {error}"
    if why is not None:
        rows.add({"suite": "prefill", "status": "not timed", "why": why})
        return 0
    model = decoder.build(torch.device("cpu" if dry else "cuda"))
    prompt, good = decoder.inputs(model), True
    for attention in ("sdpa", "adatp"):
        case = {"case": f"{TARGET} {attention}", "target": f"{TARGET} {attention}"}
        try:
            model.set_attn_implementation({"text_config": attention})
            shared = verify(model, prompt)
            for row in decoder.dense_and_pruned(model, prompt, TARGET, repeats=2 if dry else 8):
                rows.add(row | case | {"survivors shared with the reference": shared})
        except Exception as error:
            status = "wrong" if isinstance(error, AssertionError) else "failed"
            rows.add({"suite": "prefill", **case, "status": status, "why": f"{type(error).__name__}: {error}"[:300]})
            good = False
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main("--dry" in sys.argv))
