"""The small Video LLM of the demo: LLaVA-OneVision's architecture at a size that two CPU cores can train, and its words."""

from __future__ import annotations

from typing import Any

import tokenizers
import torch
import transformers

from adatp_kernels.demo.clips.questions import NUMBERS
from adatp_kernels.demo.clips.scenes import COLORS, PATTERNS, PLACES, SHAPES, SIDE, SIZE

SPECIAL = ("<pad>", "<unk>", "<image>", "<video>", "<user>", "<assistant>", "<end>")
PAD, _, IMAGE, VIDEO, USER, ASSISTANT, END = range(len(SPECIAL))
FUNCTION_WORDS = (
    "what", "which", "where", "how", "many", "is", "are", "in", "the", "or", "color", "shape", "shot", "shows", "blobs",
    "comes", "first", "follows",
)  # fmt: skip
WORDS = (*SPECIAL, *FUNCTION_WORDS, *COLORS, *SHAPES, *PATTERNS, *PLACES, *NUMBERS)
CELLS = SIDE * SIDE  # visual tokens of a frame: the tower's 6 × 6 patches, pooled

COPY = 0.2  # how much of what attention finds is copied into the stream at first

CHAT_TEMPLATE = (
    "{% for message in messages %}<user> {% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}<video> {% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def build_tokenizer() -> Any:
    """One token per word; what isn't a word of the questions is unknown. Case and punctuation don't count."""
    ids = {word: number for number, word in enumerate(WORDS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Lowercase(), tokenizers.normalizers.Replace(tokenizers.Regex("[?.,!]"), "")]
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<end>",
        additional_special_tokens=["<image>", "<video>", "<user>", "<assistant>"],
        chat_template=CHAT_TEMPLATE,
    )


def build_network(seed: int, hidden_size: int = 96, num_layers: int = 16) -> Any:
    """An untrained `LlavaOnevisionForConditionalGeneration` of about 1.4 million parameters."""
    torch.manual_seed(seed)
    config = transformers.LlavaOnevisionConfig(
        text_config={
            "model_type": "qwen2",
            "vocab_size": len(WORDS),
            "hidden_size": hidden_size,
            "intermediate_size": 2 * hidden_size,
            "num_hidden_layers": num_layers,
            "num_attention_heads": hidden_size // 16,
            "num_key_value_heads": hidden_size // 32,
            "head_dim": 16,
            "max_position_embeddings": 1024,
            # With few frequencies per head and the usual base, too little is left for matching by content.
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            "pad_token_id": PAD,
            "eos_token_id": END,
            "bos_token_id": None,
            "tie_word_embeddings": True,
        },
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": SIZE,
            "patch_size": SIZE // (2 * SIDE),
            "vision_use_head": False,
        },
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        tie_word_embeddings=True,
    )
    model = transformers.LlavaOnevisionForConditionalGeneration._from_config(config, attn_implementation="sdpa")
    _initialise(model)
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = PAD, END
    return model


def _initialise(model: Any) -> None:
    """Start where a narrow and deep decoder learns fast; the usual 0.02 is made for widths of thousands.

    Matrices keep the scale of what they multiply, and layers add little to the stream at first. Queries equal keys and
    outputs mirror values, so that attention begins by looking for what is alike and copying it (in the spirit of "Mimetic
    Initialization of Self-Attention Layers", arXiv 2305.09828).
    """
    decoder = model.model.language_model
    depth = len(decoder.layers)
    torch.nn.init.normal_(decoder.embed_tokens.weight, std=0.1)
    for layer in decoder.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for linear in (attention.k_proj, attention.v_proj, attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj):
            torch.nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        mlp.down_proj.weight.data.mul_((2 * depth) ** -0.5)
        heads = (-1, attention.head_dim, attention.k_proj.in_features)
        key = 0.7 * attention.k_proj.weight.data.view(heads)
        attention.k_proj.weight.data.copy_(key.flatten(0, 1))
        attention.q_proj.weight.data.copy_(key.repeat_interleave(attention.num_key_value_groups, 0).flatten(0, 1))
        value = attention.v_proj.weight.data.view(heads).repeat_interleave(attention.num_key_value_groups, 0)
        attention.o_proj.weight.data.copy_(COPY * value.flatten(0, 1).T)
