"""What every model family has in common; a family says what is different."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn


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
    needs : tuple of str
        The arguments that `frame_sizes` cannot do without where pixels come.
    after : int
        How many tokens with the frames' id follow the frames of a video and are text.
    gaps : bool
        Whether text may stand within a frame, as where a token of its own ends each row.
    """

    model_type: str
    pixels = "pixel_values_videos"
    modality = "video"
    shows_frames = False
    needs: tuple[str, ...] = ()
    after = 0
    gaps = False

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

    def frame_sizes(self, model: Any, arguments: dict[str, Any], counts: list[int]) -> Sequence[Sequence[int]]:
        """How many tokens each frame of each video has, of all videos of the batch in order.

        Parameters
        ----------
        arguments : dict
            Of the base module's forward, and what `remember` kept.
        counts : list of int
            How many tokens with the frames' id each prompt of the batch holds.

        Raises
        ------
        ValueError
            If a prompt's tokens cannot be those of its frames; the message names ``input_ids``. Their sum is checked.
        """
        raise NotImplementedError(f"{type(self).__name__}.frame_sizes: say how many tokens a frame has")

    def frame_cells(self, model: Any, arguments: dict[str, Any]) -> Sequence[Tensor] | None:
        """Which cell of its frame each token is, where something left cells out before they became tokens.

        Tokens of two frames are compared if they are the same cell.

        Parameters
        ----------
        arguments : dict
            Those that `frame_sizes` gets.

        Returns
        -------
        sequence of LongTensor [tokens], or None
            For each video that `frame_sizes` tells of, frame by frame: the cell's number, from zero, in the frame's
            whole grid, row by row. None if every frame has all of its cells, in order.
        """
        return None

    def frame_grids(
        self, model: Any, arguments: dict[str, Any], sizes: Sequence[Sequence[int]]
    ) -> Sequence[tuple[int, int] | None] | None:
        """Rows and columns of each video's frames, by which a report says where in a frame a token is.

        Parameters
        ----------
        arguments : dict
            Those that `frame_sizes` gets.
        sizes : sequence of sequence of int
            What `frame_sizes` returned.

        Returns
        -------
        sequence of (int, int) or None, or None
            For each video that `frame_sizes` tells of: rows and columns of the grid of cells that each of its frames is,
            numbered row by row. None where they are no grids, or not of one size; then its tokens are pruned all the same.
        """
        return None

    def image_grids(self, model: Any, arguments: dict[str, Any]) -> Sequence[tuple[int, int] | None] | None:
        """`frame_grids` of the images that come with the `arguments`, where those are pruned."""
        return None

    def pictures_per_frame(self, model: Any) -> int:
        """How many pictures of a video, in a row, become one frame of tokens."""
        return 1

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

    def encoded_tokens(self, arguments: dict[str, Any]) -> list[int]:
        """How many tokens each video became that a newer version of transformers encoded before the forward."""
        return [len(video) for video in arguments["mm_encoder_outputs"][self.modality].pooler_output]

    def has_images(self, arguments: dict[str, Any]) -> bool:
        """Whether images come with the base module's `arguments`."""
        encoded = arguments.get("mm_encoder_outputs") or {}
        return arguments.get("pixel_values") is not None or encoded.get("image") is not None

    def image_id(self, model: Any) -> int | None:
        """The id of the tokens that images become; None if the model knows none, or takes them for frames."""
        image = getattr(model.config, "image_token_id", None)
        return None if image == self.token_id(model) else image

    def other_ids(self, model: Any) -> list[int]:
        """The ids of tokens that are neither frames nor text, and so ask nothing: those of images, and of audio."""
        ids = (self.image_id(model), getattr(model.config, "audio_token_id", None))
        return [known for known in ids if known is not None]


def frames_of_equal_size(counts: Sequence[int], cells: int) -> list[list[int]]:
    """The tokens of each prompt that has any as one video of frames of `cells`, as many as there are.

    Raises
    ------
    ValueError
        If they are not whole frames.
    """
    for count in counts:
        if count % cells:
            raise ValueError(f"input_ids: expected a number of frames × {cells} video tokens, got {count}")
    return [[cells] * (count // cells) for count in counts if count]


def squares(sizes: Sequence[Sequence[int]]) -> list[tuple[int, int] | None]:
    """`Family.frame_grids` of videos whose frames are squares of cells, by their `sizes`."""
    sides = [math.isqrt(of_video[0]) for of_video in sizes]
    return [(side, side) for side in sides]


def merged_grids(grids: Tensor | None, merge: Iterable[int]) -> list[tuple[int, int] | None] | None:
    """`Family.frame_grids` of videos, or images, with ``grids`` [n, 3] of patches; so many at each side `merge` to a cell."""
    if grids is None:
        return None
    return [(height // side, width // side) for (_, height, width), side in zip(grids.tolist(), merge, strict=False)]


def frames_of_grids(grids: Tensor, merged: Sequence[int]) -> list[list[int]]:
    """Frames of videos with ``grids`` [n, 3] of patches (time, height, width); of each, so many `merged` make a token."""
    return [
        [height * width // together] * frames
        for (frames, height, width), together in zip(grids.tolist(), merged, strict=True)
    ]
