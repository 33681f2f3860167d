"""accelerate: hooks on a model's decoder layers that prune its visual tokens while it reads a prompt."""

from __future__ import annotations

import inspect
import weakref
from functools import partial
from types import TracebackType
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from adatp_kernels.config import AdaTPConfig
from adatp_kernels.integrations.transformers import families
from adatp_kernels.integrations.transformers.cache import PrunedColumns
from adatp_kernels.integrations.transformers.prefill import VideoPrefill
from adatp_kernels.integrations.transformers.relevance import check_relevance, frame_relevance
from adatp_kernels.integrations.transformers.report import Report
from adatp_kernels.integrations.transformers.tap import AttentionTap
from adatp_kernels.ops import backend_report
from adatp_kernels.plan import flops_ratio
from adatp_kernels.pruner import AdaTPPruner


def accelerate(
    model: nn.Module, config: AdaTPConfig | None = None, *, relevance: Any = None, question: str | None = None
) -> Acceleration:
    """Prune the visual tokens of every video prompt that `model` reads, until removed.

    Parameters
    ----------
    model : transformers model
        Of a supported family, with the attention implementation eager, sdpa, flash_attention_2 or
        ``"adatp"`` (which hands its LSE to the scoring stages instead of having it recomputed).
    config : AdaTPConfig, optional
        The method as published by default.
    relevance : Tensor [num_frames], or (SiglipModel, tokenizer), optional
        How relevant each frame is to the question, or the pair that finds out; without it no segment
        is salient. May be changed between prompts: ``run.relevance = ...``.
    question : str, optional
        The question in words, for the pair. May be changed between prompts: ``run.question = ...``.

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
    return Acceleration(model, AdaTPConfig() if config is None else config, relevance, question)


class Acceleration:
    """A model whose video prompts are pruned; what `accelerate` returns.

    Attributes
    ----------
    config : AdaTPConfig
    relevance, question
        As given to `accelerate`; may be changed between prompts.
    """

    def __init__(self, model: nn.Module, config: AdaTPConfig, relevance: Any, question: str | None) -> None:
        self._family = families.find(model)
        if not isinstance(config, AdaTPConfig):
            raise TypeError(f"config: expected an AdaTPConfig, got {type(config).__name__}")
        check_relevance(relevance, question)
        self.config, self.relevance, self.question = config, relevance, question
        self._model, self._base = model, self._family.base(model)
        decoder = self._family.decoder(model)
        self._layers: list[Any] = list(decoder.layers)
        _check_decoder(decoder)
        if any(
            isinstance(getattr(hook, "__self__", None), Acceleration) for hook in self._base._forward_pre_hooks.values()
        ):
            raise RuntimeError("model: it is accelerated already; remove() that first")
        text = decoder.config
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        self._pruner = AdaTPPruner(
            config,
            num_layers=len(self._layers),
            hidden_size=text.hidden_size,
            key_width=text.num_key_value_heads * head_dim,
            mlp_width=text.intermediate_size,
        )
        self._signature = inspect.signature(self._base.forward)
        self._prefill: VideoPrefill | None = None  # the video prompt that is passing through the decoder
        self._last: VideoPrefill | None = None  # the last one that did
        # What the layers of each cache hold; an entry lives as long as its cache.
        self._columns: weakref.WeakKeyDictionary[Any, PrunedColumns] = weakref.WeakKeyDictionary()
        self._taps = {
            layer: AttentionTap(self._layers[layer].self_attn) for layer in config.stage_layers(len(self._layers))
        }
        self._handles = self._attach()

    def __enter__(self) -> Acceleration:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()

    def remove(self) -> None:
        """Leave the model exactly as it was; doing so twice is harmless."""
        for handle in self._handles:
            handle.remove()
        for tap in self._taps.values():
            tap.close()
        self._handles, self._prefill = [], None

    def report(self) -> Report:
        """What the last video prompt cost. On CUDA this waits for the device.

        Raises
        ------
        RuntimeError
            If no video prompt has run yet.
        """
        if self._last is None or self._last.state is None:
            raise RuntimeError("report: no video prompt has run yet under this acceleration")
        done, state = self._last, self._last.state
        text_tokens = done.entered[0] - len(done.layout)
        actual = tuple(entered - text_tokens for entered in done.entered)
        decoder = {name: width for name, width in self._pruner.decoder.items() if name != "num_layers"}
        return Report(
            plan=state.plan,
            layout=done.layout,
            segments=tuple(state.segments_per_frame.tolist()),
            salient=state.salient,
            text_tokens=text_tokens,
            planned_tokens=state.plan.tokens_per_layer,
            actual_tokens=actual,
            planned_flops_ratio=state.plan.flops_ratio,
            actual_flops_ratio=flops_ratio(actual, **decoder),
            survivors=tuple((layer, kept[0].cpu()) for layer, kept in done.survivors),
            seconds=done.clock.seconds(),
            backends=backend_report().last_used,
        )

    # The hooks, in the order in which they fire.

    def _attach(self) -> list[RemovableHandle]:
        handles = [
            self._base.register_forward_pre_hook(self._before_model, with_kwargs=True),
            self._base.register_forward_hook(self._after_model, always_call=True),
            self._family.vision_tower(self._model).register_forward_hook(self._after_vision),
        ]
        for number, layer in enumerate(self._layers):
            handles.append(layer.register_forward_pre_hook(partial(self._before_layer, number), with_kwargs=True))
            if number in self._taps:
                attention = layer.self_attn
                handles.append(attention.register_forward_pre_hook(partial(self._before_attention, number)))
                handles.append(
                    attention.register_forward_hook(partial(self._after_attention, number), always_call=True)
                )
                handles.append(layer.register_forward_hook(partial(self._after_layer, number)))
        return handles

    def _before_model(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._prefill = None
        bound = self._signature.bind(*args, **kwargs).arguments
        arguments = {**bound.pop("kwargs", {}), **bound}
        video = self._family.video(self._model, arguments)
        if video is None:
            return
        if module.training:
            raise RuntimeError("model: accelerate prunes at inference only; call model.eval() first")
        layout, frames = video
        self._prefill = VideoPrefill(
            self._pruner, arguments, layout, frame_relevance(self.relevance, self.question, frames)
        )

    def _after_vision(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        # With images in the prompt the tower runs twice; the video comes last.
        if self._prefill is not None:
            self._prefill.features = self._family.frame_features(self._model, self._prefill.arguments, output)

    def _before_layer(self, number: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        cache, mask = kwargs.get("past_key_values"), kwargs.get("attention_mask")
        if self._prefill is None:
            # A later forward on a pruned cache: the mask fits layer 0; this layer holds fewer columns.
            columns = self._columns.get(cache) if cache is not None else None
            if mask is None or columns is None or number not in columns.layers:
                return None
            return args, {**kwargs, "attention_mask": columns.of_mask(number, mask)}
        hidden = args[0] if args else kwargs["hidden_states"]
        if number == 0:
            columns = PrunedColumns() if cache is None else self._columns.setdefault(cache, PrunedColumns())
            self._prefill.begin(hidden, kwargs, columns)
        return args, self._prefill.before_layer(number, hidden, kwargs)

    def _before_attention(self, number: int, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self._prefill is not None and self._prefill.state is not None and self._prefill.state.next_layer == number:
            self._taps[number].open()

    def _after_attention(self, number: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._taps[number].close()

    def _after_layer(self, number: int, layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        seen = self._taps[number].take()
        if seen is None or self._prefill is None:
            return None
        return self._prefill.after_layer(number, output, seen)

    def _after_model(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._prefill is not None and output is not None:  # None: the forward raised
            self._prefill.finish()
            self._last = self._prefill
        self._prefill = None


def _check_decoder(decoder: Any) -> None:
    """Raise unless every layer attends to everything before it."""
    kinds = set(getattr(decoder.config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise ValueError(f"model: accelerate supports decoders of full attention only, got layers of {sorted(kinds)}")
