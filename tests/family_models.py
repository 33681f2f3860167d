"""A tiny model of every family, built from its config and never downloaded, and prompts for it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import transformers

IMAGE, VIDEO, VISION_START, VISION_END = 290, 291, 292, 293
LAYERS = 12
# Square frames of 28 pixels in patches of 7; two by two patches make a token.
CELLS = 4
TEXT = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.1,  # larger than usual, so that attention is not almost flat
}
VISION = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
IDS = {"image_token_id": IMAGE, "video_token_id": VIDEO}
QWEN_IDS = {**IDS, "vision_start_token_id": VISION_START, "vision_end_token_id": VISION_END}


def _llava_next_video():
    vision = {"model_type": "clip_vision_model", **VISION, "image_size": 28, "patch_size": 7, "projection_dim": 48}
    return transformers.LlavaNextVideoForConditionalGeneration, transformers.LlavaNextVideoConfig(
        text_config={"model_type": "llama", **TEXT}, vision_config=vision, image_token_index=IMAGE, video_token_index=VIDEO,
        image_grid_pinpoints=[[28, 28]],
    )  # fmt: skip


def _llava_onevision(layers=LAYERS, image_size=28, use_head=False, spread=0.1):
    vision = {
        "model_type": "siglip_vision_model",
        **VISION,
        "image_size": image_size,
        "patch_size": 7,
        "vision_use_head": use_head,
    }
    text = {**TEXT, "num_hidden_layers": layers, "initializer_range": spread}
    return transformers.LlavaOnevisionForConditionalGeneration, transformers.LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **text},
        vision_config=vision,
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=[[image_size, image_size]],
    )


def _qwen2_vl():
    vision = {"depth": 2, "embed_dim": 48, "hidden_size": 64, "num_heads": 4, "patch_size": 7, "mlp_ratio": 2}
    return transformers.Qwen2VLForConditionalGeneration, transformers.Qwen2VLConfig(
        text_config={**TEXT, "rope_parameters": ROPE}, vision_config=vision, **QWEN_IDS
    )


def _qwen2_5_vl():
    vision = {
        "depth": 2,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_heads": 4,
        "patch_size": 7,
        "out_hidden_size": 64,
    }
    return transformers.Qwen2_5_VLForConditionalGeneration, transformers.Qwen2_5_VLConfig(
        text_config={**TEXT, "rope_parameters": ROPE},
        vision_config={**vision, "fullatt_block_indexes": [1], "window_size": 28}, **QWEN_IDS,
    )  # fmt: skip


def _qwen3_vl():
    text = {name: value for name, value in TEXT.items() if name not in ("bos_token_id", "eos_token_id")}
    vision = {
        "depth": 2,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_heads": 4,
        "patch_size": 7,
        "out_hidden_size": 64,
    }
    return transformers.Qwen3VLForConditionalGeneration, transformers.Qwen3VLConfig(
        text_config={**text, "head_dim": 16, "rope_parameters": {**ROPE, "mrope_interleaved": True}},
        vision_config={**vision, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}, **QWEN_IDS,
    )  # fmt: skip


def _internvl():
    return transformers.InternVLForConditionalGeneration, transformers.InternVLConfig(
        text_config={"model_type": "qwen2", **TEXT}, vision_config={**VISION, "image_size": [28, 28], "patch_size": [7, 7]},
        image_token_id=IMAGE, image_seq_length=CELLS,
    )  # fmt: skip


def _video_llama_3():
    return transformers.VideoLlama3ForConditionalGeneration, transformers.VideoLlama3Config(
        text_config={"model_type": "qwen2", **TEXT}, vision_config={**VISION, "patch_size": 7}, **IDS
    )


def _smolvlm():
    return transformers.SmolVLMForConditionalGeneration, transformers.SmolVLMConfig(
        text_config={"model_type": "llama", **TEXT}, vision_config={**VISION, "image_size": 28, "patch_size": 7},
        image_token_id=IMAGE, scale_factor=2, pad_token_id=0,
    )  # fmt: skip


BUILDERS = {
    "llava_onevision": _llava_onevision,
    "llava_next_video": _llava_next_video,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "internvl": _internvl,
    "video_llama_3": _video_llama_3,
    "smolvlm": _smolvlm,
}


def build(family, attention="sdpa", *, seed=0, **options):
    """A model of a family with random weights, float32, on the CPU."""
    torch.manual_seed(seed)
    kind, config = BUILDERS[family](**options)
    return for_tests(kind._from_config(config, attn_implementation="sdpa"), attention)


def for_tests(model, attention):
    """The model with this attention in its decoder, ready to generate as long as it is told to."""
    model.eval()
    model.set_attn_implementation({"text_config": attention})
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = None
    # A random model might write them, and mean nothing by it.
    model.generation_config.suppress_tokens = [IMAGE, VIDEO, VISION_START, VISION_END]
    return model


def prompt(family, frames=6, *, shots=3, seed=0, size=28, before=(1, 5, 6), after=(7, 8, 9, 10, 11)):
    """A prompt with a video of several shots; frames of one shot differ a little.

    `size` is that of the pixels: of a square, or where the family bears it, height and width in multiples of 14.
    """
    height, width = (size, size) if isinstance(size, int) else size
    generator = torch.Generator().manual_seed(seed)
    scene = torch.randn(shots, 3, height, width, generator=generator)
    pixels = scene[torch.arange(frames) * shots // frames] + 0.1 * torch.randn(
        frames, 3, height, width, generator=generator
    )
    return prompt_of(family, pixels, before=before, after=after)


def prompt_of(family, pixels, *, before=(1, 5, 6), after=(7, 8, 9, 10, 11)):
    """A prompt with a video of `pixels` [frames, 3, H, W]."""
    frames, _, height, width = pixels.shape
    grid, cells = [height // 7, width // 7], (height // 14) * (width // 14)
    extra = {}
    if family == "llava_onevision":
        side = -(-(height // 7) // 2)
        video, extra["pixel_values_videos"] = [VIDEO] * (frames * side * side + 1), pixels[None]
    elif family == "llava_next_video":
        video, extra["pixel_values_videos"] = [VIDEO] * (frames * CELLS), pixels[None]
    elif family == "internvl":
        video, extra["pixel_values"] = [token for _ in range(frames) for token in (20, *[IMAGE] * CELLS)], pixels
    elif family == "smolvlm":
        video, extra["pixel_values"] = (
            [token for _ in range(frames) for token in (20, *[IMAGE] * CELLS, 21)],
            pixels[None],
        )
    elif family == "video_llama_3":
        video = [VIDEO] * (frames * cells)
        extra["pixel_values_videos"] = _patches(pixels, 1)
        extra["video_grid_thw"], extra["video_merge_sizes"] = torch.tensor([[frames, *grid]]), torch.tensor([2])
    else:  # Qwen: two pictures make a frame
        pixels = pixels.repeat_interleave(2, 0)
        one = [VISION_START, *[VIDEO] * cells, VISION_END]
        video = [VISION_START, *[VIDEO] * (frames * cells), VISION_END]
        if family == "qwen3_vl":  # a timestamp before every frame
            video = [token for number in range(frames) for token in (30 + number, *one)]
        extra["pixel_values_videos"], extra["video_grid_thw"] = _patches(pixels, 2), torch.tensor([[frames, *grid]])
        if family == "qwen2_5_vl":
            extra["second_per_grid_ts"] = torch.ones(1)
    ids = torch.tensor([[*before, *video, *after]])
    if family.startswith("qwen"):
        extra["mm_token_type_ids"] = 2 * (ids == VIDEO).int()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **extra}


def compressed(kept, *, grid=(4, 4), merge=2, seed=0, before=(1, 5, 6), after=(7, 8, 9, 10, 11)):
    """A prompt with a video of which each frame has the cells `kept`, lists of numbers; a time stands before each frame."""
    height, width = grid
    generator = torch.Generator().manual_seed(seed)
    scene = torch.randn(height * width, 3 * 49, generator=generator)
    pixels = scene + 0.1 * torch.randn(len(kept), height * width, 3 * 49, generator=generator)
    mask = torch.zeros(len(kept), height * width // merge**2, dtype=torch.bool)
    for frame, cells in enumerate(kept):
        mask[frame, cells] = True
    tokens = [token for frame, cells in enumerate(kept) for token in (30 + frame, 20, *[VIDEO] * len(cells))]
    ids = torch.tensor([[*before, *tokens, *after]])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values_videos": pixels.flatten(0, 1),
        "video_grid_thw": torch.tensor([[len(kept), height, width]]),
        "video_merge_sizes": torch.tensor([merge]),
        "video_compression_mask": mask.flatten(),
    }


WITH_IMAGES = ("llava_onevision", "llava_next_video", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "video_llama_3")


def image_of(family, seed=5):
    """What an image of a family comes as, and its tokens; Qwen's stands between two that are text."""
    generator = torch.Generator().manual_seed(seed)
    if family.startswith("llava"):
        inputs = {
            "pixel_values": torch.randn(1, 2, 3, 28, 28, generator=generator),
            "image_sizes": torch.tensor([[28, 28]]),
        }
        with torch.no_grad():
            size = len(build(family).model.get_image_features(**inputs).pooler_output[0])
        return inputs, [IMAGE] * size
    pictures = 1 if family == "video_llama_3" else 2
    inputs = {
        "pixel_values": torch.randn(16, 3 * pictures * 49, generator=generator),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
    }
    if family == "video_llama_3":
        return inputs | {"image_merge_sizes": torch.tensor([2])}, [IMAGE] * CELLS
    return inputs, [VISION_START, *[IMAGE] * CELLS, VISION_END]


def with_image(family, *, first=False, between=(40, 41), question=(7, 8, 9), **options):
    """A prompt with a video and an image behind it, or before it; then the question."""
    inputs, (image, tokens) = prompt(family, after=(), **options), image_of(family)
    ids = inputs["input_ids"][0].tolist()
    ids = [*tokens, *between, *ids, *question] if first else [*ids, *between, *tokens, *question]
    ids = torch.tensor([ids])
    inputs |= image | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
    return inputs


ALONG_TOKENS = ("input_ids", "attention_mask", "mm_token_type_ids")


def batch_of(prompts):
    """Prompts as one batch, padded on the left."""
    longest = max(one["input_ids"].shape[1] for one in prompts)
    return {
        name: torch.cat(
            [
                F.pad(one[name], (longest - one[name].shape[1], 0)) if name in ALONG_TOKENS else one[name]
                for one in prompts
            ]
        )
        for name in prompts[0]
    }


def joined(prompts):
    """Prompts one after the other, as a single one."""
    return {name: torch.cat([one[name] for one in prompts], 1 if name in ALONG_TOKENS else 0) for name in prompts[0]}


def _patches(pixels, pictures):
    """Frames [n · pictures, 3, H, W] as patches [n · H · W / 49, 3 · pictures · 49], two by two together."""
    rows, columns = pixels.shape[-2] // 14, pixels.shape[-1] // 14
    parts = pixels.reshape(-1, pictures, 3, rows, 2, 7, columns, 2, 7)
    return parts.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(-1, 3 * pictures * 49)
