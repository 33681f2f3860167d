"""AdaTPPruner: the thin module that a decoder of one's own calls at each stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from adatp_kernels.batch import Batch
from adatp_kernels.config import AdaTPConfig
from adatp_kernels.errors import integer
from adatp_kernels.layout import VisualLayout
from adatp_kernels.ops import checked, checks
from adatp_kernels.ops.arguments import Scoring, Selection
from adatp_kernels.plan import make_plans
from adatp_kernels.prior import load_prior
from adatp_kernels.segments import check_segments, salient_segments, segment_frames
from adatp_kernels.state import PruningState, Step


class AdaTPPruner(nn.Module):
    """Prunes visual tokens between the layers of any decoder (``algorithm.md``).

    It holds no state: `begin` makes a `PruningState` for a prompt, and every call returns the next.

    Parameters
    ----------
    config : AdaTPConfig
    num_layers, hidden_size, key_width, mlp_width : int
        The decoder; see `visual_flops`. All of it, also where tensor parallelism shards its heads.
    group : torch.distributed.ProcessGroup, optional
        The ranks over which the attention heads are sharded, equally many on each. Scores are then averaged over them,
        one small all-reduce a stage, so that every rank keeps the same tokens.

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
        self,
        config: AdaTPConfig,
        *,
        num_layers: int,
        hidden_size: int,
        key_width: int,
        mlp_width: int,
        group: Any = None,
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
        if group is not None and not (dist.is_available() and isinstance(group, dist.ProcessGroup)):
            raise TypeError(f"group: expected a torch.distributed.ProcessGroup, got {type(group).__name__}")
        self.group = group
        self._prior = None if config.prior is None else load_prior(config.prior)

    def extra_repr(self) -> str:
        """What `print` shows between the brackets."""
        return f"{self.config}, {', '.join(f'{name}={value}' for name, value in self.decoder.items())}"

    def begin(
        self,
        layout: VisualLayout | Sequence[VisualLayout],
        length: int,
        *,
        features: Tensor | Sequence[Tensor] | None = None,
        segments: Tensor | Sequence[Tensor] | None = None,
        relevance: Tensor | Sequence[Tensor | None] | None = None,
        prior: Tensor | Sequence[Tensor] | None = None,
        padding: int | Sequence[int] | None = None,
        batch_size: int = 1,
        device: torch.device | str = "cpu",
    ) -> PruningState:
        """Plan the pruning of one prompt, of a batch of its copies, or of a batch of different prompts.

        The segments of the frames come to the host here; from here on nothing waits for the device.

        Parameters
        ----------
        layout : VisualLayout, or a sequence of them
            One prompt's, or one for each row of a batch of different prompts. Then each of the arguments `features`
            to `padding` is a sequence, too, and all rows keep equally many visual tokens: see `Batch`.
        length : int
            Tokens in the prompt, text and padding included.
        features : Tensor [num_frames, d], optional
            A feature vector per frame, from which segments are found.
        segments : LongTensor [num_frames], optional
            Segment of each frame, instead of `features`.
        relevance : Tensor [num_frames], optional
            Relevance of each frame to the text; without it no segment is salient.
        prior : Tensor [num_frames, positions], optional
            Factor on every token's score (``algorithm.md``, step 5); by default the configuration's.
        padding : int, optional
            How many of the first tokens are padding. What of it no row needs any more is dropped with the first
            stage. Mask it with `key_mask`, too.
        batch_size : int
            Copies of the one prompt.
        device : torch.device or str
            Where the decoder runs.

        Raises
        ------
        TypeError, ValueError
            For malformed arguments, an unreachable FLOPs target, a prompt with no text after its last visual token
            to score with, or rows that cannot be brought to one length.
        """
        alone = isinstance(layout, VisualLayout)
        if prior is None and self._prior is not None:
            prior = self._prior if alone else [self._prior] * len(layout)
        given = {"features": features, "segments": segments, "relevance": relevance, "prior": prior}
        rows = _rows_of(alone, layout, **given, padding=padding)
        if (features is None) == (segments is None):
            raise ValueError("features, segments: expected exactly one of the two")
        if segments is None:
            rows["segments"] = [segment_frames(row, self.config.segment_threshold) for row in rows["features"]]
        frames = tuple(check_segments(row) for row in rows["segments"])
        integer("length", length, low=1)
        if integer("batch_size", batch_size, low=1) != 1 and not alone:
            raise ValueError(f"batch_size: expected 1 where every row has a layout of its own, got {batch_size}")
        batch = Batch(tuple(rows["layout"]), length, tuple(count or 0 for count in rows["padding"]))
        if self.config.score == "attention" and 0 in batch.tails:
            raise ValueError(
                f"length: no text token follows the last visual token (number {length - 1}), so there is no row to score with"
            )
        salient = [
            None if row is None else salient_segments(of, row)
            for of, row in zip(frames, rows["relevance"], strict=True)
        ]
        plans = make_plans(self.config, batch.layouts, frames, salient, surplus=batch.surplus, **self.decoder)
        segment_ids, positions = batch.table(frames)

        # A stage that drops nothing need not run. All budgets go to the device in one copy.
        lengths = [batch.length_with(stage.total - batch.surplus[0]) for stage in plans[0].stages]
        running = [i for i, left in enumerate(lengths) if left < ([length, *lengths])[i]]
        limits = batch.limits(frames, [[plan.stages[i].budgets for plan in plans] for i in running])
        size = batch_size if alone else len(frames)
        on_device = torch.tensor(limits, dtype=torch.int64).to(device)  # [stages, prompts, S, 4]
        dedup = self.config.spatial_dedup
        steps = []
        for order, i in enumerate(running):
            step = on_device[order].expand(size, -1, -1)
            steps.append(
                Step(
                    plans[0].stages[i],
                    budgets=step[..., 0],
                    segment_ranges=step[..., 1:],
                    longest_segment=max(last - first for row in limits[order] for _, first, last, _ in row),
                    dedup="off" if dedup == "strict" and order else dedup,
                    length=lengths[i],
                    key_range=(batch.first_column_left, lengths[i] - min(batch.tails)),
                )
            )
        tokens = {"kept": torch.arange(length)[None], "segments": segment_ids, "positions": positions}
        if prior is not None:
            tokens["prior"] = torch.stack(
                [_prior_row(row, of, length) for row, of in zip(rows["prior"], batch.layouts, strict=True)]
            )
        tokens = {name: row.to(device).expand(size, -1) for name, row in tokens.items()}
        if self.config.score == "random":
            # Drawn on the host, so that every device sees the same numbers, and here, so that no stage waits.
            generator = torch.Generator().manual_seed(self.config.seed)
            tokens["scores"] = torch.rand(size, length, generator=generator).to(device)
        asking = batch.asking()
        return PruningState(
            plans=plans,
            segments=frames,
            salient_segments=tuple(() if flags is None else tuple(flags.nonzero()[:, 0].tolist()) for flags in salient),
            length=length,
            key_range=(batch.first_column, length - min(batch.tails)),
            num_positions=batch.num_positions,
            _batch=batch,
            _asking=None if asking is None else asking.to(device),
            _remaining=tuple(steps),
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
        scale = checks.attention_inputs(query, key, 0, scale, key_mask)
        if lse is not None:
            checks.row_tensors(query, lse, None)
        _check_sizes(state, query, key)
        batch, num_keys, length = query.shape[0], key.shape[2], state.length
        pairs = checks.token_tensors(tensors, dims, batch, key.device, length)
        config, step, known = self.config, state._remaining[0], state._tokens
        first, last = state.key_range
        older = num_keys - length
        # From the first row's last visual token on; a baseline needs no text after it: its scores come from elsewhere.
        asking = 1 if config.queries == "last" else max(1, *state._batch.tails)
        row = length - asking
        visual = {name: values[:, first:last] for name, values in known.items() if name != "kept"}
        scores = visual.get("scores")
        if config.score == "uniform":
            scores = _even_stride(visual["segments"], step.budgets, state.num_segments)
        scoring = Scoring(
            query=query[:, :, row:],
            key=key,
            query_start=older + row,
            key_range=(older + first, older + last),
            scale=scale,
            lse=None if lse is None else lse[:, :, row:],
            key_mask=key_mask,
            # A padded token asks nothing, and none asks that comes before its row's last visual token.
            query_mask=_both(
                None if key_mask is None else key_mask[:, older + row :],
                None if state._asking is None else state._asking[:, -asking:],
            ),
        )
        if scores is None and self.group is not None:
            scores = checked.column_sums(scoring, config.backend)
            dist.all_reduce(scores, group=self.group)
            scores /= dist.get_world_size(self.group)
        selection = Selection(
            segments=visual["segments"],
            positions=visual["positions"],
            budgets=step.budgets,
            dedup=step.dedup,
            soft_weight=config.soft_weight,
            prior=visual.get("prior"),
            num_selected=last - first - (length - step.length),
            num_positions=state.num_positions,
            segment_ranges=step.segment_ranges,
            longest_segment=step.longest_segment,
        )
        _, moved = checked.prune(
            scoring,
            selection,
            scores,
            (*tensors, *known.values()),
            [*pairs, *[(0, 1)] * len(known)],
            older,
            config.backend,
            on_phase,
        )
        count = len(pairs)
        following = replace(
            state,
            length=step.length,
            key_range=step.key_range,
            _remaining=state._remaining[1:],
            _tokens=dict(zip(known, moved[count:], strict=True)),
        )
        return following, moved[:count]


def _check_sizes(state: PruningState, query: Tensor, key: Tensor) -> None:
    """That query and key are those of what is left of the prompt."""
    if query.shape[2] != state.length:
        raise ValueError(
            f"query: expected the {state.length} rows that are left of the prompt, got shape {list(query.shape)}"
        )
    if key.shape[2] < state.length:
        raise ValueError(f"key: expected at least the {state.length} tokens that are left, got shape {list(key.shape)}")
    kept = state.kept
    if query.shape[0] != kept.shape[0]:
        raise ValueError(f"query: expected the batch size {kept.shape[0]} that begin was given, got {query.shape[0]}")
    if key.device != kept.device:
        raise ValueError(f"state: expected device {key.device}, where key is, got {kept.device}; move it by state.to")


def _rows_of(alone: bool, layout: Any, **arguments: Any) -> dict[str, list[Any]]:
    """Every argument as a list with an entry per row, and None for what is absent."""
    layouts = [layout] if alone else layout
    if not isinstance(layouts, Sequence) or not layouts or not all(isinstance(row, VisualLayout) for row in layouts):
        raise TypeError(f"layout: expected a VisualLayout, or one for each row, got {type(layout).__name__}")
    rows = {"layout": list(layouts)}
    for name, value in arguments.items():
        if value is None:
            rows[name] = [None] * len(layouts)
        elif alone:
            rows[name] = [value]
        elif not isinstance(value, Sequence) or len(value) != len(layouts):
            raise ValueError(f"{name}: expected a sequence with an entry for each of the {len(layouts)} rows")
        else:
            rows[name] = list(value)
    return rows


def _both(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    return second if first is None else first if second is None else first & second


def _even_stride(segments: Tensor, budgets: Tensor, num_segments: int) -> Tensor:
    """Scores of the baseline "uniform": of n visual tokens, k ones where the integer part of o·k/n steps up."""
    visual = (segments >= 0) & (segments < num_segments)  # padding that is to go has the number after the last
    ordinal, kept, among = visual.long().cumsum(1), budgets.sum(-1, keepdim=True), visual.sum(1, keepdim=True)
    return (ordinal * kept // among - (ordinal - 1) * kept // among).float()


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
