#!/usr/bin/env bash
# What the vision tower of Qwen2.5-VL returns is changed afterwards. Whoever keeps the output of the tower, as a forward hook gets it,
# finds a tensor in pooler_output while the hook runs, and a tuple of one tensor a video once the model's forward is over: the model
# splits it and puts the parts back into the same object. Keep a copy of it, or the tensor. transformers 5.17.0 and 5.24.0.
#
# Needs Python with pip. torch is taken from that Python if it is there, and installed otherwise. No GPU is needed.
#     PYTHON=python3 bash findings/vision_output_changes.sh     (exit 0: as described; 1: not any more)
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
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

VIDEO, START, END = 291, 292, 293
text = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 2, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}
vision = {"depth": 1, "hidden_size": 48, "intermediate_size": 96, "num_heads": 4, "patch_size": 7, "out_hidden_size": 64}
names = {"video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END, "image_token_id": 290}
model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **names)).eval()
kept, told = [], []


def hook(module, args, output):
    kept.append(output)
    told.append(type(output.pooler_output).__name__)


model.model.visual.register_forward_hook(hook)
ids = torch.tensor([[1, START, *[VIDEO] * 8, END, 7]])
with torch.no_grad():
    model(input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=2 * (ids == VIDEO).int(),
          pixel_values_videos=torch.ones(32, 294), video_grid_thw=torch.tensor([[2, 4, 4]]), second_per_grid_ts=torch.ones(1))
told.append(type(kept[0].pooler_output).__name__)
print(f"transformers {transformers.__version__}: pooler_output in the hook: {told[0]}, after the forward: {told[1]}")
sys.exit(told != ["Tensor", "tuple"])
PY

for version in 5.17.0 5.24.0; do
    "$python" -m pip install --quiet --disable-pip-version-check --target "$scratch/$version" "transformers==$version" 2>/dev/null
    PYTHONPATH="$scratch/$version" "$python" "$scratch/program.py" 2>/dev/null
done
