"""The record beside the trained model: what pruning to a budget costs it in answers, as the evaluation measured it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adatp_kernels.config import AdaTPConfig
from adatp_kernels.mistakes import Mistake

RECORD = "budgets.json"


@dataclass(frozen=True)
class Budget:
    """One way of pruning, and how many of the questions it answers.

    Attributes
    ----------
    config : AdaTPConfig
    relevance : bool
        Whether it was told how relevant each frame is to the question.
    accuracy : float
    interval : tuple of float
        Of the accuracy, 95 %.
    change : float
        Of the accuracy, against not pruning.
    change_interval : tuple of float
        Of that, 95 %, paired.
    """

    config: AdaTPConfig
    relevance: bool
    accuracy: float
    interval: tuple[float, float]
    change: float
    change_interval: tuple[float, float]


@dataclass(frozen=True)
class Budgets:
    """Budgets against each other on the same questions.

    Attributes
    ----------
    clips : int
        Each with one question.
    dense : float
        Accuracy where nothing is pruned.
    shown : Budget
        The one at which the show asks.
    others : tuple of Budget
        From the largest.
    """

    clips: int
    dense: float
    shown: Budget
    others: tuple[Budget, ...]


def load_budgets(folder: Path) -> Budgets:
    """The record in a model's folder, as ``python -m adatp_kernels.evaluation.budgets`` writes it.

    Raises
    ------
    Mistake
        If there is none.
    """
    try:
        told = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        shown, *others = (_budget(entry) for entry in told["budgets"])
        return Budgets(int(told["clips"]), float(told["dense"]), shown, tuple(others))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Mistake(
            f"no record of budgets in {folder} ({type(error).__name__}: {error}); "
            "python -m adatp_kernels.evaluation.budgets --model FOLDER writes one"
        ) from error


def _budget(entry: dict[str, Any]) -> Budget:
    config = AdaTPConfig.from_json(json.dumps(entry["config"]))
    (low, high), (change, *around) = entry["interval"], entry["change"]
    return Budget(
        config, bool(entry["relevance"]), float(entry["accuracy"]), (low, high), change, (around[0], around[1])
    )
