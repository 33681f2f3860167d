"""Trains the small Video LLM of the demo from nothing: ``python -m adatp_kernels.demo.training``."""

from __future__ import annotations

import argparse
import json
import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers

from adatp_kernels.demo.training.recipe import LEARNING_RATE, LESSONS, SEED, TOWER_STEPS, measure, save, train


def seconds(log_file: Path) -> dict[str, float]:
    """How long tower and decoder took, interruptions left out."""
    entries = [json.loads(line) for line in log_file.read_text().splitlines()]
    return {"tower" if "tower_step" in entry else "decoder": entry["seconds"] for entry in entries}


def main() -> None:
    """Train, measure, save."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("adatp-model"),
        help="folder for the model; a training that was interrupted there goes on (default: %(default)s)",
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

    model = train(options.output, log)
    record = {
        "seed": SEED,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tower_steps": TOWER_STEPS,
        "learning_rate": LEARNING_RATE,
        "lessons": [asdict(lesson) for lesson in LESSONS],
        "seconds": seconds(log_file),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {options.threads} used",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "measured": measure(model, options.clips),
    }
    save(model, options.output, record)


if __name__ == "__main__":
    main()
