#!/usr/bin/env bash
# A new video in a conversation with Qwen-VL, behind the cache of an earlier turn, though ids, mm_token_type_ids, grid and
# pixels come as the processor makes them. transformers 5.17.0 gives its tokens positions of text, one further each on all
# three axes, without a word: eight tokens of two frames at 5 to 12 instead of 5 to 6. 5.24.0 places it rightly behind text,
# and raises a bare StopIteration if the earlier turn had a video, too. Qwen2-VL is shown; Qwen2.5-VL and Qwen3-VL do the same.
#
# Needs Python with pip. torch is taken from that Python if it is there, and installed otherwise. No GPU is needed.
#     PYTHON=python3 bash findings/qwen_vl_second_video.sh     (exit 0: as described; 1: not any more)
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
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

VIDEO, START, END = 291, 292, 293
CLIP = [START, *[VIDEO] * 8, END]  # two frames of 2 x 2 tokens
text = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}
vision = {"depth": 1, "embed_dim": 48, "hidden_size": 64, "num_heads": 4, "patch_size": 7, "mlp_ratio": 2}
names = {"video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END, "image_token_id": 290}
torch.manual_seed(0)
model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision, **names)).eval()
seen = []
model.model.language_model.register_forward_pre_hook(lambda module, args, given: seen.append(given["position_ids"]), with_kwargs=True)


def ask(tokens, videos, **more):
    ids = torch.tensor([tokens])
    if videos:
        more |= {"pixel_values_videos": torch.ones(32 * videos, 294), "video_grid_thw": torch.tensor([[2, 4, 4]] * videos)}
    seen.clear()
    return model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=2 * (ids == VIDEO).int(), **more,
                          max_new_tokens=1, do_sample=False, return_dict_in_generate=True)


def begins_and_ends():
    """Smallest and largest position of the last video's tokens, which end three before the prompt's."""
    places = seen[0][-3:, 0, -11:-3]
    return places.min().item(), places.max().item()


told = []
for earlier, videos in (([1, 5], 0), ([1, *CLIP, 5, 6], 1)):
    talk = [*earlier, 7, 8, *CLIP, 9, 10]
    ask(talk, videos + 1)
    told.append(begins_and_ends())
    first = ask(earlier, videos)
    try:
        ask(talk, 1, past_key_values=first.past_key_values)
        told.append(begins_and_ends())
    except StopIteration as error:
        told.append(repr(error))
    print(f"transformers {transformers.__version__}, behind {videos} videos: the video's positions {told[-2]}, "
          f"with the cache of the earlier turn {told[-1]}")
old = [(5, 6), (5, 12), (10, 11), (10, 17)]
new = [(5, 6), (5, 6), (10, 11), "StopIteration()"]
sys.exit(told != {"5.17.0": old, "5.24.0": new}[transformers.__version__])
PY

for version in 5.17.0 5.24.0; do
    "$python" -m pip install --quiet --disable-pip-version-check --target "$scratch/$version" "transformers==$version" 2>/dev/null
    PYTHONPATH="$scratch/$version" "$python" "$scratch/program.py" 2>/dev/null
done
