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
SMOLVLM = {
    "image_token": (IMAGE, "<image>"),
    "video_token": (VIDEO, "<video>"),
    "fake_image_token": (VISION_START, "<fake_token_around_image>"),
    "global_image_token": (VISION_END, "<global-img>"),
}
# Of a tokenizer alone: a message is its role and its text.
TEXT_TEMPLATE = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}assistant"


def _template(image, video):
    """A chat template: a message is its role and its parts, in words or placeholders."""
    return (
        "{% for m in messages %}{{ m['role'] }} "
        "{% if m['content'] is string %}{{ m['content'] }} {% else %}{% for part in m['content'] %}"
        f"{{% if part['type'] == 'image' %}}{image}{{% elif part['type'] == 'video' %}}{video}"
        "{% elif part['type'] == 'text' %}{{ part['text'] }} {% endif %}"
        "{% endfor %}{% endif %}{% endfor %}assistant"
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
    processor = PROCESSORS[family]()
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
        tokenizer=_tokenizer(LLAVA, _template("<image>", "<video>")),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
    )


def _internvl():
    """Frames of 28 pixels, 4 tokens each."""
    square = {"height": 28, "width": 28}
    template = _template("<IMG_CONTEXT>", "<video>")
    return transformers.InternVLProcessor(
        image_processor=transformers.GotOcr2ImageProcessor(size=square),
        video_processor=transformers.InternVLVideoProcessor(size=square),
        tokenizer=_tokenizer(INTERNVL, template),
        image_seq_length=family_models.CELLS,
        chat_template=template,
    )


def _llava_next_video():
    """Frames of 28 pixels, 4 tokens each."""
    square = {"height": 28, "width": 28}
    sizes = {"size": {"shortest_edge": 28}, "crop_size": square}
    template = _template("<image>", "<video>")
    return transformers.LlavaNextVideoProcessor(
        video_processor=transformers.LlavaNextVideoVideoProcessor(**sizes),
        image_processor=transformers.LlavaNextImageProcessor(**sizes, image_grid_pinpoints=[[28, 28]]),
        tokenizer=_tokenizer(LLAVA, template),
        chat_template=template,
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def _smolvlm():
    """Frames of 28 pixels, 4 tokens each, between words that say when each is shown."""
    edge = {"longest_edge": 28}
    sampling = {"fps": 1, "max_frames": 64, "video_size": edge}
    return transformers.SmolVLMProcessor(
        image_processor=transformers.SmolVLMImageProcessor(size=edge, max_image_size=edge, do_image_splitting=False),
        tokenizer=_tokenizer(SMOLVLM, TEXT_TEMPLATE),
        video_processor=transformers.SmolVLMVideoProcessor(size=edge, max_image_size=edge, video_sampling=sampling),
        image_seq_len=family_models.CELLS,
        chat_template=_template("<image>", "<video>"),
    )


def _video_llama_3():
    """As many pixels as a clip has, down to one token a frame; the times of frames between their tokens."""
    sizes = {"patch_size": 7, "merge_size": 2}
    template = _template("<|image_pad|>", "<|video_pad|>")
    return transformers.VideoLlama3Processor(
        image_processor=transformers.VideoLlama3ImageProcessor(**sizes, min_pixels=196, max_pixels=784),
        video_processor=transformers.VideoLlama3VideoProcessor(
            **sizes, temporal_patch_size=1, min_pixels=196, max_pixels=784 * 32
        ),
        tokenizer=_tokenizer(QWEN, template),
        chat_template=template,
    )


def _qwen(kind, video_processor, patch_size):
    """Frames are resized by the harness, for patches of the size that the real models have."""
    sizes = {"patch_size": patch_size, "temporal_patch_size": 2, "merge_size": 2}
    template = _template(*(f"<|vision_start|><|{kind}_pad|><|vision_end|>" for kind in ("image", "video")))
    return kind(
        image_processor=transformers.Qwen2VLImageProcessor(**sizes),
        video_processor=video_processor(**sizes),
        tokenizer=_tokenizer(QWEN, template),
        chat_template=template,
    )


PROCESSORS = {
    "llava_onevision": _llava_onevision,
    "llava_next_video": _llava_next_video,
    "internvl": _internvl,
    "smolvlm": _smolvlm,
    "video_llama_3": _video_llama_3,
    "qwen2_vl": lambda: _qwen(transformers.Qwen2VLProcessor, transformers.Qwen2VLVideoProcessor, 14),
    "qwen2_5_vl": lambda: _qwen(transformers.Qwen2_5_VLProcessor, transformers.Qwen2VLVideoProcessor, 14),
    "qwen3_vl": lambda: _qwen(transformers.Qwen3VLProcessor, transformers.Qwen3VLVideoProcessor, 16),
}
