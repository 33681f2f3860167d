"""Position embeddings of the tokens that are left: layers may be given different ones, or none."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from adatp_kernels.ops import gather

Parts = tuple[Tensor, ...]


class _Cut(NamedTuple):
    """What was left of some position embeddings by a stage."""

    given: Any
    kept: Tensor
    parts: Parts


def parts_of(given: Any) -> Parts:
    """Cos and sin, [1 or B, N, D] or, of M-RoPE, [3, B, N, D]; nothing for a layer that is given None.

    Raises
    ------
    TypeError
        If they are something else.
    """
    if given is None:
        return ()
    if not isinstance(given, (tuple, list)) or not all(
        isinstance(part, Tensor) and part.dim() in (3, 4) for part in given
    ):
        shapes = (
            [list(part.shape) if isinstance(part, Tensor) else type(part).__name__ for part in given]
            if isinstance(given, (tuple, list))
            else type(given).__name__
        )
        raise TypeError(
            "model: accelerate supports decoder layers whose position_embeddings are cos and sin, [B, N, D] or [3, B, N, D] each, got "
            f"{shapes}"
        )
    return tuple(given)


def dims_of(parts: Parts) -> list[Any]:
    """Where batch and tokens are: M-RoPE may come with a dimension for time, height and width before the batch's."""
    return [(1, 2) if part.dim() == 4 else 1 for part in parts]


class OtherRotaries:
    """The position embeddings of layers that are not given what the first one is, which travels with the hidden states."""

    def __init__(self) -> None:
        self._cuts: list[_Cut] = []

    def left(self, given: Any, kept: Tensor) -> Parts | None:
        """Of `given`, for all tokens of the prompt, those of the tokens `kept` [B, L]; once for layers that share both."""
        parts = parts_of(given)
        if not parts:
            return None
        for cut in self._cuts:
            if cut.given is given and cut.kept is kept:
                return cut.parts
        moved = tuple(gather(kept.to(parts[0].device), *parts, dims=dims_of(parts)))
        self._cuts = [cut for cut in self._cuts if cut.given is not given] + [_Cut(given, kept, moved)]
        return moved
