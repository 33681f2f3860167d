"""Prompts packed in one row are noticed by their positions: else a neighbour's question would choose what is kept of a video."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class TextPositions(NamedTuple):
    """The position ids that came with a batch of prompts, in so far as they tell of text.

    Attributes
    ----------
    values : Tensor [B, N] or [1, N]
    of_all : bool
        Whether they count tokens of every kind. In the three planes of M-RoPE only those of text do.
    by_one : bool
        Whether transformers takes any step but one for the beginning of another prompt, as it may where no mask comes.
    """

    values: Tensor
    of_all: bool
    by_one: bool

    def count_up(self) -> Tensor:
        """Whether all goes up, on the device; where it does not, `check_not_packed` looks closer."""
        before, after = self.values[:, :-1], self.values[:, 1:]
        return (after - before == 1).all() if self.by_one else (after >= before).all()


def text_positions(arguments: dict[str, Any]) -> TextPositions | None:
    """The positions among the `arguments` of a model's forward; None if it makes its own.

    Raises
    ------
    ValueError
        If the arguments say outright that prompts are packed.
    """
    for name in ("cu_seq_lens_q", "cu_seq_lens_k"):
        if arguments.get(name) is not None:
            raise ValueError(f"{name}: expected no lengths of packed prompts, got some; {_INSTEAD}")
    given = arguments.get("position_ids")
    if not isinstance(given, Tensor) or given.dim() not in (2, 3):
        return None
    # Qwen-VL: planes of time, height and width, before which the text's own may come.
    planes = given.shape[0] if given.dim() == 3 else 1
    by_one = arguments.get("attention_mask") is None and (given.dim() == 2 or planes == 4)
    values = given[0] if given.dim() == 3 else given
    return TextPositions(values[:, -arguments["input_ids"].shape[1] :], planes != 3, by_one)


def check_not_packed(positions: TextPositions, real: Tensor | None, visual: Sequence[Tensor]) -> None:
    """Raise if a row's positions begin anew.

    Parameters
    ----------
    positions : TextPositions
    real : BoolTensor [B, N], optional
        False marks what is masked, on the host.
    visual : sequence of LongTensor
        Of each row, the places of what is not text.
    """
    values = positions.values.cpu().expand(len(visual), -1)
    for row, own in enumerate(values):
        counted = torch.ones(len(own), dtype=torch.bool, device="cpu") if real is None else real[row].clone()
        if not positions.of_all:
            counted[visual[row]] = False
        own = own[counted]
        steps = own.diff()
        wrong = (steps != 1 if positions.by_one else steps < 0).nonzero()
        if len(wrong):
            at = int(wrong[0])
            raise ValueError(
                f"position_ids: expected those of one prompt in a row, which count up{' by one' if positions.by_one else ''}, got "
                f"{own[at].item()} and then {own[at + 1].item()} in row {row}; {_INSTEAD}"
            )


_INSTEAD = (
    "accelerate does not support prompts that are packed in one row: give each a row of a batch, padded on the left"
)
