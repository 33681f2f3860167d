"""What the pruner refuses, and in which words."""

import math

import pytest
import torch
from brute_force import names
from pruner_inputs import DIM, FLAT, GRID, LAYERS, SEGMENTS, TWO_STAGES, WIDTHS, half, pruner_of, scripted

from adatp_kernels import AdaTPPruner


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"config": None}, "config"),
        ({"config": "adatp"}, "config"),
        ({"num_layers": 0}, "num_layers"),
        ({"num_layers": 6.0}, "num_layers"),
        ({"num_layers": 4}, "stages"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"key_width": "32"}, "key_width"),
        ({"mlp_width": None}, "mlp_width"),
    ],
)
def test_constructor_mistakes(changes, argument):
    with names(argument):
        AdaTPPruner(**({"config": TWO_STAGES, "num_layers": LAYERS, **WIDTHS} | changes))


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"layout": None}, "layout"),
        ({"layout": torch.arange(48)}, "layout"),
        ({"length": 51}, "length"),
        ({"length": 52}, "length"),  # no text after the video
        ({"length": 0}, "length"),
        ({"length": 57.0}, "length"),
        ({"features": torch.ones(6, 3)}, "features"),  # both
        ({"segments": None}, "segments"),  # neither
        ({"segments": None, "features": torch.ones(5, 3)}, "segments"),
        ({"segments": None, "features": [1.0] * 6}, "features"),
        ({"segments": torch.zeros(5, dtype=torch.int64)}, "segments"),
        ({"segments": torch.ones(6)}, "segments"),
        ({"segments": "001122"}, "segments"),
        ({"relevance": torch.ones(5)}, "relevance"),
        ({"relevance": torch.full((6,), math.nan)}, "relevance"),
        ({"relevance": "high"}, "relevance"),
        ({"prior": torch.ones(6, 7)}, "prior"),
        ({"prior": torch.ones(5, 8)}, "prior"),
        ({"prior": torch.ones(48)}, "prior"),
        ({"prior": torch.ones(6, 8, dtype=torch.int64)}, "prior"),
        ({"prior": [[1.0] * 8] * 6}, "prior"),
        ({"images": torch.tensor([56])}, "length"),  # no text after the image
        ({"images": torch.tensor([57])}, "images"),
        ({"images": torch.tensor([-1])}, "images"),
        ({"images": torch.tensor([4])}, "images"),  # of the layout
        ({"images": torch.tensor([51, 52])}, "images"),
        ({"images": torch.tensor([53, 52])}, "images"),
        ({"images": torch.tensor([52, 52])}, "images"),
        ({"images": torch.tensor([52.0])}, "images"),
        ({"images": torch.tensor([[52]])}, "images"),
        ({"images": torch.tensor([0]), "padding": 1}, "images"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 1.5}, "batch_size"),
        ({"device": "gpu"}, "device"),
    ],
)
def test_begin_mistakes(changes, argument):
    good = {"layout": GRID, "length": 57, "segments": SEGMENTS}
    with names(argument):
        pruner_of().begin(**(good | changes))


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"layout": []}, "layout"),
        ({"layout": [GRID, None]}, "layout"),
        ({"layout": [GRID] * 3}, "segments"),
        ({"segments": SEGMENTS}, "segments"),
        ({"segments": [SEGMENTS, SEGMENTS[:5]]}, "segments"),
        ({"relevance": torch.ones(6)}, "relevance"),
        ({"relevance": [torch.ones(6)] * 3}, "relevance"),
        ({"prior": [torch.ones(6, 8)]}, "prior"),
        ({"padding": 2}, "padding"),
        ({"padding": [2]}, "padding"),
        ({"padding": [2, 5]}, "padding"),  # into the video
        ({"padding": [2, -1]}, "padding"),
        ({"images": torch.tensor([53])}, "images"),
        ({"images": [torch.tensor([53])]}, "images"),
        ({"images": [None, torch.tensor([0])]}, "images"),  # padding
        ({"batch_size": 2}, "batch_size"),
        ({"length": 52}, "length"),
    ],
)
def test_begin_mistakes_with_a_batch(changes, argument):
    good = {"layout": [GRID, GRID], "length": 57, "segments": [SEGMENTS, SEGMENTS], "padding": [0, 1]}
    pruner_of().begin(**good)
    with names(argument):
        pruner_of().begin(**(good | changes))


@pytest.mark.parametrize("stage", ["first", "second"])
@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        (lambda n: {"state": None}, "state"),
        (lambda n: {"query": None}, "query"),
        (lambda n: {"query": torch.ones(2, 4, n - 1, DIM)}, "query"),
        (lambda n: {"query": torch.ones(2, 4, n + 1, DIM), "key": torch.ones(2, 2, n + 1, DIM)}, "query"),
        (lambda n: {"query": torch.ones(1, 4, n, DIM), "key": torch.ones(1, 2, n, DIM)}, "query"),
        (lambda n: {"query": torch.ones(2, 3, n, DIM)}, "query"),
        (lambda n: {"key": None}, "key"),
        (lambda n: {"key": torch.ones(2, 2, n - 1, DIM)}, "key"),
        (lambda n: {"key": torch.ones(2, 2, n, 8)}, "key"),
        (lambda n: {"tensors": None}, "tensors"),
        (lambda n: {"tensors": (torch.ones(2, n - 1),)}, "tensors"),
        (lambda n: {"tensors": (torch.ones(3, n),)}, "tensors"),
        (lambda n: {"tensors": ([0.0] * n,)}, "tensors"),
        (lambda n: {"dims": None}, "dims"),
        (lambda n: {"dims": "1"}, "dims"),
        (lambda n: {"dims": [1, 1]}, "dims"),
        (lambda n: {"dims": 0}, "dims"),
        (lambda n: {"dims": True}, "dims"),
        (lambda n: {"dims": 1.0}, "dims"),
        (lambda n: {"key": torch.ones(2, 2, n)}, "key"),
        (lambda n: {"key": torch.ones(2, 2, n, DIM, 1)}, "key"),
        (lambda n: {"dims": 5}, "dims"),
        (lambda n: {"scale": -1.0}, "scale"),
        (lambda n: {"lse": 0.0}, "lse"),
        (lambda n: {"lse": torch.zeros(2, 4, n - 1)}, "lse"),
        (lambda n: {"lse": torch.zeros(2, 4, n + 1)}, "lse"),
        (lambda n: {"lse": torch.zeros(n)}, "lse"),
        (lambda n: {"lse": torch.zeros(2, 4, n, dtype=torch.float16)}, "lse"),
        (lambda n: {"key_mask": torch.ones(2, n)}, "key_mask"),
        (lambda n: {"key_mask": torch.ones(2, n + 1, dtype=torch.bool)}, "key_mask"),
        (lambda n: {"key_mask": True}, "key_mask"),
        (lambda n: {"query": torch.ones(2, 4, n, DIM).half()}, "key"),
        (lambda n: {"key": torch.ones(2, 2, n, DIM).half()}, "key"),
        (lambda n: {"query": torch.ones(2, 4, n, DIM, device="meta")}, "key"),
        (lambda n: {"tensors": (torch.ones(2, n, 3, device="meta"),)}, "tensors"),
        (lambda n: {"tensors": (torch.ones(2, n, 3),) * 2, "dims": [1]}, "dims"),
        (lambda n: {"tensors": (torch.ones(2),)}, "dims"),
        (
            lambda n: {
                "query": torch.ones(2, 4, n, DIM, device="meta"),
                "key": torch.ones(2, 2, n, DIM, device="meta"),
            },
            "state",
        ),
    ],
)
def test_forward_mistakes(changes, argument, stage):
    """At every stage, although a later one's arguments are only compared with those of the one before."""
    pruner, length = pruner_of(), 57
    state = pruner.begin(GRID, length, segments=SEGMENTS, batch_size=2)
    if stage == "second":
        state, _ = pruner(state, *arguments(length), dims=1)
        length = state.length
    good = dict(zip(("query", "key", "tensors"), arguments(length), strict=True)) | {"state": state, "dims": 1}
    pruner(**good)
    with names(argument):
        pruner(**(good | changes(length)))


def arguments(length):
    return torch.ones(2, 4, length, DIM), torch.ones(2, 2, length, DIM), (torch.ones(2, length, 3),)


def test_stages_of_one_prompt_may_be_called_differently():
    """With other tensors, in another dtype, with an LSE or a mask."""
    for changes in (
        lambda n: {"tensors": ()},
        lambda n: {"tensors": (torch.ones(2, n, 3), torch.ones(1, n, 2))},
        lambda n: {"tensors": [torch.ones(3, 2, n)], "dims": [(1, 2)]},
        lambda n: {"query": torch.ones(2, 4, n, DIM).half(), "key": torch.ones(2, 2, n + 3, DIM).half()},
        lambda n: {"query": torch.ones(2, 2, n, 2 * DIM), "key": torch.ones(2, 1, n, 2 * DIM)},
        lambda n: {"scale": 0.5},
        lambda n: {"lse": torch.zeros(2, 4, n), "key_mask": torch.ones(2, n, dtype=torch.bool)},
    ):
        pruner = pruner_of()
        state, _ = pruner(pruner.begin(GRID, 57, segments=SEGMENTS, batch_size=2), *arguments(57), dims=1)
        given = dict(zip(("query", "key", "tensors"), arguments(state.length), strict=True)) | {"dims": 1}
        given |= changes(state.length)
        following, moved = pruner(state, **given)
        assert len(moved) == len(given["tensors"]) and following.next_layer is None
        assert all(following.length in tensor.shape for tensor in moved)
        assert following._accepted.scale == given.get("scale", given["query"].shape[3] ** -0.5)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ((torch.zeros(2, 3, 57), [[0, 2]]), lambda dims: dims[0].__setitem__(1, 3)),
        ((torch.zeros(2, 3, 57), -1), lambda dims: None),
        ((torch.zeros(2, 3, 57), [(0, -1)]), lambda dims: None),
    ],
    ids=["a pair that was changed", "from behind", "a pair from behind"],
)
def test_equal_dims_may_mean_another_dimension(first, then):
    """Of another tensor, in which as many entries stand in the dimension that it was before."""
    pruner, (tensor, dims) = pruner_of(), first
    query, key, _ = arguments(57)
    state, _ = pruner(pruner.begin(GRID, 57, segments=SEGMENTS, batch_size=2), query, key, (tensor,), dims=dims)
    then(dims)
    n = state.length
    query, key, _ = arguments(n)
    table = torch.arange(2 * 3 * n * n).view(2, 3, n, n)
    following, (moved,) = pruner(state, query, key, (table,), dims=dims)
    places = torch.searchsorted(state.kept[0], following.kept[0])
    assert moved.equal(table[..., places])


def test_messages_speak_of_what_the_caller_gave():
    """Not of the tensors that the pruner adds, nor of the rows that it cuts off."""
    pruner = pruner_of()
    state = pruner.begin(GRID, 57, segments=SEGMENTS)
    query, key, hidden = torch.ones(1, 4, 57, DIM), torch.ones(1, 2, 57, DIM), torch.ones(1, 57, 3)
    with pytest.raises(ValueError, match="each of the 1 tensors"):
        pruner(state, query, key, (hidden,), dims=[1, 1])
    with pytest.raises(ValueError, match=r"^lse: .*\[1, 4, 57\].*\[1, 4, 56\]"):
        pruner(state, query, key, (hidden,), dims=1, lse=torch.zeros(1, 4, 56))


def test_no_stage_is_left():
    pruner = pruner_of(half())
    state = pruner.begin(FLAT, 10, segments=torch.tensor([0]))
    state, _ = pruner(state, *scripted([0.0] * 8, 10, 1), (), dims=1)
    with pytest.raises(RuntimeError, match="^state: all stages are done"):
        pruner(state, *scripted([0.0] * 4, 6, 1), (), dims=1)


def test_the_configs_backend_runs(monkeypatch):
    pruner = pruner_of(half(backend="triton"))
    state = pruner.begin(FLAT, 10, segments=torch.tensor([0]))
    with pytest.raises(RuntimeError, match="^backend: 'triton' cannot run"):
        pruner(state, *scripted([0.0] * 8, 10, 1), (), dims=1)


def test_a_group_is_a_process_group():
    with pytest.raises(TypeError, match=r"^group: expected a torch.distributed.ProcessGroup, got str"):
        AdaTPPruner(TWO_STAGES, num_layers=LAYERS, **WIDTHS, group="world")
