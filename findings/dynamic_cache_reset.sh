#!/usr/bin/env bash
# What is left of a DynamicCache after reset(). transformers 5.17.0 fills its keys and values with zeros and keeps their number:
# the cache still reports the old length, the next prompt is placed behind it and attends to as many zeros, and other logits
# come out, without a word. 5.24.0 empties it, and the same logits come out as with a new cache.
#
# Needs Python with pip. torch is taken from that Python if it is there, and installed otherwise. No GPU is needed.
#     PYTHON=python3 bash findings/dynamic_cache_reset.sh     (exit 0: as described; 1: not any more)
set -euo pipefail
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
python="${PYTHON:-python3}"
if ! "$python" -c "import torch" 2>/dev/null; then
    "$python" -m venv "$scratch/venv"
    python="$scratch/venv/bin/python"
    "$python" -m pip install --quiet torch==2.13.0 numpy
fi

cat >"$scratch/program.py" <<'PY'
import sys
import torch, transformers
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
size = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100}
model = LlamaForCausalLM(LlamaConfig(**size, initializer_range=0.5)).eval()
prompt, cache = torch.tensor([[1, 5, 6, 7]]), DynamicCache()
with torch.no_grad():
    expected = model(prompt, past_key_values=cache).logits
    cache.reset()
    length = cache.get_seq_length()
    again = model(prompt, past_key_values=cache).logits
off = (again - expected).abs().max().item()
print(f"transformers {transformers.__version__}: length after reset {length}, the same prompt's logits off by {off:.2g}")
old = length == 4 and off > 0.1
new = length == 0 and off == 0
sys.exit(not {"5.17.0": old, "5.24.0": new}[transformers.__version__])
PY

for version in 5.17.0 5.24.0; do
    "$python" -m pip install --quiet --disable-pip-version-check --target "$scratch/$version" "transformers==$version" 2>/dev/null
    PYTHONPATH="$scratch/$version" "$python" "$scratch/program.py" 2>/dev/null
done
