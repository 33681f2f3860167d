import itertools
import math

import brute_force
import pytest
import torch
from brute_force import names
from torch import nn

from adatp_kernels import AdaTPConfig, AdaTPPruner, VisualLayout, flash_attention
from adatp_kernels.ops import column_sums, gather, select

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


def test_a_batch_is_its_rows():
    hidden = prompt(57, batch=2)
    pruner, decoder = pruner_of(), Decoder()
    both, out, _ = decoder(hidden, pruner, pruner.begin(GRID, 57, segments=SEGMENTS, batch_size=2))
    for row in range(2):
        one, out_one, _ = decoder(hidden[row : row + 1], pruner, pruner.begin(GRID, 57, segments=SEGMENTS))
        assert one[-1].kept.equal(both[-1].kept[row : row + 1])
        torch.testing.assert_close(out_one, out[row : row + 1], rtol=1e-4, atol=1e-4)


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


def test_text_rows_score_or_the_last_alone():
    rows = [[9.0, 9, 9, 9, 0, 0, 0, 0], [9.0, 9, 9, 9, 0, 0, 0, 0], [0.0, 0, 0, 0, 8, 8, 8, 8]]
    assert kept_of(half(queries="last"), rows, length=12, rows=3) == [4, 5, 6, 7]
    assert kept_of(half(queries="text"), rows, length=12, rows=3) == [0, 1, 2, 3]


def test_text_before_the_video_does_not_score():
    pruner = pruner_of(half())
    layout = VisualLayout.grid(1, 8, start=3)
    state = pruner.begin(layout, 12, segments=torch.tensor([0]))
    query, key = scripted([0.0, 0, 0, 0, 5, 5, 5, 5], 12, 3)
    query[:, :, :11] = math.nan  # no row but the text after the video is read
    assert pruner(state, query, key, (), dims=1, scale=1.0)[0].kept.tolist() == [[0, 1, 2, 7, 8, 9, 10, 11]]


def test_deduplication_keeps_one_token_a_position():
    layout = VisualLayout.grid(2, 4, start=1)
    scores = [9.0, 1, 8, 1, 7, 6, 1, 2]
    assert kept_of(half(spatial_dedup="off"), scores, layout=layout, segments=[0, 0]) == [0, 2, 4, 5]
    assert kept_of(half(), scores, layout=layout, segments=[0, 0]) == [0, 2, 5, 7]
    assert kept_of(half(), scores, layout=layout, segments=[0, 1]) == [0, 2, 4, 5]


def test_no_segment_starves_another():
    scores = [1.0, 2, 3, 4, 9, 9, 9, 9]  # attention piles up at the end
    layout = VisualLayout.grid(2, 4, start=1)
    assert kept_of(half(), scores, layout=layout, segments=[0, 1]) == [2, 3, 4, 5]


def test_features_find_the_segments():
    layout = VisualLayout.grid(2, 4, start=1)
    same, different = torch.ones(2, 3), torch.eye(2)
    scores = [1.0, 2, 3, 4, 9, 9, 9, 9]
    pruner = pruner_of(half(spatial_dedup="off"))
    for features, segments, wanted in ((same, [0, 0], [5, 6, 7, 8]), (different, [0, 1], [3, 4, 5, 6])):
        state = pruner.begin(layout, 10, features=features)
        assert state.segments_per_frame.tolist() == segments
        following, _ = pruner(state, *scripted(scores, 10, 1), (), dims=1, scale=1.0)
        assert following.kept.tolist() == [[0, *wanted, 9]]


def test_the_prior_multiplies_the_scores():
    layout = VisualLayout.grid(2, 4, start=1)
    scores = [0.0] * 8
    plain = kept_of(half(spatial_dedup="off"), scores, layout=layout, segments=[0, 0])
    assert plain == [0, 1, 2, 3]
    prior = torch.tensor([[1.0, 1.0, 3.0, 1.0], [1.0, 2.0, 1.0, 5.0]])
    for table in (prior, prior.half(), torch.cat([prior, torch.full((2, 3), 99.0)], dim=1)):  # longer is fine
        assert kept_of(half(spatial_dedup="off"), scores, layout=layout, segments=[0, 0], prior=table) == [0, 2, 5, 7]
    # e³ ≈ 20: attention outweighs a factor of 5.
    assert kept_of(
        half(spatial_dedup="off"), [3.0, 3, 0, 3, 3, 0, 0, 0], layout=layout, segments=[0, 0], prior=prior
    ) == [0, 1, 3, 4]


def test_the_prior_travels_with_its_tokens():
    config = AdaTPConfig(target_flops=None, stages=(1, 3), schedule=(0.5, 0.25), spatial_dedup="off")
    pruner = pruner_of(config)
    prior = torch.tensor([[1.0, 1, 3, 1, 1, 2, 1, 5]])
    state = pruner.begin(FLAT, 10, segments=torch.tensor([0]), prior=prior)
    state, _ = pruner(state, *scripted([0.0] * 8, 10, 1), (), dims=1, scale=1.0)
    assert state.kept.tolist() == [[0, 1, 3, 6, 8, 9]]
    state, _ = pruner(state, *scripted([0.0] * 4, 6, 1), (), dims=1, scale=1.0)
    assert state.kept.tolist() == [[0, 3, 8, 9]]


@pytest.mark.parametrize("count", range(1, 8))
def test_uniform_is_an_even_stride(count):
    config = AdaTPConfig(target_flops=None, stages=(1,), schedule=(count / 8,), score="uniform", spatial_dedup="off")
    kept = kept_of(config, [0.0] * 8)
    assert len(kept) == count
    gaps = torch.tensor([kept[-1] - 8, *kept]).diff()
    assert gaps.max() - gaps.min() <= 1
    if 8 % count == 0:
        assert kept == list(range(8 // count - 1, 8, 8 // count))


def test_uniform_steps_over_text_between_frames():
    config = AdaTPConfig(
        target_flops=None, stages=(1,), schedule=(0.5,), score="uniform", spatial_dedup="off", segment_threshold=-1.0
    )
    pruner = pruner_of(config)
    state = pruner.begin(STAMPED, 62, features=torch.randn(6, 3))
    following, _ = pruner(state, torch.ones(1, 1, 62, 8), torch.ones(1, 1, 62, 8), (), dims=1)
    visual = STAMPED.index.tolist()
    assert [j for j in following.kept[0].tolist() if j in visual] == visual[1::2]
    assert following.length == 62 - 24


def test_random_is_drawn_from_the_seed():
    def draw(seed, score="random"):
        return kept_of(half(score=score, seed=seed, spatial_dedup="off"), [9.0] * 4 + [0.0] * 4)

    assert draw(0, "attention") == [0, 1, 2, 3]
    assert draw(0) == draw(0)
    assert len({tuple(draw(seed)) for seed in range(8)}) > 4


def test_random_batch_rows_and_stages_differ():
    layout = VisualLayout.grid(1, 64, start=1)
    config = AdaTPConfig(target_flops=None, stages=(1, 2), schedule=(0.5, 0.25), score="random", spatial_dedup="off")
    pruner = pruner_of(config)
    state = pruner.begin(layout, 66, segments=torch.tensor([0]), batch_size=2)
    one, _ = pruner(state, torch.ones(2, 1, 66, 8), torch.ones(2, 1, 66, 8), (), dims=1)
    two, _ = pruner(one, torch.ones(2, 1, 34, 8), torch.ones(2, 1, 34, 8), (), dims=1)
    assert not one.kept[0].equal(one.kept[1])
    for row in range(2):
        assert set(two.kept[row].tolist()) < set(one.kept[row].tolist())


@pytest.mark.parametrize("score", ["random", "uniform"])
def test_baselines_need_no_text_after_the_video(score):
    config = AdaTPConfig(target_flops=None, stages=(1,), schedule=(0.5,), score=score)
    pruner = pruner_of(config)
    state = pruner.begin(FLAT, 9, segments=torch.tensor([0]))
    following, _ = pruner(state, torch.ones(1, 1, 9, 8), torch.ones(1, 1, 9, 8), (), dims=1)
    assert following.length == 5


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
        ({"state": None}, "state"),
        ({"query": None}, "query"),
        ({"query": torch.ones(2, 4, 56, DIM)}, "query"),
        ({"query": torch.ones(2, 4, 58, DIM), "key": torch.ones(2, 2, 58, DIM)}, "query"),
        ({"query": torch.ones(1, 4, 57, DIM), "key": torch.ones(1, 2, 57, DIM)}, "query"),
        ({"query": torch.ones(2, 3, 57, DIM)}, "query"),
        ({"key": None}, "key"),
        ({"key": torch.ones(2, 2, 56, DIM)}, "key"),
        ({"key": torch.ones(2, 2, 57, 8)}, "key"),
        ({"tensors": None}, "tensors"),
        ({"tensors": (torch.ones(2, 56),)}, "tensors"),
        ({"tensors": (torch.ones(3, 57),)}, "tensors"),
        ({"tensors": ([0.0] * 57,)}, "tensors"),
        ({"dims": None}, "dims"),
        ({"dims": "1"}, "dims"),
        ({"dims": [1, 1]}, "dims"),
        ({"dims": 0}, "dims"),
        ({"dims": 5}, "dims"),
        ({"scale": -1.0}, "scale"),
        ({"lse": 0.0}, "lse"),
        ({"lse": torch.zeros(2, 4, 56)}, "lse"),
        ({"lse": torch.zeros(2, 4, 58)}, "lse"),
        ({"lse": torch.zeros(57)}, "lse"),
        ({"lse": torch.zeros(2, 4, 57, dtype=torch.float16)}, "lse"),
        ({"key_mask": torch.ones(2, 57)}, "key_mask"),
        ({"key_mask": torch.ones(2, 58, dtype=torch.bool)}, "key_mask"),
        ({"key_mask": True}, "key_mask"),
    ],
)
def test_forward_mistakes(changes, argument):
    pruner = pruner_of()
    good = {
        "state": pruner.begin(GRID, 57, segments=SEGMENTS, batch_size=2),
        "query": torch.ones(2, 4, 57, DIM),
        "key": torch.ones(2, 2, 57, DIM),
        "tensors": (torch.ones(2, 57, 3),),
        "dims": 1,
    }
    pruner(**good)
    with names(argument):
        pruner(**(good | changes))


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
