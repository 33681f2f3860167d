"""Checkpoints in a folder, as a harness loads them: a tiny model with random weights, its tokenizer and processor."""

from __future__ import annotations

import importlib

import family_models
import torch
from family_models import IMAGE, VIDEO, VISION_END, VISION_START

try:
    importlib.import_module("torchvision")  # of whose transforms transformers' video processors are made
except RuntimeError:
    # Its operators are compiled for another torch, such as one with CUDA. The transforms do without them, but the package can't
    # be imported unless these two are declared.
    operators = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import tokenizers
import transformers

# What the models of each kind call their placeholders, and the names under which processors ask for them.
LLAVA = {"image_token": (IMAGE, "<image>"), "video_token": (VIDEO, "<video>")}
QWEN = {
    "image_token": (IMAGE, "<|image_pad|>"),
    "video_token": (VIDEO, "<|video_pad|>"),
    "vision_start_token": (VISION_START, "<|vision_start|>"),
    "vision_end_token": (VISION_END, "<|vision_end|>"),
}
INTERNVL = {
    "context_image_token": (IMAGE, "<IMG_CONTEXT>"),
    "video_token": (VIDEO, "<video>"),
    "start_image_token": (VISION_START, "<img>"),
    "end_image_token": (VISION_END, "</img>"),
}

TEXT_TEMPLATE = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}assistant"
PARTS_TEMPLATE = (
    "{%% for m in messages %%}{{ m['role'] }} "
    "{%% if m['content'] is string %%}{{ m['content'] }} {%% else %%}{%% for part in m['content'] %%}"
    "{%% if part['type'] == 'video' %%}%s{%% elif part['type'] == 'text' %%}{{ part['text'] }} {%% endif %%}"
    "{%% endfor %%}{%% endif %%}{%% endfor %%}assistant"
)


def _tokenizer(placeholders, template):
    """One token per word: ``w4`` to ``w299`` but for the placeholders' numbers; all other words are unknown."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3}
    words.update({f"w{number}": number for number in range(len(words), family_models.TEXT["vocab_size"])})
    for number, word in placeholders.values():
        del words[f"w{number}"]
        words[word] = number
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={name: word for name, (_, word) in placeholders.items()},
        chat_template=template,
    )


def save(family, folder):
    """A checkpoint of one of the families that the harness has too."""
    processor = _PROCESSORS[family]()
    processor.save_pretrained(folder)
    kind, config = family_models.BUILDERS[family]()
    if family.startswith("qwen"):
        config.vision_config.patch_size = processor.image_processor.patch_size
    torch.manual_seed(0)
    family_models.for_tests(kind._from_config(config, attn_implementation="sdpa"), "sdpa").save_pretrained(folder)


def _llava_onevision():
    """Frames of 28 pixels, 4 tokens each."""
    square = {"height": 28, "width": 28}
    return transformers.LlavaOnevisionProcessor(
        image_processor=transformers.LlavaOnevisionImageProcessor(size=square, image_grid_pinpoints=[[28, 28]]),
        video_processor=transformers.LlavaOnevisionVideoProcessor(size=square),
        tokenizer=_tokenizer(LLAVA, TEXT_TEMPLATE),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
    )


def _internvl():
    """Frames of 28 pixels, 4 tokens each."""
    square = {"height": 28, "width": 28}
    return transformers.InternVLProcessor(
        image_processor=transformers.GotOcr2ImageProcessor(size=square),
        video_processor=transformers.InternVLVideoProcessor(size=square),
        tokenizer=_tokenizer(INTERNVL, PARTS_TEMPLATE % "<video>"),
        image_seq_length=family_models.CELLS,
        chat_template=PARTS_TEMPLATE % "<video>",
    )


def _qwen(kind, video_processor, patch_size):
    """Frames are resized by the harness, for patches of the size that the real models have."""
    sizes = {"patch_size": patch_size, "temporal_patch_size": 2, "merge_size": 2}
    template = PARTS_TEMPLATE % "<|vision_start|><|video_pad|><|vision_end|>"
    return kind(
        image_processor=transformers.Qwen2VLImageProcessor(**sizes),
        video_processor=video_processor(**sizes),
        tokenizer=_tokenizer(QWEN, template),
        chat_template=template,
    )


_PROCESSORS = {
    "llava_onevision": _llava_onevision,
    "internvl": _internvl,
    "qwen2_vl": lambda: _qwen(transformers.Qwen2VLProcessor, transformers.Qwen2VLVideoProcessor, 14),
    "qwen2_5_vl": lambda: _qwen(transformers.Qwen2_5_VLProcessor, transformers.Qwen2VLVideoProcessor, 14),
    "qwen3_vl": lambda: _qwen(transformers.Qwen3VLProcessor, transformers.Qwen3VLVideoProcessor, 16),
}
