"""Two processes that share the heads of a model keep the same tokens as one, and give the same answer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from family_models import build
from masked_reference import TOLERANCE, MaskedReference, generate, survivors_of
from tensor_parallel_cases import CASES, case

import adatp_kernels as adatp
from adatp_kernels.integrations.transformers.support import tensor_parallel_group

TESTS = Path(__file__).parents[2]


@pytest.fixture(scope="module", params=["llava_onevision", "qwen2_vl"])
def ranks(request, tmp_path_factory):
    """The family, and what each of two processes made of every case."""
    folder = tmp_path_factory.mktemp(request.param)
    build(request.param).save_pretrained(folder)
    (folder / "family").write_text(request.param)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    path = os.pathsep.join([str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        [*command, str(TESTS / "tensor_parallel_worker.py"), str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
    )
    assert result.returncode == 0, result.stderr[-5000:]
    return request.param, [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_are_one_model(ranks, name):
    family, (first, second) = ranks[0], (results[name] for results in ranks[1])
    attention, config, inputs = case(name, family)
    model = build(family, attention)
    with adatp.accelerate(model, config) as run:
        sequences, logits, cache = generate(model, inputs, max_new_tokens=6)
    assert first["heads"] == second["heads"] == cache.layers[0].keys.shape[1] // 2  # they are indeed sharded
    for rank in (first, second):
        assert rank["sequences"].equal(sequences)
        assert (rank["logits"] - logits).abs().max() <= TOLERANCE
        for (layer, kept), (expected_layer, expected) in zip(
            rank["survivors"], survivors_of(run, len(sequences)), strict=True
        ):
            assert layer == expected_layer and kept.equal(expected)
    full = build(family, "eager")
    MaskedReference(full, compact=config.compact_cache).add(first["survivors"], 0, inputs["input_ids"].shape[1])
    assert (first["logits"] - generate(full, inputs, max_new_tokens=6)[1]).abs().max() <= TOLERANCE


def test_a_model_that_is_not_sharded_has_no_group():
    assert tensor_parallel_group(build("llava_onevision")) is None
