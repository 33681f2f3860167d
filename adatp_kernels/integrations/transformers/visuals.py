"""Where the visual tokens of every prompt stand: the layout of its videos, and of its images if they are to be pruned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, zip_longest
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from adatp_kernels.integrations.transformers.agreement import (
    cells_of_videos,
    check_against_tower,
    check_gaps,
    said_of_videos,
)
from adatp_kernels.integrations.transformers.families.base import Family
from adatp_kernels.layout import VisualLayout

Grid = tuple[int, int]  # rows and columns of the cells of a frame


@dataclass(frozen=True, eq=False)
class Visuals:
    """What of one prompt is pruned: videos, and images, each of which counts as a video of one frame.

    Attributes
    ----------
    layout : VisualLayout
        Of all of them together, in the order of the sequence.
    frames : tuple of int
        How many frames each has.
    images : tuple of bool
        Which of them are images.
    sizes : list of int
        Tokens of each frame.
    whole : LongTensor [n]
        Places of tokens that are not pruned and yet not text: of images that are kept.
    end : int
        The column behind the last of all these tokens.
    complete : bool
        Whether every frame has all of its cells, in order.
    grids : tuple of (int, int) or None
        Rows and columns of the frames of each, as the family told them, if it did.
    """

    layout: VisualLayout
    frames: tuple[int, ...]
    images: tuple[bool, ...]
    sizes: list[int]
    whole: Tensor
    end: int
    complete: bool
    grids: tuple[Grid | None, ...]

    @property
    def frame_grids(self) -> tuple[Grid | None, ...]:
        """Rows and columns of each frame; None where the family told none that the frame's cells are."""
        told = [grid for grid, count in zip(self.grids, self.frames, strict=True) for _ in range(count)]
        last = [int(cells.max()) for cells in self.layout.position.split(self.sizes)]
        return tuple(
            grid if grid is not None and _fits(grid, size, most, self.complete) else None
            for grid, size, most in zip(told, self.sizes, last, strict=True)
        )

    @property
    def video_frames(self) -> int:
        """Frames of the videos alone."""
        return sum(count for count, image in zip(self.frames, self.images, strict=True) if not image)


class _Clip(NamedTuple):
    """One video or image."""

    places: Tensor  # of its tokens
    sizes: Sequence[int]  # how many each frame has
    image: bool
    cells: Tensor | None  # which cell each is, if frames lack some
    grid: Grid | None  # rows and columns of the cells of a frame


def _fits(grid: Grid, size: int, last: int, complete: bool) -> bool:
    """Whether `size` cells, the `last` of which has this number, can be those of a grid, or all of them."""
    cells = grid[0] * grid[1]
    return min(grid) > 0 and (cells == size if complete else cells > last)


class PromptArguments(dict[str, Any]):
    """What came with a prompt by name; what a family asks for in vain is refused by name."""

    def __missing__(self, name: str) -> NoReturn:
        raise ValueError(
            f"{name}: expected with a video, as it tells the sizes of its frames, got only {', '.join(sorted(self))}"
        )


_NOWHERE = torch.empty(0, dtype=torch.int64, device="cpu")


def find_visuals(
    family: Family, model: Any, arguments: dict[str, Any], *, prune_images: bool = False, before: Sequence[Visuals] = ()
) -> list[Visuals] | None:
    """What is to be pruned of each prompt in the base module's `arguments`; None if there is nothing.

    Rows that are laid out as the same row was `before`, as the same template and number of frames make them, share that.

    Raises
    ------
    ValueError
        If the prompts cannot be pruned.
    """
    ids = arguments.get("input_ids")
    video = family.has_video(arguments)
    if not video and ids is not None and ids.shape[1] > 1 and bool((ids == family.token_id(model)).any()):
        # Asked of prompts only, never in decoding: on a GPU it waits for the device.
        raise ValueError(f"{family.pixels}: input_ids hold video tokens, but no pixels came with them")
    image_id = family.image_id(model) if prune_images and family.has_images(arguments) else None
    embeddings = arguments.get("inputs_embeds")
    if ids is None and embeddings is not None and embeddings.shape[1] > 1 and not video and image_id is None:
        raise ValueError(
            f"inputs_embeds: expected input_ids, by which accelerate finds visual tokens, got embeddings {list(embeddings.shape)} alone, "
            "into which a video may be merged; for text alone give its ids, or remove() the acceleration first"
        )
    if not video and image_id is None:
        return None
    if ids is None:
        raise ValueError(
            "input_ids: accelerate finds the visual tokens by their ids, so a prompt with a video cannot come as inputs_embeds"
        )
    here = ids.cpu()
    rows: list[list[_Clip]] = [[] for _ in range(len(here))]
    if video:
        rows = _videos(family, model, arguments, here)
    if image_id is not None:
        images = [_images(row == image_id) for row in here]
        grids = iter(_told(family.image_grids(model, arguments), sum(map(len, images))))
        rows = [
            clips + [image._replace(grid=next(grids)) for image in own] for clips, own in zip(rows, images, strict=True)
        ]
    empty = [number for number, clips in enumerate(rows) if not clips]
    if len(empty) == len(rows):
        came, token = (family.pixels, family.token_id(model)) if video else ("pixel_values", image_id)
        raise ValueError(f"input_ids: expected tokens {token}, as {came} came with the prompt, got none")
    if empty:
        raise ValueError(
            f"input_ids: row {empty[0]} of the batch has no video, but others have; run prompts without one by themselves"
        )
    whole = _whole(here, [other for other in family.other_ids(model) if other != image_id])
    return [_visuals(family, *row) for row in zip_longest(rows, whole, before[: len(rows)])]


def with_images(visuals: Visuals, values: Tensor) -> Tensor:
    """`values`, one for every frame of the videos, with zeros for the images between them."""
    if not any(visuals.images):
        return values
    parts = values.split([count for count, image in zip(visuals.frames, visuals.images, strict=True) if not image])
    videos = iter(parts)
    return torch.cat([values.new_zeros(1, *values.shape[1:]) if image else next(videos) for image in visuals.images])


def _videos(family: Family, model: Any, arguments: dict[str, Any], ids: Tensor) -> list[list[_Clip]]:
    """The videos of each row."""
    places = [row.nonzero().view(-1) for row in (ids == family.token_id(model)).unbind()]
    counts = [len(row) for row in places]
    arguments = PromptArguments(arguments)
    left = said_of_videos(family, model, arguments, counts)
    cells, after = cells_of_videos(family, model, arguments, left), family.after
    grids = _told(family.frame_grids(model, arguments, left), len(left))
    # Of copies of a prompt, as beams are, newer versions of transformers encode the video once.
    tokens = sum(sum(sizes) + after for sizes in left)
    copies, rest = divmod(sum(counts), max(tokens, 1))
    if rest or copies < 1 or len(ids) % copies:
        copies = 1
    rows: list[list[_Clip]] = []
    for number in range(0, len(ids), copies):
        sizes = _taken(left, counts[number], after, number)
        ends = list(accumulate(sum(of_one) + after for of_one in sizes))
        for index in places[number : number + copies]:
            rows.append(
                [
                    _Clip(index[end - after - sum(own) : end - after], own, False, of, grid)
                    for end, own, of, grid in zip(ends, sizes, cells, grids, strict=False)
                ]
            )
        del left[: len(sizes)], cells[: len(sizes)], grids[: len(sizes)]
    if left:
        raise ValueError(
            f"input_ids: expected more video tokens, for {len(left)} videos that no prompt of the batch has, got {counts}"
        )
    check_against_tower(family, arguments, [[clip.sizes for clip in row] for row in rows], copies)
    return rows


def _told(grids: Sequence[Grid | None] | None, count: int) -> list[Grid | None]:
    """What a family told of `count` videos, or images; None of any if not of each."""
    if grids is None or len(grids) != count:
        return [None] * count
    return [None if grid is None else (int(grid[0]), int(grid[1])) for grid in grids]


def _taken(videos: list[list[int]], count: int, after: int, row: int) -> list[list[int]]:
    """The first of `videos` whose tokens are `count` together."""
    sums = [0]
    for sizes in videos:
        sums.append(sums[-1] + sum(sizes) + after)
    if count not in sums:
        upto = next((number for number, total in enumerate(sums) if total > count), len(videos))
        frames = " + ".join(str(len(sizes)) for sizes in videos[:upto])
        raise ValueError(
            f"input_ids: expected {sums[upto]} video tokens for {frames or 'no'} frames in row {row}, got {count}"
        )
    return videos[: sums.index(count)]


def _whole(ids: Tensor, others: list[int]) -> list[Tensor]:
    """Of each row, the places of tokens with one of the ids `others`."""
    if not others:
        return [_NOWHERE] * len(ids)
    marks = ids == others[0]
    for other in others[1:]:  # isin takes some times as long
        marks |= ids == other
    return [row.nonzero().view(-1) for row in marks] if marks.any() else [_NOWHERE] * len(ids)


def _images(marks: Tensor) -> list[_Clip]:
    """The images of one row: tokens that follow each other without a gap are one."""
    index = marks.nonzero()[:, 0]
    ends = [*((index.diff() != 1).nonzero()[:, 0] + 1).tolist(), len(index)]
    runs = index.tensor_split(ends[:-1]) if len(index) else ()
    return [_Clip(run, [len(run)], True, None, None) for run in runs]


def _visuals(family: Family, clips: list[_Clip], whole: Tensor, old: Visuals | None) -> Visuals:
    """One prompt's clips as a single layout, in the order of the sequence; `old` if it is the same."""
    if len(clips) > 1:
        clips = sorted(clips, key=lambda clip: int(clip.places[0]))
    index = clips[0].places if len(clips) == 1 else torch.cat([clip.places for clip in clips])
    frames, images = tuple(len(clip.sizes) for clip in clips), tuple(clip.image for clip in clips)
    sizes, grids = [size for clip in clips for size in clip.sizes], tuple(clip.grid for clip in clips)
    complete = all(clip.cells is None for clip in clips)
    position = None if complete else torch.cat([_cells(clip) for clip in clips])
    if (
        old is not None
        and (frames, images, sizes, complete, grids) == (old.frames, old.images, old.sizes, old.complete, old.grids)
        and index.equal(old.layout.index)
        and (position is None or position.equal(old.layout.position))
        and (whole is old.whole or whole.equal(old.whole))
    ):
        return old
    for clip in clips:
        if not clip.image:
            check_gaps(family, clip.places, clip.sizes)
    frame, number = _numbers(sizes)
    position = number if position is None else position
    end = max(int(index[-1]), int(whole[-1]) if len(whole) else 0) + 1
    return Visuals(VisualLayout(index, frame, position), frames, images, sizes, whole, end, complete, grids)


def _cells(clip: _Clip) -> Tensor:
    """Which cell of its frame each token of a clip is."""
    return _numbers(clip.sizes)[1] if clip.cells is None else clip.cells


def _numbers(sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Of each token of frames of these `sizes`: the frame it is of, and its number within that."""
    if len(set(sizes)) == 1:
        frame = torch.arange(len(sizes), device="cpu")[:, None].expand(-1, sizes[0]).reshape(-1)
        return frame, torch.arange(sizes[0], device="cpu").repeat(len(sizes))
    every = torch.tensor(sizes, device="cpu")
    frame = torch.arange(len(every), device="cpu").repeat_interleave(every)
    return frame, torch.arange(len(frame), device="cpu") - (every.cumsum(0) - every)[frame]
