"""One of the processes of test_tensor_parallel: prunes a model whose heads are sharded, and saves what came out.

torchrun tests/tensor_parallel_worker.py FOLDER, where FOLDER holds a saved model and receives rank0.pt, rank1.pt, …
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from family_models import BUILDERS, for_tests
from masked_reference import generate, survivors_of
from tensor_parallel_cases import CASES, case

import adatp_kernels as adatp

folder = Path(sys.argv[1])
family = (folder / "family").read_text()
model = BUILDERS[family]()[0].from_pretrained(folder, tp_plan="auto")
results = {}
for name in CASES:
    attention, config, inputs = case(name, family)
    for_tests(model, attention)
    with adatp.accelerate(model, config) as run:
        sequences, logits, cache = generate(model, inputs, max_new_tokens=6)
    results[name] = {
        "sequences": sequences,
        "logits": logits,
        "survivors": survivors_of(run, len(sequences)),
        "heads": cache.layers[0].keys.shape[1],
    }
torch.save(results, folder / f"rank{dist.get_rank()}.pt")
dist.destroy_process_group()
