"""LLaVA-OneVision: every frame is a pooled square of cells; one newline token ends the video and is text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from adatp_kernels.layout import VisualLayout


class LlavaOnevision:
    """The family of `LlavaOnevisionForConditionalGeneration` (and of the bare `LlavaOnevisionModel`)."""

    model_type = "llava_onevision"

    def base(self, model: Any) -> Any:
        return model if hasattr(model, "vision_tower") else model.model

    def decoder(self, model: Any) -> Any:
        return self.base(model).language_model

    def vision_tower(self, model: Any) -> nn.Module:
        return self.base(model).vision_tower

    def num_video_tokens(self, model: Any, num_frames: int) -> int:
        return num_frames * self._cells(model) + 1

    def video(self, model: Any, arguments: dict[str, Any], seen_frames: int) -> VisualLayout | None:
        pixels, ids = arguments.get("pixel_values_videos"), arguments.get("input_ids")
        # Newer transformers encode the video before the first forward and hand over the result.
        encoded = (arguments.get("mm_encoder_outputs") or {}).get("video")
        if pixels is None and encoded is None:
            # Asked of prompts only, never in decoding: on a GPU it waits for the device.
            if ids is not None and ids.shape[1] > 1 and bool((ids == model.config.video_token_id).any()):
                raise ValueError(
                    "pixel_values_videos: input_ids hold video tokens, but no pixels came with them. Chunked prefill "
                    "(prefill_chunk_size) is not supported: transformers drops the video there"
                )
            return None
        if ids is None:
            raise ValueError(
                "input_ids: accelerate finds the visual tokens by their ids, so a prompt with a video cannot come as inputs_embeds"
            )
        if len(ids) != 1:
            raise ValueError(
                f"input_ids: accelerate prunes one prompt at a time so far, got a batch of {len(ids)} (num_beams and "
                "num_return_sequences above 1 make a batch, too)"
            )
        if pixels is not None and (pixels.dim() != 5 or len(pixels) != 1):
            raise ValueError(
                f"pixel_values_videos: expected one video, shape [1, frames, 3, H, W], got {list(pixels.shape)}"
            )
        num_frames, cells = seen_frames if pixels is None else pixels.shape[1], self._cells(model)
        index = (ids[0] == model.config.video_token_id).nonzero()[:, 0].cpu()
        expected = self.num_video_tokens(model, num_frames)
        if len(index) != expected:
            raise ValueError(
                f"input_ids: expected {num_frames} frames × {cells} + 1 = {expected} video tokens, got {len(index)}. "
                "Chunked prefill (prefill_chunk_size) is not supported"
            )
        frame = torch.arange(num_frames).repeat_interleave(cells)
        return VisualLayout(index[:-1], frame, torch.arange(cells).repeat(num_frames))

    def frame_features(self, model: Any, arguments: dict[str, Any], output: Any) -> Tensor:
        if output.pooler_output is not None:
            return output.pooler_output
        # A tower without a pooling head: the mean of the features that the decoder is fed from.
        chosen = arguments.get("vision_feature_layer")
        chosen = model.config.vision_feature_layer if chosen is None else chosen
        strategy = arguments.get("vision_feature_select_strategy") or model.config.vision_feature_select_strategy
        layers = [chosen] if isinstance(chosen, int) else chosen
        first = 1 if strategy == "default" else 0  # "default" leaves out a class token
        return torch.cat([output.hidden_states[layer][:, first:].mean(1) for layer in layers], dim=-1)

    def _cells(self, model: Any) -> int:
        vision = model.config.vision_config
        side = -(-(vision.image_size // vision.patch_size) // 2)  # pooling halves the grid of patches, rounding up
        return side * side
