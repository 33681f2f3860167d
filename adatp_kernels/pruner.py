"""AdaTPPruner: the thin module that a decoder of one's own calls at each stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from adatp_kernels import ops
from adatp_kernels.config import AdaTPConfig
from adatp_kernels.errors import integer
from adatp_kernels.layout import VisualLayout
from adatp_kernels.ops import checks
from adatp_kernels.plan import PruningPlan, Stage, make_plan
from adatp_kernels.segments import check_segments, salient_segments, segment_frames


@dataclass(frozen=True, eq=False)
class PruningState:
    """What is left of one prompt between two stages. Immutable; `AdaTPPruner` returns the next one.

    Attributes
    ----------
    plan : PruningPlan
    segments_per_frame : LongTensor [num_frames]
        On the host.
    salient : tuple of int
        The salient segments.
    length : int
        L, the tokens left.
    key_range : (int, int)
        Where among them all visual tokens stand.
    num_visual : int
        How many of them are visual.
    num_positions : int
        Cells of a frame.
    """

    plan: PruningPlan
    segments_per_frame: Tensor
    salient: tuple[int, ...]
    length: int
    key_range: tuple[int, int]
    num_visual: int
    num_positions: int
    _remaining: tuple[tuple[Stage, Tensor], ...]  # stages that drop something, budgets on the device
    # What is known of every token that is left, each [B, L], and moves with it: "kept", its place in the
    # prompt; "segments" and "positions", −1 for text; "prior" and "scores" where there are any.
    _tokens: dict[str, Tensor]

    @property
    def kept(self) -> Tensor:
        """LongTensor [B, L]: for every token that is left, its place in the prompt as it was."""
        return self._tokens["kept"]

    @property
    def next_layer(self) -> int | None:
        """The decoder layer after which the pruner is to be called next; None when all is done."""
        return self._remaining[0][0].layer if self._remaining else None


class AdaTPPruner(nn.Module):
    """Prunes visual tokens between the layers of any decoder (``algorithm.md``).

    It holds no state: `begin` makes a `PruningState` for a prompt, and every call returns the next.

    Parameters
    ----------
    config : AdaTPConfig
    num_layers, hidden_size, key_width, mlp_width : int
        The decoder; see `visual_flops`.

    Examples
    --------
    ::

        pruner = AdaTPPruner(config, num_layers=28, hidden_size=3584, key_width=512, mlp_width=18944)
        state = pruner.begin(layout, length, features=frame_features, device=hidden.device)
        for index, layer in enumerate(layers):
            hidden, query, key, lse = layer(hidden, cos, sin)
            if index == state.next_layer:
                state, (hidden, cos, sin) = pruner(state, query, key, (hidden, cos, sin), dims=1, lse=lse)
    """

    def __init__(
        self, config: AdaTPConfig, *, num_layers: int, hidden_size: int, key_width: int, mlp_width: int
    ) -> None:
        super().__init__()
        if not isinstance(config, AdaTPConfig):
            raise TypeError(f"config: expected an AdaTPConfig, got {type(config).__name__}")
        self.config = config
        self.decoder = {
            "num_layers": num_layers,
            "hidden_size": hidden_size,
            "key_width": key_width,
            "mlp_width": mlp_width,
        }
        for name, value in self.decoder.items():
            integer(name, value, low=1)
        config.stage_layers(num_layers)

    def extra_repr(self) -> str:
        """What `print` shows between the brackets."""
        return f"{self.config}, {', '.join(f'{name}={value}' for name, value in self.decoder.items())}"

    def begin(
        self,
        layout: VisualLayout,
        length: int,
        *,
        features: Tensor | None = None,
        segments: Tensor | None = None,
        relevance: Tensor | None = None,
        prior: Tensor | None = None,
        batch_size: int = 1,
        device: torch.device | str = "cpu",
    ) -> PruningState:
        """Plan the pruning of one prompt, or of a batch of prompts with the same layout.

        The segments of the frames come to the host here; from here on nothing waits for the device.

        Parameters
        ----------
        layout : VisualLayout
        length : int
            Tokens in the prompt, text included.
        features : Tensor [num_frames, d], optional
            A feature vector per frame, from which segments are found.
        segments : LongTensor [num_frames], optional
            Segment of each frame, instead of `features`.
        relevance : Tensor [num_frames], optional
            Relevance of each frame to the text; without it no segment is salient.
        prior : Tensor [num_frames, positions], optional
            Factor on every token's score (``algorithm.md``, step 5).
        batch_size : int
        device : torch.device or str
            Where the decoder runs.

        Raises
        ------
        TypeError, ValueError
            For malformed arguments, an unreachable FLOPs target, or a prompt with no text after its
            last visual token to score with.
        """
        if not isinstance(layout, VisualLayout):
            raise TypeError(f"layout: expected a VisualLayout, got {type(layout).__name__}")
        if (features is None) == (segments is None):
            raise ValueError("features, segments: expected exactly one of the two")
        if segments is None:
            assert features is not None
            segments = segment_frames(features, self.config.segment_threshold)
        frames = check_segments(segments)
        integer("length", length, low=1)
        integer("batch_size", batch_size, low=1)
        salient = None if relevance is None else salient_segments(frames, relevance)
        plan = make_plan(self.config, layout, frames, salient, **self.decoder)
        segment_ids, positions = layout.table(frames, length)
        first, last = layout.key_range
        if last == length and self.config.score == "attention":
            raise ValueError(
                f"length: no text token follows the last visual token (number {last - 1}), so there is no row to score with"
            )

        # A stage that drops nothing need not run. All budgets go to the device in one copy.
        totals = [len(layout), *(stage.total for stage in plan.stages)]
        stages = [stage for stage, before in zip(plan.stages, totals, strict=False) if stage.total < before]
        budgets = torch.tensor([stage.budgets for stage in stages], dtype=torch.int64).to(device)
        tokens = {"kept": torch.arange(length), "segments": segment_ids, "positions": positions}
        if prior is not None:
            tokens["prior"] = _prior_row(prior, layout, length)
        tokens = {name: row.to(device).expand(batch_size, -1) for name, row in tokens.items()}
        if self.config.score == "random":
            # Drawn on the host, so that every device sees the same numbers, and here, so that no stage waits.
            generator = torch.Generator().manual_seed(self.config.seed)
            tokens["scores"] = torch.rand(batch_size, length, generator=generator).to(device)
        return PruningState(
            plan=plan,
            segments_per_frame=frames,
            salient=() if salient is None else tuple(salient.nonzero()[:, 0].tolist()),
            length=length,
            key_range=(first, last),
            num_visual=len(layout),
            num_positions=int(layout.position.max()) + 1,
            _remaining=tuple(zip(stages, budgets, strict=True)),
            _tokens=tokens,
        )

    def forward(
        self,
        state: PruningState,
        query: Tensor,
        key: Tensor,
        tensors: Sequence[Tensor],
        *,
        dims: int | Sequence[int | tuple[int, int]],
        scale: float | None = None,
        lse: Tensor | None = None,
        key_mask: Tensor | None = None,
        on_phase: Callable[[str], None] | None = None,
    ) -> tuple[PruningState, tuple[Tensor, ...]]:
        """Run the next stage: call it after layer ``state.next_layer``, with that layer's query and key.

        Parameters
        ----------
        state : PruningState
        query : Tensor [B, Hq, L, D]
            All rows of the layer, position-encoded.
        key : Tensor [B, Hkv, N, D]
            All keys the rows attend to; the last L are those of the sequence, any before are older.
        tensors : sequence of Tensor
            What travels with the L tokens: hidden states, cos, sin, key-value entries, …
        dims : int or sequence
            As for `ops.gather`.
        scale : float, optional
            ``D ** -0.5`` by default.
        lse : Tensor [B, Hq, L], optional
            Natural-log LSE of the rows, as `flash_attention` returns it; recomputed for the scoring
            rows if absent.
        key_mask : BoolTensor [B, N], optional
            False marks padding, which neither answers nor asks. The last token must be real if ``queries="last"``.
        on_phase : callable, optional
            As for `ops.prune`.

        Returns
        -------
        state : PruningState
            The next state; ``state.kept`` tells which tokens are left.
        tensors : tuple of Tensor
            The arguments with their pruned tokens gone.

        Raises
        ------
        RuntimeError
            If no stage is left.
        TypeError, ValueError
            For malformed arguments.
        """
        if not isinstance(state, PruningState):
            raise TypeError(f"state: expected a PruningState, as begin returns it, got {type(state).__name__}")
        if not state._remaining:
            raise RuntimeError("state: all stages are done (next_layer is None)")
        checks.attention_inputs(query, key, 0, scale, key_mask)
        if query.shape[2] != state.length:
            raise ValueError(
                f"query: expected the {state.length} rows that are left of the prompt, got shape {list(query.shape)}"
            )
        if key.shape[2] < state.length:
            raise ValueError(
                f"key: expected at least the {state.length} tokens that are left, got shape {list(key.shape)}"
            )
        if query.shape[0] != len(state.kept):
            raise ValueError(
                f"query: expected the batch size {len(state.kept)} that begin was given, got {query.shape[0]}"
            )
        checks.row_tensors(query, lse, None)
        axes = checks.token_dims(tensors, dims)
        stage, budgets = state._remaining[0]
        first, last = state.key_range
        older = key.shape[2] - state.length
        row = state.length - 1 if self.config.queries == "last" else last
        row = min(row, state.length - 1)  # a baseline needs no text after the video; its scores come from elsewhere
        num_selected = stage.total + last - first - state.num_visual
        visual = {name: values[:, first:last] for name, values in state._tokens.items()}
        indices, moved = ops.prune(
            query[:, :, row:],
            key,
            [*tensors, *state._tokens.values()],
            stage,
            dims=[*axes, *[1] * len(state._tokens)],
            segments=visual["segments"],
            positions=visual["positions"],
            query_start=older + row,
            key_range=(older + first, older + last),
            sequence_start=older,
            scale=scale,
            lse=None if lse is None else lse[:, :, row:],
            key_mask=key_mask,
            query_mask=None if key_mask is None else key_mask[:, older + row :],  # a padded token asks nothing, either
            scores=_even_stride(visual["segments"], stage, state)
            if self.config.score == "uniform"
            else visual.get("scores"),
            dedup=self.config.spatial_dedup,
            soft_weight=self.config.soft_weight,
            prior=visual.get("prior"),
            budgets=budgets,
            num_selected=num_selected,
            num_positions=state.num_positions,
            backend=self.config.backend,
            on_phase=on_phase,
        )
        following = replace(
            state,
            length=indices.shape[1],
            key_range=(first, first + num_selected),
            num_visual=stage.total,
            _remaining=state._remaining[1:],
            _tokens=dict(zip(state._tokens, moved[len(tensors) :], strict=True)),
        )
        return following, moved[: len(tensors)]


def _even_stride(segments: Tensor, stage: Stage, state: PruningState) -> Tensor:
    """Scores of the baseline "uniform": of n visual tokens, k ones where the integer part of o·k/n steps up."""
    ordinal = (segments >= 0).long().cumsum(1)
    steps = ordinal * stage.total // state.num_visual - (ordinal - 1) * stage.total // state.num_visual
    return steps.float()


def _prior_row(prior: Tensor, layout: VisualLayout, length: int) -> Tensor:
    checks.tensor("prior", prior, checks.FLOATS)
    cells = int(layout.position.max()) + 1
    if prior.dim() != 2 or prior.shape[0] != layout.num_frames or prior.shape[1] < cells:
        raise ValueError(
            f"prior: expected shape [num_frames, positions] = [{layout.num_frames}, at least {cells}], got {list(prior.shape)}"
        )
    row = torch.ones(length, dtype=torch.float32)
    row[layout.index] = prior.to("cpu", torch.float32)[layout.frame, layout.position]
    return row
