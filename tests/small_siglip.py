"""A tiny SigLIP with random weights, and what stands in for its tokenizer."""

import torch
import transformers


class WordTokenizer:
    """Stands in for SigLIP's tokenizer: one id per word, padded to full length."""

    def __call__(self, texts, padding, truncation, max_length, return_tensors):
        assert (padding, truncation, return_tensors) == ("max_length", True, "pt")
        ids = torch.ones(len(texts), max_length, dtype=torch.long, device="cpu")
        for row, text in enumerate(texts):
            for place, word in enumerate(text.split()[:max_length]):
                ids[row, place] = 2 + sum(word.encode()) % 90
        return {"input_ids": ids}


def siglip(image_size=42, seed=0):
    torch.manual_seed(seed)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.SiglipConfig(
        text_config={**tower, "vocab_size": 100, "max_position_embeddings": 16},
        vision_config={**tower, "image_size": image_size, "patch_size": 7},
    )
    return transformers.SiglipModel(config).eval()
