"""mrope_positions: has Qwen2-VL and Qwen2.5-VL read the text behind a video behind all of its moments."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from adatp_kernels.integrations.transformers import families
from adatp_kernels.integrations.transformers.methods import MethodWatch, NotCopied, refuse_copy

_METHOD = "get_rope_index"  # by which transformers makes the positions of a prompt
_MARK = "_adatp_mrope_positions"  # of the module whose method this is
_CHANGING = threading.Lock()
# The model types whose videos' positions go on with time, past what a frame takes.
BY_TIME = ("qwen2_vl", "qwen2_5_vl")


def mrope_positions(model: nn.Module) -> MropePositions:
    """Place the text behind a video as the checkpoint was trained to read it, until removed.

    M-RoPE numbers a token by time, height and width, and text by one number for all three. The text behind a video begins at
    the video's largest number plus one, the time included. transformers 5.17.0 and 5.24.0 begin behind the larger side of a
    frame instead, so that behind a long video of Qwen2-VL or Qwen2.5-VL the question stands in the middle of it. What was
    right already, as images and short videos are, and what a later version may mend, stays as it is, bit for bit.

    Parameters
    ----------
    model : transformers model
        Of a supported family, wrapped by PEFT or not, accelerated or not. Of the families only Qwen2-VL and Qwen2.5-VL are
        changed: Qwen3-VL takes every frame as a video of its own, and the others count columns.

    Returns
    -------
    MropePositions
        Use it as a context manager, or call its ``remove()``: either leaves the model as it was.

    Raises
    ------
    TypeError, ValueError
        If `model` is none, or of a family whose positions are not known.

    Notes
    -----
    The rule is that of [Qwen2-VL](https://arxiv.org/abs/2409.12191), section 2.1, and of transformers 4.57.6. A second
    is as many numbers as the installed version makes of it: 5.17.0, as 4.57.6, drops the fraction of the seconds that two
    frames of Qwen2.5-VL are apart, 5.24.0 keeps it.

    Continue a cache as it was begun: its positions go on from where the prompt's ended.

    Examples
    --------
    ::

        with adatp.mrope_positions(model), adatp.accelerate(model, config):
            output = model.generate(**inputs)
    """
    model = families.unwrap(model)
    family = families.find(model)
    base, kind = family.base(model), family.model_type
    if kind not in (*BY_TIME, "qwen3_vl") and hasattr(base, _METHOD):
        raise ValueError(
            f"model: mrope_positions knows where {', '.join(BY_TIME)} and qwen3_vl were trained to read text behind a video, and "
            f"models without {_METHOD}; got {type(base).__name__} (model_type {kind!r})"
        )
    return MropePositions(base if kind in BY_TIME else None)


class MropePositions:
    """A model that places text behind all moments of a video before it; what `mrope_positions` returns."""

    def __init__(self, base: Any) -> None:
        self._base, self._removed = base, False
        if base is not None:
            with _CHANGING:
                placement = vars(base).get(_MARK)
                if placement is None:
                    placement = _Placement(base)
                placement.users += 1

    def __enter__(self) -> MropePositions:
        if self._removed:
            raise RuntimeError("mrope_positions: these were removed; call mrope_positions(model) again")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()

    def remove(self) -> None:
        """Leave the model as it was, unless somebody else wants the same of it; doing so twice is harmless."""
        with _CHANGING:
            removed, self._removed = self._removed, True
            if removed or self._base is None:
                return
            placement = vars(self._base)[_MARK]
            placement.users -= 1
            if not placement.users:
                placement.watch.remove()
                del vars(self._base)[_MARK]


class _Placement(NotCopied):
    """Hangs on the module whose positions are placed, as often as somebody asked for it."""

    def __init__(self, base: Any) -> None:
        self.users = 0
        vars(base)[_MARK] = self  # before the method, at which pickle would stumble
        self.watch = MethodWatch(base, _METHOD, _place)

    def _refuse(self) -> NoReturn:
        refuse_copy("a model under mrope_positions", "that")


@torch.compiler.disable
def _place(make: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What `make`, the module's own method, answers, with every text behind all moments of what is before it."""
    answer = make(*args, **kwargs)
    given = inspect.signature(make).bind(*args, **kwargs).arguments
    kinds = given.get("mm_token_type_ids")
    if kinds is None:  # a version that knows videos by their ids, as 4.57.6, which is right
        return answer
    positions, deltas = answer
    mask = given.get("attention_mask")
    shift, ends = _shift(positions.cpu(), kinds.cpu(), None if mask is None else mask.cpu().bool())
    if not shift.any():
        return answer
    return positions + shift.to(positions.device), deltas.new_tensor(ends).view_as(deltas)


def _shift(positions: Tensor, kinds: Tensor, mask: Tensor | None) -> tuple[Tensor, list[int]]:
    """How far each token is to move, and by how much each row's next position differs from its number of tokens.

    Parameters
    ----------
    positions : LongTensor [3, B, L]
    kinds : IntTensor [B, L]
        Text (0), image (1) or video (2); tokens of one kind that follow each other are one text, image or video.
    mask : BoolTensor [B, L], optional
        Which tokens there are; the others stay.
    """
    shift, ends = torch.zeros_like(positions[0]), []
    for row, own in enumerate(kinds):
        columns = torch.arange(len(own), device="cpu") if mask is None else mask[row].nonzero()[:, 0]
        end = 0
        for run in _runs(own[columns], columns):
            places = positions[:, row, run]
            start = int(places[:, 0].min())  # the first token has the smallest number, on every axis
            shift[row, run] = end - start
            end += int(places.max()) + 1 - start
        ends.append(end - len(columns))
    return shift, ends


def _runs(kinds: Tensor, columns: Tensor) -> Iterator[Tensor]:
    """The `columns` of tokens of one kind that follow each other."""
    yield from columns.tensor_split((kinds.diff().nonzero()[:, 0] + 1).tolist())


def text_behind(base: Any, grid: list[int], seconds: float) -> tuple[int, int]:
    """Where `base` begins the text behind a video, now, and where it should: behind the largest position of the video.

    Parameters
    ----------
    grid : list of int
        Patches of the video: time, height, width.
    seconds : float
        From one frame to the next.
    """
    method = getattr(base, _METHOD)
    if "mm_token_type_ids" not in inspect.signature(method).parameters:
        return 0, 0
    merged = base.config.vision_config.spatial_merge_size**2
    kinds = torch.tensor([[2] * (grid[0] * grid[1] * grid[2] // merged) + [0]], device="cpu")
    positions, _ = method(
        input_ids=kinds,
        mm_token_type_ids=kinds,
        video_grid_thw=torch.tensor([grid], device="cpu"),
        second_per_grid_ts=torch.tensor([seconds], device="cpu"),
    )
    return int(positions[0, 0, -1]), int(positions[:, 0, :-1].max()) + 1
