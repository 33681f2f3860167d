"""Tiny models built from configs, never downloaded, and the masked full-sequence model that pruning must equal."""

from __future__ import annotations

import torch
import transformers

import adatp_kernels as adatp

IMAGE, VIDEO = 290, 291
CELLS = 9  # 6 × 6 patches, pooled to 3 × 3
LAYERS = 16

ATTENTION = ("eager", "sdpa", "adatp")
CONFIG = adatp.AdaTPConfig(target_flops=0.4, stages=(1, 3, 6, 9))
TOLERANCE = 1e-5


def llava_onevision(attention="sdpa", *, seed=0, layers=LAYERS, vision_use_head=False):
    """A LLaVA-OneVision with random weights, float32, on the CPU."""
    torch.manual_seed(seed)
    config = transformers.LlavaOnevisionConfig(
        text_config={
            "model_type": "qwen2",
            "vocab_size": 300,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            "initializer_range": 0.15,  # larger than usual, so that attention is not almost flat
        },
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 42,
            "patch_size": 7,
            "vision_use_head": vision_use_head,
        },
        image_token_index=IMAGE,
        video_token_index=VIDEO,
    )
    model = transformers.LlavaOnevisionForConditionalGeneration._from_config(config, attn_implementation="sdpa").eval()
    if attention != "sdpa":
        model.set_attn_implementation({"text_config": attention})
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = None
    model.generation_config.suppress_tokens = [IMAGE, VIDEO]  # a random model might write them, and mean nothing by it
    return model


def prompt(frames=6, *, shots=3, seed=0, before=(1, 5, 6), after=(7, 8, 9, 10, 11)):
    """A prompt with a video of several shots; frames of one shot differ a little."""
    generator = torch.Generator().manual_seed(seed)
    scene = torch.randn(shots, 3, 42, 42, generator=generator)
    pixels = scene[torch.arange(frames) * shots // frames] + 0.1 * torch.randn(frames, 3, 42, 42, generator=generator)
    ids = torch.tensor([[*before, *[VIDEO] * (frames * CELLS + 1), *after]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values_videos": pixels[None]}


def generate(model, inputs, **options):
    """Generate greedily; returns sequences, the logits of every step [steps, B, vocabulary], and the cache."""
    options = {"max_new_tokens": 20, "do_sample": False, **options}
    with torch.no_grad():
        output = model.generate(**inputs, return_dict_in_generate=True, output_logits=True, **options)
    return output.sequences, torch.stack(output.logits), output.past_key_values


class MaskedReference:
    """The full sequence through an eager model, with the keys masked that pruning dropped.

    A token that stage i dropped is masked as a key in every layer after the stage's; with a compacted
    cache also, once the prompt has been read, in the layers before.
    """

    def __init__(self, model, *, compact=False):
        assert model.config.text_config._attn_implementation == "eager"
        self.compact = compact
        self.prompts = []  # (first column, length, [(layer, kept)])
        self.offset = 0
        layers = getattr(model.model, "language_model", None) or model.model.text_model
        layers = layers.layers
        self.hooks = [
            layer.register_forward_pre_hook(self._hook(i), with_kwargs=True) for i, layer in enumerate(layers)
        ]

    def add(self, survivors, start, length):
        """Mask what a run kept of the prompt in columns ``[start, start + length)``."""
        self.prompts.append((start, length, survivors))

    def remove(self):
        for hook in self.hooks:
            hook.remove()

    def _hook(self, number):
        def before(layer, args, kwargs):
            mask = kwargs["attention_mask"].clone()
            rows, columns = mask.shape[-2:]
            for start, length, survivors in self.prompts:
                if columns < start + length:
                    continue  # a later turn's
                reading = rows == length and columns == start + length
                for stage, kept in survivors:
                    if number > stage or (self.compact and not reading):
                        dropped = torch.ones(length, dtype=torch.bool)
                        dropped[kept] = False
                        mask[..., start : start + length].masked_fill_(dropped, torch.finfo(mask.dtype).min)
            return args, {**kwargs, "attention_mask": mask}

        return before


def masked(inputs, survivors, *, compact=False, **options):
    """Sequences and logits of the masked full-sequence model."""
    model = llava_onevision("eager")
    reference = MaskedReference(model, compact=compact)
    reference.add(survivors, 0, inputs["input_ids"].shape[1])
    return generate(model, inputs, **options)
