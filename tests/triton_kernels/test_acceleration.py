"""accelerate with backend="triton" generates what it generates on the reference."""

import dataclasses

import pytest

import adatp_kernels as adatp


def test_generation_on_triton_is_that_on_the_reference(device):
    pytest.importorskip("transformers", reason="a machine that is lent for its GPU need not have it")
    from small_models import CONFIG, TOLERANCE, generate, llava_onevision, prompt

    results = []
    for backend in ("triton", "reference"):
        for compact in (False, True):
            config = dataclasses.replace(CONFIG, backend=backend, compact_cache=compact)
            model = llava_onevision("sdpa" if compact else "adatp").to(device)
            inputs = {name: tensor.to(device) for name, tensor in prompt().items()}
            with adatp.accelerate(model, config) as run:
                _, logits, _ = generate(model, inputs, max_new_tokens=3)
            assert run.report().backends["prune"] == backend
            results.append((logits, run.report().survivors))
    for (logits, survivors), (expected, expected_survivors) in zip(results[:2], results[2:], strict=True):
        assert all(a[1].equal(b[1]) for a, b in zip(survivors, expected_survivors, strict=True))
        assert (logits - expected).abs().max() <= TOLERANCE
