"""Runs every method over the same clips and questions, and records what it answered and what it kept."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from adatp_kernels.demo.clips.questions import best_guess
from adatp_kernels.demo.training.batches import Example, example, pixels, prompt, words
from adatp_kernels.demo.training.network import CELLS, PAD, VIDEO
from adatp_kernels.evaluation.methods import Decoder, Method
from adatp_kernels.integrations.transformers import accelerate, families

BATCH = 32


@dataclass
class Outcome:
    """What one method did, an entry for each clip.

    Attributes
    ----------
    right : list of bool
        Whether the answer was.
    alive : list of float array [num_layers]
        Share of the tokens that hold the evidence that entered each layer.
    found : list of float array [num_layers]
        Share of the pieces of evidence of which at least one token entered each layer.
    planned, actual : list of float
        Share of the FLOPs of the visual tokens.
    """

    right: list[bool] = field(default_factory=list)
    alive: list[np.ndarray] = field(default_factory=list)
    found: list[np.ndarray] = field(default_factory=list)
    planned: list[float] = field(default_factory=list)
    actual: list[float] = field(default_factory=list)


@dataclass
class Floors:
    """What comes out when something that the answer needs is missing, an entry for each clip.

    Attributes
    ----------
    blind : list of bool
        Whether the answer of the unpruned model was right without a video.
    swapped : list of bool
        Whether it was right when the model was asked a question of the same kind about another clip (by chance, it can be
        the same one).
    guess : list of float
        How often a guess is right that knows the clip and the kind of question, but not the question.
    """

    blind: list[bool] = field(default_factory=list)
    swapped: list[bool] = field(default_factory=list)
    guess: list[float] = field(default_factory=list)


def decoder_of(model: Any) -> Decoder:
    """The widths of the model's decoder."""
    text = families.find(model).decoder(model).config
    return Decoder(
        text.num_hidden_layers, text.hidden_size, text.num_key_value_heads * text.head_dim, text.intermediate_size
    )


def kind_of(number: int, kinds: Sequence[str]) -> str:
    """The kind of question that is asked about a clip: each in turn."""
    return kinds[number % len(kinds)]


@torch.no_grad()
def compare(
    model: Any, methods: Sequence[Method], clips: int, kinds: Sequence[str], split: str = "held-out"
) -> tuple[list[Outcome], Floors]:
    """Ask one question about each of the first clips of a split, by every method.

    Parameters
    ----------
    model : transformers model
        The demo's.
    methods : sequence of Method
    clips : int
    kinds : sequence of str
        Which kinds of questions are asked, in turn.
    split : str

    Returns
    -------
    outcomes : list of Outcome
        Of each method.
    floors : Floors
    """
    outcomes, floors = [Outcome() for _ in methods], Floors()
    batches = range(0, clips, BATCH)
    with tqdm(
        total=len(batches) * len(methods), desc="evaluating", unit="batch", delay=1, disable=None, smoothing=0.02
    ) as progress:
        for first in batches:
            numbers = range(first, min(first + BATCH, clips))
            examples = [
                example(split, number, {kind_of(number, kinds): 1})
                for number in range(numbers.start, numbers.stop + len(kinds))
            ]
            examples, others = examples[: len(numbers)], examples[len(kinds) :]
            inputs, answers = inputs_of(examples)
            relevance = _relevance(model, inputs, examples)
            for method, outcome in zip(methods, outcomes, strict=True):
                if method.config is not None:  # else every batch would get the same random numbers
                    method = replace(method, config=replace(method.config, seed=first))
                _run(model, method, inputs, relevance, examples, answers, outcome)
                progress.update()
            questions = [[token for token in prompt(_text(one), 0) if token != VIDEO] for one in examples]
            floors.blind += (_last_words(model, _padded(questions)) == answers).tolist()
            swapped, _ = inputs_of(
                [replace(one, questions=other.questions) for one, other in zip(examples, others, strict=True)]
            )
            floors.swapped += (_last_words(model, swapped) == answers).tolist()
            floors.guess += [best_guess(one.clip, one.questions[0].kind) for one in examples]
    return outcomes, floors


def _text(one: Example) -> str:
    (question,) = one.questions
    return question.text


def inputs_of(examples: Sequence[Example]) -> tuple[dict[str, Tensor], Tensor]:
    """The prompts of a batch and the words that answer them."""
    rows = [prompt(_text(one), len(one.frames)) for one in examples]
    inputs = {**_padded(rows), "pixel_values_videos": pixels(np.stack([one.frames for one in examples]))}
    return inputs, torch.tensor([words(one.questions[0].answer)[0] for one in examples], device="cpu")


def _padded(rows: list[list[int]]) -> dict[str, Tensor]:
    longest = max(map(len, rows))
    ids = torch.tensor([[PAD] * (longest - len(row)) + row for row in rows], device="cpu")
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device="cpu")
    return {"input_ids": ids, "attention_mask": mask}


def _last_words(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    return model(**inputs, logits_to_keep=1, use_cache=False).logits[:, -1].argmax(-1)


def _relevance(model: Any, inputs: dict[str, Tensor], examples: Sequence[Example]) -> Tensor:
    """Cosine of each frame's mean visual feature and the question's mean word, for the frames of all prompts in order."""
    features = model.model.get_video_features(inputs["pixel_values_videos"]).pooler_output
    embed = model.get_input_embeddings()
    scores = []
    for row, one in zip(features, examples, strict=True):
        frames = row[: len(one.frames) * CELLS].unflatten(0, (-1, CELLS)).mean(1)
        scores.append(
            F.cosine_similarity(frames, embed(torch.tensor(words(_text(one)), device=row.device)).mean(0), dim=-1)
        )
    return torch.cat(scores)


def _run(
    model: Any,
    method: Method,
    inputs: dict[str, Tensor],
    relevance: Tensor,
    examples: Sequence[Example],
    answers: Tensor,
    outcome: Outcome,
) -> None:
    """One method over one batch."""
    given = relevance if method.relevance else None
    pruning = contextlib.nullcontext() if method.config is None else accelerate(model, method.config, relevance=given)
    with pruning as run:
        outcome.right += (_last_words(model, inputs) == answers).tolist()
    layers = decoder_of(model).num_layers
    for row, one in enumerate(examples):
        holds = one.questions[0].tokens(one.clip)
        if run is None:
            outcome.planned.append(1.0)
            outcome.actual.append(1.0)
            outcome.alive.append(np.ones(layers))
            outcome.found.append(np.ones(layers))
            continue
        report = run.report(row)
        outcome.planned.append(report.planned_flops_ratio)
        outcome.actual.append(report.actual_flops_ratio)
        alive, found = np.ones(layers), np.ones(layers)
        for layer, kept in report.survivors:
            left = torch.isin(report.layout.index, kept).numpy().reshape(holds.shape)
            alive[layer + 1 :] = left[holds].mean()
            found[layer + 1 :] = np.mean(
                [
                    left[np.ix_(one.clip.shot_of_frame == shot, places)].any()
                    for shot, places in one.questions[0].evidence
                ]
            )
        outcome.alive.append(alive)
        outcome.found.append(found)
