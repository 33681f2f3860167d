"""The training: lessons lower the loss, an interrupted run goes on, and what layers share is saved as copies."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import torch

from adatp_kernels.demo.clips.questions import KINDS
from adatp_kernels.demo.clips.scenes import draw_clip
from adatp_kernels.demo.trained import load_trained
from adatp_kernels.demo.training import __main__ as command
from adatp_kernels.demo.training import decoder, recipe
from adatp_kernels.demo.training.decoder import SHARING, Lesson, share_queries_and_keys, train_decoder
from adatp_kernels.demo.training.network import build_network
from adatp_kernels.demo.training.tower import DIFFERENT, SAME, cell_labels, segment_margin, train_tower

LESSON = Lesson(steps=6, num_shots=1, clips=2, questions={"color": 1, "shape": 1}, late=5)


def test_tower_training_changes_tower_and_words_only():
    model, before = build_network(0), build_network(0).state_dict()
    log = []
    train_tower(model, steps=2, batch=1, log=log.append)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert any("vision_tower" in name for name in changed) and any("projector" in name for name in changed)
    assert not any("language_model.layers" in name for name in changed)
    assert log[-1]["tower_step"] == 2


def test_labels_tell_what_each_cell_holds():
    clip = draw_clip(np.random.default_rng(0))
    labels = cell_labels(clip)
    for frame, number in enumerate(clip.shot_of_frame):
        shot = clip.shots[number]
        for place, (color, shape, pattern, where, blob) in enumerate(labels[frame].tolist()):
            thing = shot.thing if shot.thing and shot.thing.place == place else None
            assert (color, shape) == ((thing.color + 1, thing.shape + 1) if thing else (0, 0))
            assert (pattern, where) == (shot.pattern, place)
            assert blob == (place in [one.place for one in shot.blobs])


def test_margin_is_what_is_missing_to_tell_shots():
    same = torch.tensor([True, True, False, False])
    assert segment_margin(torch.tensor([SAME, 1.0, DIFFERENT, -1.0]), same) == 0
    assert segment_margin(torch.tensor([SAME - 0.2, 1.0, DIFFERENT + 0.4, 0.0]), same) == pytest.approx(0.1 + 0.2)


def test_kinds_are_chosen_by_clips_that_are_not_reported(monkeypatch):
    answered = {"calibration": dict.fromkeys(KINDS, 0.5) | {"shot": 0.97}, "held-out": dict.fromkeys(KINDS, 1.0)}
    monkeypatch.setattr(recipe.gates, "single_question", lambda model, split, *rest: answered[split])
    measured = recipe.measure(build_network(0).eval(), 2)
    assert measured["kinds"] == ["shot"] and measured["accuracy"] == answered["held-out"]
    assert set(measured["swapped_question"]) == {"shot", "all"}


def test_decoder_training_goes_on_where_it_stopped(tmp_path):
    runs = []
    for _ in range(2):
        model, log = build_network(0), []
        share_queries_and_keys(model)
        train_decoder(model, [LESSON], tmp_path, log=log.append)
        runs.append((model.state_dict(), log))
    assert len(runs[0][1]) == 1 and runs[1][1] == []
    assert all(torch.equal(value, runs[1][0][name]) for name, value in runs[0][0].items())


def test_the_tower_learns_in_lessons_that_say_so(tmp_path, monkeypatch):
    model, margins = build_network(0), []
    monkeypatch.setattr(decoder, "segment_margin", lambda *given: margins.append(given) or segment_margin(*given))
    lessons = [dataclasses.replace(LESSON, steps=1), dataclasses.replace(LESSON, steps=1, num_shots=2, tower=True)]
    for number in (1, 2):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        train_decoder(model, lessons[:number], tmp_path, log=lambda entry: None)
        changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        assert any("language_model" in name for name in changed) and any("projector" in name for name in changed)
        assert any("vision_tower" in name for name in changed) == (number == 2)
    ((cosine, same),) = margins
    assert cosine.requires_grad and len(cosine) == len(same) == LESSON.clips * (4 - 1)


def test_the_command_leaves_a_model_that_loads_and_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(recipe, "TOWER_STEPS", 1)
    monkeypatch.setattr(recipe, "LESSONS", (dataclasses.replace(LESSON, steps=1),))
    monkeypatch.setattr(sys, "argv", ["training", "--output", str(tmp_path), "--clips", "2"])
    records = []
    for _ in range(2):
        command.main()
        trained = load_trained(tmp_path)
        assert trained.kinds == ()  # it knows nothing
        records.append(json.loads((tmp_path / "training.json").read_text()))
    entries = [json.loads(line) for line in (tmp_path / "training_log.jsonl").read_text().splitlines()]
    assert [next(iter(entry)) for entry in entries] == ["tower_step", "step"]
    assert records[0] == records[1] and records[0]["seconds"] == {
        "tower": entries[0]["seconds"],
        "decoder": entries[1]["seconds"],
    }
    measured = records[0]["measured"]
    assert set(measured["accuracy"]) == set(measured["swapped_question"]) == {*KINDS, "all"}
    assert trained.demo.model.num_parameters() == records[0]["parameters"]


def test_layers_that_share_learn_together_and_are_saved_apart(tmp_path):
    model = build_network(0)
    share_queries_and_keys(model)
    train_decoder(model, [LESSON], tmp_path, log=lambda entry: None)
    apart = build_network(0)
    apart.load_state_dict(model.state_dict())
    layers = apart.model.language_model.layers
    for layer, earlier in SHARING.items():
        assert torch.equal(layers[layer].self_attn.q_proj.weight, layers[earlier].self_attn.q_proj.weight)
        assert layers[layer].self_attn.q_proj is not layers[earlier].self_attn.q_proj
    assert not torch.equal(layers[1].self_attn.q_proj.weight, layers[2].self_attn.q_proj.weight)
