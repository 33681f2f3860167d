"""Under autocast "adatp" computes in the dtype that sdpa computes in, and scoring sees what the attention saw."""

import pytest
import torch
from family_models import build, prompt

import adatp_kernels as adatp
from adatp_kernels import ops
from adatp_kernels.integrations.transformers import tap
from adatp_kernels.integrations.transformers.attention import adatp_attention, under_autocast

IMPLEMENTATIONS = ["eager", "sdpa", "adatp"]
# Without a cache the values stay in autocast's dtype; a cache's concatenation widens them to the keys'.
CACHES = [False, True]


def logits(implementation, cache, *, pruned=False, dtype=torch.bfloat16):
    model = build("qwen2_vl", implementation)
    config = adatp.AdaTPConfig(target_flops=0.5, stages=(2, 3, 6, 9))
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        if not pruned:
            return model(**prompt("qwen2_vl"), use_cache=cache).logits, None
        with adatp.accelerate(model, config) as run:
            return model(**prompt("qwen2_vl"), use_cache=cache).logits, run.report()


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dense_logits_are_as_near_to_sdpas_as_eager_ones(dtype, cache):
    want, eager, got = (logits(name, cache, dtype=dtype)[0] for name in ("sdpa", "eager", "adatp"))
    assert got.dtype == want.dtype == dtype
    assert (got - want).abs().max() <= max((eager - want).abs().max(), torch.finfo(dtype).eps)


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_pruning_runs_and_scores_what_the_attention_saw(implementation, cache, monkeypatch):
    seen = []
    take = tap.AttentionTap.take
    monkeypatch.setattr(tap.AttentionTap, "take", lambda self: seen.append(take(self)) or seen[-1])
    out, report = logits(implementation, cache, pruned=True)
    assert out.isfinite().all()
    stages = [one for one in seen if one is not None]
    assert len(stages) == len(report.survivors) == 4
    for one in stages:
        assert one.query.dtype == one.key.dtype == torch.bfloat16
        if implementation != "adatp":
            assert one.lse is None
            continue
        # The LSE is of these very queries and keys: those of float32 differ from it by a hundred times as much.
        own = ops.row_lse(one.query, one.key, query_start=one.key.shape[2] - one.query.shape[2], scale=one.scale)
        torch.testing.assert_close(one.lse, own, rtol=0, atol=1e-4)


def mixed():
    query, key, value = torch.randn(3, 1, 2, 5, 16, generator=torch.Generator().manual_seed(0))
    return query, key, value.bfloat16()


def test_mixed_dtypes_follow_sdpa():
    query, key, value = mixed()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, _ = adatp_attention(torch.nn.Identity(), query, key, value, None)
        want = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    assert got.dtype == want.dtype == torch.bfloat16
    torch.testing.assert_close(got.transpose(1, 2), want, rtol=0, atol=2**-7)
    # Without autocast it is a mistake, to sdpa too.
    with pytest.raises(RuntimeError, match="dtype"):
        torch.nn.functional.scaled_dot_product_attention(query, key, value)
    with pytest.raises(TypeError, match="^value"):
        adatp_attention(torch.nn.Identity(), query, key, value, None)


def test_only_the_tensors_own_device_counts_and_float64_stays():
    query, key, _ = mixed()
    try:
        torch.set_autocast_enabled("cuda", True)
        assert under_autocast(query, key)[0] is query
    finally:
        torch.set_autocast_enabled("cuda", False)
    with torch.autocast("cpu", dtype=torch.float16):
        half, double = under_autocast(query, key.double())
        assert (half.dtype, double.dtype) == (torch.float16, torch.float64)
        assert under_autocast(query.to("meta"))[0].dtype == torch.float32  # knows no autocast


def test_the_reference_is_not_made_less_precise():
    tensors = [t.bfloat16() for t in mixed()]
    want = adatp.flash_attention(*tensors, provider="reference")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = adatp.flash_attention(*tensors, provider="reference")
    torch.testing.assert_close(got, want, rtol=0, atol=0)
