import math
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import brute_force
import pytest
import torch
from brute_force import assert_as_good_as_plain, names

from adatp_kernels import attention, flash_attention

PROVIDERS = ["torch", "reference"]
# The output is rounded to its dtype once, and half-precision kernels may round the probabilities too.
RELATIVE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-4, torch.bfloat16: 3e-3}
# In half precision PyTorch's CPU operator sums a fast approximation of exp, off by up to 6e-5.
LSE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-4, torch.bfloat16: 1e-4}


def inputs(rows, columns, *, heads=4, kv_heads=2, batch=2, dim=64, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, dim, generator=generator).to(dtype)  # noqa: E731
    return 2 * draw(batch, heads, rows), draw(batch, kv_heads, columns), draw(batch, kv_heads, columns)


def expected(query, key, value, *, causal=True, scale=None, mask=None):
    """Output and LSE in float64, the output of plain PyTorch in the inputs' dtype, and what each row sees."""
    rows, columns = query.shape[2], key.shape[2]
    start = columns - rows if causal else columns
    visible = torch.tensor([[j <= start + i for j in range(columns)] for i in range(rows)])
    visible = (visible if mask is None else visible & mask).expand(*query.shape[:3], columns)
    scale = query.shape[3] ** -0.5 if scale is None else scale
    out, lse = brute_force.attention(query.double(), key.double(), value.double(), visible, scale)
    return out, lse, brute_force.attention(query, key, value, visible, scale)[0], visible


def check(query, key, value, provider, **options):
    out, lse = flash_attention(query, key, value, provider=provider, **options)
    want_out, want_lse, plain, visible = expected(query, key, value, **options)
    assert out.dtype == query.dtype
    assert lse.dtype == (torch.float64 if query.dtype == torch.float64 else torch.float32)
    assert_as_good_as_plain(out, want_out, plain, RELATIVE[query.dtype])
    blind = ~visible.any(-1)
    assert (out[blind] == 0).all()
    assert (lse[blind] == -math.inf).all()
    torch.testing.assert_close(lse.double()[~blind], want_lse[~blind], rtol=0, atol=LSE[query.dtype])


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


def masks(rows, columns):
    """Random masks of every broadcastable shape; some rows of the full one see nothing."""
    draw = lambda *shape: torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.7  # noqa: E731
    padding = torch.tensor([[j >= n for j in range(columns)] for n in (0, columns // 2)])[:, None, None, :]
    full = draw(2, 4, rows, columns)
    full[:, :2, 0] = False
    return {
        "padding": padding,
        "per row": draw(1, 1, rows, columns),
        "per batch": draw(2, 1, rows, columns),
        "per head": draw(1, 4, rows, columns),
        "full": full,
        "keys of a head": draw(1, 4, 1, columns),
        "rows": draw(2, 1, rows, 1),
        "all": torch.ones(1, 1, 1, 1, dtype=torch.bool),
        "nothing": torch.zeros(1, 1, 1, 1, dtype=torch.bool),
    }


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


# flash-attn is for GPUs; modules of the same signatures stand for it here.
MODULES = {"flash_attn_2": "flash_attn", "flash_attn_3": "flash_attn_interface", "flash_attn_4": "flash_attn.cute"}
FLAGS = {"flash_attn_2": "return_attn_probs", "flash_attn_3": "return_attn_probs", "flash_attn_4": "return_lse"}


def fake_flash_attn(version, calls):
    """`flash_attn_func` of one version: [B, T, H, D] in and out, +inf for the LSE of a row that sees nothing."""

    def compute(q, k, v, softmax_scale, causal, wants_lse, extra):
        calls.append(SimpleNamespace(shapes=[tuple(t.shape) for t in (q, k, v)], scale=softmax_scale, causal=causal))
        query, key, value = (t.transpose(1, 2) for t in (q, k, v))
        out, lse, _, visible = expected(query, key, value, causal=causal, scale=softmax_scale)
        lse = lse.float().masked_fill(~visible.any(-1), math.inf)  # FlashAttention 2's convention
        out = out.to(q.dtype).transpose(1, 2)
        return (out, lse, *extra) if wants_lse else out

    def version_2(
        q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), return_attn_probs=False
    ):
        assert dropout_p == 0.0
        return compute(q, k, v, softmax_scale, causal, return_attn_probs, [None])

    def version_3(q, k, v, softmax_scale=None, causal=False, qv=None, return_attn_probs=False):
        return compute(q, k, v, softmax_scale, causal, return_attn_probs, [])

    def version_4(q, k, v, softmax_scale=None, causal=False, window_size=(None, None), return_lse=False):
        return compute(q, k, v, softmax_scale, causal, return_lse, [])

    return {"flash_attn_2": version_2, "flash_attn_3": version_3, "flash_attn_4": version_4}[version]


@pytest.fixture(autouse=True)
def _forget_what_is_installed():
    attention._installed.cache_clear()
    yield
    attention._installed.cache_clear()


@pytest.fixture
def install(monkeypatch):
    """Puts a fake module of one version where `import` finds it; returns the list of its calls."""

    def put(version):
        calls = []
        for name in {MODULES[version], MODULES[version].split(".")[0]}:
            module = ModuleType(name)
            module.__spec__ = ModuleSpec(name, None)
            module.__path__ = []
            monkeypatch.setitem(sys.modules, name, module)
        sys.modules[MODULES[version]].flash_attn_func = fake_flash_attn(version, calls)
        return calls

    return put


@pytest.mark.parametrize("version", MODULES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("rows", "columns", "causal"), [(5, 37, True), (37, 37, True), (5, 37, False), (9, 4, True)])
def test_flash_attn(version, dtype, rows, columns, causal, install, monkeypatch):
    calls = install(version)
    monkeypatch.setattr(attention, "_refuses_flash_attn", lambda *_: None)
    check(*inputs(rows, columns, dtype=dtype), version, causal=causal, scale=0.2)
    assert len(calls) == 1
    assert calls[0].shapes == [(2, rows, 4, 64), (2, columns, 2, 64), (2, columns, 2, 64)]
    assert (calls[0].scale, calls[0].causal) == (0.2, causal)


@pytest.mark.parametrize("version", MODULES)
def test_flash_attn_gets_the_default_scale(version, install, monkeypatch):
    calls = install(version)
    monkeypatch.setattr(attention, "_refuses_flash_attn", lambda *_: None)
    flash_attention(*inputs(5, 37, dtype=torch.float16), provider=version)
    assert calls[0].scale == 64**-0.5


@pytest.mark.parametrize("version", MODULES)
def test_flash_attn_is_refused_where_it_is_not_installed(version, monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    monkeypatch.delitem(sys.modules, "flash_attn_interface", raising=False)
    monkeypatch.setattr(sys, "path", [])
    for name in ("flash_attn", "flash_attn.cute"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert attention._PROVIDERS[version].refuses(call_on_gpu()) == f"the module {MODULES[version]} is not installed"


def test_a_broken_installation_counts_as_none(tmp_path, monkeypatch):
    (tmp_path / "flash_attn").mkdir()
    (tmp_path / "flash_attn" / "__init__.py").write_text("raise ImportError('undefined symbol')")
    monkeypatch.syspath_prepend(tmp_path)
    assert attention._PROVIDERS["flash_attn_4"].refuses(call_on_gpu()) == "the module flash_attn.cute is not installed"


@pytest.mark.parametrize("version", MODULES)
def test_flash_attn_is_refused_on_the_cpu(version, install):
    calls = install(version)
    query, key, value = inputs(5, 37, dtype=torch.float16)
    with pytest.raises(
        RuntimeError, match=rf"^provider: '{version}' cannot run this call: it needs a CUDA device, not cpu"
    ):
        flash_attention(query, key, value, provider=version)
    flash_attention(query, key, value)  # "auto" looks further
    assert calls == []


def call_on_gpu(rows=37, columns=37, dim=128, dtype=torch.bfloat16, mask=None, causal=True):
    """What a provider sees of a call on a GPU, as far as it decides whether it can run it."""
    tensor = lambda n: SimpleNamespace(device=torch.device("cuda"), dtype=dtype, shape=(1, 4, n, dim))  # noqa: E731
    return SimpleNamespace(query=tensor(rows), key=tensor(columns), mask=mask, causal=causal, offset=columns - rows)


@pytest.mark.parametrize("version", MODULES)
@pytest.mark.parametrize(
    ("call", "capability", "reason"),
    [
        (call_on_gpu(), (9, 0), None),
        (call_on_gpu(5, 37), (9, 0), None),
        (call_on_gpu(), (7, 5), "compute capability"),
        (call_on_gpu(dtype=torch.float32), (9, 0), "float16 and bfloat16"),
        (call_on_gpu(dim=60), (9, 0), "multiple of 8"),
        (call_on_gpu(dim=264), (9, 0), "up to 256"),
        (call_on_gpu(mask=object()), (9, 0), "no mask"),
    ],
)
def test_what_flash_attn_refuses_on_a_gpu(version, call, capability, reason, install, monkeypatch):
    install(version)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    refusal = attention._PROVIDERS[version].refuses(call)
    assert refusal is None if reason is None else reason in refusal


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (call_on_gpu(), None),
        (call_on_gpu(1, 37), None),
        (call_on_gpu(5, 37, causal=False), None),
        (call_on_gpu(5, 37), "upper left"),
        (call_on_gpu(dtype=torch.float32), "float16 and bfloat16"),
        (call_on_gpu(dim=60), "multiple of 8"),
        (call_on_gpu(mask=object()), "no mask"),
    ],
)
def test_what_torch_refuses_on_a_gpu(call, reason):
    refusal = attention._PROVIDERS["torch"].refuses(call)
    assert refusal is None if reason is None else reason in refusal


def test_torch_is_refused_on_other_devices_and_the_reference_is_not():
    meta = [t.to("meta") for t in inputs(5, 37)]
    with pytest.raises(RuntimeError, match="no flash operator for device meta"):
        flash_attention(*meta, provider="torch")
    out, lse = flash_attention(*meta)
    assert (out.shape, lse.shape, out.device.type) == ((2, 4, 5, 64), (2, 4, 5), "meta")


def test_auto_survives_a_broken_flash_attn(tmp_path, monkeypatch):
    # Compiled for another PyTorch, it is there but fails to import; looking for flash_attn.cute imports it.
    (tmp_path / "flash_attn").mkdir()
    (tmp_path / "flash_attn" / "__init__.py").write_text("raise ImportError('undefined symbol')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("flash_attn", "flash_attn.cute"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    check(*inputs(5, 37, dtype=torch.bfloat16), "auto")


def test_auto_takes_the_first_that_does_not_refuse(monkeypatch):
    names_tried = []
    result = (torch.zeros(1), torch.zeros(1))

    def provider(name, reason):
        return attention._Provider(lambda call: names_tried.append(name) or reason, lambda call: result)

    monkeypatch.setattr(
        attention, "_PROVIDERS", {"a": provider("a", "no"), "b": provider("b", None), "c": provider("c", None)}
    )
    assert flash_attention(*inputs(5, 37)) is result
    assert names_tried == ["a", "b"]
    with pytest.raises(RuntimeError, match="^provider: 'a' cannot run this call: no"):
        flash_attention(*inputs(5, 37), provider="a")
