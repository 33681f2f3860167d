#!/usr/bin/env bash
# tl.sum of bfloat16 and float16 adds in that type: every partial sum is rounded to 8 bits, or 11. tl.max, beside it, converts to
# float32 first. tl.cumsum of bfloat16 added in float32 up to 3.8.0, and adds in bfloat16 from 3.9.0 on; of float16 it never
# converted. What is shown is the type in which the compiled reduction combines two elements, from Triton's own intermediate
# representation for sm_90: no GPU is needed. `.to(tl.float32)` in front is what a user wants.
#
# Needs Python with pip. torch and numpy are taken from that Python if it has them, and installed otherwise.
#     PYTHON=python3 bash findings/triton_low_precision_sums.sh     (exit 0: as described; 1: not any more)
set -euo pipefail
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
python="${PYTHON:-python3}"
if ! "$python" -c "import torch, numpy" 2>/dev/null; then
    "$python" -m venv "$scratch/venv"
    python="$scratch/venv/bin/python"
    "$python" -m pip install --quiet torch==2.13.0 "numpy<2.4"
fi

cat >"$scratch/program.py" <<'PY'
import sys
import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

@triton.jit
def total(source, target, SIZE: tl.constexpr):
    tl.store(target, tl.sum(tl.load(source + tl.arange(0, SIZE)), 0))

@triton.jit
def greatest(source, target, SIZE: tl.constexpr):
    tl.store(target, tl.max(tl.load(source + tl.arange(0, SIZE)), 0))

@triton.jit
def running(source, target, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(target + at, tl.cumsum(tl.load(source + at), 0))

def reduced_in(kernel, dtype):
    source = ASTSource(kernel, {"source": "*" + dtype, "target": "*" + dtype, "SIZE": "constexpr"}, {"SIZE": 512})
    text = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ttir"]
    # The line that combines two elements: "%5 = arith.addf %arg2, %arg3 : bf16 loc(#loc15)".
    (line,) = [line for line in text.splitlines() if "arith.addf" in line or "arith.maxnumf" in line]
    return line.split(" : ")[1].split()[0]

cumsum = "bf16" if triton.__version__ == "3.9.0" else "f32"
expected = {("total", "bf16"): "bf16", ("total", "fp16"): "f16", ("greatest", "bf16"): "f32", ("greatest", "fp16"): "f32"}
expected |= {("running", "bf16"): cumsum, ("running", "fp16"): "f16"}
good = True
for kernel, operation in ((total, "tl.sum"), (greatest, "tl.max"), (running, "tl.cumsum")):
    for dtype in ("bf16", "fp16"):
        seen = reduced_in(kernel, dtype)
        good &= seen == expected[kernel.__name__, dtype]
        print(f"triton {triton.__version__}  {operation:<9} of {dtype} combines in {seen}")
sys.exit(not good)
PY

status=0
for version in 3.6.0 3.8.0 3.9.0; do
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$scratch/$version" "triton==$version"
    PYTHONPATH="$scratch/$version" "$python" "$scratch/program.py" || status=1
done
[ "$status" -eq 0 ] && echo "as described" || echo "not as described any more"
exit "$status"
# Seen (Python 3.11, torch 2.13.0, numpy 2.3.5):
#
#     triton 3.6.0  tl.sum    of bf16 combines in bf16
#     triton 3.6.0  tl.sum    of fp16 combines in f16
#     triton 3.6.0  tl.max    of bf16 combines in f32
#     triton 3.6.0  tl.max    of fp16 combines in f32
#     triton 3.6.0  tl.cumsum of bf16 combines in f32
#     triton 3.6.0  tl.cumsum of fp16 combines in f16
#     triton 3.8.0  tl.sum    of bf16 combines in bf16
#     triton 3.8.0  tl.sum    of fp16 combines in f16
#     triton 3.8.0  tl.max    of bf16 combines in f32
#     triton 3.8.0  tl.max    of fp16 combines in f32
#     triton 3.8.0  tl.cumsum of bf16 combines in f32
#     triton 3.8.0  tl.cumsum of fp16 combines in f16
#     triton 3.9.0  tl.sum    of bf16 combines in bf16
#     triton 3.9.0  tl.sum    of fp16 combines in f16
#     triton 3.9.0  tl.max    of bf16 combines in f32
#     triton 3.9.0  tl.max    of fp16 combines in f32
#     triton 3.9.0  tl.cumsum of bf16 combines in bf16
#     triton 3.9.0  tl.cumsum of fp16 combines in f16
#     as described
