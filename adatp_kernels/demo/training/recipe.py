"""From nothing to a model that ships: what it is trained on, in which order, and what is measured at the end."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adatp_kernels.config import AdaTPConfig
from adatp_kernels.demo.clips.questions import CHANCE, KINDS
from adatp_kernels.demo.training import gates
from adatp_kernels.demo.training.decoder import Lesson, share_queries_and_keys, train_decoder
from adatp_kernels.demo.training.network import build_network, build_tokenizer
from adatp_kernels.demo.training.tower import train_tower

SEED = 0
TOWER_STEPS = 2000
LEARNING_RATE = 8e-4
GATE = 0.95  # a kind of question that is answered less often is not one to compare pruners by
LATE = 5  # with 16 layers, adatp prunes after layers 1, 2 and 3
ALL = {"color": 2, "shape": 2, "place": 2, "shot": 2, "scene": 4, "order": 3, "next": 2, "count": 3}
# Of two shots, every question that names a background can be answered without finding it. What is learned of three carries
# over to four, but for "next".
BY_BACKGROUND = {"color": 1, "shape": 1, "place": 1, "shot": 1, "order": 1, "next": 2, "scene": 5, "count": 3}
LAGGING = {"color": 2, "shape": 3, "place": 2, "shot": 1, "scene": 2, "order": 3, "next": 3, "count": 2}
LESSONS = (
    Lesson(steps=200, num_shots=1, clips=16, questions=ALL, late=LATE),
    Lesson(steps=1000, num_shots=2, clips=12, questions=ALL, late=LATE),
    Lesson(steps=150, num_shots=4, clips=8, questions=ALL, late=LATE),
    Lesson(steps=1050, num_shots=3, clips=12, questions=BY_BACKGROUND, late=LATE),
    Lesson(steps=600, num_shots=4, clips=8, questions=ALL, late=LATE),
    Lesson(steps=750, num_shots=4, clips=8, questions=LAGGING, late=LATE),
    Lesson(steps=2000, num_shots=8, clips=8, questions=LAGGING, late=LATE, tower=True),
)


def train(folder: Path, log: Callable[[dict[str, Any]], None]) -> Any:
    """Train tower and decoder; goes on from what an interrupted call left in `folder`.

    Returns
    -------
    transformers model
        With parameters of its own in every layer.
    """
    model = build_network(SEED)
    if not (folder / "checkpoint.pt").exists():
        train_tower(model, TOWER_STEPS, seed=SEED, log=log)
    share_queries_and_keys(model)
    train_decoder(model, LESSONS, folder, LEARNING_RATE, SEED, log)
    apart = build_network(SEED)
    apart.load_state_dict(model.state_dict())
    return apart.eval()


def measure(model: Any, clips: int) -> dict[str, Any]:
    """Everything a reader needs to judge the model by, on `clips` held-out clips; see `gates`.

    What the model did not learn is measured, too, and told apart, by the calibration split: the controls are about the kinds
    that it answers (about all, if it answers none).
    """
    split, numbers = "held-out", range(clips)
    chosen_by = gates.single_question(model, "calibration", numbers)
    learned = [kind for kind in KINDS if chosen_by[kind] >= GATE]
    kinds = learned or KINDS
    segments = gates.calibrate_segments(model, range(200))
    pruned = AdaTPConfig(segment_threshold=segments["threshold"])
    return {
        "clips": clips,
        "kinds": learned,
        "chance": {kind: round(share, 4) for kind, share in CHANCE.items()},
        "fixed_frame_bound": gates.fixed_frame_bound(split, numbers),
        "accuracy": gates.single_question(model, split, numbers),
        "best_guess_without_the_question": gates.best_guesses(split, numbers, kinds),
        "swapped_question": gates.swapped_question(model, split, numbers, kinds),
        "all_dropped_after_layer": {
            layer: gates.drop_all(model, split, numbers, layer, kinds) for layer in (-1, 0, 1, 2, 3, 4, 5, 7)
        },
        "segments": segments,
        "pruned_to_0.273": {
            score: gates.single_question(model, split, numbers, kinds, dataclasses.replace(pruned, score=score))
            for score in ("attention", "random")
        },
    }


def save(model: Any, folder: Path, record: dict[str, Any]) -> None:
    """Write model, tokenizer, preprocessing and the record of the training to `folder`."""
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    size = model.config.vision_config.image_size
    pixels = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": size, "width": size}}
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels, indent=2) + "\n")
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n")
