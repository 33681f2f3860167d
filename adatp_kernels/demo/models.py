"""LLaVA-OneVision without its processor, which would need torchvision: one that was trained here, or a small one with random weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from adatp_kernels.integrations.transformers.families.llava_onevision import LlavaOnevision
from adatp_kernels.mistakes import Mistake, first_line

# The built-in model reads and writes bytes; these ids follow the 256 of them.
PAD, IMAGE, VIDEO = 256, 257, 258


@dataclass(frozen=True)
class DemoModel:
    """A model together with the way in and out of it.

    Attributes
    ----------
    model : transformers model
    encode : callable (question, number of video tokens) -> LongTensor [1, T]
    decode : callable (LongTensor [n]) -> str
    image_size : int
    mean, std : tuple of float
        Normalisation of the frames.
    trained : bool
        Whether its words mean anything.
    """

    model: Any
    encode: Callable[[str, int], Tensor]
    decode: Callable[[Tensor], str]
    image_size: int
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    trained: bool = True

    def inputs(self, frames: np.ndarray, question: str) -> dict[str, Tensor]:
        """What the model's `generate` takes for `frames` [n, H, W, 3] and a question."""
        pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
        pixels = F.interpolate(pixels, size=(self.image_size,) * 2, mode="bicubic", antialias=True).clamp(0, 1)
        shape = (1, -1, 1, 1)
        pixels = (pixels - torch.tensor(self.mean, device="cpu").view(shape)) / torch.tensor(
            self.std, device="cpu"
        ).view(shape)
        ids = self.encode(question, LlavaOnevision().num_video_tokens(self.model, len(frames))).to(self.model.device)
        pixels = pixels[None].to(self.model.device, self.model.dtype)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values_videos": pixels}


def build_model(seed: int = 0) -> DemoModel:
    """A small LLaVA-OneVision with random weights: its words mean nothing, its shape is the real one's."""
    torch.manual_seed(seed)
    config = transformers.LlavaOnevisionConfig(
        text_config={
            "model_type": "qwen2",
            "vocab_size": 259,
            "hidden_size": 256,
            "intermediate_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32768,
            "pad_token_id": PAD,
        },
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 196,
            "patch_size": 14,
            "vision_use_head": False,
        },
        image_token_index=IMAGE,
        video_token_index=VIDEO,
    )
    model = transformers.LlavaOnevisionForConditionalGeneration._from_config(config, attn_implementation="sdpa").eval()
    # Untrained position embeddings would drown what the patches show and make all frames look alike.
    model.model.vision_tower.embeddings.position_embedding.weight.data.mul_(0.02)
    model.generation_config.pad_token_id = PAD
    model.generation_config.eos_token_id = None

    def encode(question: str, video_tokens: int) -> Tensor:
        return torch.tensor([[*b"video: ", *[VIDEO] * video_tokens, *question.encode(), *b"\nanswer: "]], device="cpu")

    def decode(ids: Tensor) -> str:
        return bytes(i for i in ids.tolist() if i < 256).decode("utf-8", "replace")

    return DemoModel(model, encode, decode, image_size=196, trained=False)


def load_model(name: str) -> DemoModel:
    """A Hugging Face checkpoint, from a local directory or by its id.

    Raises
    ------
    Mistake
        If it is not there, or of no supported family.
    """
    try:
        config = transformers.AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise Mistake(f"no such model: {name} ({first_line(error)})") from error
    supported = [LlavaOnevision.model_type]
    if config.model_type not in supported:
        raise Mistake(f"unsupported model: {name} is of the family {config.model_type!r}; supported are {supported}")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        model = transformers.AutoModelForImageTextToText.from_pretrained(name, dtype="auto")
    except (OSError, ValueError) as error:
        raise Mistake(f"the model cannot be loaded: {name} ({first_line(error)})") from error
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    pixels = _preprocessing(name)
    return DemoModel(
        model,
        encode=lambda question, video_tokens: _encode(tokenizer, config.video_token_id, question, video_tokens),
        decode=lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
        image_size=config.vision_config.image_size,
        mean=tuple(pixels.get("image_mean", DemoModel.mean)),
        std=tuple(pixels.get("image_std", DemoModel.std)),
    )


def _encode(tokenizer: Any, video_id: int, question: str, video_tokens: int) -> Tensor:
    video = tokenizer.convert_ids_to_tokens(video_id)
    if tokenizer.chat_template:
        turn = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question}]}
        text = tokenizer.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)
    else:
        text = f"<|im_start|>user {video}\n{question}<|im_end|><|im_start|>assistant\n"
    ids = tokenizer(text)["input_ids"]
    if ids.count(video_id) != 1:
        raise Mistake(
            f"the model's tokenizer puts {ids.count(video_id)} video tokens {video!r} into a prompt with one video"
        )
    place = ids.index(video_id)
    return torch.tensor([[*ids[:place], *[video_id] * video_tokens, *ids[place + 1 :]]], device="cpu")


def _preprocessing(name: str) -> dict[str, Any]:
    """How the checkpoint wants its pixels normalised. (Its own processor would need torchvision.)"""
    for file in ("video_preprocessor_config.json", "preprocessor_config.json"):
        path = transformers.utils.cached_file(
            name, file, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
        )
        if path:
            return json.loads(Path(path).read_text())
    return {}
