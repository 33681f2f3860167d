"""Warns, once, where the text behind a video is read amid the video, as some versions of transformers place it."""

from __future__ import annotations

from itertools import repeat
from typing import Any

import transformers
from torch import Tensor

from adatp_kernels.integrations.transformers.families.base import Family
from adatp_kernels.integrations.transformers.mrope import BY_TIME, text_behind
from adatp_kernels.integrations.transformers.warning import warn_user


class MisplacedText:
    """Looks at the videos of every prompt until it has warned.

    Parameters
    ----------
    family : Family
    model : transformers model
    """

    def __init__(self, family: Family, model: Any) -> None:
        self._base = family.base(model)
        self._vision: Any = getattr(model.config, "vision_config", None)
        self._quiet = family.model_type not in BY_TIME  # or has warned
        # What stood before the module's own get_rope_index when it was tried, and whether text was placed rightly then.
        self._tried: tuple[Any, bool] = (self, False)

    def look(self, arguments: dict[str, Any], given: dict[str, Any]) -> None:
        """Warn if time outruns space in a prompt, and the model's positions do not go with it.

        Parameters
        ----------
        arguments : dict
            Of the base module's forward, and what else is known of its videos.
        given : dict
            What came from the user: the arguments of `generate`, within one.
        """
        method = vars(self._base).get("get_rope_index")
        if self._quiet or self._tried == (method, True) or given.get("position_ids") is not None:
            return
        for grid, seconds in _videos(arguments.get("video_grid_thw"), arguments, given):
            if not self._may_outrun(grid, seconds):
                continue
            if self._tried[0] is not method:
                side = self._vision.spatial_merge_size
                begins, right = text_behind(self._base, [4, side, side], 1.0)
                self._tried = method, begins == right
            begins, right = text_behind(self._base, grid, seconds)
            if begins != right:
                self._quiet = True
                warn_user(_message(type(self._base).__name__, grid[0], begins, right))
                return

    def _may_outrun(self, grid: list[int], seconds: float) -> bool:
        """Whether time takes more positions than the larger side of a frame, if no fraction of a second is dropped."""
        pace = getattr(self._vision, "tokens_per_second", None)
        time = (grid[0] - 1) * (1 if pace is None else pace * seconds)
        return time >= max(grid[1:]) // self._vision.spatial_merge_size


def host_grids(arguments: dict[str, Any]) -> dict[str, Any]:
    """The `arguments` with the sizes of videos on the host, where several ask for them."""
    for name in ("video_grid_thw", "video_merge_sizes"):
        sizes = arguments.get(name)
        if isinstance(sizes, Tensor) and not sizes.is_cpu:
            arguments = {**arguments, name: sizes.cpu()}
    return arguments


def _message(name: str, frames: int, begins: int, right: int) -> str:
    return (
        f"mrope_positions: transformers {transformers.__version__} begins the text behind a video of {frames} frames {begins} positions "
        f"after the video's first, where {name} was trained to read it {right} after. The question, which chooses what is kept, "
        "stands amid the video, and answers, pruned or not, come from positions that the model never saw; within "
        "adatp.mrope_positions(model) they are right"
    )


def _videos(grids: Tensor | None, *sources: dict[str, Any]) -> list[tuple[list[int], float]]:
    """Grid of each video, and how many seconds its frames are apart: one, where none of the `sources` says so of each.

    Of beams and several answers, a forward may be given one repeated, and the other not.
    """
    if grids is None:
        return []
    seconds: Any = repeat(1.0)
    for source in sources:
        value = source.get("second_per_grid_ts")
        if value is not None and len(value) == len(grids):
            seconds = value.tolist() if isinstance(value, Tensor) else value
            break
    return list(zip(grids.tolist(), seconds, strict=False))
