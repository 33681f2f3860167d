"""What the stages of a prompt gather, and what its compiled kernel consists of; for the compile gate."""

from __future__ import annotations

import re

import torch

from adatp_kernels.ops.triton import gather


def stages(
    *, compact: bool, layers: int = 28, heads: int = 4, head_dim: int = 128, hidden_size: int = 3584, batch: int = 1
) -> None:
    """Gather as `accelerate` does after layers 1 … layers-13: hidden states, cos and sin, caches, what the pruner knows.

    Over the 15 stages of the defaults one kernel may be compiled, and with `compact` 4.
    """
    visual, text = 6272, 78
    length = visual + text
    for layer in range(1, layers - 12):
        kept = text + round(visual * 0.8516**layer)
        tensors = [torch.empty(batch, length, hidden_size, dtype=torch.bfloat16)]
        tensors += [torch.empty(1, length, head_dim, dtype=torch.bfloat16) for _ in range(2)]
        caches = 2 * (layer + 1) if compact else 0
        tensors += [torch.empty(batch, heads, length, head_dim, dtype=torch.bfloat16) for _ in range(caches)]
        tensors.append(torch.empty(2, batch, length, dtype=torch.int64))
        dims = [(0, 1)] * 3 + [(0, 2)] * caches + [(1, 2)]
        gather.gather(torch.zeros(batch, kept, dtype=torch.int64), tensors, dims)
        length = kept


def instructions(code: str) -> dict[str, int]:
    """How many instructions nvdisasm's `code` has without padding, and of them: divisions, 16-byte loads and stores, barriers."""
    found = re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", code, re.MULTILINE)
    kinds = {"divisions": "MUFU.RCP", "wide loads": r"LDG.*\.128", "wide stores": r"STG.*\.128", "barriers": "BAR"}
    counts = {name: sum(bool(re.match(pattern, one)) for one in found) for name, pattern in kinds.items()}
    return {"all": sum(one != "NOP" for one in found), **counts}
