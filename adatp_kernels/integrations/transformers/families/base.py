"""What every model family has in common; a family says what is different."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adatp_kernels.layout import VisualLayout


@dataclass(frozen=True, eq=False)
class Videos:
    """The videos of one prompt: the layout of all of them together, and how many frames each has."""

    layout: VisualLayout
    frames: tuple[int, ...]


class Family:
    """A family of Video LLMs: subclass it, say what differs, and `register_family` an instance.

    Attributes
    ----------
    model_type : str
        ``model.config.model_type`` of its models.
    pixels : str
        The argument of ``forward`` that holds the frames. What images are given with is no video.
    modality : str
        The key under which newer versions of transformers hand over a video that was encoded before, in
        ``mm_encoder_outputs``.
    shows_frames : bool
        Whether `remember` returns frames and their features.
    after : int
        How many tokens with the frames' id follow the frames of a video and are text.
    """

    model_type: str
    pixels = "pixel_values_videos"
    modality = "video"
    shows_frames = False
    after = 0

    def base(self, model: Any) -> Any:
        """The module whose forward takes token ids and pixels and runs vision tower and decoder."""
        return model.model if hasattr(model, "lm_head") else model

    def decoder(self, model: Any) -> Any:
        """The text model: its ``layers`` run one after the other, its ``config`` describes them."""
        return self.base(model).language_model

    def token_id(self, model: Any) -> int:
        """The id of the tokens that frames become."""
        return model.config.video_token_id

    def first_stage(self, model: Any) -> int:
        """The first layer after which visual tokens may go."""
        return 0

    def frame_sizes(self, model: Any, arguments: dict[str, Any], count: int) -> Sequence[Sequence[int]]:
        """How many of the prompt's `count` video tokens each frame of each video has, in order.

        Raises
        ------
        ValueError
            If the prompt's tokens cannot be those of its frames; the message names ``input_ids``. Their sum is checked.
        """
        raise NotImplementedError(f"{type(self).__name__}.frame_sizes: say how many tokens a frame has")

    def vision_tower(self, model: Any) -> nn.Module | None:
        """The module that sees the frames, if `remember` is to look at its calls."""
        return None

    def remember(
        self, model: Any, arguments: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> dict[str, Any]:
        """What to keep of a call of the vision tower, which newer versions of transformers make before the first forward.

        Parameters
        ----------
        arguments : dict
            Of the forward that the tower runs within, if any.
        args, kwargs, output
            Of the call.

        Returns
        -------
        dict
            Added to the `arguments` of `frame_sizes` where they lack it. ``frames`` [num_frames, 3, H, W] and
            ``features`` [num_frames, d] are those that segments and relevance are found from; without them a
            frame's feature is the mean of its visual features as they enter the decoder.
        """
        return {}

    def has_video(self, arguments: dict[str, Any]) -> bool:
        """Whether a video comes with the base module's `arguments`."""
        encoded = arguments.get("mm_encoder_outputs") or {}
        return arguments.get(self.pixels) is not None or encoded.get(self.modality) is not None

    def num_encoded(self, arguments: dict[str, Any]) -> int:
        """How many videos of one prompt were encoded before the forward, by a newer version of transformers."""
        encoded = len(arguments["mm_encoder_outputs"][self.modality].pooler_output)
        return max(1, encoded // len(arguments["input_ids"]))

    def videos(self, model: Any, arguments: dict[str, Any]) -> Videos | None:
        """The videos in the base module's `arguments`; None without one.

        Raises
        ------
        ValueError
            If the prompt cannot be pruned.
        """
        ids = arguments.get("input_ids")
        if not self.has_video(arguments):
            # Asked of prompts only, never in decoding: on a GPU it waits for the device.
            if ids is not None and ids.shape[1] > 1 and bool((ids == self.token_id(model)).any()):
                raise ValueError(
                    f"{self.pixels}: input_ids hold video tokens, but no pixels came with them. Chunked prefill "
                    "(prefill_chunk_size) is not supported: transformers drops the video there"
                )
            return None
        if ids is None:
            raise ValueError(
                "input_ids: accelerate finds the visual tokens by their ids, so a prompt with a video cannot come as inputs_embeds"
            )
        rows = len(ids)
        if rows > 1 and not bool((ids == ids[0]).all()):
            raise ValueError(
                f"input_ids: accelerate prunes one prompt at a time so far, got a batch of {rows} different ones; copies of one, "
                "as num_beams and num_return_sequences make them, are supported"
            )
        index = (ids[0] == self.token_id(model)).nonzero()[:, 0].cpu()
        videos = self.frame_sizes(model, arguments, len(index))
        if len(videos) == rows:  # every copy of the prompt came with one of its video
            videos = videos[:1]
        expected = sum(sum(sizes) + self.after for sizes in videos)
        if expected != len(index):
            raise ValueError(
                f"input_ids: expected {expected} video tokens for {' + '.join(str(len(sizes)) for sizes in videos)} frames, got "
                f"{len(index)}. Chunked prefill (prefill_chunk_size) is not supported"
            )
        every = torch.tensor([size for sizes in videos for size in sizes])
        frame = torch.arange(len(every)).repeat_interleave(every)
        position = torch.arange(len(frame)) - (every.cumsum(0) - every)[frame]
        lengths = torch.tensor([sum(sizes) for sizes in videos])
        video = torch.arange(len(videos)).repeat_interleave(lengths)
        place = torch.arange(len(frame)) + self.after * video  # among the tokens with the frames' id
        return Videos(VisualLayout(index[place], frame, position), tuple(len(sizes) for sizes in videos))


def frames_of_equal_size(count: int, cells: int, videos: int = 1) -> list[list[int]]:
    """`count` tokens as frames of `cells`, as many as there are, in videos of equal length.

    Raises
    ------
    ValueError
        If they are not whole frames.
    """
    if count < cells * videos or count % (cells * videos):
        raise ValueError(
            f"input_ids: expected a number of frames × {cells} video tokens, got {count}. Chunked prefill "
            "(prefill_chunk_size) is not supported"
        )
    return [[cells] * (count // cells // videos)] * videos


def frames_of_grids(grids: Tensor, merged: Sequence[int]) -> list[list[int]]:
    """Frames of videos with ``grids`` [n, 3] of patches (time, height, width); of each, so many `merged` make a token."""
    return [
        [height * width // together] * frames
        for (frames, height, width), together in zip(grids.tolist(), merged, strict=True)
    ]
