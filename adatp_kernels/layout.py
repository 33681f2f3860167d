"""VisualLayout: where in the sequence every visual token stands, and which cell of which frame it is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adatp_kernels.errors import host_integers, integer


@dataclass(frozen=True, eq=False)
class VisualLayout:
    """The visual tokens of one prompt, in sequence order (``algorithm.md``, "Words").

    Parameters
    ----------
    index : LongTensor [V]
        Place of each visual token in the sequence, strictly ascending.
    frame : LongTensor [V]
        Its frame, counted from zero without gaps and never falling.
    position : LongTensor [V]
        Its cell within the frame, from zero.

    The three live on the host: everything made from them (the plan) is decided there.

    Raises
    ------
    TypeError, ValueError
        If one of the three is no integer tensor of shape [V] or breaks the rules above.
    """

    index: Tensor
    frame: Tensor
    position: Tensor

    def __post_init__(self) -> None:
        for name in ("index", "frame", "position"):
            object.__setattr__(self, name, host_integers(name, getattr(self, name), "[V]"))
        if not len(self.index) == len(self.frame) == len(self.position):
            raise ValueError(
                f"index, frame, position: expected equal lengths, got {len(self.index)}, {len(self.frame)}, {len(self.position)}"
            )
        if len(self.index) == 0:
            raise ValueError("index: a layout needs at least one visual token, got none")
        if bool((self.index.diff() <= 0).any()):
            raise ValueError("index: expected strictly ascending sequence positions")
        steps = self.frame.diff()
        if int(self.frame[0]) != 0 or bool(((steps < 0) | (steps > 1)).any()):
            raise ValueError("frame: expected frame numbers that start at 0 and never fall or skip one")

    @classmethod
    def grid(cls, num_frames: int, positions_per_frame: int, start: int) -> VisualLayout:
        """Frames of equal size that follow each other without text in between.

        Parameters
        ----------
        num_frames, positions_per_frame : int
            At least 1 each.
        start : int
            Sequence index of the first visual token.
        """
        frames = integer("num_frames", num_frames, low=1)
        cells = integer("positions_per_frame", positions_per_frame, low=1)
        index = integer("start", start, low=0) + torch.arange(frames * cells, device="cpu")
        frame, position = torch.arange(frames, device="cpu"), torch.arange(cells, device="cpu")
        return cls(index, frame.repeat_interleave(cells), position.repeat(frames))

    def __len__(self) -> int:
        return self.index.shape[0]  # some times as fast as a tensor's len

    @property
    def num_frames(self) -> int:
        """Number of frames."""
        return int(self.frame[-1]) + 1

    @property
    def key_range(self) -> tuple[int, int]:
        """The columns ``[v0, v1)`` of the sequence that hold all visual tokens."""
        return int(self.index[0]), int(self.index[-1]) + 1

    def table(self, segments: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Segment and position of every token of the sequence, −1 where it is text.

        Parameters
        ----------
        segments : LongTensor [num_frames]
            Segment of each frame.
        length : int
            Length of the sequence.

        Returns
        -------
        (LongTensor [length], LongTensor [length])

        Raises
        ------
        TypeError, ValueError
            If `segments` does not fit the frames, or a visual token lies beyond `length`.
        """
        frames = host_integers("segments", segments, "[num_frames]")
        if len(frames) != self.num_frames:
            raise ValueError(
                f"segments: expected one entry for each of the {self.num_frames} frames, got {len(frames)}"
            )
        if integer("length", length, low=1) <= int(self.index[-1]):
            raise ValueError(
                f"length: the last visual token is number {int(self.index[-1])}, got a sequence of {length}"
            )
        segment, position = torch.full((2, length), -1, device="cpu").unbind()
        segment.scatter_(0, self.index, frames.index_select(0, self.frame))
        position.scatter_(0, self.index, self.position)
        return segment, position
