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
from adatp_kernels.demo.questions import CHANCE
from adatp_kernels.demo.tower_training import train_tower

MODEL = Path(__file__).with_name("model")
SEED = 0
TOWER_STEPS = 2000
LEARNING_RATE = 1.5e-3
LATE = 5  # with 16 layers, adatp prunes after layers 1, 2 and 3
LESSONS = (
    Lesson(steps=300, num_shots=1, clips=16, per_kind=3, late=LATE),
    Lesson(steps=800, num_shots=2, clips=12, per_kind=2, late=LATE),
    Lesson(steps=900, num_shots=4, clips=8, per_kind=2, late=LATE),
    Lesson(steps=6000, num_shots=8, clips=8, per_kind=2, late=LATE),
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
    """Everything a reader needs to judge the model by, on `clips` held-out clips; see `gates`."""
    split, numbers = "held-out", range(clips)
    segments = gates.calibrate_segments(model, range(300))
    pruned = AdaTPConfig(segment_threshold=segments["threshold"])
    return {
        "clips": clips,
        "chance": {kind: round(share, 4) for kind, share in CHANCE.items()},
        "fixed_frame_bound": gates.fixed_frame_bound(split, numbers),
        "accuracy": gates.single_question(model, split, numbers),
        "swapped_question": gates.swapped_question(model, split, numbers),
        "all_dropped_after_layer": {layer: gates.drop_all(model, split, numbers, layer) for layer in range(-1, 9)},
        "segments": segments,
        "pruned_to_0.273": {
            score: gates.single_question(model, split, numbers, dataclasses.replace(pruned, score=score))
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
