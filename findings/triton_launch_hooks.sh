#!/usr/bin/env bash
# Triton 3.7.1 (3.6.0 and 3.9.0 likewise): a launch pays for profilers although there are none.
# CompiledKernel.launch_metadata returns None "if knobs.runtime.launch_enter_hook is None", and its C launcher, by its source, calls no hook that is
# None; but both hooks are HookChain objects from the start, and an empty chain is not None. So every launch makes a dictionary of
# metadata, and calls two chains with nothing in them.
#
# Around it, for who launches thousands of small kernels: keep the CompiledKernel that kernel[grid](...) returns, and where both chains'
# `calls` are empty call its `run` with None for the metadata and the hooks.
#
# Needs Python with pip. A kernel is compiled for a GPU that is not here; what asks for one is answered by a stand-in.
#     PYTHON=python3 bash findings/triton_launch_hooks.sh     (exit 0: as described; 1: not any more)
set -euo pipefail
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
python="${PYTHON:-python3}"
"$python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$scratch/triton" "triton==${TRITON:-3.7.1}"

cat >"$scratch/program.py" <<'PY'
import sys
from types import SimpleNamespace

import triton
import triton.language as tl
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.driver import driver

@triton.jit
def double(x, SIZE: tl.constexpr):
    at = x + tl.arange(0, SIZE)
    tl.store(at, tl.load(at) * 2)

handed = []
driver.set_active(SimpleNamespace(
    get_current_device=lambda: 0,
    get_current_stream=lambda device=None: 0,
    get_current_target=lambda: GPUTarget("cuda", 90, 32),
    launcher_cls=lambda source, metadata: lambda *arguments: handed.append(arguments),
    utils=SimpleNamespace(
        get_device_properties=lambda device: {"max_shared_mem": 1 << 20, "warpSize": 32},
        load_binary=lambda *_: (object(), object(), 0, 0, 1024),
        unload_module=lambda module: None,
    ),
))
source = ASTSource(double, signature={"x": "*fp32", "SIZE": "constexpr"}, constexprs={"SIZE": 16})
kernel = triton.compile(source, target=GPUTarget("cuda", 90, 32))
kernel[(1, 1, 1)](0, 16)

metadata, enter, leave = handed[0][6:9]  # after the grid, the stream, the function and what is packed
print("triton", triton.__version__)
print("metadata:", type(metadata).__name__, "- enter:", type(enter).__name__, enter.calls, "- exit:", type(leave).__name__, leave.calls)
expected = metadata is not None and enter is knobs.runtime.launch_enter_hook and enter.calls == [] and leave.calls == []
del kernel
sys.exit(not expected)
PY
PYTHONPATH="$scratch/triton" "$python" "$scratch/program.py"
# Output seen:
#   triton 3.7.1
#   metadata: LazyDict - enter: HookChain [] - exit: HookChain []
