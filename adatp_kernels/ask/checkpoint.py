"""A checkpoint as its authors mean it to be used: its own processor makes the prompts, its own class reads them."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import transformers
from torch import Tensor

from adatp_kernels.integrations.transformers import families
from adatp_kernels.mistakes import Mistake, first_line
from adatp_kernels.video import Video

ATTENTION = ("eager", "sdpa", "flash_attention_2", "adatp")
DTYPES = ("auto", "float32", "bfloat16", "float16")

# What the processors and tokenizers of some models need, and transformers does not bring.
OPTIONAL = ("torchvision", "num2words", "sentencepiece", "tiktoken")

# Frames are read at no more than this, unless the processor lets a frame have more: a clip of 4K is otherwise kept whole
# until the processor makes it small.
PIXELS = 2**20


class Checkpoint:
    """A checkpoint's configuration and processor; `load` reads its weights.

    Parameters
    ----------
    name : str
        A folder, or an id on the Hugging Face Hub.

    Raises
    ------
    Mistake
        If it is not there, of no supported family, or its processor can't be used here.
    """

    def __init__(self, name: str) -> None:
        if not name:
            raise Mistake("--model: expected a folder or an id of a checkpoint, got nothing")
        folder = Path(name).expanduser()
        self.name = name = str(folder) if name.startswith("~") else name
        if not folder.exists() and (folder.is_absolute() or name.startswith(".")):
            raise Mistake(f"no such folder for the model: {name}")
        try:
            self.config = transformers.AutoConfig.from_pretrained(name)
        except Exception as error:  # whatever is wrong with somebody's files
            what = "no checkpoint in" if folder.exists() else "no such model, in a folder or on the Hugging Face Hub:"
            raise Mistake(f"{what} {name} ({first_line(error)})") from error
        family = families.FAMILIES.get(self.config.model_type)
        if family is None:
            raise Mistake(
                f"unsupported model: {name} is of the family {self.config.model_type!r}; supported are {list(families.FAMILIES)}"
            )
        self.family = family
        try:
            self.processor = transformers.AutoProcessor.from_pretrained(name)
        except Exception as error:
            self._refuse_processor(error)
        for part in ("apply_chat_template", "video_processor", "tokenizer"):
            if getattr(self.processor, part, None) is None:
                what = type(self.processor).__name__
                raise Mistake(f"the processor of {name} can't read videos: it is a {what}, without a {part}")

    def check_together(self, videos: int, images: int, *, drawn: bool) -> None:
        """Raise a `Mistake` if a prompt can't hold so many videos and images, or what is left of them can't be drawn."""
        if not videos or not images:
            return
        if self.config.model_type == "smolvlm":
            raise Mistake("--image, --video: SmolVLM's processor takes one or the other, as it gives both one name")
        if drawn and self.family.modality == "image":
            raise Mistake(
                f"--output: frames and images are the same to {self.config.model_type}; expected no --image with it"
            )

    @property
    def num_layers(self) -> int:
        """Of the decoder."""
        return self.config.get_text_config().num_hidden_layers

    def max_pixels(self, num_frames: int) -> int:
        """How many pixels of a frame are worth keeping, where a video has `num_frames`."""
        processor = self.processor.video_processor
        # With patches of its own choice, a processor's "longest edge" is an area: of a frame, or of all together.
        area = _edge(processor, "longest_edge") if getattr(processor, "patch_size", None) else 0
        return max(PIXELS, area // num_frames)

    def inputs(self, question: str, videos: Sequence[Video], images: Sequence[Any] = ()) -> Any:
        """What the model's `generate` takes for a question behind images and videos, by the checkpoint's chat template.

        Raises
        ------
        Mistake
            If the processor refuses them.
        """
        least = getattr(self.processor.video_processor, "temporal_patch_size", None) or 1
        videos = [_filled(video, least) for video in videos]
        content = [{"type": "image", "image": image} for image in images]
        content += [{"type": "video", "video": video.frames} for video in videos]
        turn = {"role": "user", "content": [*content, {"type": "text", "text": question}]}
        settings: dict[str, Any] = {
            "do_sample_frames": False,
            "video_metadata": [[video.metadata() for video in videos]],
        }
        try:
            return self.processor.apply_chat_template(
                [turn],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs=settings if videos else {},
            )
        except ImportError as error:
            self._refuse_processor(error)
        except Exception as error:
            raise Mistake(f"the processor of {self.name} refuses this prompt: {first_line(error)}") from error

    def seen(self, frames: np.ndarray) -> np.ndarray:
        """What of frames [n, H, W, 3] the processor leaves: all of each, unless it cuts out the middle."""
        processor = self.processor.video_processor
        if not getattr(processor, "do_center_crop", None):
            return frames
        edges, shortest = frames.shape[1:3], _edge(processor, "shortest_edge")
        sides = [_edge(processor, name) for name in ("height", "width")]
        scales = [shortest / min(edges) if shortest else side / edge for side, edge in zip(sides, edges, strict=True)]
        wanted = (processor.crop_size["height"], processor.crop_size["width"])
        kept = [min(edge, round(want / scale)) for edge, want, scale in zip(edges, wanted, scales, strict=True)]
        top, left = ((edge - keep) // 2 for edge, keep in zip(edges, kept, strict=True))
        return frames[:, top : top + kept[0], left : left + kept[1]]

    def decode(self, ids: Tensor) -> str:
        """The words of an answer."""
        return self.processor.tokenizer.decode(ids, skip_special_tokens=True)

    def load(self, device: torch.device, dtype: str, attention: str | None) -> Any:
        """The model with its weights.

        Parameters
        ----------
        device : torch.device
        dtype : str
            One of `DTYPES`; "auto" is the checkpoint's own.
        attention : str or None
            One of `ATTENTION`, for the decoder alone; None is what transformers takes.

        Raises
        ------
        Mistake
            If they can't be loaded.
        """
        try:
            model = transformers.AutoModelForImageTextToText.from_pretrained(self.name, dtype=dtype)
            if attention is not None:
                model.set_attn_implementation({"text_config": attention})
            return model.to(device).eval()
        except Exception as error:
            raise Mistake(f"the model cannot be loaded: {self.name} ({first_line(error)})") from error

    def _refuse_processor(self, error: Exception) -> NoReturn:
        """Say which packages are missing, if some are."""
        named = [name for name in OPTIONAL if name in str(error).lower() and importlib.util.find_spec(name) is None]
        if named:
            packages = " ".join(map(_pinned, named))
            raise Mistake(
                f"the processor of {self.name} needs a package: {sys.executable} -m pip install {packages}"
            ) from error
        raise Mistake(f"the processor of {self.name} cannot be loaded: {first_line(error)}") from error


def _pinned(package: str) -> str:
    """What to install: a torchvision is made for one torch, and breaks with another."""
    release = torch.__version__.split(".")
    return f"torchvision==0.{int(release[1]) + 15}.*" if package == "torchvision" and release[0] == "2" else package


def check_attention(attention: str | None) -> None:
    """Raise a `Mistake` for attention that isn't known, or isn't here, before there are weights."""
    if attention is not None and attention not in ATTENTION:
        raise Mistake(f"--attn: expected one of {list(ATTENTION)}, got {attention!r}")
    if attention == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        raise Mistake("--attn: flash_attention_2 needs flash-attn: pip install flash-attn")


def device_of(name: str) -> torch.device:
    """The device of that name; "auto" is a GPU that CUDA knows, if there is one.

    Raises
    ------
    Mistake
        If it is not here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        known = "expected auto, cpu, cuda or cuda:NUMBER" if "device type at start" in str(error) else first_line(error)
        raise Mistake(f"--device: {name!r} is not here ({known})") from error
    return device


def _edge(processor: Any, name: str) -> int:
    """A number of a processor's size, which is a dictionary or an object; 0 if it has none of that name."""
    size = processor.size
    return (size.get(name) if isinstance(size, dict) else getattr(size, name, None)) or 0


def _filled(video: Video, least: int) -> Video:
    """The video with its last frame repeated until there are as many as go into one of the model's.

    Most processors do it themselves; Qwen3-VL's refuses a single frame (transformers 5.17.0 and 5.24.0).
    """
    lacking = least - len(video.frames)
    if lacking <= 0:
        return video
    frames = np.concatenate([video.frames, *[video.frames[-1:]] * lacking])
    seconds = video.seconds and (*video.seconds, *video.seconds[-1:] * lacking)
    return dataclasses.replace(video, frames=frames, seconds=seconds)
