#!/usr/bin/env bash
# Prompt lookup (prompt_lookup_num_tokens) promises greedy decoding's tokens, faster. Behind a DynamicCache of an earlier turn,
# given with the whole conversation's ids as greedy decoding takes them, transformers 5.17.0 and 5.24.0 answer with other tokens,
# without a word. Without a cache they are the same. Text alone; no video is needed.
#
# Needs Python with pip. torch is taken from that Python if it is there, and installed otherwise. No GPU is needed.
#     PYTHON=python3 bash findings/prompt_lookup_behind_a_cache.sh     (exit 0: as described; 1: not any more)
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
import copy, sys
import torch, transformers
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
size = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100}
ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
model = LlamaForCausalLM(LlamaConfig(**size, **ends, initializer_range=0.5)).eval()


def answer(ids, **options):
    return model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, return_dict_in_generate=True, **options)


first = answer(torch.tensor([[1, 5, 6, 7, 8]]), max_new_tokens=4)
talk = torch.cat([first.sequences, torch.tensor([[60, 61, 62, 60, 61]])], 1)
told = {}
for behind in ("no cache", "the first turn's cache"):
    for how, options in (("greedy", {}), ("lookup", {"prompt_lookup_num_tokens": 3})):
        if behind != "no cache":
            options["past_key_values"] = copy.deepcopy(first.past_key_values)
        told[behind, how] = answer(talk, max_new_tokens=8, **options).sequences[0, talk.shape[1] :].tolist()
        print(f"transformers {transformers.__version__}, {behind}, {how}: {told[behind, how]}")
right = told["no cache", "greedy"]
same = {key: value == right for key, value in told.items()}
sys.exit([key for key, value in same.items() if not value] != [("the first turn's cache", "lookup")])
PY

for version in 5.17.0 5.24.0; do
    "$python" -m pip install --quiet --disable-pip-version-check --target "$scratch/$version" "transformers==$version" 2>/dev/null
    PYTHONPATH="$scratch/$version" "$python" "$scratch/program.py" 2>/dev/null
done
