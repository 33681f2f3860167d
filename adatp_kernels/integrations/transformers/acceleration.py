"""accelerate: what stands around a model and its decoder layers, and prunes the visual tokens while it reads a prompt."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from adatp_kernels.config import AdaTPConfig
from adatp_kernels.errors import choice
from adatp_kernels.integrations.transformers import families
from adatp_kernels.integrations.transformers.cache import PrunedMasks, Served, cache_of, check_cache
from adatp_kernels.integrations.transformers.causal import check_causal
from adatp_kernels.integrations.transformers.dynamo import out_of_dynamo
from adatp_kernels.integrations.transformers.encodings import EncodingWatch
from adatp_kernels.integrations.transformers.generation import GenerateWatch
from adatp_kernels.integrations.transformers.head import watch_head
from adatp_kernels.integrations.transformers.layers import LayerWatch
from adatp_kernels.integrations.transformers.methods import NotCopied, positional_names
from adatp_kernels.integrations.transformers.misplaced import MisplacedText, host_grids
from adatp_kernels.integrations.transformers.prefill import VideoPrefill
from adatp_kernels.integrations.transformers.relevance import by_row, check_relevance, frame_relevance
from adatp_kernels.integrations.transformers.report import PromptRecord, Report
from adatp_kernels.integrations.transformers.rope_deltas import RopeDeltas
from adatp_kernels.integrations.transformers.support import (
    check_attention,
    check_decoder,
    check_not_compiled,
    stages_from,
    tensor_parallel_group,
)
from adatp_kernels.integrations.transformers.tap import AttentionTap, Functions
from adatp_kernels.integrations.transformers.token_types import TokenTypes
from adatp_kernels.integrations.transformers.turns import Turns
from adatp_kernels.integrations.transformers.unpruned import Unpruned
from adatp_kernels.integrations.transformers.visuals import Visuals, find_visuals, with_images
from adatp_kernels.pruner import AdaTPPruner

_MARK = "_adatp_acceleration"  # of the module whose forward an acceleration stands around


def accelerate(
    model: nn.Module,
    config: AdaTPConfig | None = None,
    *,
    relevance: Any = None,
    question: str | list[str] | None = None,
    images: str = "keep",
) -> Acceleration:
    """Prune the visual tokens of every video prompt that `model` reads, until removed.

    Parameters
    ----------
    model : transformers model
        Of a supported family, wrapped by PEFT or not, with the attention implementation eager, sdpa, flash_attention_2
        or ``"adatp"`` (which hands its LSE to the scoring stages instead of having it recomputed). Compile it after this,
        if at all.
    config : AdaTPConfig, optional
        The method as published by default.
    relevance : Tensor [num_frames], or (SiglipModel, tokenizer), optional
        How relevant each frame is to the question, or the pair that finds out; without it no segment
        is salient. Of a batch, the frames of all its prompts in order. May be changed between prompts:
        ``run.relevance = ...``.
    question : str, or a list with one per prompt of a batch, optional
        The question in words, for the pair. May be changed between prompts: ``run.question = ...``.
    images : {"keep", "prune"}
        Whether images, beside a video or alone, are left whole or pruned, each as a segment of its own (those between
        whose tokens nothing stands as one). Where a family's videos come as images, images are frames.

    Returns
    -------
    Acceleration
        Use it as a context manager, or call its ``remove()``: either leaves the model as it was.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        If the model, the configuration or the relevance cannot be used; the message says why.

    Notes
    -----
    ``logits`` and ``hidden_states`` of the prompt come back shorter, for the tokens that are left.

    Examples
    --------
    ::

        with adatp.accelerate(model, adatp.AdaTPConfig(target_flops=0.273)) as run:
            output = model.generate(**inputs)
        print(run.report())
    """
    return Acceleration(model, AdaTPConfig() if config is None else config, relevance, question, images)


class Acceleration(NotCopied):
    """A model whose video prompts are pruned; what `accelerate` returns.

    One forward at a time: a thread that begins one while another is in the middle of its own gets an error. `remove`, and with
    it the end of the with-block, waits for a `generate` that another thread is in the middle of.

    Attributes
    ----------
    relevance, question
        As given to `accelerate`; may be changed between prompts.
    """

    def __init__(
        self, model: nn.Module, config: AdaTPConfig, relevance: Any, question: str | list[str] | None, images: str
    ) -> None:
        model = families.unwrap(model)
        self._family = families.find(model)
        if not isinstance(config, AdaTPConfig):
            raise TypeError(f"config: expected an AdaTPConfig, got {type(config).__name__}")
        choice("images", images, ("keep", "prune"))
        self.relevance, self.question, self._prune_images = relevance, question, images == "prune"
        self._model, self._base = model, self._family.base(model)
        self._check_relevance()
        check_not_compiled(model)
        decoder = self._family.decoder(model)
        self._layers: list[Any] = list(decoder.layers)
        check_decoder(decoder)
        check_causal(model, decoder)
        self._text_config = text = decoder.config
        if _MARK in vars(self._base):
            raise RuntimeError("model: it is accelerated already; remove() that first")
        layers = stages_from(self._family.first_stage(model), config, len(self._layers))
        if layers != config.stage_layers(len(self._layers)):
            config = dataclasses.replace(config, stages=layers)
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        self._pruner = AdaTPPruner(
            config,
            num_layers=len(self._layers),
            hidden_size=text.hidden_size,
            key_width=text.num_key_value_heads * head_dim,
            mlp_width=text.intermediate_size,
            group=tensor_parallel_group(model),
        )
        self._positional = positional_names(self._base.forward)
        self._prefill: VideoPrefill | None = None  # the video prompt that is passing through the decoder
        self._last: PromptRecord | None = None  # of the last one that did
        self._visuals: list[Visuals] = []  # of its rows
        self._uncached: tuple[Any, Tensor] | None = (
            None  # the `generate` it ran in, and its token ids, if without a cache
        )
        self._functions: Functions = {}  # the attention functions that were found in this forward
        self._taps = {
            layer: AttentionTap(self._layers[layer].self_attn, self._functions)
            for layer in config.stage_layers(len(self._layers))
        }
        self._turns, self._served = Turns(), Served()
        self._encodings = EncodingWatch(self._family, model, self._turns)
        self._rope_deltas = RopeDeltas(self._base)
        self._unpruned = Unpruned(self._family, model, prune_images=self._prune_images)
        self._misplaced = MisplacedText(self._family, model)
        self._token_types = TokenTypes(model, self._family, self._prunes)
        within = (self._token_types.within, self._rope_deltas.within, self._unpruned.within)
        self._generate = GenerateWatch(model, self._family, self._turns, within)
        self._watch, self._body = LayerWatch(self._layers), LayerWatch([self._base])
        self._body.around = self._run_model
        self._head = watch_head(model, self._base, self._prunes)
        vars(self._base)[_MARK] = self

    @property
    def config(self) -> AdaTPConfig:
        """The configuration; to change it, remove() and accelerate again."""
        return self._pruner.config

    def __enter__(self) -> Acceleration:
        if self._body.removed:
            raise RuntimeError("accelerate: this acceleration was removed; call accelerate(model, config) again")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self._unpruned.forget()
        self.remove()

    def remove(self) -> None:
        """Leave the model exactly as it was, once no other thread generates with it; doing so twice is harmless.

        Warns if there was something to see and nothing was pruned.

        Raises
        ------
        RuntimeError
            If this thread itself is in the middle of a forward or a `generate`.
        """
        if self._body.removed:
            return
        self._turns.close()
        for watch in (self._head, self._body, self._watch, self._generate, self._encodings):
            watch.remove()
        del vars(self._base)[_MARK]
        self._uncached = None
        self._forget()
        self._unpruned.tell(anything_pruned=self._last is not None)

    def report(self, row: int = 0) -> Report:
        """What the last video prompt cost. On CUDA this waits for the device.

        Parameters
        ----------
        row : int
            Which prompt of a batch.

        Raises
        ------
        RuntimeError
            If no video prompt has run yet.
        ValueError
            If the batch had fewer rows.
        """
        if self._last is None:
            raise RuntimeError("report: no video prompt has run yet under this acceleration")
        return self._last.report(
            row,
            pictures_per_frame=self._family.pictures_per_frame(self._model),
            **{name: width for name, width in self._pruner.decoder.items() if name != "num_layers"},
        )

    def _forget(self) -> None:
        """Drop what belongs to one forward, also if it was interrupted."""
        self._watch.around = None
        self._served.end()
        if self._prefill is not None:
            self._prefill = None
            self._functions.clear()
            for tap in self._taps.values():
                tap.close()
                tap.take()

    # What runs before and after the model, its vision tower and its layers.

    def _run_model(self, _: int, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self._begin(args, kwargs):
            return forward(*args, **kwargs)
        output = None
        try:
            output = forward(*args, **kwargs)
        finally:  # also what is no Exception ends a forward: KeyboardInterrupt, SystemExit
            self._end(output)
        return output

    @out_of_dynamo
    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        if not self._turns.begin_forward():
            return False
        try:
            self._encodings.forget()
            self._find_prompt(args, kwargs)
        except BaseException:
            self._rope_deltas.end()
            self._forget()
            self._turns.end_forward()
            raise
        return True

    def _find_prompt(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Get ready for a prompt that is to be pruned, or for a cache that was."""
        arguments = {**dict(zip(self._positional, args, strict=False)), **kwargs} if args else kwargs
        self._rope_deltas.begin(arguments)
        ids = arguments.get("input_ids")
        visuals = None
        # One more token, of which there are many, is told from a prompt at once.
        if ids is None or ids.shape[1] != 1 or self._generate.chunk_size is not None or self._prunes(arguments):
            visuals = self._find_visuals(arguments)
        if visuals is None:
            if self._served.begin(cache_of(arguments)):
                check_attention(self._text_config)
                self._watch.around = PrunedMasks(self._watch).run_layer
            return
        if self._base.training:
            raise RuntimeError("model: accelerate prunes at inference only; call model.eval() first")
        check_attention(self._text_config)  # which may be set anew at any time
        check_cache(cache_of(arguments))
        self._check_relevance()
        self._visuals = visuals
        self._prefill = VideoPrefill(self._pruner, {**arguments}, visuals)
        self._served.begin(cache_of(arguments))
        self._watch.around = self._run_layer

    def _find_visuals(self, arguments: dict[str, Any]) -> list[Visuals] | None:
        """What is to be pruned of a prompt; None if there is nothing."""
        self._check_mode(arguments)
        self._generate.check_chunks(arguments.get("input_ids"), images=self._prune_images)
        known = self._generate.before_encoding(arguments)
        known |= {name: value for name, value in arguments.items() if value is not None}
        known = host_grids({**self._encodings.of(known), **known})
        found = find_visuals(self._family, self._model, known, prune_images=self._prune_images, before=self._visuals)
        if found is None:
            self._unpruned.passed(arguments)
        else:
            self._token_types.check(arguments)
            self._misplaced.look(known, self._generate.given(arguments))
        return found

    def _prunes(self, arguments: dict[str, Any]) -> bool:
        """Whether what comes with the `arguments` is to be pruned."""
        return self._family.has_video(arguments) or (self._prune_images and self._family.has_images(arguments))

    def _check_relevance(self) -> None:
        check_relevance(self.relevance, self.question, self._family, prune_images=self._prune_images)

    def _check_mode(self, arguments: dict[str, Any]) -> None:
        """Refuse ways of generating that would let tokens of the answer choose what is kept of the video."""
        if not self._prunes(arguments):
            return
        self._generate.check_candidates(arguments)
        ids, before, call = arguments.get("input_ids"), self._uncached, self._generate.call
        self._uncached = None
        if call is None or ids is None or cache_of(arguments) is not None or arguments.get("use_cache") is not False:
            return
        if before is not None and before[0] is call and before[1].shape[1] + 1 == ids.shape[1]:
            raise ValueError("use_cache: False would prune anew for every token of an answer; generate with a cache")
        self._uncached = (call, ids)

    def _run_layer(
        self, number: int, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        output = forward(*args, **self._before_layer(number, args, kwargs))
        return self._after_layer(number, output) if number in self._taps else output

    @out_of_dynamo
    def _before_layer(self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        prefill = self._prefill
        assert prefill is not None
        hidden = args[0] if args else kwargs["hidden_states"]
        if number == 0:
            frames, features = self._frames(hidden)
            copies = self._generate.copies(len(frames))
            relevance = frame_relevance(self.relevance, self.question, frames, copies=copies)
            prefill.begin(hidden, kwargs, features, relevance)
        if number == prefill.next_layer:
            self._taps[number].open()
        return prefill.before_layer(number, hidden, kwargs)

    @out_of_dynamo
    def _after_layer(self, number: int, output: Tensor) -> Tensor:
        assert self._prefill is not None
        tap = self._taps[number]
        tap.close()
        seen = tap.take()
        return output if seen is None else self._prefill.after_layer(number, output, seen)

    def _frames(self, hidden: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Of each row what stands for the frames, pixels if the family shows them, and their features [num_frames, d]."""
        assert self._prefill is not None
        visuals = self._prefill.visuals
        counts = [row.video_frames for row in visuals]
        if not self._family.shows_frames or not any(counts):
            means = self._prefill.frame_means(hidden)
            return means, means
        seen = self._encodings.of(self._prefill.arguments)
        if not seen:
            raise RuntimeError(
                "mm_encoder_outputs: accelerate did not see this video being encoded, which tells it frames from frames; encode it "
                "while the model is accelerated, or give pixels"
            )
        frames, features = by_row(seen["frames"], counts), by_row(seen["features"], counts)
        if frames is None or features is None:
            raise ValueError(
                f"input_ids: expected {len(seen['frames'])} frames, which the vision tower saw, got tokens of {sum(counts)}"
            )
        return [with_images(*row) for row in zip(visuals, frames, strict=True)], [
            with_images(*row) for row in zip(visuals, features, strict=True)
        ]

    @out_of_dynamo
    def _end(self, output: Any) -> None:
        prefill, rope_deltas = self._prefill, self._rope_deltas.end()
        self._forget()
        self._encodings.forget()
        self._turns.end_forward()
        if prefill is not None and output is None:  # the forward raised
            prefill.give_up()
        elif prefill is not None:
            self._last = prefill.finish()
            self._rope_deltas.keep(prefill, rope_deltas)
