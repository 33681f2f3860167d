"""``adatp evaluate``: the comparison of pruning methods on the demo's model, from clips to tables and plots."""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adatp_kernels.demo.clips.questions import KINDS
from adatp_kernels.demo.trained import MODEL, load_trained
from adatp_kernels.demo.training.batches import Example, example
from adatp_kernels.evaluation.methods import ABLATED_AT, Method, ablations, adatp, controls, presets
from adatp_kernels.evaluation.report import Comparison
from adatp_kernels.evaluation.run import compare, decoder_of, inputs_of, kind_of
from adatp_kernels.integrations.transformers import BiasReport, bias_report, calibrate_prior
from adatp_kernels.mistakes import Mistake, check_output
from adatp_kernels.prior import save_prior

CLIPS, QUICK_CLIPS = 2048, 64
QUICK_LAYERS = (0, 3, 7, 11)
CONTENT_FREE_CLIPS = 16
BIAS_CLIPS = 64


@dataclass(frozen=True)
class EvaluateOptions:
    """What the command line asks for; see ``adatp evaluate --help``."""

    quick: bool
    clips: int | None
    model: Path | None
    output: Path


def run_evaluate(options: EvaluateOptions) -> Comparison:
    """Compare, print the tables, and write them, the plot and the JSON into the folder.

    Raises
    ------
    Mistake
        For a setting that cannot be used.
    """
    clips = (QUICK_CLIPS if options.quick else CLIPS) if options.clips is None else options.clips
    if clips < 1:
        raise Mistake(f"--clips: expected at least 1, got {clips}")
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Mistake(f"the folder for the results cannot be made: {error}") from error
    check_output(options.output / "evaluation.md", "tables")
    trained = load_trained(options.model or MODEL)
    model, threshold = trained.demo.model, trained.threshold
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        prior = Path(folder) / "prior.safetensors"
        save_prior(calibrate_prior(model, _content_free(trained.kinds), adatp(ABLATED_AT, threshold)), prior)
        methods = _methods(model, threshold, str(prior), quick=options.quick)
        print(f"{len(methods)} methods on {clips} clips that the model has not seen …", flush=True)
        comparison = Comparison(methods, *compare(model, methods, clips, trained.kinds), trained.kinds)
    questions = (inputs_of([_example(number, trained.kinds)])[0] for number in range(min(clips, BIAS_CLIPS)))
    bias = bias_report(model, questions, adatp(ABLATED_AT, threshold))
    minutes = (time.perf_counter() - started) / 60
    text = _text(comparison, bias, minutes)
    print(f"\n{text}")
    (options.output / "evaluation.md").write_text(text + "\n", encoding="utf-8")
    result = {**comparison.to_dict(), "minutes": round(minutes, 2), "torch_threads": torch.get_num_threads()}
    (options.output / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    comparison.plot(options.output / "evaluation.png")
    bias.plot(options.output / "bias.png")
    print(f"\nin {options.output}: evaluation.md, evaluation.png, bias.png, evaluation.json")
    return comparison


def _methods(model: Any, threshold: float, prior: str, *, quick: bool) -> list[Method]:
    decoder, (first, _) = decoder_of(model), inputs_of([_example(0, KINDS)])
    tokens = int((first["input_ids"] == model.config.video_token_id).sum()) - 1
    chosen = [*presets(decoder, tokens, threshold), *controls(decoder, tokens, threshold), *ablations(threshold, prior)]
    return [method for method in chosen if not quick or method.nothing_after in (None, *QUICK_LAYERS)]


def _example(number: int, kinds: Sequence[str]) -> Example:
    return example("calibration", number, {kind_of(number, kinds): 1})


def _content_free(kinds: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Questions about grey frames with nothing but grain."""
    rng = np.random.default_rng(0)
    for number, grey in enumerate(np.linspace(60, 200, CONTENT_FREE_CLIPS)):
        one = _example(number, kinds)
        frames = (grey + rng.normal(0, 4, one.frames.shape)).clip(0, 255).astype(np.uint8)
        yield inputs_of([dataclasses.replace(one, frames=frames)])[0]


def _text(comparison: Comparison, bias: BiasReport, minutes: float) -> str:
    threads = torch.get_num_threads()
    separated = [line for line in comparison.separated() if line.startswith("all ")]
    mismatched = comparison.mismatched()
    parts = [
        f"{comparison.clips} clips, a question each; 95 % intervals by paired bootstrap; {minutes:.1f} minutes on "
        f"{threads} thread{'s' if threads > 1 else ''}.",
        comparison.table(),
        comparison.recall_table(),
        comparison.kinds_table(ABLATED_AT),
        comparison.ablation_table(),
        comparison.dropping_table(),
        "Presets that differ, over all questions, by more than the 95 % interval of their difference:\n"
        + ("\n".join(f"- {line}" for line in separated) or "- none"),
        f"Not within 2 % of their budget: {'; '.join(mismatched) or 'none'}. Furthest from it: {comparison.furthest()}.",
        f"Mean over {min(comparison.clips, BIAS_CLIPS)} clips of the {bias}",
    ]
    return "\n\n".join(parts)
