#!/usr/bin/env bash
# An image and a video in one prompt of SmolVLM2. Its processor puts tokens for both into the ids, but the pixels of both under
# one name, pixel_values, so that those of the image are gone: 5 pictures of 4 tokens in the ids, 4 in the pixels. No word is
# said until the model runs: transformers 5.17.0 raises an IndexError about a dimension, 5.24.0 a ValueError that counts tokens and
# features. Either alone is right.
#
# Needs Python with pip. torch is taken from that Python if it is there, and installed otherwise. No GPU is needed.
#     PYTHON=python3 bash findings/smolvlm_image_beside_video.sh     (exit 0: as described; 1: not any more)
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
import tokenizers
import transformers as hf

SPECIAL = {"image_token": "<image>", "video_token": "<video>", "fake_image_token": "<fake>", "global_image_token": "<global>"}
words = {word: number for number, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", "what", *SPECIAL.values()])}
core = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
core.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
tokenizer = hf.PreTrainedTokenizerFast(
    tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>", extra_special_tokens=SPECIAL
)
edge = {"longest_edge": 28}
processor = hf.SmolVLMProcessor(
    image_processor=hf.SmolVLMImageProcessor(size=edge, max_image_size=edge, do_image_splitting=False),
    video_processor=hf.SmolVLMVideoProcessor(
        size=edge, max_image_size=edge, video_sampling={"fps": 1, "max_frames": 64, "video_size": edge}
    ),
    tokenizer=tokenizer,
    image_seq_len=4,
)
vision = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 28}
text = {"model_type": "llama", "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
config = hf.SmolVLMConfig(text_config=text, vision_config={**vision, "patch_size": 7}, image_token_id=words["<image>"],
                          scale_factor=2, pad_token_id=0)
model = hf.SmolVLMForConditionalGeneration(config).eval()
image, video = np.zeros((28, 28, 3), np.uint8), np.zeros((4, 28, 28, 3), np.uint8)
told = []
for prompt, given in (("<image> what", {"images": [[image]]}), ("<video> what", {"videos": [[video]]}),
                      ("<image> <video> what", {"images": [[image]], "videos": [[video]]})):
    if "videos" in given:
        times = {"total_num_frames": 4, "fps": 1, "frames_indices": [0, 1, 2, 3], "duration": 4}
        given |= {"video_metadata": [[times]], "do_sample_frames": False}
    inputs = processor(text=[prompt], return_tensors="pt", **given)
    shown = int((inputs["input_ids"] == words["<image>"]).sum()) // 4
    try:
        with torch.no_grad():
            model(**inputs)
        end = "runs"
    except (IndexError, ValueError) as error:
        end = f"{type(error).__name__}: {error}"
    told.append((prompt, shown, inputs["pixel_values"].shape[1], end.split(":")[0]))
    print(f"transformers {hf.__version__}: {prompt!r}: {shown} pictures in the ids, {told[-1][2]} in the pixels; {end}")
raised = "IndexError" if hf.__version__ == "5.17.0" else "ValueError"
as_described = [("<image> what", 1, 1, "runs"), ("<video> what", 4, 4, "runs"), ("<image> <video> what", 5, 4, raised)]
sys.exit(told != as_described)
PY

for version in 5.17.0 5.24.0; do
    "$python" -m pip install --quiet --disable-pip-version-check --target "$scratch/$version" "transformers==$version" num2words==0.5.14 2>/dev/null
    "$python" -m pip install --quiet --disable-pip-version-check --target "$scratch/$version" --no-deps torchvision==0.28.0 2>/dev/null
    PYTHONPATH="$scratch/$version" "$python" "$scratch/program.py" 2>/dev/null
done
