#!/usr/bin/env bash
# `and` between a vector and a scalar condition is elementwise in compiled Triton (with a warning that `&` is preferred), but
# Python's own in the interpreter: the first condition is dropped, and the mask is the second one alone. Up to 3.8.0 the kernel
# below then stores beyond its limit, in silence; 3.9.0 raises ValueError('mask has unsupported dtype'), for another reason (see
# triton_interpreter_scalar_masks.sh). What is compiled is read from Triton's own intermediate representation: no GPU is needed.
#
#     mask = (at < count) and (tl.program_id(0) < limit)
#
# Needs Python with pip. torch and numpy are taken from that Python if it has them, and installed otherwise.
#     PYTHON=python3 bash findings/triton_interpreter_and.sh     (exit 0: as described; 1: not any more)
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
import re, sys
import torch, triton, triton.language as tl

@triton.jit
def copy(source, target, count, limit, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    mask = (at < count) and (tl.program_id(0) < limit)
    tl.store(target + at, tl.load(source + at), mask=mask)

def compiled():
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    types = {"source": "*fp32", "target": "*fp32", "count": "i32", "limit": "i32", "SIZE": "constexpr"}
    text = triton.compile(ASTSource(copy, types, {"SIZE": 8}), target=GPUTarget("cuda", 90, 32)).asm["ttir"]
    return re.search(r"arith\.andi .*? : (\S+)", text)[1]

def interpreted():
    target = torch.zeros(8)
    try:
        copy[(1,)](torch.ones(8), target, 5, 1, 8)
        return str(target.int().tolist())
    except Exception as error:
        return repr(error)

if sys.argv[1:]:
    seen, expected = compiled(), "tensor<8xi1>"
else:
    seen = interpreted()
    expected = "mask has unsupported dtype" if triton.__version__ == "3.9.0" else str([1] * 8)
print(f"triton {triton.__version__}  {'compiled: both joined, elementwise, as' if sys.argv[1:] else 'interpreted, count 5 of 8: stored'} {seen}")
sys.exit(expected not in seen)
PY

status=0
for version in 3.6.0 3.8.0 3.9.0; do
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$scratch/$version" "triton==$version"
    PYTHONPATH="$scratch/$version" "$python" -W ignore "$scratch/program.py" compiled || status=1
    PYTHONPATH="$scratch/$version" TRITON_INTERPRET=1 "$python" "$scratch/program.py" || status=1
done
[ "$status" -eq 0 ] && echo "as described" || echo "not as described any more"
exit "$status"
# Seen (Python 3.11, torch 2.13.0, numpy 2.3.5):
#
#     triton 3.6.0  compiled: both joined, elementwise, as tensor<8xi1>
#     triton 3.6.0  interpreted, count 5 of 8: stored [1, 1, 1, 1, 1, 1, 1, 1]
#     triton 3.8.0  compiled: both joined, elementwise, as tensor<8xi1>
#     triton 3.8.0  interpreted, count 5 of 8: stored [1, 1, 1, 1, 1, 1, 1, 1]
#     triton 3.9.0  compiled: both joined, elementwise, as tensor<8xi1>
#     triton 3.9.0  interpreted, count 5 of 8: stored InterpreterError("ValueError('mask has unsupported dtype')")
#     as described
