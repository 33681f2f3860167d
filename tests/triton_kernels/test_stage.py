"""A whole stage on Triton: the reference's result, in three launches."""

import pytest
import torch
from op_inputs import inputs, left_padding

from adatp_kernels import AdaTPConfig, AdaTPPruner, Stage, VisualLayout, ops

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


def test_the_pruner_runs_on_it(device):
    layout = VisualLayout.grid(4, 9, 2)
    results = []
    for backend in ("triton", "reference"):
        config = AdaTPConfig(target_flops=0.6, stages=(0, 1), spatial_dedup="off", backend=backend)
        pruner = AdaTPPruner(config, num_layers=4, hidden_size=32, key_width=64, mlp_width=64)
        state = pruner.begin(layout, 42, segments=torch.tensor([0, 0, 1, 1]), device=device)
        generator, hidden = torch.Generator().manual_seed(0), torch.arange(42.0)[None, :, None].to(device)
        while state.next_layer is not None:
            query = torch.randn(1, 4, state.length, 16, generator=generator).to(device)
            key = torch.randn(1, 2, state.length, 16, generator=generator).to(device)
            state, (hidden,) = pruner(state, query, key, (hidden,), dims=1)
        assert hidden[0, :, 0].long().equal(state.kept[0])
        results.append(state.kept)
    assert results[0].equal(results[1])


def test_devices_must_agree(device):
    with pytest.raises(ValueError, match="scores: expected device"):
        ops.prune(**{**arguments(device), "scores": torch.rand(2, 21, device="meta")})
