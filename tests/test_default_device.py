"""Whatever device and precision new tensors have by default, the pruner and its operations do the same."""

import ast
from pathlib import Path

import pytest
import torch
from default_contexts import check_same, of_defaults
from op_inputs import inputs, left_padding, packed
from pruner_inputs import SEGMENTS, TWO_STAGES, WIDTHS, prompt, pruner_of
from torch.utils._device import _device_constructors

import adatp_kernels as adatp
from adatp_kernels import AdaTPConfig, VisualLayout, ops

PACKAGE = Path(adatp.__file__).parent
MAKERS = {f"torch.{make.__name__}" for make in _device_constructors()}


def test_every_new_tensor_is_made_on_a_device_that_is_named():
    """One that is not would be made on the default device, which is the caller's to choose."""
    unnamed = [
        f"{file.relative_to(PACKAGE)}:{call.lineno}: {ast.unparse(call)}"
        for file in sorted(PACKAGE.rglob("*.py"))
        if "training" not in file.parts  # of the demo's model: a program by itself
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and ast.unparse(call.func) in MAKERS
        if all(keyword.arg != "device" for keyword in call.keywords)
    ]
    assert unnamed == []


@of_defaults
@pytest.mark.parametrize("score", ["attention", "random", "uniform"])
def test_pruner(default, score):
    length = 60
    features = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    hidden, prior, padding = prompt(length, batch=2), torch.rand(6, 8), left_padding([0, 2], length)
    query, key = inputs(length, length, 16)

    def act():
        row = VisualLayout.grid(6, 8, start=4)
        # A timestamp stands before every frame but the first.
        stamped = VisualLayout(
            [4 + j + j // 8 for j in range(48)], [j // 8 for j in range(48)], [j % 8 for j in range(48)]
        )
        pruner = pruner_of(AdaTPConfig(target_flops=None, stages=(1, 3), schedule=(0.5, 0.25), score=score))
        state = pruner.begin(
            [row, stamped], length, features=[features, features], relevance=[[0.1] * 5 + [0.2], None],
            prior=[prior, prior], padding=[0, 2],
        )  # fmt: skip
        table = torch.stack(row.table(SEGMENTS, length))
        following, moved = pruner(state, query, key, (hidden,), dims=1, key_mask=padding)
        ranges = [step.segment_ranges for step in state._remaining]  # not all backends look at them
        return [table, *ranges, *state.segments, *moved, *following.kept]

    check_same(default, act)


@of_defaults
def test_segments_and_salience(default):
    features = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    # In bfloat16 all of these are equal.
    scores = [0.3004, 0.3004, 0.2998, 0.2998, 0.2998, 0.2998]

    def act():
        salient = adatp.salient_segments([0, 0, 1, 1, 2, 2], scores)
        return [salient, adatp.segment_frames(features, 0.5)]

    assert adatp.salient_segments(torch.tensor([0, 0, 1, 1, 2, 2]), scores).tolist() == [True, False, False]
    check_same(default, act)


@of_defaults
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_operations(backend, default):
    if not ops.backend_report().available[backend]:
        pytest.skip("cannot be built here")
    query, key = inputs(8, 40, 32)
    segments, positions = (torch.arange(30) // 10).expand(2, -1), (torch.arange(30) % 10).expand(2, -1)
    padding, hidden = left_padding([0, 3], 40), torch.randn(2, 40, 6)
    many, keys, lengths = packed([(3, 9), (5, 20)])
    where = {"query_start": 32, "key_range": (4, 34), "backend": backend}

    def act():
        layout = VisualLayout.grid(3, 10, start=4)
        stage = adatp.make_plan(TWO_STAGES, layout, [0, 1, 2], num_layers=6, **WIDTHS).stages[0]
        lse = ops.row_lse(query, key, query_start=32, key_mask=padding, backend=backend)
        sums = ops.column_sums(query, key, lse=lse, key_mask=padding, **where)
        chosen = ops.select(sums, segments, positions, [3, 4, 5], backend=backend)
        moved = ops.gather(chosen, hidden, dims=1, backend=backend)
        kept, pruned = ops.prune(query, key, (hidden,), stage, dims=1, segments=segments, positions=positions, **where)
        out = adatp.flash_attention(query, key[:, :, :8], key[:, :, :8])
        attended = adatp.flash_attention_varlen(many, keys, keys, **lengths)
        apart = ops.column_sums_varlen(many, keys, **lengths, backend=backend)
        return [lse, sums, chosen, *moved, kept, *pruned, *out, *attended, apart]

    check_same(default, act)
