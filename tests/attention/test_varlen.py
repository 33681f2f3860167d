"""Packed sequences against each sequence alone, on the CPU and by every provider of a GPU that is played there."""

import math

import pytest
import torch
from attention_inputs import LSE, RELATIVE, expected
from attention_stand_ins import Machine, machine
from brute_force import assert_as_good_as_plain, names

from adatp_kernels import flash_attention, flash_attention_varlen, ops
from adatp_kernels.attention import providers

LENGTHS = [(5, 37), (0, 3), (1, 20), (9, 4), (16, 16), (3, 0)]


def packed(lengths=LENGTHS, *, heads=4, kv_heads=2, dim=64, dtype=torch.float32, padding=0, integers=torch.int32):
    generator = torch.Generator().manual_seed(0)
    rows, columns = (torch.tensor([0, *side]).cumsum(0).to(integers) for side in zip(*lengths, strict=True))
    draw = lambda n, h: torch.randn(int(n) + padding, h, dim, generator=generator).to(dtype)  # noqa: E731
    tensors = 2 * draw(rows[-1], heads), draw(columns[-1], kv_heads), draw(columns[-1], kv_heads)
    return tensors, {"cu_seqlens_q": rows, "cu_seqlens_k": columns}


def check(tensors, bounds, provider, causal=True, **options):
    out, lse = flash_attention_varlen(*tensors, **bounds, provider=provider, causal=causal, **options)
    query, key, value = tensors
    assert (out.shape, out.dtype, lse.shape) == (query.shape, query.dtype, query.shape[1::-1])
    for i in range(len(bounds["cu_seqlens_q"]) - 1):
        rows, columns = (slice(*bounds[name][i : i + 2].tolist()) for name in ("cu_seqlens_q", "cu_seqlens_k"))
        if rows.start == rows.stop:
            continue
        got = out[None, rows].transpose(1, 2), lse[None, :, rows]
        if columns.start == columns.stop:
            assert (got[0] == 0).all()
            assert (got[1] == -math.inf).all()
            continue
        alone = [t[None, part].transpose(1, 2) for t, part in ((query, rows), (key, columns), (value, columns))]
        want_out, want_lse, plain, visible = expected(*alone, causal=causal, **options)
        blind = ~visible.any(-1)
        assert (got[0][blind] == 0).all()
        assert (got[1][blind] == -math.inf).all()
        assert_as_good_as_plain(got[0], want_out, plain, RELATIVE[query.dtype])
        torch.testing.assert_close(got[1].double()[~blind], want_lse[~blind], rtol=0, atol=LSE[query.dtype])


@pytest.mark.parametrize("provider", ["auto", "torch", "reference"])
@pytest.mark.parametrize("dtype", RELATIVE)
@pytest.mark.parametrize("causal", [True, False])
def test_each_sequence_alone(causal, dtype, provider):
    check(*packed(dtype=dtype), provider, causal)
    check(*packed(dtype=dtype, padding=3, integers=torch.int64), provider, causal, scale=0.2)


GPUS = [
    ("flash_attn_4", "FA4", (9, 0), "flash_attn_4"),
    ("flash_attn_4", "FA2 and FA4", (12, 0), "flash_attn_4"),
    ("flash_attn_3", "FA3", (9, 0), "flash_attn_3"),
    ("flash_attn_2", "FA2", (8, 0), "flash_attn_2"),
    ("torch", "none", (8, 0), "_flash_attention_forward"),
    ("torch", "none", (7, 5), "_efficient_attention_forward"),
    ("flashinfer", "none", (7, 5), "flashinfer"),
    ("reference", "none", (7, 5), None),
]


@pytest.mark.parametrize(("provider", "packages", "capability", "ran"), GPUS)
@pytest.mark.parametrize("causal", [True, False])
def test_each_provider(causal, provider, packages, capability, ran, tmp_path, monkeypatch):
    setup = {"capability": capability, "packages": packages, "cutlass": True, "with_flashinfer": True}
    with machine(monkeypatch, tmp_path, **setup):
        for lengths, options in (
            (LENGTHS, {}),
            ([(7, 7)], {"padding": 2}),
            (LENGTHS[:2], {"dim": 128, "heads": 6, "integers": torch.int64}),
        ):
            check(*packed(lengths, dtype=torch.float16, **options), provider, causal)
        assert set(Machine.ran) == {ran} - {None}


@pytest.mark.parametrize("with_flashinfer", [False, True])
@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (9, 0), (10, 0), (12, 0)])
@pytest.mark.parametrize("packages", ["none", "FA2", "FA4", "FA2 and FA4", "old FA3", "FA3"])
@pytest.mark.parametrize("cutlass", [False, True])
def test_auto_runs_whatever_is_installed(cutlass, packages, capability, with_flashinfer, tmp_path, monkeypatch):
    setup = {"capability": capability, "packages": packages, "cutlass": cutlass, "with_flashinfer": with_flashinfer}
    with machine(monkeypatch, tmp_path, **setup):
        for dim in (64, 192, 256):
            for dtype in (torch.float16, torch.float32):
                Machine.ran.clear()
                check(*packed([(5, 37), (2, 2)], dim=dim, dtype=dtype), "auto")
                four = packages in ("FA4", "FA2 and FA4") and cutlass and (capability, dim) != ((10, 0), 192)
                who = "_flash_attention_forward"
                if dtype == torch.float32 or capability < (8, 0):
                    ours = with_flashinfer and dtype != torch.float32 and dim != 192
                    who = "flashinfer" if ours else "_efficient_attention_forward"
                elif four and capability[0] in (9, 10):
                    who = "flash_attn_4"
                elif packages == "FA3" and capability == (9, 0):
                    who = "flash_attn_3"
                elif packages.startswith("FA2"):
                    who = "flash_attn_2"
                assert set(Machine.ran) == {who}


def test_an_old_flashinfer_is_refused(tmp_path, monkeypatch):
    with machine(monkeypatch, tmp_path, capability=(7, 5), with_flashinfer=True):
        module = tmp_path / "flashinfer/prefill.py"
        module.write_text(module.read_text().replace("lse_base", "base"))
        tensors, bounds = packed(dtype=torch.float16)
        with pytest.raises(RuntimeError, match=r"older than 0\.7\.2"):
            flash_attention_varlen(*tensors, **bounds, provider="flashinfer")
        check(tensors, bounds, "auto")


def test_its_padded_lse_of_old_is_not_believed(tmp_path, monkeypatch):
    with machine(monkeypatch, tmp_path, capability=(8, 0), packages="FA2"):
        module = tmp_path / "flash_attn/__init__.py"
        own = "return kernels.flash_attn_varlen_func('2', locals())"
        changed = "(out, lse, _) = kernels.flash_attn_varlen_func('2', locals()); return out, lse[None], None"
        assert own in module.read_text()
        module.write_text(module.read_text().replace(own, changed))
        tensors, bounds = packed(dtype=torch.float16)
        with pytest.raises(RuntimeError, match="this version returns an output"):
            flash_attention_varlen(*tensors, **bounds, provider="flash_attn_2")
        check(tensors, bounds, "auto")


def test_column_sums_take_the_lse_as_it_comes():
    tensors, bounds = packed()
    _, lse = flash_attention_varlen(*tensors, **bounds)
    given = ops.column_sums_varlen(*tensors[:2], **bounds, lse=lse)
    torch.testing.assert_close(given, ops.column_sums_varlen(*tensors[:2], **bounds), rtol=1e-5, atol=1e-7)


def test_one_sequence_is_a_dense_batch_of_one():
    tensors, bounds = packed([(9, 16)])
    out, lse = flash_attention_varlen(*tensors, **bounds)
    dense = flash_attention(*(t[None].transpose(1, 2) for t in tensors))
    torch.testing.assert_close((out, lse), (dense[0][0].transpose(0, 1), dense[1][0]))


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"query": torch.ones(1, 34, 4, 64)}, "query"),
        ({"key": torch.ones(80, 3, 64)}, "query"),
        ({"value": torch.ones(79, 2, 64)}, "value"),
        ({"value": torch.ones(80, 2, 64, dtype=torch.float16)}, "value"),
        ({"cu_seqlens_q": torch.tensor([0, 5, 4, 34])}, "cu_seqlens_q"),
        ({"cu_seqlens_k": torch.tensor([0, 99])}, "cu_seqlens_k"),
        ({"cu_seqlens_k": None}, "cu_seqlens_k"),
        ({"max_seqlen_q": 15}, "max_seqlen_q"),
        ({"max_seqlen_k": 36}, "max_seqlen_k"),
        ({"max_seqlen_k": 37.0}, "max_seqlen_k"),
        ({"causal": 1}, "causal"),
        ({"scale": -1.0}, "scale"),
        ({"provider": "trtllm"}, "provider"),
    ],
)
def test_mistakes(changes, argument):
    (query, key, value), bounds = packed()
    assert (len(query), len(key)) == (34, 80)
    with names(argument):
        flash_attention_varlen(**({"query": query, "key": key, "value": value} | bounds | changes))


def test_longest_sequences_may_be_given():
    tensors, bounds = packed()
    given = flash_attention_varlen(*tensors, **bounds, max_seqlen_q=16, max_seqlen_k=64)
    torch.testing.assert_close(given, flash_attention_varlen(*tensors, **bounds))


def test_every_provider_has_a_name_of_its_own():
    assert providers.PACKED.names == (
        "auto", "flash_attn_4", "flash_attn_3", "flash_attn_2", "torch", "flashinfer", "reference",
    )  # fmt: skip
    assert set(providers.DENSE.names) == set(providers.PACKED.names) - {"flashinfer"}
