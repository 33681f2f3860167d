#!/usr/bin/env bash
# flash-attn 2.8.3 and flash-attn-4 4.0.0b36 share the name `flash_attn`, so that whether a name can be imported, or is found, does
# not tell which FlashAttention there is:
#   * with flash-attn-4 alone `import flash_attn` succeeds, as a namespace package without a flash_attn_func: not FlashAttention 2;
#   * flash-attn 2.8.3 brings a flash_attn/cute of its own, version 0.1.0 of FlashAttention 4, whose flash_attn_func can't return the
#     LSE; flash-attn-4's can (return_lse=True);
#   * both own files of the same names, so whichever is installed last wins, and removing one breaks the other.
# FlashAttention 3 in the tree of flash-attn 2.8.3 (hopper/) documents return_attn_probs, but doesn't have it: no LSE from it either.
#
# Around it: import, look for the function, and look for the parameter.
#
# Needs Python with pip. torch, and what flash-attn needs to tell its name (setuptools, wheel, packaging, psutil), are taken from
# that Python if it has torch, and installed otherwise. Nothing is compiled, no GPU is needed.
#     PYTHON=python3 bash findings/flash_attn_names.sh     (exit 0: as described; 1: not any more)
set -euo pipefail
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
python="${PYTHON:-python3}"
if ! "$python" -c "import torch" 2>/dev/null; then
    "$python" -m venv "$scratch/venv"
    python="$scratch/venv/bin/python"
    "$python" -m pip install --quiet torch==2.13.0 setuptools wheel packaging psutil ninja
fi
pip() { "$python" -m pip --quiet --disable-pip-version-check "$@"; }
FLASH_ATTENTION_SKIP_CUDA_BUILD=TRUE pip download --no-deps --no-binary :all: --no-build-isolation -d "$scratch" flash-attn==2.8.3
tar xzf "$scratch"/flash_attn-2.8.3.tar.gz -C "$scratch"
pip install --no-deps --target "$scratch/four" flash-attn-4==4.0.0b36

cat >"$scratch/program.py" <<'PY'
import ast, importlib, importlib.util, pathlib, sys

two, four = map(pathlib.Path, sys.argv[1:])
good = True

def say(what, seen, expected):
    global good
    good &= seen == expected
    print(f"{what}: {seen}")

def parameters(file):
    functions = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)]
    (found,) = [node for node in functions if node.name == "flash_attn_func"]
    return {argument.arg for argument in found.args.args} & {"return_lse", "return_attn_probs"}

sys.path.insert(0, str(four))
module = importlib.import_module("flash_attn")
say("flash-attn-4 alone: flash_attn is found", importlib.util.find_spec("flash_attn") is not None, True)
say("flash-attn-4 alone: flash_attn has a file", getattr(module, "__file__", None) is not None, False)
say("flash-attn-4 alone: flash_attn has a flash_attn_func", hasattr(module, "flash_attn_func"), False)
for name, file, expected in (
    ("flash_attn, 2.8.3", two / "flash_attn/flash_attn_interface.py", {"return_attn_probs"}),
    ("hopper/flash_attn_interface, 2.8.3", two / "hopper/flash_attn_interface.py", set()),
    ("flash_attn.cute, 2.8.3", two / "flash_attn/cute/interface.py", set()),
    ("flash_attn.cute, flash-attn-4", four / "flash_attn/cute/interface.py", {"return_lse"}),
):
    say(f"parameters for the LSE, {name}", sorted(parameters(file)), sorted(expected))
say("hopper/ documents return_attn_probs", "return_attn_probs" in (two / "hopper/flash_attn_interface.py").read_text(), True)
names = lambda root: {str(file.relative_to(root)) for file in (root / "flash_attn/cute").rglob("*.py")}
say("files in both", len(names(two) & names(four)), 20)
sys.exit(not good)
PY
"$python" "$scratch/program.py" "$scratch/flash_attn-2.8.3" "$scratch/four" && echo "as described" || { echo "not as described any more"; exit 1; }
# Seen (Python 3.11, torch 2.13.0):
#
#     flash-attn-4 alone: flash_attn is found: True
#     flash-attn-4 alone: flash_attn has a file: False
#     flash-attn-4 alone: flash_attn has a flash_attn_func: False
#     parameters for the LSE, flash_attn, 2.8.3: ['return_attn_probs']
#     parameters for the LSE, hopper/flash_attn_interface, 2.8.3: []
#     parameters for the LSE, flash_attn.cute, 2.8.3: []
#     parameters for the LSE, flash_attn.cute, flash-attn-4: ['return_lse']
#     hopper/ documents return_attn_probs: True
#     files in both: 20
#     as described
