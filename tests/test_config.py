import dataclasses
import json

import pytest
from brute_force import names

from adatp_kernels import AdaTPConfig


def test_defaults_are_the_method_of_the_paper():
    config = AdaTPConfig()
    assert (config.target_flops, config.stages, config.segment_threshold) == (0.273, "progressive", 0.95)
    assert (config.spatial_dedup, config.salient_boost, config.queries, config.score) == (
        "strict",
        2.0,
        "text",
        "attention",
    )


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        AdaTPConfig().seed = 1


def test_values_are_normalised_so_that_equal_configs_are_equal():
    config = AdaTPConfig(target_flops=None, stages=[1, 3], schedule=[1, 0])
    assert config == AdaTPConfig(target_flops=None, stages=(1, 3), schedule=(1.0, 0.0))
    assert hash(config) == hash(AdaTPConfig(target_flops=None, stages=range(1, 4, 2), schedule=(1.0, 0.0)))
    assert isinstance(AdaTPConfig(target_flops=1).target_flops, float)


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"target_flops": 0}, "target_flops"),
        ({"target_flops": 1.01}, "target_flops"),
        ({"target_flops": -0.1}, "target_flops"),
        ({"target_flops": float("nan")}, "target_flops"),
        ({"target_flops": "0.3"}, "target_flops"),
        ({"target_flops": True}, "target_flops"),
        ({"target_flops": None}, "target_flops"),
        ({"schedule": (0.5,), "stages": (1,)}, "target_flops"),
        ({"stages": "all"}, "stages"),
        ({"stages": ()}, "stages"),
        ({"stages": 3}, "stages"),
        ({"stages": (1, 1)}, "stages"),
        ({"stages": (3, 1)}, "stages"),
        ({"stages": (-1, 1)}, "stages"),
        ({"stages": (1.0, 2.0)}, "stages"),
        ({"stages": (False, True)}, "stages"),
        ({"schedule": "cosine"}, "schedule"),
        ({"schedule": (), "target_flops": None}, "schedule"),
        ({"schedule": 0.5, "target_flops": None}, "schedule"),
        ({"schedule": (0.2, 0.5), "target_flops": None}, "schedule"),
        ({"schedule": (1.5, 0.5), "target_flops": None}, "schedule"),
        ({"schedule": ("a", "b"), "target_flops": None}, "schedule"),
        ({"schedule": (0.5,), "stages": (1, 2), "target_flops": None}, "schedule"),
        ({"segment_threshold": 1.5}, "segment_threshold"),
        ({"segment_threshold": None}, "segment_threshold"),
        ({"salient_boost": 0.9}, "salient_boost"),
        ({"salient_boost": float("inf")}, "salient_boost"),
        ({"salient_boost": "2"}, "salient_boost"),
        ({"spatial_dedup": "hard"}, "spatial_dedup"),
        ({"spatial_dedup": True}, "spatial_dedup"),
        ({"soft_weight": 1.1}, "soft_weight"),
        ({"soft_weight": -0.1}, "soft_weight"),
        ({"soft_weight": None}, "soft_weight"),
        ({"queries": "all"}, "queries"),
        ({"score": "entropy"}, "score"),
        ({"seed": -1}, "seed"),
        ({"seed": 0.5}, "seed"),
        ({"seed": True}, "seed"),
        ({"compact_cache": 1}, "compact_cache"),
        ({"backend": "cuda"}, "backend"),
        ({"backend": None}, "backend"),
    ],
)
def test_mistakes_name_the_field(changes, argument):
    with names(argument):
        AdaTPConfig(**changes)


@pytest.mark.parametrize(
    ("stages", "num_layers", "layers"),
    [
        ("progressive", 28, tuple(range(1, 16))),
        ("progressive", 24, tuple(range(1, 12))),
        ("progressive", 14, (1,)),
        ("single", 28, (1,)),
        ("single", 3, (1,)),
        ("three", 28, (6, 13, 20)),
        ("three", 4, (0, 1, 2)),
        ((0, 5), 7, (0, 5)),
    ],
)
def test_stage_layers(stages, num_layers, layers):
    assert AdaTPConfig(stages=stages).stage_layers(num_layers) == layers


@pytest.mark.parametrize(
    ("config", "num_layers", "argument"),
    [
        (AdaTPConfig(), 13, "stages"),
        (AdaTPConfig(stages="single"), 2, "stages"),
        (AdaTPConfig(stages=(1, 6)), 7, "stages"),
        (AdaTPConfig(target_flops=None, schedule=(0.5,)), 28, "schedule"),
        (AdaTPConfig(), 1, "num_layers"),
        (AdaTPConfig(), 28.0, "num_layers"),
        (AdaTPConfig(), None, "num_layers"),
    ],
)
def test_stage_layers_mistakes(config, num_layers, argument):
    with names(argument):
        config.stage_layers(num_layers)


def test_presets():
    fastv = AdaTPConfig.preset("fastv", target_flops=0.5)
    assert AdaTPConfig.preset("adatp", target_flops=0.5) == AdaTPConfig(target_flops=0.5)
    assert (fastv.stages, fastv.queries, fastv.spatial_dedup) == ("single", "last", "off")
    assert fastv.segment_threshold == -1.0  # one segment
    assert AdaTPConfig.preset("pyramiddrop", target_flops=0.5) == dataclasses.replace(fastv, stages="three")
    assert AdaTPConfig.preset("random", target_flops=0.5) == dataclasses.replace(fastv, score="random")
    assert AdaTPConfig.preset("uniform", target_flops=0.5) == dataclasses.replace(fastv, score="uniform")


@pytest.mark.parametrize("name", ["adatp", "fastv", "pyramiddrop", "random", "uniform"])
def test_presets_check_their_arguments(name):
    with names("target_flops"):
        AdaTPConfig.preset(name, target_flops=2)
    with names("name"):
        AdaTPConfig.preset(name.upper())


@pytest.mark.parametrize(
    "config",
    [
        AdaTPConfig(),
        AdaTPConfig(target_flops=None, stages=(2, 5), schedule=(0.5, 0.25)),
        AdaTPConfig(
            stages="three", schedule="linear", spatial_dedup="soft", soft_weight=0.25, seed=7, compact_cache=True
        ),
    ],
)
def test_json_round_trip(config):
    text = config.to_json()
    assert set(json.loads(text)) == {field.name for field in dataclasses.fields(AdaTPConfig)}
    assert AdaTPConfig.from_json(text) == config


def test_json_of_numpy_numbers():
    numpy = pytest.importorskip("numpy")
    config = AdaTPConfig(target_flops=numpy.float32(0.5), stages=list(numpy.arange(1, 3)), seed=numpy.int64(3))
    assert AdaTPConfig.from_json(config.to_json()) == AdaTPConfig(target_flops=0.5, stages=(1, 2), seed=3)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"targetflops": 0.3}', None])
def test_from_json_mistakes(text):
    with pytest.raises(ValueError, match="^text: "):
        AdaTPConfig.from_json(text)


def test_from_json_says_which_keys_are_unknown_and_which_are_known():
    with pytest.raises(ValueError, match=r"'flops'.*'target_flops'"):
        AdaTPConfig.from_json('{"flops": 0.3}')


def test_from_json_checks_the_values():
    with names("seed"):
        AdaTPConfig.from_json('{"seed": -1}')
