"""What `./run` shows: answers where pruning costs none, where it begins to, and the time of a real model's shape."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch

from adatp_kernels.ask.answering import WAYS
from adatp_kernels.config import AdaTPConfig
from adatp_kernels.demo import prefill, quiz
from adatp_kernels.demo.budgets import Budget, Budgets, load_budgets
from adatp_kernels.demo.trained import load_trained
from adatp_kernels.integrations.transformers import Report
from adatp_kernels.mistakes import Mistake

CLIP = 0  # the first of those that the model has never seen
DRAWN = "order"  # a kind whose evidence is two things, to be seen in the picture
HEADLINE = 0.273  # of the FLOPs: what the paper prunes a real model to


def run_show(model: Path, output: Path, target_flops: float | None, repeats: int) -> Report:
    """Ask, tell, time and draw.

    Parameters
    ----------
    model : Path
        A folder that the training wrote, with the record of budgets beside.
    output : Path
        The picture.
    target_flops : float, optional
        Share of the visual FLOPs to prune to by AdaTP as published, for answers and times alike; by default what the record
        says costs no answers, and `HEADLINE` for the times.
    repeats : int
        Timed pairs.

    Returns
    -------
    Report
        Of the question that is drawn.

    Raises
    ------
    Mistake
        If the configuration cannot prune the clips.
    """
    trained, budgets = load_trained(model), load_budgets(model)
    if target_flops is None:
        config, timed = budgets.shown.config, AdaTPConfig(target_flops=HEADLINE)
    else:
        try:
            timed = AdaTPConfig(target_flops=target_flops)
        except ValueError as error:
            raise Mistake(str(error)) from error
        config = dataclasses.replace(timed, segment_threshold=trained.threshold)
    clip = quiz.film_clip(CLIP, trained.kinds)
    print(f"video: a synthetic clip, filmed to H.264 just now and read back: {clip.video.describe()}")
    parameters = sum(parameter.numel() for parameter in trained.demo.model.parameters())
    print(
        f"\n1. Answers, of a LLaVA-OneVision of {parameters / 1e6:.1f} million parameters that was trained on such clips"
    )
    asked = quiz.ask(trained.demo, config, clip)
    drawn = next((one for one in asked if one.question.kind == DRAWN), asked[0])
    _tell([_plan(drawn.report), "", *quiz.table(asked), "", *_costs(budgets)])
    question = drawn.question.text
    _tell_times(clip, question, timed, repeats)
    drawn.report.draw(clip.video.frames, output, question=question, seconds=clip.video.seconds)
    print(f'\npicture: what was left for "{question}": {output}')
    return drawn.report


def _plan(report: Report) -> str:
    """What a pruned prompt cost and left."""
    first, last, share = report.actual_tokens[0], report.actual_tokens[-1], report.actual_flops_ratio
    return (
        f"pruned to {share:.3f} of the visual FLOPs: {first:,} visual tokens enter the first layer, {last:,} the last"
    )


def _costs(budgets: Budgets) -> list[str]:
    """The accuracy where nothing is lost, and where something is."""
    rows = [("not pruned", budgets.dense, "")]
    for budget in (budgets.shown, *budgets.others):
        low, high = budget.change_interval
        change = f"{100 * budget.change:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
        rows.append((f"{budget.config.target_flops} of the FLOPs, {_stages(budget)}", budget.accuracy, change))
    widest = max(len(name) for name, *_ in rows)
    return [
        f"accuracy on {budgets.clips:,} clips that it has not seen, in %, and what pruning changes, with its 95 % interval:",
        *(f"{name:<{widest}}  {100 * accuracy:5.1f}  {change}" for name, accuracy, change in rows),
    ]


def _stages(budget: Budget) -> str:
    stages = budget.config.stages
    if isinstance(stages, str):
        return "as published, with text relevance" if budget.relevance else "as published"
    return f"stages after layers {', '.join(map(str, stages[:-1]))} and {stages[-1]}"


def _tell_times(clip: quiz.Filmed, question: str, config: AdaTPConfig, pairs: int) -> None:
    """What `prefill.measure` finds, in the machine's fastest dtype."""
    print(
        "\n2. Time, of a decoder of LLaVA-OneVision-0.5B's shape on this clip; its weights are random, its words mean nothing",
        flush=True,
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    demo = prefill.build(prefill.fastest_dtype(device), device)
    found = prefill.measure(demo, clip.video.frames, question, config, pairs)
    decoder, visual = demo.model.config.text_config, len(found.report.layout)
    threads = (
        f" with {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"
        if device.type == "cpu"
        else ""
    )
    dtype = str(demo.model.dtype).removeprefix("torch.")
    lines = [
        f"{decoder.num_hidden_layers} layers of width {decoder.hidden_size}; {visual // len(clip.video.frames)} visual tokens a frame; "
        f"{dtype} on {device.type}{threads}",
        _plan(found.report),
        "",
        f"{'':<8}{'prefill':>12}{'cache of the prompt':>24}",
    ]
    seconds = {way: statistics.median(times) for way, times in found.seconds.items()}
    lines += [f"{way:<8}{seconds[way]:>10.2f} s{found.cache[way] / 1e6:>21.1f} MB" for way in WAYS]
    lines += [
        f"{'ratio':<8}{seconds['pruned'] / seconds['dense']:>10.2f}  {found.cache['pruned'] / found.cache['dense']:>21.2f}",
        "",
        f"prefill: all layers, median of {pairs} interleaved {'runs' if pairs > 1 else 'run'} of each",
        f"cache: keys and values; with compact_cache=True, pruned leaves {found.cache['compacted'] / 1e6:.1f} MB",
    ]
    _tell(lines)


def _tell(lines: Sequence[str]) -> None:
    """Print lines that belong to a part."""
    print("\n".join(f"   {line}".rstrip() for line in lines), flush=True)
