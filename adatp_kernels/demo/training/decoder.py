"""Trains the small model's decoder to answer, by a curriculum of longer and longer clips."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from adatp_kernels.demo.training.answering import accuracy, answer_logits
from adatp_kernels.demo.training.batches import example, pack
from adatp_kernels.demo.training.tower import (
    disturb,
    frame_features,
    neighbour_cosines,
    pattern_alignment,
    segment_margin,
)


@dataclass(frozen=True)
class Lesson:
    """A part of the curriculum.

    Attributes
    ----------
    steps : int
    num_shots : int
        Of every clip; it has twice as many frames.
    clips : int
        In a batch.
    questions : mapping of str to int
        How many of each kind about a clip, where it offers as many.
    late : int
        The layer from which on a question sees the video is drawn from 0 … `late`, once per clip and step.
    tower : bool
        Whether the vision tower learns, too.
    """

    steps: int
    num_shots: int
    clips: int
    questions: Mapping[str, int]
    late: int
    tower: bool = False


ALIGNMENT = 0.1  # weight of `pattern_alignment` beside the answers
SHARING = {4: 1, 5: 2, 6: 3}
"""Layers that have their queries and keys from an earlier one."""


def share_queries_and_keys(model: Any) -> None:
    """Let the layers in which adatp prunes have the same query and key projections as layers that must read; saved, they are copies.

    A question that may see the video from layer 5 on only learns to read it there, and what earlier layers attend to is
    left to chance: it then is anything but what matters. With shared projections, early layers look where later ones
    read, which is what pruning by attention assumes of any model.
    """
    layers = model.model.language_model.layers
    for layer, earlier in SHARING.items():
        layers[layer].self_attn.q_proj = layers[earlier].self_attn.q_proj
        layers[layer].self_attn.k_proj = layers[earlier].self_attn.k_proj


def train_decoder(
    model: Any,
    lessons: Sequence[Lesson],
    folder: Path,
    learning_rate: float = 1e-3,
    seed: int = 0,
    log: Callable[[dict[str, Any]], None] = print,
) -> None:
    """Train decoder and projector, and the vision tower in lessons that say so; goes on from the checkpoint in `folder`.

    The learning rate warms up, stays, and falls over the last 1,000 steps; the tower's is 0.3 of it.
    """
    tower = list(model.model.vision_tower.parameters())
    others = [parameter for name, parameter in model.named_parameters() if "vision_tower" not in name]
    groups = [
        {"params": [parameter for parameter in others if parameter.dim() > 1], "weight_decay": 0.02, "share": 1.0},
        {"params": [parameter for parameter in others if parameter.dim() == 1], "weight_decay": 0.0, "share": 1.0},
        {"params": tower, "weight_decay": 0.0, "share": 0.3},
    ]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))
    total = sum(lesson.steps for lesson in lessons)
    decay = min(1000, -(-total // 3))
    plan = [lesson for lesson in lessons for _ in range(lesson.steps)]
    checkpoint = folder / "checkpoint.pt"
    first, spent = 0, 0.0
    if checkpoint.exists():
        saved = torch.load(checkpoint)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first, spent = saved["step"], saved["seconds"]
    started = time.perf_counter() - spent
    losses: list[float] = []
    for step in range(first, total):
        lesson = plan[step]
        model.model.vision_tower.requires_grad_(lesson.tower)
        for group in optimizer.param_groups:
            group["lr"] = group["share"] * learning_rate * min(1.0, (step + 1) / 100, max(0.02, (total - step) / decay))
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        numbers = range(step * 64, step * 64 + lesson.clips)
        examples = [example("train", i, lesson.questions, lesson.num_shots, seed) for i in numbers]
        packed = pack(examples)
        packed = dataclasses.replace(packed, pixels=disturb(packed.pixels, generator))
        late = torch.randint(0, lesson.late + 1, (lesson.clips,), generator=generator)
        loss = F.cross_entropy(answer_logits(model, packed, first=late), packed.targets)
        tokens, features = frame_features(model, packed.pixels)
        clips = [one.clip for one in examples]
        loss = loss + ALIGNMENT * pattern_alignment(tokens, clips)
        if lesson.tower:
            loss = loss + segment_margin(*neighbour_cosines(features.unflatten(0, (len(clips), -1)), clips))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % 25 == 0 or step + 1 == total:
            entry: dict[str, Any] = {
                "step": step + 1,
                "shots": lesson.num_shots,
                "loss": round(float(np.mean(losses)), 4),
            }
            losses = []
            if (step + 1) % 150 == 0 or step + 1 == total:
                entry["calibration"] = accuracy(model, "calibration", range(64), lesson.num_shots)
                entry["dropped_after_3"] = accuracy(model, "calibration", range(64), lesson.num_shots, drop_after=3)
                torch.save(
                    {
                        "model": model.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "step": step + 1,
                        "seconds": time.perf_counter() - started,
                    },
                    checkpoint,
                )
            log({**entry, "seconds": round(time.perf_counter() - started, 1)})
