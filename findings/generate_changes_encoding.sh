#!/usr/bin/env bash
# generate of transformers 5.24.0 takes a video that was encoded beforehand (mm_encoder_outputs), so that several questions can
# be asked of one encoding. With beams it writes its copies into the caller's own object: behind generate(num_beams=2) the
# encoding holds the video twice, and a greedy generate from that object, which worked before, raises "Video features and video
# tokens do not match".
#
# Needs Python with pip. torch is taken from that Python if it is there, and installed otherwise. No GPU is needed.
#     PYTHON=python3 bash findings/generate_changes_encoding.sh     (exit 0: as described; 1: not any more)
set -euo pipefail
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
python="${PYTHON:-python3}"
if ! "$python" -c "import torch" 2>/dev/null; then
    "$python" -m venv "$scratch/venv"
    python="$scratch/venv/bin/python"
    "$python" -m pip install --quiet torch==2.13.0 numpy
fi
"$python" -m pip install --quiet --disable-pip-version-check --target "$scratch/packages" transformers==5.24.0 2>/dev/null

cat >"$scratch/program.py" <<'PY'
import sys
import torch, transformers
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

VIDEO, START, END = 291, 292, 293
text = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}
vision = {"depth": 1, "hidden_size": 48, "intermediate_size": 96, "out_hidden_size": 64, "num_heads": 4, "patch_size": 7}
torch.manual_seed(0)
model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(
    text_config=text, vision_config=vision, video_token_id=VIDEO, vision_start_token_id=START, vision_end_token_id=END,
    image_token_id=290)).eval()
ids = torch.tensor([[1, START, *[VIDEO] * 8, END, 7, 8]])
asked = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": 2 * (ids == VIDEO).int(),
         "video_grid_thw": torch.tensor([[2, 4, 4]])}
with torch.no_grad():
    encoded = model.model.get_video_features(torch.randn(32, 294), asked["video_grid_thw"], return_dict=True)
seen = []
for beams in (1, 1, 2, 1):
    try:
        model.generate(**asked, mm_encoder_outputs={"video": encoded}, max_new_tokens=2, do_sample=False, num_beams=beams)
        outcome = "answered"
    except ValueError as error:
        outcome = str(error)
    seen.append((beams, outcome.split(",")[0], len(encoded.pooler_output)))
    print(f"transformers {transformers.__version__}, {beams} beam(s): {outcome}; the encoding holds {seen[-1][2]} video(s)")
sys.exit(seen != [(1, "answered", 1), (1, "answered", 1), (2, "answered", 2),
                  (1, "Video features and video tokens do not match", 2)])
PY
PYTHONPATH="$scratch/packages" "$python" "$scratch/program.py" 2>/dev/null
