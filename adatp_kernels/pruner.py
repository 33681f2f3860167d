"""AdaTPPruner: the thin module that a decoder of one's own calls at each stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from adatp_kernels.accepted import accept
from adatp_kernels.begin import begin
from adatp_kernels.config import AdaTPConfig
from adatp_kernels.errors import integer
from adatp_kernels.layout import VisualLayout
from adatp_kernels.ops import checked
from adatp_kernels.ops.arguments import Pruning, Scoring, Selection
from adatp_kernels.prior import load_prior
from adatp_kernels.recent import RecentStates
from adatp_kernels.state import PruningState


class AdaTPPruner(nn.Module):
    """Prunes visual tokens between the layers of any decoder (``algorithm.md``).

    `begin` makes a `PruningState` for a prompt, and every call returns the next. The pruner itself only remembers what it
    began the last few prompts with.

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
        self._recent = RecentStates()

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
        images: Tensor | Sequence[Tensor | None] | None = None,
        batch_size: int = 1,
        device: torch.device | str = "cpu",
    ) -> PruningState:
        """Plan the pruning of one prompt, of a batch of its copies, or of a batch of different prompts.

        The segments of the frames come to the host here; from here on nothing waits for the device. Of the last few
        prompts the states are remembered: equal arguments, compared by value, get the same state.

        Parameters
        ----------
        layout : VisualLayout, or a sequence of them
            One prompt's, or one for each row of a batch of different prompts. Then each of the arguments `features`
            to `images` is a sequence, too, and all rows keep equally many visual tokens: see `Batch`.
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
        images : LongTensor [n], optional
            Places of tokens that are not text and yet stay, as those of an image beside the video, ascending. None of
            them asks, and no text before the last of them does.
        batch_size : int
            Copies of the one prompt.
        device : torch.device or str
            Where the decoder runs.

        Raises
        ------
        TypeError, ValueError
            For malformed arguments, an unreachable FLOPs target, a prompt with no text after its last visual token
            and image to score with, or rows that cannot be brought to one length.
        """
        return begin(
            self.config,
            self.decoder,
            self._prior,
            self._recent,
            layout=layout,
            length=length,
            features=features,
            segments=segments,
            relevance=relevance,
            prior=prior,
            padding=padding,
            images=images,
            batch_size=batch_size,
            device=device,
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
        batch, length = state._tokens.shape[1], state.length
        accepted = accept(
            state._accepted, batch, length, state.device, query, key, tensors, dims, scale, lse, key_mask
        )  # fmt: skip
        config, step = self.config, state._remaining[0]
        first, last = state.key_range
        older = key.shape[2] - length
        # From where the first row has only text left; a baseline needs none: its scores come from elsewhere.
        asking = 1 if config.queries == "last" else state._batch.most_asking
        row = length - asking
        segments, positions = state._visual_columns()
        prior = None if state._prior is None else state._prior[:, first:last]
        scores = None if state._scores is None else state._scores[:, first:last]
        if config.score == "uniform":
            scores = _even_stride(segments, step.budgets, state.num_segments)
        scoring = Scoring(
            query=query[:, :, row:],
            key=key,
            query_start=older + row,
            key_range=(older + first, older + last),
            scale=accepted.scale,
            lse=None if lse is None else lse[:, :, row:],
            key_mask=key_mask,
            # A padded token asks nothing, and none asks that comes before its row's last visual token or image.
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
            segments=segments,
            positions=positions,
            budgets=step.budgets,
            dedup=step.dedup,
            soft_weight=config.soft_weight,
            prior=prior,
            num_selected=last - first - (length - step.length),
            num_positions=state.num_positions,
            segment_ranges=step.segment_ranges,
            longest_segment=step.longest_segment,
        )
        travelling, pairs = [*tensors, state._tokens], [*accepted.pairs, (1, 2)]
        for values in (state._prior, state._scores):
            if values is not None:
                travelling.append(values)
                pairs.append((0, 1))
        pruning = Pruning(
            scoring, selection, scores, travelling, pairs, older, on_phase or checked.nobody_asked
        )  # fmt: skip
        _, moved = checked.prune(pruning, config.backend)
        count = len(tensors)
        following = state._following(
            accepted,
            moved[count],
            None if state._prior is None else moved[count + 1],
            None if state._scores is None else moved[-1],
        )
        return following, moved[:count]


def _both(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    return second if first is None else first if second is None else first & second


def _even_stride(segments: Tensor, budgets: Tensor, num_segments: int) -> Tensor:
    """Scores of the baseline "uniform": of n visual tokens, k ones where the integer part of o·k/n steps up."""
    visual = (segments >= 0) & (segments < num_segments)  # padding that is to go has the number after the last
    ordinal, kept, among = visual.long().cumsum(1), budgets.sum(-1, keepdim=True), visual.sum(1, keepdim=True)
    return (ordinal * kept // among - (ordinal - 1) * kept // among).float()
