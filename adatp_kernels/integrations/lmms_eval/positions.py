"""Where Qwen2-VL and Qwen2.5-VL read the question behind a video in the harness: where they were trained to, unless told not to."""

from __future__ import annotations

from typing import Any

from adatp_kernels.errors import choice
from adatp_kernels.integrations.transformers import mrope_positions


class TrainedPositions:
    """Goes before `Pruned` among the bases of a model.

    Parameters
    ----------
    positions : {"trained", "transformers"}
        Those of `mrope_positions`, or those that the installed transformers makes.
    **arguments
        Those of the next class.

    Raises
    ------
    TypeError, ValueError
        If `positions` is neither; before anything is loaded.
    """

    model: Any  # of transformers: a property of the harness's class

    def __init__(self, *, positions: str = "trained", **arguments: Any) -> None:
        choice("positions", positions, ("trained", "transformers"))
        super().__init__(**arguments)
        self._positions = mrope_positions(self.model) if positions == "trained" else None

    def clean(self) -> None:
        """Let go of the model, as the harness asks when all answers are there."""
        if self._positions is not None:
            self._positions.remove()
        del self._positions
        super().clean()  # type: ignore[misc]
