#!/usr/bin/env bash
# In Triton's interpreter bfloat16 `+`, `*`, `<`, tl.sum and tl.dot compute on the bit patterns, as unsigned integers, and give
# wrong numbers in silence: 1.0 + 1.0 is 1.7e38. Versions 3.6.0, 3.7.1 and 3.9.0 alike; the compiler computes on numbers.
#
# Why: numpy has no bfloat16, so the interpreter keeps it in uint16, and its operations do not look at the type. Conversion to
# float32 and back is right (it was written for), so `.to(tl.float32)` behind each load mends a kernel. float16 is numpy's own
# and right. tl.max converts to float32 itself and is right; tl.cumsum did so up to 3.8, and no longer does from 3.9 on.
#
# Needs Python with pip. torch and numpy are taken from that Python if it has them, and installed otherwise.
#     PYTHON=python3 bash findings/triton_interpreter_bfloat16.sh     (exit 0: as described; 1: not any more)
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
import torch, triton, triton.language as tl

@triton.jit
def compute(a, b, out, OPERATION: tl.constexpr, WIDEN: tl.constexpr):
    at = tl.arange(0, 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
    x, y = tl.load(a + at), tl.load(b + at)
    if WIDEN:
        x, y = x.to(tl.float32), y.to(tl.float32)
    if OPERATION == "+":
        result = x + y
    elif OPERATION == "*":
        result = x * y
    elif OPERATION == "<":
        result = tl.where(x < y, 1.0, 0.0)
    elif OPERATION == "tl.sum":
        result = tl.sum(x, 1)[:, None] + tl.zeros((16, 16), tl.float32)
    elif OPERATION == "tl.max":
        result = tl.max(x, 1)[:, None] + tl.zeros((16, 16), tl.float32)
    elif OPERATION == "tl.cumsum":
        result = tl.cumsum(x, 1)
    else:
        result = tl.dot(x, y)
    tl.store(out + at, result.to(tl.float32))

exact = {
    "+": lambda a, b: a + b,
    "*": lambda a, b: a * b,
    "<": lambda a, b: (a < b).float(),
    "tl.sum": lambda a, b: a.sum(1, keepdim=True).expand(16, 16),
    "tl.max": lambda a, b: a.amax(1, keepdim=True).expand(16, 16),
    "tl.cumsum": lambda a, b: a.cumsum(1),
    "tl.dot": lambda a, b: a @ b,
}
right_in_bfloat16 = {"tl.max"} if triton.__version__ == "3.9.0" else {"tl.max", "tl.cumsum"}
good = True
torch.manual_seed(0)
a, b = torch.randint(-4, 5, (2, 16, 16)).float()  # exact in both, sums too
for dtype, widen in ((torch.bfloat16, False), (torch.bfloat16, True), (torch.float16, False)):
    for operation, reference in exact.items():
        out = torch.empty(16, 16)
        compute[(1,)](a.to(dtype), b.to(dtype), out, operation, widen)
        right = bool(((out - reference(a, b)).abs() <= 0.5).all())
        good &= right == (dtype == torch.float16 or widen or operation in right_in_bfloat16)
        name = f"{str(dtype)[6:]}{' .to(float32)' if widen else ''}"
        print(f"triton {triton.__version__}  {name:<23} {operation:<10} {'right' if right else 'WRONG'}  last of a row: "
              f"{out[0, 15].item():.4g}, exact {reference(a, b)[0, 15].item():.4g}")
sys.exit(not good)
PY

status=0
for version in 3.6.0 3.7.1 3.9.0; do
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$scratch/$version" "triton==$version"
    PYTHONPATH="$scratch/$version" TRITON_INTERPRET=1 "$python" "$scratch/program.py" || status=1
done
[ "$status" -eq 0 ] && echo "as described" || echo "not as described any more"
exit "$status"
# Seen (Python 3.11, torch 2.13.0, numpy 2.3.5):
#
#     triton 3.6.0  bfloat16                +          WRONG  last of a row: inf, exact -3
#     triton 3.6.0  bfloat16                *          WRONG  last of a row: 0, exact 2
#     triton 3.6.0  bfloat16                <          WRONG  last of a row: 0, exact 1
#     triton 3.6.0  bfloat16                tl.sum     WRONG  last of a row: -2.821e-37, exact -4
#     triton 3.6.0  bfloat16                tl.max     right  last of a row: 4, exact 4
#     triton 3.6.0  bfloat16                tl.cumsum  right  last of a row: -4, exact -4
#     triton 3.6.0  bfloat16                tl.dot     WRONG  last of a row: 1.426e+10, exact 14
#     triton 3.7.1  bfloat16                +          WRONG  last of a row: inf, exact -3
#     triton 3.7.1  bfloat16                *          WRONG  last of a row: 0, exact 2
#     triton 3.7.1  bfloat16                <          WRONG  last of a row: 0, exact 1
#     triton 3.7.1  bfloat16                tl.sum     WRONG  last of a row: -2.821e-37, exact -4
#     triton 3.7.1  bfloat16                tl.max     right  last of a row: 4, exact 4
#     triton 3.7.1  bfloat16                tl.cumsum  right  last of a row: -4, exact -4
#     triton 3.7.1  bfloat16                tl.dot     WRONG  last of a row: 1.426e+10, exact 14
#     triton 3.9.0  bfloat16                +          WRONG  last of a row: inf, exact -3
#     triton 3.9.0  bfloat16                *          WRONG  last of a row: 0, exact 2
#     triton 3.9.0  bfloat16                <          WRONG  last of a row: 0, exact 1
#     triton 3.9.0  bfloat16                tl.sum     WRONG  last of a row: -2.821e-37, exact -4
#     triton 3.9.0  bfloat16                tl.max     right  last of a row: 4, exact 4
#     triton 3.9.0  bfloat16                tl.cumsum  WRONG  last of a row: -2.821e-37, exact -4
#     triton 3.9.0  bfloat16                tl.dot     WRONG  last of a row: 1.426e+10, exact 14
#
# and "right" for each operation behind .to(tl.float32), and for float16.
