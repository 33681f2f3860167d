"""What is common to all pruned models of the harness."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from loguru import logger

from adatp_kernels.integrations.lmms_eval import fed
from adatp_kernels.integrations.lmms_eval.arguments import split_arguments
from adatp_kernels.integrations.transformers import accelerate


class Pruned:
    """Goes before a class of the harness among the bases of a model, and accelerates what that one has loaded.

    Parameters
    ----------
    **arguments
        Those of the harness's class, and the pruner's; see `split_arguments`.

    Raises
    ------
    TypeError, ValueError
        If an argument is unknown or not allowed, or the model cannot be pruned; the message says why.
    """

    model: Any  # of transformers: a property of the harness's class

    def __init__(self, **arguments: Any) -> None:
        arguments, config, images = split_arguments(arguments, super().__init__)
        super().__init__(**arguments)
        self._acceleration = accelerate(self.model, config, images=images)

    def generate_until(self, requests: list[Any]) -> list[Any]:
        """The harness's answers, from pruned prompts. What cannot be generated ends the run.

        Some classes of the harness go on with an empty answer, which would count as a wrong one.
        """
        with fed.watch(self.model) as seen, _errors_get_through(self.model):
            answers: list[Any] = super().generate_until(requests)  # type: ignore[misc]
        logger.log("WARNING" if any(seen.repeats) else "INFO", f"adatp: {seen}")
        try:
            report = self._acceleration.report()
        except RuntimeError:
            logger.warning(f"adatp: nothing was pruned, for none of {len(requests)} prompts had a video")
        else:
            logger.info(f"adatp: the last prompt with a video: {report.plan.describe()}")
        return answers

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Refused: a pruned prompt has logits for the tokens that are left only."""
        raise NotImplementedError(
            "loglikelihood: a pruned prompt has no logits for the tokens that were dropped; the adatp models answer tasks with "
            "output_type generate_until"
        )

    def clean(self) -> None:
        """Let go of the model, as the harness asks when all answers are there."""
        self._acceleration.remove()
        del self._acceleration
        super().clean()  # type: ignore[misc]


class _GenerationError(BaseException):
    """Carries an error past those who catch every `Exception`."""

    def __init__(self, error: Exception) -> None:
        self.error = error


@contextmanager
def _errors_get_through(model: Any) -> Iterator[None]:
    """Raise what ``model.generate`` raises, also where the caller would catch it."""
    generate = model.generate  # accelerate's, which stands before the method of the class

    def outspoken(*args: Any, **kwargs: Any) -> Any:
        try:
            return generate(*args, **kwargs)
        except Exception as error:
            raise _GenerationError(error) from error

    model.generate = outspoken
    try:
        yield
    except _GenerationError as carrier:
        raise carrier.error from None
    finally:
        model.generate = generate
