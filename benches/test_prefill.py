"""Times a whole prompt through the decoder, dense and pruned."""

import pytest
import torch
from report import ROWS

decoder = pytest.importorskip("decoder", reason="transformers is not installed", exc_type=ImportError)

# Two layers run before the first stage, so with few layers no plan is as cheap as the last of these.
TARGETS = [target for target in (0.273, 0.15, 0.08) if target > 2 / decoder.SMALL["layers"]]


@pytest.fixture(scope="module")
def model():
    return decoder.build(torch.device("cpu"))


@pytest.mark.parametrize("attention", ["sdpa", "adatp"])
@pytest.mark.parametrize("target", TARGETS)
def test_prefill(benchmark, model, target, attention):
    """Dense and pruned in turn; `benchmark` times the pruned one as a whole."""
    prompt = decoder.inputs(model)
    model.set_attn_implementation({"text_config": attention})
    rows = decoder.dense_and_pruned(model, prompt, target, repeats=3)

    def whole():
        with decoder.pruning(model, target):
            decoder.decoder_seconds(model, prompt)

    benchmark.pedantic(whole, rounds=2)
    ROWS.extend(row | {"target": f"{target} {attention}"} for row in rows)
