#!/usr/bin/env bash
# Three surprises about the LSE and the causal mask of PyTorch 2.13.0's attention operators:
#   * a row that sees nothing has output 0, but an LSE of 0, not -inf: the operator for the CPU, and by its source the memory-efficient
#     one for CUDA. Whoever computes exp(score - lse) from it, or merges two partial results by their LSE, counts a row that is not there;
#   * torch.nn.attention.varlen.varlen_attn(return_aux=AuxRequest(lse=True)) documents an LSE of shape (T_q, H_q) and returns
#     (H_q, T_q), by its own fake kernel, which torch.compile goes by;
#   * the causal mask of aten._scaled_dot_product_flash_attention_for_cpu is aligned to the upper left, that of
#     aten._scaled_dot_product_flash_attention, by nn/attention/bias.py, to the lower right.
#
# Needs Python with pip. torch is taken from that Python if it is 2.13.0, and installed otherwise. No GPU is needed.
#     PYTHON=python3 bash findings/torch_attention_lse.sh     (exit 0: as described; 1: not any more)
set -euo pipefail
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
python="${PYTHON:-python3}"
if ! "$python" -c "import torch; assert torch.__version__.startswith('2.13.0')" 2>/dev/null; then
    "$python" -m venv "$scratch/venv"
    python="$scratch/venv/bin/python"
    "$python" -m pip install --quiet torch==2.13.0 numpy
fi

cat >"$scratch/program.py" <<'PY'
import inspect, pathlib, sys
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import bias
from torch.nn.attention.varlen import AuxRequest, varlen_attn

good = True

def say(what, seen, expected):
    global good
    good &= seen == expected
    print(f"{what}: {seen}")

flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
x = torch.randn(1, 1, 3, 16, generator=torch.Generator().manual_seed(0))
blind = torch.zeros(1, 1, 3, 3)
blind[:, :, 0] = -torch.inf
for dtype in (torch.float32, torch.bfloat16):
    out, lse = flash(*[x.to(dtype)] * 3, 0.0, False, attn_mask=blind.to(dtype))
    say(f"{dtype}: output and LSE of a row that sees nothing", (out[0, 0, 0].abs().max().item(), lse[0, 0, 0].item()), (0.0, 0.0))
headers = pathlib.Path(torch.__file__).parent / "include/ATen/native/transformers/cuda/mem_eff_attention"
if headers.is_dir():  # its sources, which a wheel brings
    source = " ".join((headers / "kernel_forward.h").read_text().split())
    say("memory-efficient: a sum of 0 becomes 1 before its logarithm", "(s_prime[thread_id()] == 0) ? 1" in source, True)

with FakeTensorMode():
    packed = torch.empty(37, 4, 64, dtype=torch.float16, device="cuda")
    bounds = torch.zeros(3, dtype=torch.int32, device="cuda")
    _, lse = varlen_attn(packed, packed, packed, bounds, bounds, 20, 20, return_aux=AuxRequest(lse=True))
say("varlen_attn, 37 rows of 4 heads: LSE", tuple(lse.shape), (4, 37))
say("varlen_attn documents (T_q, H_q)", "lse (Tensor): Log-sum-exp of attention scores; shape :math:`(T_q, H_q)`" in varlen_attn.__doc__, True)

keys = torch.randn(1, 1, 5, 16, generator=torch.Generator().manual_seed(1))
out = flash(x, keys, keys, 0.0, True)[0]
near = lambda diagonal: torch.allclose(out, torch.nn.functional.scaled_dot_product_attention(
    x, keys, keys, attn_mask=torch.ones(3, 5, dtype=torch.bool).tril(diagonal)), atol=1e-5)
say("CPU operator, 3 rows and 5 keys: upper left, lower right", (near(0), near(2)), (True, False))
text = inspect.getsource(bias.CausalBias._dispatch)
say("CUDA operator, by bias.py: lower right", "_scaled_dot_product_flash_attention" in text and "for this particular op it means lower right" in text, True)
sys.exit(not good)
PY
"$python" "$scratch/program.py" && echo "as described" || { echo "not as described any more"; exit 1; }
# Seen (Python 3.11, torch 2.13.0):
#
#     torch.float32: output and LSE of a row that sees nothing: (0.0, 0.0)
#     torch.bfloat16: output and LSE of a row that sees nothing: (0.0, 0.0)
#     memory-efficient: a sum of 0 becomes 1 before its logarithm: True
#     varlen_attn, 37 rows of 4 heads: LSE: (4, 37)
#     varlen_attn documents (T_q, H_q): True
#     CPU operator, 3 rows and 5 keys: upper left, lower right: (True, False)
#     CUDA operator, by bias.py: lower right: True
#     as described
