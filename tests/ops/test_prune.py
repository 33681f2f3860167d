"""prune is score, select and gather in one call."""

import math

import brute_force
import pytest
import torch
from brute_force import names
from op_inputs import counted, inputs, left_padding, picked

from adatp_kernels import Stage
from adatp_kernels.ops import prune, row_lse

pytestmark = pytest.mark.usefixtures("backend_of_auto")


def prune_arguments(batch=2, older=0):
    """Two text tokens, eight visual ones in columns 2 to 9 with a timestamp at 6, three text tokens."""
    query, key = inputs(3, 14 + older, 64, batch=batch)
    row = torch.tensor([0, 0, 0, 0, -1, 1, 1, 1, 1])
    return {
        "query": query,
        "key": key,
        "tensors": [counted(batch, 14, 2), counted(3, batch, 14), counted(1, 14)],
        "stage": Stage(1, (2, 1), 3),
        "dims": [1, (1, 2), -1],
        "segments": row.expand(batch, -1),
        "positions": torch.tensor([0, 1, 0, 1, 0, 0, 1, 0, 1]),
        "query_start": older + 11,
        "key_range": (older + 2, older + 11),
        "sequence_start": older,
    }


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("older", [0, 7])
def test_prune_is_its_three_operations(batch, older):
    arguments = prune_arguments(batch, older)
    phases = []
    indices, moved = prune(**arguments, on_phase=phases.append)
    scoring = {name: arguments[name] for name in ("query", "key", "query_start", "key_range")}
    scores = brute_force.column_sums(**scoring)
    positions = arguments["positions"].expand(batch, -1)
    columns = brute_force.select(scores, arguments["segments"], positions, [(2, 1)] * batch)
    assert indices.tolist() == [[0, 1, *(j + 2 for j in row), 11, 12, 13] for row in columns]
    assert phases == ["score", "select", "compact"]
    for got, tensor, axes in zip(moved, arguments["tensors"], [(0, 1), (1, 2), (0, 1)], strict=True):
        assert got.equal(picked(tensor, indices, *axes))
    again, _ = prune(**arguments, budgets=torch.tensor([2, 1]), num_selected=4)
    assert again.equal(indices)


def test_prune_passes_every_option_on():
    arguments = prune_arguments()
    key_mask = left_padding([0, 4], 14)
    query_mask = torch.tensor([[True, False, True], [False, True, True]])
    prior = torch.rand(9, generator=torch.Generator().manual_seed(5))
    options = {"dedup": "soft", "soft_weight": 0.4, "prior": prior}
    indices, _ = prune(**arguments, scale=0.3, key_mask=key_mask, query_mask=query_mask, **options)
    scoring = {name: arguments[name] for name in ("query", "key", "query_start", "key_range")}
    scores = brute_force.column_sums(**scoring, scale=0.3, key_mask=key_mask, query_mask=query_mask)
    columns = brute_force.select(
        scores, arguments["segments"], arguments["positions"].expand(2, -1), [(2, 1)] * 2, **options
    )
    assert indices.tolist() == [[0, 1, *(j + 2 for j in row), 11, 12, 13] for row in columns]


def test_prune_reads_the_lse_it_is_given():
    arguments = prune_arguments()
    lse = row_lse(arguments["query"], arguments["key"], query_start=11)
    indices, _ = prune(**arguments)
    assert prune(**arguments, lse=lse)[0].equal(indices)
    # An LSE of +inf makes every score 0; all ties go to the smaller index.
    blind, _ = prune(**arguments, lse=torch.full_like(lse, math.inf))
    assert blind.tolist() == [[0, 1, 2, 3, 6, 7, 11, 12, 13]] * 2


def test_prune_takes_scores_instead_of_the_attentions():
    arguments = prune_arguments()
    scores = torch.arange(18.0).reshape(2, 9)
    arguments["query"] = torch.full_like(arguments["query"], math.nan)  # not read
    indices, _ = prune(**arguments, scores=scores)
    assert indices.tolist() == [[0, 1, 4, 5, 6, 10, 11, 12, 13]] * 2


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"query": None}, "query"),
        ({"key": torch.ones(2, 2, 14, 32)}, "key"),
        ({"tensors": None}, "tensors"),
        ({"tensors": 5}, "tensors"),
        ({"tensors": [torch.ones(2, 13), torch.ones(2, 14), torch.ones(2, 14)], "dims": 1}, "tensors"),
        ({"tensors": [torch.ones(2, 14), None, torch.ones(2, 14)], "dims": 1}, "tensors"),
        ({"stage": None}, "stage"),
        ({"stage": (2, 1)}, "stage"),
        ({"stage": Stage(1, (5, 1), 6)}, "budgets"),
        ({"dims": [1]}, "dims"),
        ({"dims": None}, "dims"),
        ({"segments": None}, "segments"),
        ({"segments": torch.zeros(2, 8, dtype=torch.int64)}, "segments"),
        ({"segments": torch.full((9,), 2)}, "segments"),
        ({"positions": torch.zeros(9)}, "positions"),
        ({"query_start": -1}, "query_start"),
        ({"key_range": (2, 15)}, "key_range"),
        ({"key_range": None}, "key_range"),
        ({"sequence_start": 3}, "sequence_start"),
        ({"sequence_start": -1}, "sequence_start"),
        ({"sequence_start": 0.0}, "sequence_start"),
        ({"scale": 0}, "scale"),
        ({"lse": torch.zeros(2, 4, 14)}, "lse"),
        ({"key_mask": torch.ones(2, 13, dtype=torch.bool)}, "key_mask"),
        ({"query_mask": torch.ones(2, 14, dtype=torch.bool)}, "query_mask"),
        ({"scores": torch.ones(2, 8)}, "scores"),
        ({"scores": torch.ones(2, 9, dtype=torch.int64)}, "scores"),
        ({"scores": [[0.0] * 9] * 2}, "scores"),
        ({"dedup": "hard"}, "dedup"),
        ({"soft_weight": 2}, "soft_weight"),
        ({"prior": torch.ones(8)}, "prior"),
        ({"budgets": [1.0, 2.0]}, "budgets"),
        ({"num_selected": -1}, "num_selected"),
        ({"backend": "cuda"}, "backend"),
    ],
)
def test_prune_mistakes(changes, argument):
    with names(argument):
        prune(**(prune_arguments() | changes))


def test_prune_on_the_meta_device_reads_no_data():
    arguments = prune_arguments()
    meta = {name: value.to("meta") if isinstance(value, torch.Tensor) else value for name, value in arguments.items()}
    meta["tensors"] = [tensor.to("meta") for tensor in arguments["tensors"]]
    for dedup in ("strict", "soft", "off"):
        for prior in (None, torch.ones(9, device="meta")):
            indices, moved = prune(
                **meta,
                dedup=dedup,
                prior=prior,
                budgets=torch.ones(2, dtype=torch.int64, device="meta"),
                num_selected=4,
            )
            assert indices.shape == (2, 9)
            assert [tuple(tensor.shape) for tensor in moved] == [(2, 9, 2), (3, 2, 9), (2, 9)]
