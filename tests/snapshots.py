"""Everything there is of a model, to compare before and after."""

import copy

import torch


def snapshot(model):
    """Everything a module tree holds: attributes by identity, hooks, parameters by value."""
    tree = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            tree[name, key] = dict(value) if isinstance(value, dict) else value
    return (
        tree,
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
        copy.deepcopy(model.config.to_dict()),
    )


def assert_unchanged(model, before):
    tree, state, config = snapshot(model)
    assert tree.keys() == before[0].keys()
    for key, value in tree.items():
        old = before[0][key]
        assert value == old if isinstance(value, dict) else value is old, key
    assert all(torch.equal(state[name], before[1][name]) for name in state)
    assert config == before[2]
