"""Frames to segments, and text relevance to salient segments (``algorithm.md``, steps 1 and 2)."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from adatp_kernels.errors import as_tensor, host_vector, not_negative, number
from adatp_kernels.layout import VisualLayout


def segment_frames(features: Tensor, threshold: float = 0.95) -> Tensor:
    """Split a video into runs of consecutive frames that look alike (step 1).

    Parameters
    ----------
    features : Tensor [n, d]
        One feature vector per frame, any floating dtype, any device.
    threshold : float
        Neighbouring frames are in one segment iff the cosine of their features is at least this.
        In ``[-1, 1]``; a zero vector has cosine 0 with everything.

    Returns
    -------
    LongTensor [n]
        Segment of each frame, from 0, on the device of `features`. Nothing is read back to the host.

    Raises
    ------
    TypeError, ValueError
        If `features` is no floating tensor of shape [n, d] with n ≥ 1, or `threshold` is out of range.
    """
    number("threshold", threshold, low=-1.0, high=1.0)
    if not isinstance(features, Tensor) or not features.is_floating_point():
        raise TypeError(
            f"features: expected a floating-point tensor, got {getattr(features, 'dtype', type(features).__name__)}"
        )
    if features.dim() != 2 or features.shape[0] == 0 or features.shape[1] == 0:
        raise ValueError(f"features: expected shape [n, d] with at least one frame, got {list(features.shape)}")
    if features.dtype not in (torch.float32, torch.float64):
        features = features.float()
    # As F.normalize does it.
    unit = features / torch.linalg.vector_norm(features, dim=-1, keepdim=True).clamp_min(1e-12)
    cosine = (unit[1:] * unit[:-1]).sum(-1)
    # The cosine of a vector with itself may round to just under 1; a threshold of 1 must still join equal
    # frames, and one of −1 all. "not (>=)" rather than "<": a NaN feature starts a segment of its own.
    cuts = ~(cosine >= threshold - 16 * torch.finfo(unit.dtype).eps)
    return torch.constant_pad_nd(cuts.cumsum(0), (1, 0))


def salient_segments(segments: Tensor, relevance: Tensor) -> Tensor:
    """Which segments the text asks about (step 2): those at least as relevant as the mean segment.

    Parameters
    ----------
    segments : LongTensor [n]
        Segment of each frame, as `segment_frames` returns it.
    relevance : Tensor [n]
        Relevance of each frame to the text, for instance the cosine of paired text and image features.

    Returns
    -------
    BoolTensor [m]
        One entry per segment, on the host.

    Raises
    ------
    TypeError, ValueError
        If the shapes differ, `segments` is malformed or `relevance` is not finite.
    """
    ids = check_segments(segments)
    scores = as_tensor("relevance", relevance)
    if scores.dtype == torch.bool or scores.is_complex():
        raise TypeError(f"relevance: expected real numbers, got {scores.dtype}")
    if scores.shape != ids.shape:
        raise ValueError(f"relevance: expected one score per frame, shape {list(ids.shape)}, got {list(scores.shape)}")
    scores = scores.to("cpu", torch.float64)
    if not bool(scores.isfinite().all()):
        raise ValueError("relevance: expected finite scores, got NaN or infinity")
    frames = torch.bincount(ids)
    mean = torch.zeros(len(frames), dtype=torch.float64, device="cpu").index_add_(0, ids, scores) / frames
    # The mean of equal numbers can round to just above them; all must stay salient then.
    threshold = mean.mean()
    return (mean >= threshold) | torch.isclose(mean, threshold, rtol=1e-12, atol=0.0)


def check_segments(segments: Tensor) -> Tensor:
    """`segments` on the host as int64, or an error: per frame, from 0, never falling or skipping."""
    return checked_numbers(segments)[0]


def checked_numbers(segments: Tensor) -> tuple[Tensor, list[int]]:
    """`check_segments`, and the same numbers as a list."""
    ids = host_vector("segments", segments, "[n]")
    numbers = ids.tolist()  # to look at, faster than a tensor's operations: there are few frames
    if not numbers:
        raise ValueError("segments: expected at least one frame, got none")
    not_negative("segments", min(numbers))
    if numbers[0] != 0 or not {0, 1}.issuperset(map(operator.sub, numbers[1:], numbers)):
        raise ValueError("segments: expected segment numbers that start at 0 and never fall or skip one")
    return ids, numbers


def check_frames(layout: VisualLayout, ids: Tensor) -> None:
    """An error unless `ids`, as `check_segments` returns them, are one for each of the layout's frames."""
    if ids.shape[0] != layout.num_frames:
        raise ValueError(
            f"segments: expected one entry for each of the layout's {layout.num_frames} frames, got {len(ids)}"
        )


def segment_bounds(layout: VisualLayout, numbers: Sequence[int]) -> list[int]:
    """Number of each segment's first visual token, and at the end how many there are; `numbers` as a list that was checked."""
    first_frames = [0, *[frame for frame in range(1, len(numbers)) if numbers[frame] != numbers[frame - 1]]]
    bounds = torch.searchsorted(layout.frame.contiguous(), torch.tensor(first_frames, device="cpu"))
    return [*bounds.tolist(), len(layout)]


def cells_per_segment(layout: VisualLayout, ids: Tensor) -> list[int]:
    """Distinct positions among each segment's visual tokens; `ids` as `check_frames` takes them."""
    num_segments, span = int(ids[-1]) + 1, int(layout.position.max()) + 1
    cell = torch.add(layout.position, ids.index_select(0, layout.frame), alpha=span)
    if num_segments * span <= 2 * len(layout):
        return (cell.bincount(minlength=num_segments * span).view(num_segments, span) > 0).sum(1).tolist()
    # A table of all cells would be larger than the layout itself.
    return torch.bincount(cell.unique() // span, minlength=num_segments).tolist()
