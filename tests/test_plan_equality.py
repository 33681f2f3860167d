"""make_plan on layouts of any shape: the plain definition's plan, number by number."""

import random

import plain_plan
import pytest
import torch

from adatp_kernels import AdaTPConfig, VisualLayout, make_plan

WIDTHS = {"hidden_size": 3584, "key_width": 512, "mlp_width": 18944}


def layout_of(rng, kind):
    """A grid; frames of different sizes with text between and within them; or with positions that leave gaps, too."""
    if kind == "grid":
        return VisualLayout.grid(rng.randint(1, 10), rng.randint(1, 40), rng.randint(0, 9))
    index, frame, position, column = [], [], [], rng.randint(0, 9)
    for number in range(rng.randint(1, 10)):
        column += rng.choice([0, 3])
        for cell in range(rng.randint(1, 12)):
            column += rng.choice([1, 1, 1, 2])
            index.append(column)
            frame.append(number)
            position.append(cell if kind == "ragged" else rng.choice([rng.randint(0, 5), rng.randint(0, 10**9)]))
    return VisualLayout(index, frame, position)


def config_of(rng, stages):
    options = {
        "stages": stages,
        "spatial_dedup": rng.choice(["strict", "strict", "soft", "off"]),
        "salient_boost": rng.choice([1.0, 1.3, 2.0, 10.0]),
    }
    schedule = rng.choice(["geometric", "linear", "explicit"])
    if schedule == "explicit":
        kept = sorted((round(rng.random(), rng.choice([1, 3])) for _ in stages), reverse=True)
        return AdaTPConfig(schedule=tuple(kept), target_flops=None, **options)
    return AdaTPConfig(schedule=schedule, target_flops=rng.choice([0.273, 0.5, 1.0, rng.uniform(0.1, 1.0)]), **options)


@pytest.mark.parametrize("kind", ["grid", "ragged", "sparse"])
def test_the_plan_is_the_plain_one(kind):
    rng, made = random.Random(kind), 0
    for _ in range(400):
        layout, num_layers = layout_of(rng, kind), rng.randint(3, 28)
        stages = tuple(sorted(rng.sample(range(num_layers - 1), rng.randint(1, min(8, num_layers - 1)))))
        config = config_of(rng, stages)
        segments = [0]
        while len(segments) < layout.num_frames:
            segments.append(segments[-1] + rng.randint(0, 1))
        salient = rng.choice([None, [rng.random() < 0.5 for _ in range(segments[-1] + 1)]])

        members = [[] for _ in range(segments[-1] + 1)]
        for frame, position in zip(layout.frame.tolist(), layout.position.tolist(), strict=True):
            members[segments[frame]].append(position)
        boosts = [config.salient_boost if flag else 1.0 for flag in salient or [False] * len(members)]
        weights = [len(cells) * boost for cells, boost in zip(members, boosts, strict=True)]
        caps = [len(set(cells) if config.spatial_dedup == "strict" else cells) for cells in members]
        expected = plain_plan.plan(
            config.schedule, config.target_flops, stages, num_layers, WIDTHS.values(), weights, caps, len(layout)
        )
        given = (config, layout, torch.tensor(segments), None if salient is None else torch.tensor(salient))
        if expected is None:
            with pytest.raises(ValueError, match="^target_flops: .* cannot be reached"):
                make_plan(*given, num_layers=num_layers, **WIDTHS)
            continue
        plan = make_plan(*given, num_layers=num_layers, **WIDTHS)
        budgets = [stage.budgets for stage in plan.stages]
        assert (plan.alpha, budgets, plan.tokens_per_layer, plan.flops_ratio) == expected
        assert [stage.total for stage in plan.stages] == [sum(kept) for kept in budgets]
        made += 1
    assert made > 200


def test_integers_of_numpy_plan_like_pythons():
    """In 32 bits a single layer's FLOPs would overflow."""
    numpy = pytest.importorskip("numpy")
    given = (AdaTPConfig(), VisualLayout.grid(8, 196, 3), torch.arange(8))
    widths = {name: numpy.int32(width) for name, width in WIDTHS.items()}
    assert make_plan(*given, num_layers=numpy.int32(28), **widths) == make_plan(*given, num_layers=28, **WIDTHS)
