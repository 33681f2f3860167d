"""What of a model `accelerate` can work with: its layers, its attention, its processes."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from adatp_kernels.config import AdaTPConfig


def tensor_parallel_group(model: Any) -> Any:
    """The ranks over which transformers sharded the attention heads of `model` (``tp_plan``), or None."""
    if (getattr(model, "tp_size", None) or 1) == 1:
        return None
    mesh = model._device_mesh  # there is no public name for it
    return (mesh["tp"] if "tp" in (mesh.mesh_dim_names or ()) else mesh).get_group()


def stages_from(first: int, config: AdaTPConfig, num_layers: int) -> tuple[int, ...]:
    """The layers after which `config` drops tokens, none of them before `first`."""
    layers = config.stage_layers(num_layers)
    if layers[0] >= first:
        return layers
    if not isinstance(config.stages, str):
        raise ValueError(f"stages: in this model the first stage may be layer {first}, got {layers[0]}")
    return tuple(sorted({max(layer, first) for layer in layers}))


def check_not_compiled(model: nn.Module) -> None:
    """Raise if something of `model` is compiled already: compiled code need not notice what is new."""
    for name, module in model.named_modules():
        # What torch.compile(module), module.compile() and torch.compile(module.forward) leave.
        if (
            hasattr(module, "_orig_mod")
            or getattr(module, "_compiled_call_impl", None) is not None
            or hasattr(module.forward, "_torchdynamo_orig_callable")
        ):
            raise ValueError(
                f"model: {name or type(module).__name__} is compiled already; accelerate first, then compile"
            )


def check_decoder(decoder: Any) -> None:
    """Raise unless every layer attends to everything before it, by an attention function that can be tapped."""
    kinds = set(getattr(decoder.config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise ValueError(f"model: accelerate supports decoders of full attention only, got layers of {sorted(kinds)}")
    strange = next(
        (layer for layer in decoder.layers if not isinstance(getattr(layer, "self_attn", None), nn.Module)), None
    )
    if strange is not None:
        raise ValueError(
            f"model: accelerate reads the attention of each decoder layer's self_attn, which {type(strange).__name__} has not"
        )
    check_attention(decoder.config)


def check_attention(config: Any) -> None:
    """Raise unless the decoder with this `config` has an attention implementation whose masks can be cut."""
    name = config._attn_implementation
    if name not in ("eager", "sdpa", "adatp") and "flash" not in name:
        raise ValueError(
            f"model: accelerate supports the attention implementations eager, sdpa, flash and adatp, got {name!r}"
        )


def check_layer_arguments(kwargs: dict[str, Any], length: int) -> None:
    """Raise unless what the decoder's first layer is given by name, beside `length` tokens, can be cut to those that are left."""
    if "position_embeddings" not in kwargs:
        raise TypeError(
            "model: accelerate supports decoder layers that are given position_embeddings, got layers that are given "
            f"{', '.join(kwargs)}"
        )
    for name, value in kwargs.items():
        # Position ids are left out behind a stage: what layers need of them is in the position embeddings.
        if name in ("attention_mask", "position_ids") or not isinstance(value, Tensor):
            continue
        if value.dim() > 1 and value.shape[1] == length:
            raise ValueError(
                f"model: accelerate cuts the attention_mask and position_embeddings of decoder layers to the tokens that are left, got "
                f"layers that are also given {name} {list(value.shape)}, an entry for each token"
            )
