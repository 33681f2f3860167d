"""What the tests of the pruner share: a decoder small enough to read, and attention that scores as told."""

import torch
from torch import nn

from adatp_kernels import AdaTPConfig, AdaTPPruner, VisualLayout, flash_attention

LAYERS, HEADS, KV_HEADS, DIM = 6, 4, 2, 16
WIDTHS = {"hidden_size": HEADS * DIM, "key_width": KV_HEADS * DIM, "mlp_width": 128}
# Keeps half, then a quarter, after layers 1 and 3.
TWO_STAGES = AdaTPConfig(target_flops=None, stages=(1, 3), schedule=(0.5, 0.25))


def pruner_of(config=TWO_STAGES):
    return AdaTPPruner(config, num_layers=LAYERS, **WIDTHS)


class Decoder(nn.Module):
    """A decoder small enough to read, with rotary positions, grouped query heads and a residual stream."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        width = HEADS * DIM
        draw = lambda *shape: (torch.randn(*shape, generator=generator) * width**-0.5).to(dtype)  # noqa: E731
        self.layers = [
            {"q": 3 * draw(width, width), "kv": draw(width, 2 * KV_HEADS * DIM), "out": draw(width, width)}
            for _ in range(LAYERS)
        ]

    def attend(self, weights, hidden, cos, sin, key_mask=None, past=None):
        heads = lambda x: x.unflatten(-1, (-1, DIM)).transpose(1, 2)  # noqa: E731
        turn = lambda x: x * cos[:, None] + torch.cat([-x[..., DIM // 2 :], x[..., : DIM // 2]], -1) * sin[:, None]  # noqa: E731
        key, value = heads(hidden @ weights["kv"]).chunk(2, dim=1)
        query, key = turn(heads(hidden @ weights["q"])), turn(key)
        if past is not None:
            key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
        mask = None if key_mask is None else key_mask[:, None, None, :]
        out, lse = flash_attention(query, key, value, mask=mask)
        return hidden + out.transpose(1, 2).flatten(2) @ weights["out"], query, key, lse

    def forward(self, hidden, pruner, state, key_mask=None):
        """Runs all layers; returns the states after each, the last hidden states and what scored."""
        cos, sin = rotary(hidden.shape[1])
        states, scored = [state], []
        for index, weights in enumerate(self.layers):
            hidden, query, key, lse = self.attend(weights, hidden, cos, sin, key_mask)
            if index == state.next_layer:
                scored.append((query, key))
                moving = (hidden, cos, sin) if key_mask is None else (hidden, cos, sin, key_mask)
                state, moved = pruner(state, query, key, moving, dims=1, lse=lse, key_mask=key_mask)
                hidden, cos, sin = moved[:3]
                key_mask = moved[3] if key_mask is not None else None
            states.append(state)
        return states, hidden, scored


def rotary(length, start=0):
    angle = torch.arange(start, start + length)[:, None] * 100.0 ** (-torch.arange(DIM // 2) / (DIM // 2))
    return torch.cat([angle, angle], -1).cos()[None], torch.cat([angle, angle], -1).sin()[None]


def prompt(length, batch=1, seed=1):
    return torch.randn(batch, length, HEADS * DIM, generator=torch.Generator().manual_seed(seed))


GRID = VisualLayout.grid(6, 8, start=4)  # 48 visual tokens from 4 on; five text tokens follow
# A timestamp stands before every frame but the first.
STAMPED = VisualLayout([4 + j + j // 8 for j in range(48)], [j // 8 for j in range(48)], [j % 8 for j in range(48)])
SEGMENTS = torch.tensor([0, 0, 1, 1, 1, 2])


def scripted(scores, length, first, rows=1):
    """Query and key, for ``scale=1``: the last `rows` rows give their lists of logits to the columns from `first`."""
    key = torch.eye(length)[None, None]
    query = torch.zeros(1, 1, length, length)
    for row, values in enumerate(torch.tensor(scores).reshape(rows, -1), start=length - rows):
        query[0, 0, row, first : first + len(values)] = values
    return query, key


FLAT = VisualLayout.grid(1, 8, start=1)


def kept_of(config, scores, length=10, rows=1, layout=FLAT, segments=(0,), **options):
    """The visual tokens, counted from the first column, that are left after the first stage."""
    pruner = pruner_of(config)
    first, last = layout.key_range
    state = pruner.begin(layout, length, segments=torch.tensor(segments), **options)
    following, _ = pruner(state, *scripted(scores, length, first, rows), (), dims=1, scale=1.0)
    return [j - first for j in following.kept[0].tolist() if first <= j < last]


def half(**options):
    return AdaTPConfig(target_flops=None, stages=(1,), schedule=(0.5,), **options)
