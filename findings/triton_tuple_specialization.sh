#!/usr/bin/env bash
# `do_not_specialize` does not reach into tuples. An integer argument that is named there gives one kernel for all its values; as
# an element of a tuple argument that is named there (and of one that is not) it makes Triton compile anew for values that are 1,
# divisible by 16, and neither: three kernels. Versions 3.6.0, 3.7.1 and 3.9.0 alike.
#
# So a kernel that takes many tensors as tuples, with their sizes and strides, is compiled again in the middle of a request when
# a length changes. Around it: multiply such numbers by 16 on the host and shift them back in the kernel.
# What is shown are the keys under which Triton looks a kernel up, by its own cache hook: nothing is compiled, no GPU is needed.
#
# Needs Python with pip. torch and numpy are taken from that Python if it has them, and installed otherwise.
#     PYTHON=python3 bash findings/triton_tuple_specialization.sh     (exit 0: as described; 1: not any more)
#
# Seen:
#     3.6.0: an integer 1 kernel, in a tuple 3, in a tuple and 16-fold 1
#     3.7.1: an integer 1 kernel, in a tuple 3, in a tuple and 16-fold 1
#     3.9.0: an integer 1 kernel, in a tuple 3, in a tuple and 16-fold 1
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
from types import SimpleNamespace
import torch, triton, triton.language as tl
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

@triton.jit(do_not_specialize=["length"])
def plain(out, length):
    tl.store(out, length)

@triton.jit(do_not_specialize=["lengths"])
def in_a_tuple(out, lengths):
    tl.store(out, lengths[0])

target = GPUTarget("cuda", 90, 32)
driver.set_active(SimpleNamespace(
    get_current_target=lambda: target, get_current_device=lambda: 0, get_current_stream=lambda device=None: 0,
    get_active_torch_device=lambda: torch.device("cpu"),
))
keys = []
knobs.runtime.jit_cache_hook = lambda *, key, **_: keys.append(str(key)) or True  # True: do not compile

def kernels(launch):
    keys.clear()
    for length in (1, 16, 17, 32, 99):
        launch(length)
    return len(set(keys))

out = torch.zeros(4, dtype=torch.int32)
found = (
    kernels(lambda length: plain[(1,)](out, length)),
    kernels(lambda length: in_a_tuple[(1,)](out, (length,))),
    kernels(lambda length: in_a_tuple[(1,)](out, (16 * length,))),
)
print(f"{triton.__version__}: an integer {found[0]} kernel, in a tuple {found[1]}, in a tuple and 16-fold {found[2]}")
sys.exit(found != (1, 3, 1))
PY

for version in 3.6.0 3.7.1 3.9.0; do
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$scratch/$version" "triton==$version"
    PYTHONPATH="$scratch/$version" "$python" "$scratch/program.py" 2>"$scratch/err" || { cat "$scratch/err"; exit 1; }
done
