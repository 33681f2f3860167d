"""PruningState: what is left of a batch of prompts between two stages."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from adatp_kernels.accepted import Accepted
from adatp_kernels.batch import Batch
from adatp_kernels.plan import PruningPlan, Stage


@dataclass(frozen=True, eq=False)
class Step:
    """A stage that drops something.

    Attributes
    ----------
    stage : Stage
    budgets, segment_ranges, longest_segment
        As `ops.select` takes them, the tensors on the device.
    dedup : str
        How it deduplicates: what one strict stage leaves holds every position of a segment once.
    length, key_range
        What it leaves.
    """

    stage: Stage
    budgets: Tensor
    segment_ranges: Tensor
    longest_segment: int
    dedup: str
    length: int
    key_range: tuple[int, int]


@dataclass(frozen=True, eq=False)
class PruningState:
    """What is left of a batch of prompts between two stages. Immutable; `AdaTPPruner` returns the next one.

    Attributes
    ----------
    plans : tuple of PruningPlan
        One per prompt that `begin` was given.
    segments : tuple of LongTensor [num_frames]
        Of each prompt, the segment of each frame; on the host.
    salient_segments : tuple of tuple of int
        Of each prompt.
    length : int
        L, the tokens left.
    key_range : (int, int)
        Where among them the visual tokens of all rows stand.
    num_positions : int
        Cells of a frame.
    """

    plans: tuple[PruningPlan, ...]
    segments: tuple[Tensor, ...]
    salient_segments: tuple[tuple[int, ...], ...]
    length: int
    key_range: tuple[int, int]
    num_positions: int
    _batch: Batch
    # Which of the last columns come after their row's last visual token and image, as `Batch.asking` has it; None: all.
    _asking: Tensor | None
    _remaining: tuple[Step, ...]
    # What is known of every token that is left, and moves with it, int64 [2, B, L]: its place in the prompt, and its segment,
    # −1 for text; under soft deduplication [3, B, L], its position, too.
    _tokens: Tensor
    # What scores are multiplied with, and scores that are there from the beginning, each float32 [B, L].
    _prior: Tensor | None
    _scores: Tensor | None
    # Segments and positions of the columns in `key_range`, [B, v1-v0], of the prompt as it came. Under strict deduplication
    # no later stage looks at positions.
    _columns: tuple[Tensor, Tensor] | None
    # What the last stage was called with.
    _accepted: Accepted | None = None

    @cached_property
    def kept(self) -> Tensor:
        """LongTensor [B, L]: for every token that is left, its place in the prompt as it was; always the same object."""
        return self._tokens[0]

    @property
    def device(self) -> torch.device:
        """Where the decoder goes on."""
        return self._tokens.device

    @property
    def next_layer(self) -> int | None:
        """The decoder layer after which the pruner is to be called next; None when all is done."""
        return self._remaining[0].stage.layer if self._remaining else None

    def to(self, device: torch.device | str) -> PruningState:
        """The same on another device, where the decoder goes on; itself if it is there."""
        if self.device == torch.device(device):
            return self

        def moved(values: Tensor | None) -> Tensor | None:
            return None if values is None else values.to(device)

        return replace(
            self,
            _asking=moved(self._asking),
            _remaining=tuple(
                replace(step, budgets=step.budgets.to(device), segment_ranges=step.segment_ranges.to(device))
                for step in self._remaining
            ),
            _tokens=self._tokens.to(device),
            _columns=None if self._columns is None else (self._columns[0].to(device), self._columns[1].to(device)),
            _prior=moved(self._prior),
            _scores=moved(self._scores),
        )

    def _visual_columns(self) -> tuple[Tensor, Tensor]:
        """Segments and positions of the columns in `key_range`, as `ops.select` takes them."""
        if self._columns is not None:
            return self._columns
        (first, last), tokens = self.key_range, self._tokens
        segments = tokens[1, :, first:last]
        return segments, tokens[2, :, first:last] if tokens.shape[0] > 2 else segments

    def _following(
        self, accepted: Accepted, tokens: Tensor, prior: Tensor | None, scores: Tensor | None
    ) -> PruningState:
        """The state after the next stage, which left `tokens` of what is known of them."""
        step, rest = self._remaining[0], self._remaining[1:]
        state = object.__new__(PruningState)  # `replace` takes some times as long
        vars(state).update(
            vars(self), _accepted=accepted, length=step.length, key_range=step.key_range, _remaining=rest, _tokens=tokens,
            _prior=prior, _scores=scores, _columns=None, kept=tokens[0],
        )  # fmt: skip
        return state

    @property
    def plan(self) -> PruningPlan:
        """The first prompt's plan."""
        return self.plans[0]

    @property
    def segments_per_frame(self) -> Tensor:
        """LongTensor [num_frames]: of the first prompt."""
        return self.segments[0]

    @property
    def salient(self) -> tuple[int, ...]:
        """The first prompt's salient segments."""
        return self.salient_segments[0]

    @property
    def num_segments(self) -> int:
        """The most that a prompt has."""
        return max(len(plan.stages[0].budgets) for plan in self.plans)

    @property
    def text_tokens(self) -> tuple[int, ...]:
        """Tokens of each prompt that are neither visual, nor an image's, nor padding."""
        return self._batch.texts

    @property
    def asking_start(self) -> tuple[int, ...]:
        """Of each prompt, the column behind the last visual token and image: the text from there on asks."""
        return tuple([self._batch.length - tail for tail in self._batch.asking_tails])

    @property
    def num_visual(self) -> int:
        """Visual tokens that are left of the first prompt."""
        batch = self._batch
        return self.length - batch.lasting[0] - (batch.kept_padding if self.length < batch.length else batch.padding)[0]
