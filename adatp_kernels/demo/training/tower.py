"""Pre-trains the vision tower and the projector: every visual token shall tell what its cell holds, every frame its shot."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adatp_kernels.demo.clips.scenes import COLORS, PATTERNS, PLACES, SHAPES, Clip, draw_clip, render
from adatp_kernels.demo.training.batches import pixels
from adatp_kernels.demo.training.network import WORDS

BLOBS = WORDS.index("blobs")
SAME, DIFFERENT = 0.98, 0.6  # what the cosines of frames of one shot shall exceed, and those across a cut stay under


def cell_labels(clip: Clip) -> np.ndarray:
    """What each cell holds: colour and shape (0 for none), pattern, place, whether a blob, int [frames, cells, 5]."""
    labels = np.zeros((len(clip.shots), len(PLACES), 5), dtype=np.int64)
    for number, shot in enumerate(clip.shots):
        if shot.thing:
            labels[number, shot.thing.place, :2] = shot.thing.color + 1, shot.thing.shape + 1
        labels[number, :, 2] = shot.pattern
        labels[number, [blob.place for blob in shot.blobs], 4] = 1
    labels[..., 3] = np.arange(len(PLACES))
    return labels[clip.shot_of_frame]


def disturb(frames: Tensor, generator: torch.Generator) -> Tensor:
    """Frames as resizing, compression and another camera would leave them.

    Parameters
    ----------
    frames : Tensor [clips, frames, 3, H, W], in [-1, 1]
    generator : torch Generator

    Returns
    -------
    Tensor of the same shape: blurred by up to a pixel, with grain, brightness and contrast of the clip changed a little.
    """
    clips = len(frames)
    draw = lambda low, high: torch.empty(clips, 1, 1, 1, 1).uniform_(low, high, generator=generator)  # noqa: E731
    flat = frames.flatten(0, 1)
    blurred = F.avg_pool2d(F.pad(flat, (1, 1, 1, 1), mode="replicate"), 3, stride=1).view_as(frames)
    frames = torch.lerp(frames, blurred, draw(0, 0.8))
    grain = torch.randn(frames.shape, generator=generator)
    return (frames * draw(0.9, 1.1) + draw(-0.08, 0.08) + grain * draw(0, 0.05)).clamp(-1, 1)


def frame_features(model: Any, frames: Tensor) -> tuple[Tensor, Tensor]:
    """The decoder's visual tokens [frames, cells, D] and the tower's mean feature of each frame [frames, d]."""
    output = model.model.get_video_features(frames)
    layer = model.config.vision_feature_layer
    tokens = output.pooler_output.view(-1, len(PLACES), output.pooler_output.shape[-1])
    return tokens, output.hidden_states[layer].mean(1)


def train_tower(model: Any, steps: int, batch: int = 8, seed: int = 0, log: Any = print) -> None:
    """Train tower and projector in place for `steps` steps of `batch` clips of eight shots.

    The loss is the cross-entropy of what each visual token's products with the embeddings of words say about its cell
    (the words are trained along, so that tower and decoder begin in one space), plus a hinge on the cosines of
    neighbouring frames.
    """
    generator = torch.Generator().manual_seed(seed)
    decoder = model.model.language_model
    nothing = nn.Linear(decoder.config.hidden_size, 2)  # its logits: no colour, no shape
    parts = [model.model.vision_tower, model.model.multi_modal_projector, decoder.embed_tokens, nothing]
    parameters = [parameter for part in parts for parameter in part.parameters()]
    words = [torch.tensor([WORDS.index(word) for word in group]) for group in (COLORS, SHAPES, PATTERNS, PLACES)]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    started = time.perf_counter()
    for step in range(steps):
        clips = [draw_clip(np.random.default_rng([seed, 1000, step, i])) for i in range(batch)]
        frames = disturb(pixels(np.stack([render(clip) for clip in clips])), generator)
        labels = torch.from_numpy(np.stack([cell_labels(clip) for clip in clips])).flatten(0, 1)
        tokens, features = frame_features(model, frames)
        logits = [tokens @ decoder.embed_tokens.weight[group].T for group in words]
        for part, empty in enumerate(nothing(tokens).split(1, dim=-1)):
            logits[part] = torch.cat([empty, logits[part]], -1)
        # Most cells are empty: what is there counts as much as that nothing is.
        weights = [torch.tensor([0.3, *[1.0] * size]) for size in (len(COLORS), len(SHAPES))] + [None, None]
        losses = [
            F.cross_entropy(logit.flatten(0, 1), labels[..., part].flatten(), weight)
            for part, (logit, weight) in enumerate(zip(logits, weights, strict=True))
        ]
        cosine, same = neighbour_cosines(features.view(batch, -1, features.shape[-1]), clips)
        blob = tokens @ decoder.embed_tokens.weight[BLOBS]
        losses.append(F.binary_cross_entropy_with_logits(blob, labels[..., 4].to(blob.dtype)))
        loss = losses[0] + losses[1] + losses[2] + 0.2 * losses[3] + losses[4] + 2 * segment_margin(cosine, same)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 49 or step == steps - 1:
            right = [
                (logit.argmax(-1) == labels[..., part])[labels[..., part] > 0].float().mean().item()
                for part, logit in enumerate(logits)
            ]
            blobs = (blob > 0) == labels[..., 4].bool()
            log(
                {
                    "tower_step": step + 1,
                    "loss": round(loss.item(), 4),
                    **{
                        f"probe_{name}": round(value, 4)
                        for name, value in zip(("color", "shape", "pattern", "place"), right, strict=True)
                    },
                    "probe_blob": round(blobs[labels[..., 0] == 0].float().mean().item(), 4),
                    "cosine_in_shot_5%": round(cosine[same].quantile(0.05).item(), 4),
                    "cosine_across_cut_95%": round(cosine[~same].quantile(0.95).item(), 4),
                    "seconds": round(time.perf_counter() - started, 1),
                }
            )


def pattern_alignment(tokens: Tensor, clips: Sequence[Clip]) -> Tensor:
    """How badly tokens with a thing tell their pattern in the way that tokens without one do, a scalar loss.

    Left alone, the tower writes the background of a cell with a thing into other directions than that of an empty cell,
    and a question that matches the one doesn't find the other.

    Parameters
    ----------
    tokens : Tensor [frames, cells, D]
        Visual tokens of all clips.
    clips : sequence of Clip
    """
    labels = torch.from_numpy(np.concatenate([cell_labels(clip) for clip in clips])).flatten(0, 1)
    unit, empty = F.normalize(tokens.flatten(0, 1), dim=-1), labels[:, 0] == 0
    others = unit[empty].detach()
    member = F.one_hot(labels[empty, 2], len(PATTERNS)).to(others.dtype)
    centre = (member.T @ others) / member.sum(0).clamp(min=1)[:, None] - others.mean(0)
    return F.cross_entropy(25 * unit[~empty] @ F.normalize(centre, dim=-1).T, labels[~empty, 2])


def segment_margin(cosine: Tensor, same: Tensor) -> Tensor:
    """How far the cosines of neighbouring frames, as `neighbour_cosines` gives them, are on the wrong side, a scalar loss."""
    return F.relu(SAME - cosine[same]).mean() + F.relu(cosine[~same] - DIFFERENT).mean()


def neighbour_cosines(features: Tensor, clips: Sequence[Clip]) -> tuple[Tensor, Tensor]:
    """Cosines of neighbouring frames' features, and which of those pairs lie within a shot, both [clips · (frames − 1)].

    Parameters
    ----------
    features : Tensor [clips, frames, d]
    clips : sequence of Clip
    """
    cosine = F.cosine_similarity(features[:, 1:], features[:, :-1], dim=-1).flatten()
    same = np.stack([np.diff(clip.shot_of_frame) == 0 for clip in clips])
    return cosine, torch.from_numpy(same).flatten()
