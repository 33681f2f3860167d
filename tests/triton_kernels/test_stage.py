"""A whole stage on Triton: the reference's result, in three launches."""

import pytest
import torch
from op_inputs import inputs, left_padding
from pruner_inputs import DIM, GRID, SEGMENTS, STAMPED, pruner_of

from adatp_kernels import AdaTPConfig, Stage, VisualLayout, ops

IDS = torch.tensor([0] * 12 + [-1] + [1] * 8)
POSITIONS = torch.tensor([*[0, 1, 2, 3] * 3, -1, *[0, 1, 2, 3] * 2])


def arguments(device, *, batch=2, older=0, dtype=torch.float32):
    """Three text tokens, 21 columns with a timestamp between two segments, five text tokens."""
    query, key = inputs(5, 29 + older, 64, batch=batch, dtype=dtype)
    moved = {
        "query": query,
        "key": key,
        "tensors": [torch.randn(batch, 29, 24), torch.randn(1, 29, 6), torch.arange(29).expand(batch, 29)],
        "segments": IDS,
        "positions": POSITIONS,
    }
    moved = {n: [t.to(device) for t in v] if isinstance(v, list) else v.to(device) for n, v in moved.items()}
    return {
        **moved,
        "stage": Stage(1, (3, 2), 5),
        "dims": 1,
        "query_start": older + 24,
        "key_range": (older + 3, older + 24),
        "sequence_start": older,
    }


def same(given):
    expected, wanted = ops.prune(**given, backend="reference")
    actual, moved = ops.prune(**given, backend="triton")
    assert actual.equal(expected)
    assert all(a.equal(w) for a, w in zip(moved, wanted, strict=True))
    return actual


@pytest.mark.parametrize("older", [0, 7])
@pytest.mark.parametrize("dedup", ["strict", "soft", "off"])
def test_prune_is_the_reference(dedup, older, device):
    given = arguments(device, older=older)
    indices = same({**given, "dedup": dedup})
    assert indices.shape == (2, 3 + 6 + 5)
    assert indices[0].tolist()[:3] == [0, 1, 2] and indices[0].tolist()[-5:] == [24, 25, 26, 27, 28]
    assert 15 in indices[0].tolist()  # the timestamp
    lse = ops.row_lse(given["query"], given["key"], query_start=given["query_start"], backend="reference")
    same(
        {
            **given,
            "dedup": dedup,
            "lse": lse,
            "budgets": torch.tensor([3, 2]).to(device),
            "num_selected": 6,
            "num_positions": 4,
        }
    )


def test_masks_prior_and_scores_of_ones_own(device):
    given = arguments(device, batch=3)
    masks = {"key_mask": left_padding([0, 2, 9], 29), "query_mask": torch.rand(3, 5) > 0.3}
    given |= {name: mask.to(device) for name, mask in masks.items()}
    same({**given, "prior": torch.rand(21).to(device)})
    same({**given, "scores": torch.rand(3, 21).to(device)})
    same({**given, "scores": torch.rand(3, 21).to(device), "prior": torch.rand(3, 21).to(device)})


def test_phases_are_reported(device):
    phases = []
    ops.prune(**arguments(device), on_phase=phases.append, backend="triton")
    assert phases == ["score", "select", "compact"]


STILL = torch.zeros(6, dtype=torch.int64)
SHORT, LONG = VisualLayout.grid(2, 8, start=36), VisualLayout.grid(6, 8, start=4)
# The second row has a shorter video: of its padding only what the first one's longer text needs stays. The third has no text
# before its video and more behind it.
BATCH = {
    "layout": [LONG, SHORT, VisualLayout.grid(5, 8, start=0)],
    "segments": [SEGMENTS, torch.tensor([0, 1]), torch.tensor([0, 1, 1, 2, 3])],
    "padding": [0, 35, 0],
}
# Each with its length, and the share that the first stage keeps; strict, a still video holds 8 of its 48.
PROMPTS = {
    "a still video": ({"layout": GRID, "segments": STILL}, 57, 0.15),
    "timestamps": ({"layout": STAMPED, "segments": SEGMENTS}, 62, 0.4),
    "a batch": (BATCH, 57, 0.4),
}


@pytest.mark.parametrize(
    ("prompt", "dedup"),
    [*[("a still video", dedup) for dedup in ("strict", "soft", "off")], ("timestamps", "soft"), ("a batch", "strict")],
)
def test_a_prompt_is_the_references(prompt, dedup, device):
    """The same tokens survive every stage, whichever backend the pruner runs on, and what travels stays with them."""
    begin, length, share = PROMPTS[prompt]
    survivors = []
    for backend in ("triton", "reference"):
        config = AdaTPConfig(
            target_flops=None, stages=(0, 2), schedule=(share, share / 2), spatial_dedup=dedup, soft_weight=0.5,
            backend=backend,
        )  # fmt: skip
        pruner, generator = pruner_of(config), torch.Generator().manual_seed(0)
        state = pruner.begin(**begin, length=length, device=device)
        rows = len(state.kept)
        padding = torch.tensor(begin.get("padding", [0] * rows))
        key_mask = (torch.arange(length) >= padding[:, None]).to(device)
        hidden, kept = torch.arange(float(length))[None, :, None].expand(rows, -1, 1).to(device), []
        while state.next_layer is not None:
            query = 2 * torch.randn(rows, 4, state.length, DIM, generator=generator).to(device)
            key = torch.randn(rows, 2, state.length, DIM, generator=generator).to(device)
            state, (hidden, key_mask) = pruner(state, query, key, (hidden, key_mask), dims=1, key_mask=key_mask)
            assert hidden[..., 0].long().equal(state.kept)
            kept.append(state.kept)
        survivors.append(kept)
    assert len(survivors[0]) == 2
    assert all(ours.equal(theirs) for ours, theirs in zip(*survivors, strict=True))


def test_devices_must_agree(device):
    with pytest.raises(ValueError, match="scores: expected device"):
        ops.prune(**{**arguments(device), "scores": torch.rand(2, 21, device="meta")})
