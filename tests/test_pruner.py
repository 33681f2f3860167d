"""A decoder loop with the pruner, against the operations one by one and against the whole sequence."""

import dataclasses
import itertools
import math

import brute_force
import pytest
import torch
from pruner_inputs import (
    DIM,
    GRID,
    HEADS,
    KV_HEADS,
    SEGMENTS,
    STAMPED,
    TWO_STAGES,
    Decoder,
    prompt,
    pruner_of,
    rotary,
    scripted,
)

from adatp_kernels import AdaTPConfig, VisualLayout
from adatp_kernels.ops import checked, checks, column_sums, gather, select


@pytest.fixture
def checked_stages(monkeypatch):
    """At every stage what is said of budgets and ranges is checked, as it is for a caller of `ops.select` who doesn't count."""
    prune, stages = checked.prune, []

    def check(pruning, backend):
        said = pruning.selection
        assert said.segment_ranges is not None
        counted = checks.selection(
            tuple(said.segments.shape), pruning.device, said.segments, said.positions, said.budgets, said.dedup,
            said.soft_weight, said.prior, None, said.num_positions, said.segment_ranges, said.longest_segment,
        )  # fmt: skip
        assert counted.num_selected == said.num_selected
        stages.append(pruning)
        return prune(pruning, backend)

    monkeypatch.setattr(checked, "prune", check)
    yield
    assert stages


@pytest.mark.usefixtures("checked_stages")
@pytest.mark.parametrize(("layout", "length"), [(GRID, 57), (STAMPED, 62)])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("dedup", ["strict", "soft", "off"])
def test_a_decoder_loop(layout, length, batch, dedup):
    config = AdaTPConfig(target_flops=None, stages=(1, 3), schedule=(0.5, 0.25), spatial_dedup=dedup, soft_weight=0.5)
    pruner = pruner_of(config)
    state = pruner.begin(layout, length, segments=SEGMENTS, batch_size=batch)
    states, hidden, scored = Decoder()(prompt(length, batch), pruner, state)
    text = sorted(set(range(length)) - set(layout.index.tolist()))
    visual = {place: number for number, place in enumerate(layout.index.tolist())}
    assert [after.num_visual for after in states] == [48, 48, 24, 24, 12, 12, 12]
    assert [after.next_layer for after in states] == [1, 1, 3, 3, None, None, None]
    stages = [pair for pair in itertools.pairwise(states) if pair[0] is not pair[1]]
    for (before, after), (query, key), stage in zip(stages, scored, state.plan.stages, strict=True):
        # The same stage from its definition: the whole map in float64, then sorted lists.
        places = before.kept.tolist()
        columns = [j for j, place in enumerate(places[0]) if place in visual]
        first, last = columns[0], columns[-1] + 1
        assert before.key_range == (first, last)
        number = [[visual.get(place, -1) for place in row[first:last]] for row in places]
        segments = [[-1 if n < 0 else SEGMENTS[layout.frame[n]].item() for n in row] for row in number]
        positions = [[-1 if n < 0 else layout.position[n].item() for n in row] for row in number]
        scores = brute_force.column_sums(query[:, :, last:], key, query_start=last, key_range=(first, last))
        chosen = brute_force.select(
            scores,
            torch.tensor(segments),
            torch.tensor(positions),
            [stage.budgets] * batch,
            dedup=dedup,
            soft_weight=0.5,
        )
        for row, keep, now in zip(places, chosen, after.kept.tolist(), strict=True):
            assert now == row[:first] + [row[first + j] for j in keep] + row[last:]
            assert set(text) <= set(now)
        assert after.length == after.kept.shape[1] == stage.total + len(text)
    assert hidden.shape == (batch, states[-1].length, HEADS * DIM)


def test_what_travels_with_a_token_stays_with_it():
    pruner = pruner_of()
    state = pruner.begin(GRID, 57, segments=SEGMENTS, batch_size=2)
    query, key = torch.randn(2, 4, 57, DIM), torch.randn(2, 2, 57, DIM)
    places = torch.arange(57)
    following, (hidden, ids, mask) = pruner(
        state,
        query,
        key,
        (places.expand(2, -1)[..., None].float(), places.expand(3, 2, -1), (places % 2 == 0)[None]),
        dims=(1, (1, 2), -1),
    )
    assert hidden[..., 0].long().equal(following.kept)
    assert all(row.equal(following.kept) for row in ids)
    assert mask.equal(following.kept % 2 == 0)
    assert (following.kept.diff() > 0).all()
    assert not following.kept[0].equal(following.kept[1])  # each batch row chooses for itself


@pytest.mark.usefixtures("checked_stages")
def test_a_batch_is_its_rows():
    hidden = prompt(57, batch=2)
    pruner, decoder = pruner_of(), Decoder()
    both, out, _ = decoder(hidden, pruner, pruner.begin(GRID, 57, segments=SEGMENTS, batch_size=2))
    for row in range(2):
        one, out_one, _ = decoder(hidden[row : row + 1], pruner, pruner.begin(GRID, 57, segments=SEGMENTS))
        assert one[-1].kept.equal(both[-1].kept[row : row + 1])
        torch.testing.assert_close(out_one, out[row : row + 1], rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("checked_stages")
@pytest.mark.parametrize("queries", ["text", "last"])
def test_a_batch_of_different_prompts_is_its_rows(queries):
    """Five columns of padding before the first; the second has less text before its video, and more after it."""
    config = dataclasses.replace(TWO_STAGES, queries=queries)
    pruner, decoder = pruner_of(config), Decoder()
    first, second = prompt(57), prompt(62, seed=2)
    prior = torch.rand(6, 8, generator=torch.Generator().manual_seed(3)) + 0.5
    other = VisualLayout.grid(6, 8, start=2)
    rows = [
        (first, GRID, SEGMENTS, torch.tensor([0, 0, 1, 1, 1, 0.0]), prior),
        (second, other, torch.tensor([0, 1, 1, 1, 2, 3]), torch.tensor([1.0, 0, 0, 0, 0, 0]), prior.flip(0)),
    ]
    alone = []
    for hidden, layout, segments, relevance, factor in rows:
        begun = pruner.begin(layout, hidden.shape[1], segments=segments, relevance=relevance, prior=factor)
        alone.append((begun, *decoder(hidden, pruner, begun)))

    shifted = VisualLayout(GRID.index + 5, GRID.frame, GRID.position)
    segments, relevance, factors = ([row[i] for row in rows] for i in (2, 3, 4))
    state = pruner.begin([shifted, other], 62, segments=segments, relevance=relevance, prior=factors, padding=[5, 0])
    assert state.plans == tuple(begun.plan for begun, *_ in alone)
    assert state.salient_segments == ((1,), (0,)) and state.text_tokens == (9, 14)
    assert [row.tolist() for row in state.segments] == [row.tolist() for row in segments]
    hidden = torch.cat([torch.nn.functional.pad(first, (0, 0, 5, 0)), second])
    states, out, _ = decoder(hidden, pruner, state, key_mask=torch.arange(62) >= torch.tensor([[5], [0]]))
    kept = states[-1].kept
    assert states[-1].length == 14 + 12 and states[-1].key_range == (2, 21)
    assert kept[0].tolist() == [*range(5), *(alone[0][1][-1].kept[0] + 5).tolist()]
    assert kept[1].equal(alone[1][1][-1].kept[0])
    # Five places further on, rotary angles round differently.
    torch.testing.assert_close(out[0, 5:], alone[0][2][0], rtol=0, atol=5e-3)
    torch.testing.assert_close(out[1], alone[1][2][0], rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("checked_stages")
def test_padding_beside_a_short_video_goes_with_the_first_stage():
    """Rows of 16 and 48 visual tokens keep 8 and 4; the padding is gone at once, but for three columns beside more text."""
    config = AdaTPConfig(target_flops=None, stages=(1, 3), schedule=(0.5, 0.25), spatial_dedup="off")
    pruner = pruner_of(config)
    short, long = VisualLayout.grid(2, 8, start=36), VisualLayout.grid(6, 8, start=4)
    state = pruner.begin(
        [short, long], 57, segments=[torch.tensor([0, 1]), torch.zeros(6, dtype=torch.int64)], padding=[35, 0]
    )
    assert state.key_range == (0, 52) and state.text_tokens == (6, 9)
    key_mask = torch.arange(57) >= torch.tensor([[35], [0]])
    for total, layer in ((8, 1), (4, 3)):
        assert state.next_layer == layer
        generator = torch.Generator().manual_seed(layer)
        query = torch.randn(2, 4, state.length, DIM, generator=generator)
        key = torch.randn(2, 2, state.length, DIM, generator=generator)
        state, (key_mask,) = pruner(state, query, key, (key_mask,), dims=1, key_mask=key_mask)
        assert state.length == 9 + total and state.num_visual == total
        assert key_mask.sum(1).tolist() == [6 + total, 9 + total]
        assert state.key_range == (4, 4 + total)
        kept = [set(row.tolist()) for row in state.kept]
        assert kept[0] >= {35, *range(52, 57)} and kept[1] >= {*range(4), *range(52, 57)}
        assert len(kept[0] & set(range(35))) == 3 and len(kept[0] & set(range(36, 52))) == total
    assert state.next_layer is None


def test_the_state_that_was_given_stays_as_it_was():
    pruner = pruner_of()
    state = pruner.begin(GRID, 57, segments=SEGMENTS)
    query, key = torch.randn(1, 4, 57, DIM), torch.randn(1, 2, 57, DIM)
    first, _ = pruner(state, query, key, (), dims=1)
    assert (state.length, state.next_layer, state.num_visual, state.key_range) == (57, 1, 48, (4, 52))
    assert state.kept.tolist() == [list(range(57))]
    again, _ = pruner(state, query, key, (), dims=1)
    assert again.kept.equal(first.kept)


def test_a_stage_is_score_select_gather():
    pruner = pruner_of(AdaTPConfig(target_flops=None, stages=(1,), schedule=(0.3,)))
    state = pruner.begin(STAMPED, 62, segments=SEGMENTS, relevance=torch.tensor([0.1, 0.1, 0.9, 0.9, 0.9, 0.1]))
    generator = torch.Generator().manual_seed(3)
    query, key = torch.randn(1, 4, 62, DIM, generator=generator), torch.randn(1, 2, 62, DIM, generator=generator)
    hidden = torch.randn(1, 62, 8, generator=generator)
    following, (moved,) = pruner(state, query, key, (hidden,), dims=1, scale=0.4)
    first, last = STAMPED.key_range
    segments, positions = STAMPED.table(SEGMENTS, 62)
    scores = column_sums(query[:, :, last:], key, query_start=last, key_range=(first, last), scale=0.4)
    columns = select(scores, segments[first:last], positions[first:last], state.plan.stages[0].budgets)
    indices = torch.cat([torch.arange(first), columns[0] + first, torch.arange(last, 62)])[None]
    assert following.kept.equal(indices)
    assert moved.equal(gather(indices, hidden, dims=1)[0])
    assert following.salient == (1,)
    assert following.plan.stages[0].budgets == (4, 8, 2)  # 14 in the ratio 16 : 2·24 : 8, and 8 is a cap


@pytest.mark.parametrize(("dedup", "second"), [("soft", [4, 5, 10, 11]), ("off", [4, 5, 8, 9])])
def test_soft_stays_soft_after_the_first_stage(dedup, second):
    """Two frames of four positions: what a position's better token lowers is still there, and is lowered again."""
    config = AdaTPConfig(target_flops=None, stages=(1, 3), schedule=(1.0 - 1 / 8, 0.5), spatial_dedup=dedup)
    pruner, layout = pruner_of(config), VisualLayout.grid(2, 4, start=4)
    state = pruner.begin(layout, 14, segments=torch.zeros(2, dtype=torch.int64))
    state, _ = pruner(state, *scripted([5.0, 4, 3, 0, 9, 8, 7, 6], 14, 4), (), dims=1, scale=1.0)
    assert [j for j in state.kept[0].tolist() if 4 <= j < 12] == [4, 5, 6, 8, 9, 10, 11]
    state, _ = pruner(state, *scripted([9.0, 8, 0, 7, 6, 2, 1], 13, 4), (), dims=1, scale=1.0)
    assert [j for j in state.kept[0].tolist() if 4 <= j < 12] == second


def test_a_state_goes_to_another_device_as_a_whole():
    rows = [GRID, VisualLayout.grid(2, 8, start=30)]
    priors = [torch.rand(6, 8), torch.rand(2, 8)]
    random = pruner_of(AdaTPConfig(score="random", target_flops=0.5, stages=(1,)))
    state = random.begin(rows, 57, segments=[SEGMENTS, torch.tensor([0, 1])], prior=priors, padding=[0, 9])
    moved = state.to("meta")
    tensors = [value for value in vars(moved).values() if isinstance(value, torch.Tensor)]
    for step in moved._remaining:
        tensors += [value for value in vars(step).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 4 + 2 * len(moved._remaining) > 4
    assert all(value.device.type == "meta" for value in tensors)
    assert state.to("cpu") is state


def test_lse_given_or_not():
    pruner, decoder = pruner_of(), Decoder()
    state = pruner.begin(GRID, 57, segments=SEGMENTS)
    _, query, key, lse = decoder.attend(decoder.layers[1], prompt(57), *rotary(57))
    assert pruner(state, query, key, (), dims=1, lse=lse)[0].kept.equal(pruner(state, query, key, (), dims=1)[0].kept)
    # And it is read: with +inf every score is 0, and ties go to the first tokens of each segment.
    blind, _ = pruner(state, query, key, (), dims=1, lse=torch.full_like(lse, math.inf))
    budgets = state.plan.stages[0].budgets
    wanted = [j for start, budget in zip((4, 20, 44), budgets, strict=True) for j in range(start, start + budget)]
    assert blind.kept.tolist() == [[0, 1, 2, 3, *wanted, 52, 53, 54, 55, 56]]


def test_keys_of_an_older_cache():
    pruner, decoder = pruner_of(AdaTPConfig(target_flops=None, stages=(1,), schedule=(0.3,))), Decoder()
    weights, hidden = decoder.layers[1], prompt(57, batch=2)
    past = [torch.randn(2, KV_HEADS, 9, DIM, generator=torch.Generator().manual_seed(7)) for _ in range(2)]
    _, query, key, lse = decoder.attend(weights, hidden, *rotary(57, start=9), past=past)
    state = pruner.begin(GRID, 57, segments=SEGMENTS, batch_size=2)
    segments, positions = (row[4:52].expand(2, -1) for row in GRID.table(SEGMENTS, 57))
    padding = torch.ones(2, 66, dtype=torch.bool)
    padding[1, :7] = False
    for options in ({}, {"lse": lse}, {"key_mask": padding}):
        following, (moved,) = pruner(state, query, key, (hidden,), dims=1, **options)
        scores = brute_force.column_sums(
            query[:, :, 52:], key, query_start=61, key_range=(13, 61), key_mask=options.get("key_mask")
        )
        columns = brute_force.select(scores, segments, positions, [state.plan.stages[0].budgets] * 2)
        assert following.kept.tolist() == [[0, 1, 2, 3, *(4 + j for j in row), 52, 53, 54, 55, 56] for row in columns]
        assert moved.equal(gather(following.kept, hidden, dims=1)[0])


def test_padding_is_not_seen():
    pruner, decoder = pruner_of(), Decoder()
    hidden = prompt(57, batch=2)
    key_mask = torch.ones(2, 57, dtype=torch.bool)
    key_mask[1, :3] = False
    state = pruner.begin(GRID, 57, segments=SEGMENTS, batch_size=2)
    states, out, _ = decoder(hidden, pruner, state, key_mask)
    dirty = hidden.clone()
    dirty[1, :3] = 50.0
    states_dirty, out_dirty, _ = decoder(dirty, pruner, state, key_mask)
    assert states_dirty[-1].kept.equal(states[-1].kept)
    torch.testing.assert_close(out_dirty[1, 3:], out[1, 3:])


@pytest.mark.usefixtures("checked_stages")
def test_stages_that_drop_nothing_are_skipped():
    # One segment of six frames of 8 cells: deduplication leaves 8, whatever the first two stages are scheduled to keep.
    config = AdaTPConfig(target_flops=None, stages=(0, 1, 2, 4), schedule=(1.0, 0.5, 0.4, 0.125))
    pruner = pruner_of(config)
    state = pruner.begin(GRID, 57, segments=torch.zeros(6, dtype=torch.int64))
    assert state.plan.capped
    assert [stage.total for stage in state.plan.stages] == [8, 8, 8, 6]
    states, _, _ = Decoder()(prompt(57), pruner, state)
    assert [after.num_visual for after in states] == [48, 8, 8, 8, 8, 6, 6]
    assert [after.next_layer for after in states] == [0, 4, 4, 4, 4, None, None]


def test_a_plan_that_prunes_nothing():
    state = pruner_of(AdaTPConfig(target_flops=1.0, stages=(1,))).begin(GRID, 57, segments=torch.arange(6))
    assert (state.next_layer, state.length, state.num_visual) == (None, 57, 48)


@pytest.mark.usefixtures("checked_stages")
def test_all_visual_tokens_may_go():
    pruner = pruner_of(AdaTPConfig(target_flops=None, stages=(1, 2), schedule=(0.0, 0.0)))
    state = pruner.begin(STAMPED, 62, segments=SEGMENTS)
    following, _ = pruner(state, torch.randn(1, 4, 62, DIM), torch.randn(1, 2, 62, DIM), (), dims=1)
    assert following.kept.tolist() == [sorted(set(range(62)) - set(STAMPED.index.tolist()))]
    assert (following.num_visual, following.next_layer) == (0, None)


def test_no_step_waits_for_the_device():
    """On the meta device there is no data to wait for: whatever reads some fails."""
    for score in ("attention", "random", "uniform"):
        for dedup in ("strict", "soft", "off"):
            config = AdaTPConfig(
                target_flops=None, stages=(1, 3), schedule=(0.5, 0.25), score=score, spatial_dedup=dedup
            )
            pruner = pruner_of(config)
            prior = torch.rand(6, 8)
            state = pruner.begin(STAMPED, 62, segments=SEGMENTS, prior=prior, batch_size=2, device="meta")
            while state.next_layer is not None:
                query, key = (
                    torch.empty(2, 4, state.length, DIM, device="meta"),
                    torch.empty(2, 2, state.length, DIM, device="meta"),
                )
                hidden = torch.empty(2, state.length, 8, device="meta")
                mask = torch.ones(2, state.length, dtype=torch.bool, device="meta")
                state, (hidden,) = pruner(state, query, key, (hidden,), dims=1, key_mask=mask)
                assert hidden.shape == (2, state.length, 8)
            assert (state.length, state.num_visual) == (26, 12)


def test_no_step_reads_a_value(monkeypatch):
    """On the CPU the range check of gather may read the indices; nothing else may read anything."""
    pruner = pruner_of()
    state = pruner.begin(GRID, 57, segments=SEGMENTS, batch_size=2)
    query, key, hidden = torch.randn(2, 4, 57, DIM), torch.randn(2, 2, 57, DIM), torch.randn(2, 57, 8)

    def refuse(*args, **kwargs):
        raise AssertionError("a value was read")

    # The dimensions as gather_inputs finds them, without its look at the indices.
    monkeypatch.setattr(
        "adatp_kernels.ops.checks.gather_inputs", lambda indices, tensors, dims, length=None: [(0, 1)] * len(tensors)
    )
    for name in (
        "item",
        "tolist",
        "nonzero",
        "cpu",
        "numpy",
        "__bool__",
        "__int__",
        "__float__",
        "__index__",
        "__iter__",
    ):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    following, _ = pruner(state, query, key, (hidden,), dims=1)
    monkeypatch.undo()
    assert following.kept.equal(pruner(state, query, key, (hidden,), dims=1)[0].kept)


def test_same_input_same_bits():
    hidden = prompt(57, batch=2)
    runs = []
    for _ in range(2):
        pruner = pruner_of()
        states, out, _ = Decoder()(hidden.clone(), pruner, pruner.begin(GRID, 57, segments=SEGMENTS, batch_size=2))
        runs.append((states[-1].kept, out))
    assert runs[0][0].equal(runs[1][0])
    assert runs[0][1].equal(runs[1][1])


def test_half_precision_decoders():
    pruner = pruner_of()
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        state = pruner.begin(GRID, 57, segments=SEGMENTS)
        query, key = torch.randn(1, 4, 57, DIM, dtype=dtype), torch.randn(1, 2, 57, DIM, dtype=dtype)
        following, (moved,) = pruner(state, query, key, (query,), dims=2)
        assert moved.dtype == dtype
        assert moved.shape == (1, 4, following.length, DIM)


def test_phases_are_reported():
    pruner = pruner_of()
    phases = []
    state = pruner.begin(GRID, 57, segments=SEGMENTS)
    pruner(state, torch.randn(1, 4, 57, DIM), torch.randn(1, 2, 57, DIM), (), dims=1, on_phase=phases.append)
    assert phases == ["score", "select", "compact"]


def test_the_module_has_no_state():
    pruner = pruner_of()
    assert list(pruner.state_dict()) == []
    assert "num_layers=6" in repr(pruner)
    assert "stages=(1, 3)" in repr(pruner)
