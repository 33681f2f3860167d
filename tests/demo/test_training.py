"""The training: lessons lower the loss, an interrupted run goes on, and what layers share is saved as copies."""

import torch

from adatp_kernels.demo.training.decoder import SHARING, Lesson, share_queries_and_keys, train_decoder
from adatp_kernels.demo.training.network import build_network
from adatp_kernels.demo.training.tower import train_tower

LESSON = Lesson(steps=6, num_shots=1, clips=2, questions={"color": 1, "shape": 1}, late=5)


def test_tower_training_changes_tower_and_words_only():
    model, before = build_network(0), build_network(0).state_dict()
    log = []
    train_tower(model, steps=2, batch=1, log=log.append)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert any("vision_tower" in name for name in changed) and any("projector" in name for name in changed)
    assert not any("language_model.layers" in name for name in changed)
    assert log[-1]["tower_step"] == 2


def test_decoder_training_goes_on_where_it_stopped(tmp_path):
    runs = []
    for _ in range(2):
        model, log = build_network(0), []
        share_queries_and_keys(model)
        train_decoder(model, [LESSON], tmp_path, log=log.append)
        runs.append((model.state_dict(), log))
    assert len(runs[0][1]) == 1 and runs[1][1] == []
    assert all(torch.equal(value, runs[1][0][name]) for name, value in runs[0][0].items())


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
