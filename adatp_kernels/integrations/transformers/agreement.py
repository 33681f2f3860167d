"""Whether what a family says of a prompt's videos can be so: by itself, by the tokens, and by what else tells of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from adatp_kernels.errors import host_integers, integer
from adatp_kernels.integrations.transformers.families.base import Family


def said_of_videos(family: Family, model: Any, arguments: dict[str, Any], counts: list[int]) -> list[list[int]]:
    """`Family.frame_sizes` as lists of integers.

    Raises
    ------
    TypeError, ValueError
        If a video has no frame, or a frame no token.
    """
    name = f"{type(family).__name__}.frame_sizes"
    said = [
        [*(sizes.tolist() if isinstance(sizes, Tensor) else sizes)]
        for sizes in family.frame_sizes(model, arguments, counts)
    ]
    for video, sizes in enumerate(said):
        if not sizes:
            raise ValueError(f"{name}: expected at least one frame in every video, got none in video {video}")
        if {*map(type, sizes)} != {int} or min(sizes) < 1:
            said[video] = [integer(f"{name}: frame {n} of video {video}", size, low=1) for n, size in enumerate(sizes)]
    return said


def cells_of_videos(
    family: Family, model: Any, arguments: dict[str, Any], said: Sequence[Sequence[int]]
) -> list[Tensor | None]:
    """`Family.frame_cells`: for each video the cells of its tokens, or None where frames have all of theirs.

    Raises
    ------
    TypeError, ValueError
        If they are not one for each token, or two tokens of a frame would be one cell.
    """
    given = family.frame_cells(model, arguments)
    if given is None:
        return [None] * len(said)
    name = f"{type(family).__name__}.frame_cells"
    if len(given) != len(said):
        raise ValueError(f"{name}: expected the cells of {len(said)} videos, got those of {len(given)}")
    found: list[Tensor | None] = []
    for video, (values, sizes) in enumerate(zip(given, said, strict=True)):
        cells = host_integers(f"{name}: video {video}", values, "[tokens]")
        if len(cells) != sum(sizes):
            raise ValueError(
                f"{name}: expected {sum(sizes)} cells in video {video}, one for each token, got {len(cells)}"
            )
        frame = torch.arange(len(sizes), device="cpu").repeat_interleave(torch.tensor(sizes, device="cpu"))
        if len((frame * (int(cells.max()) + 1) + cells).unique()) < len(cells):
            raise ValueError(
                f"{name}: expected another cell for every token of a frame, got one twice in video {video}"
            )
        found.append(cells)
    return found


def check_against_tower(
    family: Family, arguments: dict[str, Any], rows: Sequence[Sequence[Sequence[int]]], copies: int
) -> None:
    """Raise unless the tokens of every video are as many as the vision tower made of it.

    Where the forward encodes the videos itself, nothing is known of that yet; then there must be as many as
    ``video_grid_thw`` or ``pixel_values_videos`` have.

    Parameters
    ----------
    rows
        Of each row of the batch, of each of its videos, the tokens of each frame.
    copies : int
        How many rows follow each other that are one prompt.
    """
    name, after = f"{type(family).__name__}.frame_sizes", family.after
    encoded = (arguments.get("mm_encoder_outputs") or {}).get(family.modality)
    if encoded is None:
        count = sum(map(len, rows[::copies]))
        # So transformers' processors have it: a row of the grids is a video, and so is an array of frames.
        for given, dims in (("video_grid_thw", 2), ("pixel_values_videos", 5)):
            value = arguments.get(given)
            if isinstance(value, Tensor) and value.dim() == dims and len(value) != count:
                raise ValueError(
                    f"{given}: expected one for each of the {count} videos that {name} has, got {len(value)}"
                )
        return
    if not isinstance(getattr(encoded, "pooler_output", None), (list, tuple, Tensor)):
        return
    tokens = family.encoded_tokens(arguments)
    # Of copies of a prompt, versions differ in whether they repeat what the tower returned.
    for some in (rows, rows[::copies]):
        videos = [sum(sizes) + after for row in some for sizes in row]
        if sum(videos) != sum(tokens):
            continue
        # Towers return an entry a video or an entry a frame. Frames that come as images may be one entry a prompt, too.
        frames = [size for row in some for sizes in row for size in sizes]
        prompts = [sum(map(sum, row)) for row in some]
        if tokens not in (videos, frames) and (family.modality == "video" or tokens != prompts):
            raise ValueError(
                f"mm_encoder_outputs: expected videos of {videos} tokens, as {name} has them, got {tokens}"
            )
        return


def check_gaps(family: Family, index: Tensor, sizes: Sequence[int]) -> None:
    """Raise if text stands within a frame of a video whose tokens are at `index`, unless the family has it so."""
    if family.gaps or int(index[-1]) - int(index[0]) == len(index) - 1:
        return
    lengths = torch.tensor(sizes, device="cpu")
    ends = lengths.cumsum(0)
    wrong = index[ends - 1] - index[ends - lengths] != lengths - 1
    if bool(wrong.any()):
        frame = int(wrong.long().argmax())
        first, last = int(index[ends[frame] - sizes[frame]]), int(index[ends[frame] - 1])
        raise ValueError(
            f"input_ids: expected the {sizes[frame]} video tokens that {type(family).__name__}.frame_sizes has in frame {frame} "
            f"without text between them, got them from {first} to {last}"
        )
