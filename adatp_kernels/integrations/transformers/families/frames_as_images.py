"""InternVL and SmolVLM: a video comes as images, one per frame, of equally many tokens, with text between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adatp_kernels.integrations.transformers.families.base import Family, frames_of_equal_size, squares


class InternVL(Family):
    """The family of `InternVLForConditionalGeneration`.

    All images in a prompt are frames of one video: where one ends and the next begins only the words between them say.
    """

    model_type = "internvl"
    pixels = "pixel_values"
    modality = "image"

    def token_id(self, model: Any) -> int:
        return model.config.image_token_id

    def frame_sizes(self, model: Any, arguments: dict[str, Any], counts: list[int]) -> list[list[int]]:
        return frames_of_equal_size(counts, self._cells(model))

    def frame_grids(
        self, model: Any, arguments: dict[str, Any], sizes: Sequence[Sequence[int]]
    ) -> list[tuple[int, int] | None]:
        return squares(sizes)

    def _cells(self, model: Any) -> int:
        return model.config.image_seq_length


class SmolVLM(InternVL):
    """The family of `SmolVLMForConditionalGeneration` (SmolVLM2)."""

    model_type = "smolvlm"

    def decoder(self, model: Any) -> Any:
        return self.base(model).text_model

    def _cells(self, model: Any) -> int:
        vision = model.config.vision_config
        return (vision.image_size // vision.patch_size) ** 2 // model.config.scale_factor**2
