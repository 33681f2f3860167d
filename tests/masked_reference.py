"""The full sequence through an eager model, with the keys masked that pruning dropped: what pruning must equal."""

from __future__ import annotations

import torch

TOLERANCE = 1e-5


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
        """Mask all but what a run kept, [n] or one row each of a batch, of the prompt in columns ``[start, start + length)``."""
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
                        rows_kept = kept.expand(len(mask), -1)
                        dropped = torch.ones(len(mask), length, dtype=torch.bool).scatter_(1, rows_kept, False)
                        mask[..., start : start + length].masked_fill_(
                            dropped[:, None, None], torch.finfo(mask.dtype).min
                        )
            return args, {**kwargs, "attention_mask": mask}

        return before


def survivors_of(run, rows):
    """What a run kept of every row of a batch: [(layer, kept [rows, n])]."""
    reports = [run.report(row) for row in range(rows)]
    stages = zip(*(report.survivors for report in reports), strict=True)
    return [(stage[0][0], torch.stack([kept for _, kept in stage])) for stage in stages]
