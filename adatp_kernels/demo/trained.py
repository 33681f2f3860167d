"""The trained model that ships with the package: what it needs to be asked, and where it lies."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers

from adatp_kernels.demo.errors import DemoError

MODEL = Path(__file__).with_name("model")


@dataclass(frozen=True)
class Trained:
    """A model that answers questions about synthetic clips.

    Attributes
    ----------
    model : LlavaOnevisionForConditionalGeneration
    threshold : float
        The `segment_threshold` that finds the shots of its clips, measured on clips of their own.
    """

    model: Any
    threshold: float


def load_trained(folder: Path = MODEL) -> Trained:
    """The model in `folder`, as the training wrote it.

    Raises
    ------
    DemoError
        If there is none.
    """
    try:
        record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
        model = transformers.LlavaOnevisionForConditionalGeneration.from_pretrained(folder, attn_implementation="sdpa")
        return Trained(model.eval(), float(record["measured"]["segments"]["threshold"]))
    except (OSError, ValueError, KeyError) as error:
        raise DemoError(f"no trained model in {folder}: {type(error).__name__}: {error}") from error
