"""Output and LSE against float64, on the CPU, and what is refused."""

import pytest
import torch
from attention_inputs import RELATIVE, check, inputs, masks
from brute_force import names

from adatp_kernels import flash_attention

PROVIDERS = ["torch", "reference"]


@pytest.mark.parametrize("provider", [*PROVIDERS, "auto"])
@pytest.mark.parametrize("dtype", RELATIVE)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 37), (5, 37), (37, 37), (64, 199), (9, 4)])
def test_against_float64(rows, columns, causal, dtype, provider):
    check(*inputs(rows, columns, dtype=dtype), provider, causal=causal)


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("dtype", RELATIVE)
@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 3), (4, 2), (7, 1), (14, 2)])
@pytest.mark.parametrize("dim", [64, 80, 96, 128])
def test_query_heads_that_share_a_key_head(dim, heads, kv_heads, dtype, provider):
    check(*inputs(5, 37, heads=heads, kv_heads=kv_heads, dim=dim, dtype=dtype), provider)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_the_causal_mask_is_aligned_to_the_lower_right(provider):
    query, key, value = inputs(3, 37)
    out, lse = flash_attention(query, key, value, provider=provider)
    for row in range(3):
        seen = 35 + row
        alone = flash_attention(query[:, :, row : row + 1], key[:, :, :seen], value[:, :, :seen], provider=provider)
        torch.testing.assert_close(out[:, :, row : row + 1], alone[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(lse[:, :, row : row + 1], alone[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("rows", "columns"), [(1, 37), (5, 37), (37, 37), (9, 4)])
@pytest.mark.parametrize("kind", masks(1, 1))
def test_masks(kind, rows, columns, causal, provider):
    check(*inputs(rows, columns), provider, causal=causal, mask=masks(rows, columns)[kind])


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("dtype", RELATIVE)
@pytest.mark.parametrize("kind", ["padding", "full", "per head"])
def test_masks_in_every_dtype(kind, dtype, provider):
    check(*inputs(37, 37, dtype=dtype), provider, mask=masks(37, 37)[kind])


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_single_head_with_a_mask(provider):
    check(*inputs(5, 37, heads=1, kv_heads=1, batch=1), provider, mask=masks(5, 37)["per row"])


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("scale", [0.5, 0.01, 1])
def test_scale(scale, provider):
    query, key, value = inputs(5, 37, dtype=torch.float64)
    check(query, key, value, provider, scale=scale)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_strided_views(provider):
    query, key, value = inputs(5, 37)
    wanted = flash_attention(query, key, value, provider=provider)
    tokens_first = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (query, key, value)]
    dim_first = [t.mT.contiguous().mT for t in (query, key, value)]
    cut = [torch.cat([t, t], dim=-1)[..., :64] for t in (query, key, value)]
    for views in (tokens_first, dim_first, cut):
        got = flash_attention(*views, provider=provider)
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_same_input_same_bits(provider):
    tensors = inputs(64, 199, dtype=torch.bfloat16)
    first = flash_attention(*tensors, provider=provider)
    again = flash_attention(*[t.clone() for t in tensors], provider=provider)
    assert all(a.equal(b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"query": None}, "query"),
        ({"query": torch.ones(2, 3, 5, 64)}, "query"),
        ({"query": torch.ones(2, 4, 64)}, "query"),
        ({"query": torch.ones(2, 4, 5, 64, dtype=torch.int32)}, "query"),
        ({"key": 1}, "key"),
        ({"key": torch.ones(2, 2, 37, 32)}, "key"),
        ({"key": torch.ones(2, 2, 37, 64, dtype=torch.float16)}, "key"),
        ({"value": None}, "value"),
        ({"value": torch.ones(2, 2, 36, 64)}, "value"),
        ({"value": torch.ones(2, 2, 37, 64, dtype=torch.float16)}, "value"),
        ({"value": torch.ones(2, 2, 37, 64, device="meta")}, "value"),
        ({"causal": "no"}, "causal"),
        ({"causal": None}, "causal"),
        ({"scale": 0.0}, "scale"),
        ({"scale": "1"}, "scale"),
        ({"mask": torch.zeros(2, 1, 5, 37)}, "mask"),
        ({"mask": torch.ones(5, 37, dtype=torch.bool)}, "mask"),
        ({"mask": torch.ones(3, 1, 5, 37, dtype=torch.bool)}, "mask"),
        ({"mask": torch.ones(2, 2, 5, 37, dtype=torch.bool)}, "mask"),
        ({"mask": torch.ones(2, 1, 5, 36, dtype=torch.bool)}, "mask"),
        ({"mask": True}, "mask"),
        ({"provider": "sdpa"}, "provider"),
        ({"provider": None}, "provider"),
    ],
)
def test_mistakes(changes, argument):
    query, key, value = inputs(5, 37)
    with names(argument):
        flash_attention(**({"query": query, "key": key, "value": value} | changes))


def test_torch_is_refused_on_other_devices_and_the_reference_is_not():
    meta = [t.to("meta") for t in inputs(5, 37)]
    with pytest.raises(RuntimeError, match="no flash operator for device meta"):
        flash_attention(*meta, provider="torch")
    out, lse = flash_attention(*meta)
    assert (out.shape, lse.shape, out.device.type) == ((2, 4, 5, 64), (2, 4, 5), "meta")
