"""prune inside torch.compile: one operator, whose fake tells the shapes."""

import torch
from op_inputs import inputs

from adatp_kernels import Stage, ops
from adatp_kernels.ops.compiled import prune_operator

IDS, POSITIONS = torch.tensor([0] * 8 + [-1] + [1] * 8), torch.tensor([*[0, 1, 2, 3] * 2, -1, *[0, 1, 2, 3] * 2])


def stage(query, key, hidden, ids):
    indices, (hidden, ids) = ops.prune(
        query, key, [hidden * 2, ids], Stage(1, (3, 2), 5), dims=[1, (1, 2)], segments=IDS, positions=POSITIONS,
        query_start=20, key_range=(2, 19), budgets=torch.tensor([3, 2]), num_selected=6, num_positions=4,
    )  # fmt: skip
    return indices, hidden + 1, ids


def arguments(batch):
    query, key = inputs(4, 24, 64, batch=batch)
    return query, key, torch.randn(batch, 24, 16), torch.arange(24).expand(3, batch, 24)


def test_a_compiled_stage_is_the_eager_one():
    for batch in (1, 2):
        given = arguments(batch)
        expected, actual = stage(*given), torch.compile(stage, backend="aot_eager", fullgraph=True)(*given)
        assert all(a.equal(e) for a, e in zip(actual, expected, strict=True))
        assert all(a.shape == e.shape for a, e in zip(actual, expected, strict=True))
        torch._dynamo.reset()


def test_the_operator_keeps_its_contract():
    query, key, hidden, ids = arguments(2)
    given = (
        query, key, [hidden, ids], torch.tensor([[3, 2]] * 2), [0, 1, 1, 2], IDS.expand(2, -1), POSITIONS.expand(2, -1), 20,
        [2, 19], 0, 0.125, None, None, None, None, "strict", 0.0, None, 6, 4, None, None,
        "auto",
    )  # fmt: skip
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_static")
    torch.library.opcheck(prune_operator, given, test_utils=checks)
