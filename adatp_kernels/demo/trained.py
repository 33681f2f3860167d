"""The trained model: where it lies in the package once it has passed its gates, and what it needs to be pruned well."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from adatp_kernels.demo.models import DemoModel, load_model
from adatp_kernels.mistakes import Mistake

MODEL = Path(__file__).with_name("model")


@dataclass(frozen=True)
class Trained:
    """A model that answers questions about synthetic clips.

    Attributes
    ----------
    demo : DemoModel
    threshold : float
        The `segment_threshold` that finds the shots of its clips, measured on clips of their own.
    kinds : tuple of str
        The kinds of questions that it answers well enough to compare pruners by.
    """

    demo: DemoModel
    threshold: float
    kinds: tuple[str, ...]


def load_trained(folder: Path) -> Trained:
    """The model that the training wrote to `folder`.

    Raises
    ------
    Mistake
        If there is none.
    """
    try:
        measured = json.loads((folder / "training.json").read_text(encoding="utf-8"))["measured"]
        threshold, kinds = float(measured["segments"]["threshold"]), tuple(measured["kinds"])
    except (OSError, ValueError, KeyError) as error:
        raise Mistake(
            f"no trained model in {folder} ({type(error).__name__}: {error}); "
            "python -m adatp_kernels.demo.training --output FOLDER trains one"
        ) from error
    return Trained(load_model(str(folder)), threshold, kinds)
