#!/usr/bin/env bash
# Triton 3.9.0's interpreter refuses a mask that joins a vector with a scalar condition: ValueError('mask has unsupported
# dtype'). The compiler takes it, and so did the interpreter of 3.6.0, 3.7.1 and 3.8.0.
#
#     mask = (at < count) & (tl.program_id(0) < limit)
#
# Why: the interpreter's result of a comparison is numpy booleans that it labels with the type of what was compared. To
# join the scalar it is splatted, in the labelled type: int32. The mask becomes int32, where until 3.8 load and store
# converted any mask to booleans, and 3.9 takes booleans alone. Around it: `!= 0` behind the mask, or tl.where(scalar, vector,
# False). A scalar comparison of *floats* never worked: the splat is float32, which numpy does not join: TypeError.
#
# Needs Python with pip. torch and numpy are taken from that Python if it has them, and installed otherwise.
#     PYTHON=python3 bash findings/triton_interpreter_scalar_masks.sh     (exit 0: as described; 1: not any more)
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
def copy(source, target, count, limit, threshold, KIND: tl.constexpr):
    at = tl.arange(0, 8)
    if KIND == "scalar":
        mask = (at < count) & (tl.program_id(0) < limit)
    elif KIND == "scalar, != 0":
        mask = ((at < count) & (tl.program_id(0) < limit)) != 0
    elif KIND == "tl.where":
        mask = tl.where(tl.program_id(0) < limit, at < count, False)
    elif KIND == "scalar of floats":
        mask = (at < count) & (tl.load(source) < threshold)
    else:
        mask = (at < count) & (at < limit + 8)
    tl.store(target + at, tl.load(source + at, mask=mask, other=0), mask=mask)

expected = {"vector": "copied", "scalar, != 0": "copied", "tl.where": "copied", "scalar of floats": "TypeError"}
expected["scalar"] = "mask has unsupported dtype" if triton.__version__ == "3.9.0" else "copied"
good = True
for kind, outcome in expected.items():
    target = torch.zeros(8)
    try:
        copy[(1,)](torch.arange(8.0), target, 5, 1, 1.0, kind)
        seen = "copied" if target.tolist() == [0, 1, 2, 3, 4, 0, 0, 0] else f"wrong: {target.tolist()}"
    except Exception as error:
        seen = repr(error)
    print(f"triton {triton.__version__}  mask of a vector and {kind:<17} {seen[:90]}")
    good &= outcome in seen
sys.exit(not good)
PY

status=0
for version in 3.7.1 3.9.0; do
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$scratch/$version" "triton==$version"
    PYTHONPATH="$scratch/$version" TRITON_INTERPRET=1 "$python" "$scratch/program.py" || status=1
done
[ "$status" -eq 0 ] && echo "as described" || echo "not as described any more"
exit "$status"
# Seen (Python 3.11, torch 2.13.0, numpy 2.3.5):
#
#     triton 3.7.1  mask of a vector and vector            copied
#     triton 3.7.1  mask of a vector and scalar, != 0      copied
#     triton 3.7.1  mask of a vector and tl.where          copied
#     triton 3.7.1  mask of a vector and scalar of floats  InterpreterError('TypeError("ufunc \'bitwise_and\' not supported for the input types, and 
#     triton 3.7.1  mask of a vector and scalar            copied
#     triton 3.9.0  mask of a vector and vector            copied
#     triton 3.9.0  mask of a vector and scalar, != 0      copied
#     triton 3.9.0  mask of a vector and tl.where          copied
#     triton 3.9.0  mask of a vector and scalar of floats  InterpreterError('TypeError("ufunc \'bitwise_and\' not supported for the input types, and 
#     triton 3.9.0  mask of a vector and scalar            InterpreterError("ValueError('mask has unsupported dtype')")
#     as described
