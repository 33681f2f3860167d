"""Trains the small Video LLM of the demo from nothing: ``python -m adatp_kernels.demo.training``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers

from adatp_kernels.config import AdaTPConfig
from adatp_kernels.demo import gates
from adatp_kernels.demo.decoder_training import Lesson, share_queries_and_keys, train_decoder
from adatp_kernels.demo.network import build_network, build_tokenizer
from adatp_kernels.demo.questions import CHANCE, KINDS
from adatp_kernels.demo.tower_training import train_tower
from adatp_kernels.demo.trained import MODEL

SEED = 0
TOWER_STEPS = 2000
LEARNING_RATE = 8e-4
GATE = 0.95  # a kind of question that is answered less often is not one to compare pruners by
LATE = 5  # with 16 layers, adatp prunes after layers 1, 2 and 3
EVEN = dict.fromkeys(KINDS, 2)
LAGGING = {"color": 2, "shape": 2, "place": 2, "shot": 2, "scene": 3, "order": 3, "next": 2, "after": 2}
LESSONS = (
    Lesson(steps=200, num_shots=1, clips=16, questions=EVEN, late=LATE),
    Lesson(steps=800, num_shots=2, clips=12, questions=EVEN, late=LATE),
    Lesson(steps=1400, num_shots=4, clips=8, questions=LAGGING, late=LATE),
    Lesson(steps=4000, num_shots=8, clips=8, questions=LAGGING, late=LATE),
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

    What the model did not learn is measured, too, and told apart: the controls are about the kinds that it answers.
    """
    split, numbers = "held-out", range(clips)
    accuracy = gates.single_question(model, split, numbers)
    kinds = [kind for kind in KINDS if accuracy[kind] >= GATE]
    segments = gates.calibrate_segments(model, range(200))
    pruned = AdaTPConfig(segment_threshold=segments["threshold"])
    return {
        "clips": clips,
        "kinds": kinds,
        "chance": {kind: round(share, 4) for kind, share in CHANCE.items()},
        "fixed_frame_bound": gates.fixed_frame_bound(split, numbers),
        "accuracy": accuracy,
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


def main() -> None:
    """Train, measure, save."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--output", type=Path, default=MODEL, help="folder for the model (default: where the demo looks)"
    )
    parser.add_argument("--clips", type=int, default=500, help="held-out clips to measure on (default: 500)")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch (default: 1)")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    log_file = options.output / "training_log.jsonl"

    def log(entry: dict[str, Any]) -> None:
        line = json.dumps(entry)
        print(line, flush=True)
        with log_file.open("a") as lines:
            lines.write(line + "\n")

    started = time.perf_counter()
    model = train(options.output, log)
    record = {
        "seed": SEED,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tower_steps": TOWER_STEPS,
        "learning_rate": LEARNING_RATE,
        "lessons": [asdict(lesson) for lesson in LESSONS],
        "seconds": round(time.perf_counter() - started),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {options.threads} used",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "measured": measure(model, options.clips),
    }
    save(model, options.output, record)


if __name__ == "__main__":
    main()
