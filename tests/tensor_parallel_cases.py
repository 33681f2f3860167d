"""What the processes of test_tensor_parallel run, and the test itself in one process."""

from __future__ import annotations

import dataclasses

from family_models import batch_of, prompt

import adatp_kernels as adatp

_CONFIG = adatp.AdaTPConfig(target_flops=0.5, stages=(2, 3, 6, 9))
CASES = {
    "sdpa": ("sdpa", {}, 1),
    "adatp, batch of 2, compact cache": ("adatp", {"compact_cache": True}, 2),
    "eager, last row": ("eager", {"queries": "last"}, 1),
    "random scores": ("sdpa", {"score": "random"}, 1),
}


def case(name, family):
    """Attention implementation, configuration and prompts."""
    attention, changes, rows = CASES[name]
    prompts = [prompt(family), prompt(family, shots=2, seed=1, after=(7, 8))]
    return attention, dataclasses.replace(_CONFIG, **changes), batch_of(prompts[:rows])
