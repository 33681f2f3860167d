#!/usr/bin/env bash
# Where Qwen2-VL and Qwen2.5-VL read the question that stands behind a video. In transformers 4.57.6 it begins behind the
# video's largest position, time included. In 5.17.0 and 5.24.0 it begins behind the larger side of one frame, however long
# the video lasts: behind 16 frames (pairs of pictures) of 2 x 2 tokens at position 4, while the video's own positions go on
# to 17 (Qwen2-VL) or 32 (Qwen2.5-VL, a second a frame). The answer does not follow the question either: rope_deltas, by
# which decoded tokens are placed, is made from the largest position of all, so that its first token is 12 or 27 positions
# behind the last one of the question instead of 1.
#
# Needs Python with pip. torch is taken from that Python if it is there, and installed otherwise. No GPU is needed.
#     PYTHON=python3 bash findings/qwen_vl_positions.sh     (exit 0: as described; 1: not any more)
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
import inspect, sys
import torch, transformers
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel, Qwen2VLConfig, Qwen2VLModel

VIDEO, START, END, PAIRS = 291, 292, 293, 16
text = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 2, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}
names = {"video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END, "image_token_id": 290}
kinds = {
    "Qwen2-VL": (Qwen2VLModel, Qwen2VLConfig, {"embed_dim": 48, "hidden_size": 64, "mlp_ratio": 2}, {}),
    "Qwen2.5-VL": (Qwen2_5_VLModel, Qwen2_5_VLConfig,
                   {"hidden_size": 48, "intermediate_size": 96, "out_hidden_size": 64, "tokens_per_second": 2},
                   {"second_per_grid_ts": torch.tensor([1.0])}),
}
seen = []
for name, (kind, config, vision, more) in kinds.items():
    model = kind(config(text_config=text, vision_config={"depth": 1, "num_heads": 4, "patch_size": 7, **vision}, **names))
    ids = torch.tensor([[1, START, *[VIDEO] * (PAIRS * 4), END, 7, 8]])
    given = {"input_ids": ids, "video_grid_thw": torch.tensor([[PAIRS, 4, 4]]), "attention_mask": torch.ones_like(ids), **more}
    if "mm_token_type_ids" in inspect.signature(model.get_rope_index).parameters:
        given["mm_token_type_ids"] = 2 * (ids == VIDEO).int()
    positions, deltas = model.get_rope_index(**given)
    video = (ids[0] == VIDEO).nonzero()[:, 0]
    behind, last, answer = positions[:, 0, video[-1] + 1], positions[:, 0, -1], ids.shape[1] + deltas.item()
    assert behind.unique().numel() == last.unique().numel() == 1
    seen.append((positions[:, 0, video].max().item(), behind[0].item(), answer - last[0].item()))
    print(f"transformers {transformers.__version__}, {name}: the video's largest position {seen[-1][0]}, the question begins at "
          f"{seen[-1][1]}, the answer {seen[-1][2]} behind its last token")
expected = {"4.57.6": [(17, 18, 1), (32, 33, 1)]}.get(transformers.__version__, [(17, 4, 12), (32, 4, 27)])
sys.exit(seen != expected)
PY

for version in 4.57.6 5.17.0 5.24.0; do
    "$python" -m pip install --quiet --disable-pip-version-check --target "$scratch/$version" "transformers==$version" 2>/dev/null
    PYTHONPATH="$scratch/$version" "$python" "$scratch/program.py" 2>/dev/null
done
