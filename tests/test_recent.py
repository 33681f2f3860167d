"""What a pruner remembers: equal prompts get the state that is there, every other one its own."""

import copy
import dataclasses
import pickle
import random
import threading
import types

import pytest
import torch
from pruner_inputs import DIM, GRID, SEGMENTS, TWO_STAGES, prompt, pruner_of

from adatp_kernels import AdaTPConfig, VisualLayout, begin, recent
from adatp_kernels.recent import RecentStates

RELEVANCE = torch.tensor([0.1, 0.1, 0.9, 0.9, 0.9, 0.1])
PRIOR = torch.linspace(0.5, 1.5, 48).view(6, 8)


def own(layout):
    return VisualLayout(layout.index.clone(), layout.frame.clone(), layout.position.clone())


def good():
    """Arguments whose tensors nobody else holds."""
    return {
        "layout": own(GRID),
        "length": 57,
        "segments": SEGMENTS.clone(),
        "relevance": RELEVANCE.clone(),
        "prior": PRIOR.clone(),
        "padding": 1,
        "images": torch.tensor([2, 53]),
        "batch_size": 2,
    }


def numbers(state):
    """All that a state says, in a form that can be compared."""
    known = [state._tokens, state._prior, state._scores, *state._columns]
    values = [None if tokens is None or tokens.is_meta else tokens.tolist() for tokens in known]
    steps = [
        (step.stage, step.longest_segment, step.dedup, step.length, step.key_range)
        + (() if step.budgets.is_meta else (step.budgets.tolist(), step.segment_ranges.tolist()))
        for step in state._remaining
    ]
    asking = None if state._asking is None else state._asking.tolist()
    return (
        state.plans, [row.tolist() for row in state.segments], state.salient_segments, state.length, state.key_range,
        state.num_positions, state.text_tokens, state.asking_start, state.num_visual, values, steps, asking, state.kept.device,
    )  # fmt: skip


def test_an_equal_prompt_gets_the_same_state():
    pruner = pruner_of()
    assert pruner.begin(**good()) is pruner.begin(**good())
    given = good()
    given["segments"], given["relevance"] = given["segments"].int(), given["relevance"].tolist()
    given["prior"] = given["prior"].T.contiguous().T.double()
    assert pruner.begin(**given) is pruner.begin(**given)
    rows = {"layout": [own(GRID), own(GRID)], "length": 57, "segments": [SEGMENTS, SEGMENTS], "padding": [0, 3]}
    assert pruner.begin(**rows) is pruner.begin(**rows)
    features = torch.randn(6, 5)
    assert pruner.begin(GRID, 57, features=features) is pruner.begin(GRID, 57, features=features.clone())
    draws = pruner_of(dataclasses.replace(TWO_STAGES, score="random"))
    assert draws.begin(**good()) is draws.begin(**good())
    assert pruner_of().begin(**good()) is not pruner.begin(**good())  # each pruner its own


def changed(name, change):
    return lambda given: given.update({name: change(given[name])})


CHANGES = {
    "index": changed("layout", lambda layout: VisualLayout(layout.index + 1, layout.frame, layout.position)),
    "frame": changed("layout", lambda layout: VisualLayout(layout.index, (torch.arange(48) + 1) // 9, layout.position)),
    "position": changed("layout", lambda layout: VisualLayout(layout.index, layout.frame, layout.position.flip(0))),
    "length": changed("length", lambda length: length + 1),
    "segments": changed("segments", lambda segments: torch.tensor([0, 0, 0, 1, 1, 2])),
    "relevance": changed("relevance", lambda relevance: relevance.flip(0)),
    "no relevance": changed("relevance", lambda relevance: None),
    "prior": changed("prior", lambda prior: prior + (torch.arange(8) == 3)),
    "no prior": changed("prior", lambda prior: None),
    "padding": changed("padding", lambda padding: 2),
    "no padding": changed("padding", lambda padding: None),
    "an image elsewhere": changed("images", lambda images: images + 1),
    "a smaller image": changed("images", lambda images: images[1:]),
    "no image": changed("images", lambda images: None),
    "batch_size": changed("batch_size", lambda size: 3),
    "device": lambda given: given.update(device="meta"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_another_prompt_gets_its_own(change):
    pruner, given = pruner_of(), good()
    before = pruner.begin(**good())
    change(given)
    after = pruner.begin(**given)
    assert after is not before
    assert numbers(after) == numbers(pruner_of().begin(**given))
    assert numbers(after) != numbers(before)
    assert pruner.begin(**good()) is before


def test_another_configuration_or_decoder_plans_anew():
    pruner = pruner_of()
    before = pruner.begin(**good())
    pruner.config = dataclasses.replace(TWO_STAGES, schedule=(0.5, 0.1))
    assert pruner.begin(**good()).plan.stages[1].total < before.plan.stages[1].total
    pruner.config = TWO_STAGES
    assert pruner.begin(**good()) is before
    pruner.decoder["mlp_width"] = 1
    assert pruner.begin(**good()).plan.flops_ratio != before.plan.flops_ratio


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"length": 57.0}, TypeError, "^length: expected an integer"),
        ({"batch_size": 2.0}, TypeError, "^batch_size: expected an integer"),
        ({"padding": 1.0}, TypeError, r"^padding\[0\]: expected an integer"),
        ({"padding": True}, TypeError, r"^padding\[0\]: expected an integer"),
        ({"segments": SEGMENTS.double()}, TypeError, "^segments: expected integers"),
        ({"segments": SEGMENTS[None]}, ValueError, r"^segments: expected shape \[n\]"),
        ({"relevance": RELEVANCE.round() > 0}, TypeError, "^relevance: expected real numbers"),
        ({"prior": PRIOR.round().long()}, TypeError, "^prior: "),
        ({"prior": PRIOR.view(-1)}, ValueError, r"^prior: expected shape \[num_frames, positions\]"),
    ],
)
def test_what_is_refused_is_refused_beside_an_equal_that_is_not(changes, error, message):
    pruner = pruner_of()
    given = good() | {"relevance": RELEVANCE.round(), "prior": PRIOR.round()}
    pruner.begin(**given)
    with pytest.raises(error, match=message):
        pruner.begin(**(given | changes))


@pytest.mark.parametrize("name", ["index", "frame", "position", "segments", "relevance", "prior"])
def test_a_caller_who_writes_to_what_he_gave(name):
    """The state stays as it was, and what is planned next is planned from what is there now."""
    pruner, given = pruner_of(), good()
    given["layout"] = VisualLayout(**{part: getattr(GRID, part).clone() for part in ("index", "frame", "position")})
    state = pruner.begin(**given)
    before = numbers(state)
    layout = given["layout"]
    {
        "index": lambda: layout.index.add_(1),
        "frame": lambda: layout.frame.copy_((torch.arange(48) + 1) // 9),
        "position": lambda: layout.position[:2].fill_(7),
        "segments": lambda: given["segments"].copy_(torch.tensor([0, 1, 1, 1, 1, 2])),
        "relevance": lambda: given["relevance"].neg_(),
        "prior": lambda: given["prior"][2].mul_(3),
    }[name]()
    after = pruner.begin(**given)
    assert numbers(after) == numbers(pruner_of().begin(**given)) != before
    assert numbers(state) == before and pruner.begin(**good()) is state


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("name", ["segments", "kept", "budgets", "segment_ranges", "prior"])
def test_a_caller_who_writes_to_a_state(name, inference):
    """It is his from then on."""
    pruner, given = pruner_of(), good() | {"batch_size": 1}
    expected, state = numbers(pruner_of().begin(**given)), pruner.begin(**given)
    with torch.inference_mode(inference):
        step = state._remaining[1]
        {"segments": state.segments[0], "kept": state.kept, "prior": state._prior}.get(
            name, getattr(step, name, None)
        ).zero_()
    again = pruner.begin(**given)
    assert again is not state and numbers(again) == expected != numbers(state)
    assert pruner.begin(**given) is again


def test_a_state_may_be_made_in_one_mode_and_used_in_another():
    """Nothing of it is an inference tensor, whatever the arguments are, and autograd can save it."""
    pruner = pruner_of()
    for made_in in (True, False):
        with torch.inference_mode(made_in):
            given = good() | {"length": 57 + made_in, "padding": None}
            state = pruner.begin(**given)
            assert not any(tensor.is_inference() for tensor in recent._tensors(state))
        with torch.inference_mode(not made_in):
            assert pruner.begin(**given) is state
    for length in (57, 58):
        with torch.inference_mode():
            query, key = prompt(length, 2).view(2, length, 4, DIM).transpose(1, 2), torch.randn(2, 2, length, DIM)
            inferred, _ = pruner(pruner.begin(**(given | {"length": length})), query, key, (), dims=1)
        hidden = prompt(length, 2).requires_grad_()
        state = pruner.begin(**(given | {"length": length}))
        following, (moved,) = pruner(state, query.clone(), key.clone(), (hidden,), dims=1)
        assert following.kept.equal(inferred.kept)
        moved.sum().backward()
        assert int((hidden.grad[..., 0] != 0).sum()) == 2 * following.length


def test_a_prior_that_is_trained_is_not_held_by_its_graph():
    pruner = pruner_of()
    state = pruner.begin(**(good() | {"prior": PRIOR.clone().requires_grad_()}))
    assert not state._prior.requires_grad
    assert pruner.begin(**good()) is state


def test_only_the_last_few_are_remembered():
    pruner = pruner_of()
    begin = lambda length: pruner.begin(**(good() | {"length": length}))  # noqa: E731
    states = {length: begin(length) for length in range(57, 57 + recent.MAX_STATES)}
    assert len(pruner._recent) == recent.MAX_STATES
    assert begin(57) is states[57]  # so 58 is the one that was not used for longest
    begin(99)
    assert len(pruner._recent) == recent.MAX_STATES
    assert begin(57) is states[57] and begin(60) is states[60]
    assert begin(58) is not states[58]


def test_large_states_leave_room_for_fewer(monkeypatch):
    pruner = pruner_of()
    begin = lambda length: pruner.begin(GRID, length, segments=SEGMENTS)  # noqa: E731
    begin(57)
    size = pruner._recent._entries[0].bytes
    assert size >= 3 * 8 * 57
    monkeypatch.setattr(recent, "MAX_BYTES", 2 * size + 100)
    states = [begin(length) for length in (57, 58, 57)]
    assert states[0] is states[2] and len(pruner._recent) == 2
    begin(56)
    assert len(pruner._recent) == 2 and begin(57) is states[0]
    begin(57 * 3)  # larger than all that may be kept
    assert len(pruner._recent) == 2 and begin(57) is states[0]


def test_threads_get_what_they_asked_for():
    pruner = pruner_of()
    lengths = range(57, 57 + recent.MAX_STATES + 4)  # more than are remembered
    expected = {length: numbers(pruner_of().begin(**(good() | {"length": length}))) for length in lengths}
    start, wrong = threading.Barrier(6), []

    def work(seed):
        rng = random.Random(seed)
        start.wait()
        try:
            for _ in range(60):
                length = rng.choice(lengths)
                if numbers(pruner.begin(**(good() | {"length": length}))) != expected[length]:
                    wrong.append(length)
        except Exception as error:  # a thread's error would get lost
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(pruner._recent) <= recent.MAX_STATES


@pytest.mark.parametrize("of", [copy.copy, copy.deepcopy, lambda pruner: pickle.loads(pickle.dumps(pruner))])
def test_a_copy_remembers_what_it_will(of):
    states = RecentStates()
    states._entries = ("something",)
    assert len(of(states)) == 0 and len(states) == 1
    if of is copy.copy:  # of a module, that is the same parts in another
        return
    pruner = pruner_of()
    state = pruner.begin(**good())
    other = of(pruner)
    assert len(other._recent) == 0 and other._recent is not pruner._recent
    assert numbers(other.begin(**good())) == numbers(state)
    assert pruner.begin(**good()) is state


def test_another_stream_gets_tensors_of_its_own(monkeypatch):
    """Memory that one stream frees is another tensor's at once on that stream, whatever the second one still reads."""
    current = types.SimpleNamespace(cuda_stream=7)
    monkeypatch.setattr(torch, "empty", lambda *size, device: types.SimpleNamespace(device=torch.device("cuda", 1)))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current if device.index == 1 else None)
    here = begin._place("cuda")
    assert here == begin._place("cuda") == (torch.device("cuda", 1), 7)
    current.cuda_stream = 8
    assert begin._place("cuda") != here


def test_a_pruner_solves_for_alpha_once_for_videos_of_one_size():
    pruner = pruner_of(AdaTPConfig(target_flops=0.6, stages=(1, 3), spatial_dedup="off"))
    states = [pruner.begin(GRID, 57, segments=torch.arange(6) // frames) for frames in (1, 2, 3)]
    assert len(pruner._recent.schedules) == 1 and 0 < states[0].plan.alpha < 1
    for frames, state in zip((1, 2, 3), states, strict=True):
        alone = pruner_of(pruner.config).begin(GRID, 57, segments=torch.arange(6) // frames)
        assert numbers(state) == numbers(alone)
    assert len(copy.deepcopy(pruner)._recent.schedules) == 0
