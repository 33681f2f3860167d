"""The trained model: where it lies in the package once it has passed its gates, and what it needs to be pruned well."""

from __future__ import annotations

import json
from pathlib import Path

from adatp_kernels.demo.errors import DemoError
from adatp_kernels.demo.models import DemoModel, load_model

MODEL = Path(__file__).with_name("model")


def load_trained(folder: Path) -> tuple[DemoModel, float]:
    """The model that the training wrote to `folder`, and the `segment_threshold` that finds the shots of its clips.

    Raises
    ------
    DemoError
        If there is none.
    """
    try:
        record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
        threshold = float(record["measured"]["segments"]["threshold"])
    except (OSError, ValueError, KeyError) as error:
        raise DemoError(
            f"no trained model in {folder} ({type(error).__name__}: {error}); "
            "python -m adatp_kernels.demo.training --output FOLDER trains one"
        ) from error
    return load_model(str(folder)), threshold
