#!/usr/bin/env bash
# A video of a single frame. Qwen2-VL's video processor repeats the last frame until two make one of the model's, and so takes it;
# Qwen3-VL's has the same lines for it, but works out the size of the frames first, and there refuses: "t:1 must be larger than
# temporal_factor:2" (two are not larger, and are taken). transformers 5.17.0 and 5.24.0.
#
# Needs Python with pip. torch is taken from that Python if it is there, and installed otherwise. No GPU is needed.
#     PYTHON=python3 bash findings/qwen3_vl_single_frame.sh     (exit 0: as described; 1: not any more)
set -euo pipefail
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
python="${PYTHON:-python3}"
if ! "$python" -c "import torch, PIL" 2>/dev/null; then
    "$python" -m venv "$scratch/venv"
    python="$scratch/venv/bin/python"
    "$python" -m pip install --quiet torch==2.13.0 numpy pillow
fi

cat >"$scratch/program.py" <<'PY'
import sys
import torch

try:
    import torchvision
except RuntimeError:  # compiled for another build of torch; its transforms, which are all that is used, do without operators
    operators = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import numpy as np
import transformers as hf

told = []
for processor in (hf.Qwen2VLVideoProcessor(), hf.Qwen3VLVideoProcessor()):
    for frames in (1, 2, 3):
        video = np.zeros((frames, 480, 640, 3), np.uint8)
        try:
            given = processor(videos=[video], do_sample_frames=False, return_tensors="pt")
            end = int(given["video_grid_thw"][0, 0])
        except ValueError as error:
            end = str(error)
        told.append(end)
        print(f"transformers {hf.__version__}: {type(processor).__name__}: a video of {frames}: {end}")
sys.exit(told != [1, 1, 2, "t:1 must be larger than temporal_factor:2", 1, 2])
PY

for version in 5.17.0 5.24.0; do
    "$python" -m pip install --quiet --disable-pip-version-check --target "$scratch/$version" "transformers==$version" 2>/dev/null
    "$python" -m pip install --quiet --disable-pip-version-check --target "$scratch/$version" --no-deps torchvision==0.28.0 2>/dev/null
    PYTHONPATH="$scratch/$version" "$python" "$scratch/program.py" 2>/dev/null
done
