"""What a report says of a prompt, as data: which cell of which frame every token is that was kept."""

import dataclasses
import json

import pytest
import torch
from family_models import BUILDERS, WITH_IMAGES, batch_of, build, compressed, joined, prompt, prompt_of, with_image
from masked_reference import generate

import adatp_kernels as adatp
from adatp_kernels.integrations.transformers import families

CONFIG = adatp.AdaTPConfig(target_flops=0.5, stages=(2, 3, 6, 9))
GRIDS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "video_llama_3")  # whose frames may be wider than high
WIDE_SIZE = {family: (28, 70) if family in GRIDS else 28 for family in BUILDERS} | {"llava_onevision": 42}
WIDE_GRID = {family: (2, 5) if family in GRIDS else (2, 2) for family in BUILDERS} | {"llava_onevision": (3, 3)}


def model_of(family):
    return build(family, **({"image_size": 42} if family == "llava_onevision" else {}))


def reported(model, inputs, config=CONFIG, row=0, **options):
    with adatp.accelerate(model, config, **options) as run:
        generate(model, inputs, max_new_tokens=1)
    return run.report(row)


def everything(report):
    """Where all the tokens are, before anything is pruned."""
    return dataclasses.replace(report, survivors=((0, report.layout.index),)).cells()[0][1].tolist()


def in_order(grids, kept=None):
    """By a loop: the cells of frames of these grids, row by row; of each frame those `kept`, if not all."""
    cells = []
    for frame, (rows, columns) in enumerate(grids):
        number = 0
        for row in range(rows):
            for column in range(columns):
                if kept is None or number in kept[frame]:
                    cells.append([frame, row, column])
                number += 1
    return cells


def check(report, grids, kept=None):
    """Cells of every stage against the tokens' order in the sequence."""
    assert report.grids == tuple(grids)
    place = dict(zip(report.layout.index.tolist(), in_order(grids, kept), strict=True))
    stages = report.cells()
    assert [layer for layer, _ in stages] == [layer for layer, _ in report.survivors] and len(stages) > 1
    for (_, cells), (layer, columns) in zip(stages, report.survivors, strict=True):
        assert cells.dtype == torch.int64
        assert cells.tolist() == [place[column] for column in columns.tolist() if column in place]
        assert len(cells) == next(stage.total for stage in report.plan.stages if stage.layer == layer)


@pytest.mark.parametrize("family", BUILDERS)
def test_kept_cells(family):
    report = reported(model_of(family), prompt(family, size=WIDE_SIZE[family]))
    check(report, [WIDE_GRID[family]] * 6)
    assert report.pictures_per_frame == (2 if family.startswith("qwen") else 1)


@pytest.mark.parametrize("family", BUILDERS)
def test_a_cell_is_where_the_model_sees_it(family):
    """What is painted into one place of the pixels changes the token of that cell most."""
    model, size, (rows, columns) = model_of(family), WIDE_SIZE[family], WIDE_GRID[family]
    seen = []
    decoder = families.find(model).decoder(model)
    decoder.layers[0].register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    height, width = (size, size) if isinstance(size, int) else size
    pixels = 0.1 * torch.randn(4, 3, height, width, generator=torch.Generator().manual_seed(0))
    report = reported(model, prompt_of(family, pixels))
    place = dict(zip(report.layout.index.tolist(), everything(report), strict=True))
    with torch.no_grad():
        for frame, row, column in ((0, 0, columns - 1), (2, rows - 1, 0), (3, 1, 1)):
            painted = pixels.clone()
            up, left = row * height // rows, column * width // columns
            painted[frame, :, up : up + height // rows, left : left + width // columns] += 3
            seen.clear()
            for inputs in (prompt_of(family, pixels), prompt_of(family, painted)):
                model(**inputs)
            most = int((seen[1] - seen[0])[0].norm(dim=-1).argmax())
            assert place[most] == [frame, row, column]


@pytest.mark.parametrize("family", GRIDS)
def test_two_videos_of_different_grids(family):
    wide, tall = prompt(family, frames=3, size=(28, 70)), prompt(family, frames=2, shots=2, seed=1, size=(56, 28))
    both = [(2, 5)] * 3 + [(4, 2)] * 2
    model = build(family)
    check(reported(model, joined([wide, tall])), both)
    batch = batch_of([joined([tall, wide]), joined([wide, tall])])
    check(reported(model, batch), both[3:] + both[:3])
    check(reported(model, batch, row=1), both)


@pytest.mark.parametrize("family", GRIDS)
def test_the_same_tokens_in_frames_of_another_shape(family):
    """A report is of its own prompt, though all that a plan depends on is the same as before."""
    model = build(family)
    with adatp.accelerate(model, CONFIG) as run:
        for size, grid in (((28, 70), (2, 5)), ((70, 28), (5, 2)), ((14, 140), (1, 10)), ((28, 70), (2, 5))):
            generate(model, prompt(family, size=size), max_new_tokens=1)
            check(run.report(), [grid] * 6)


def test_beams_share_their_video():
    model = build("qwen2_vl")
    with adatp.accelerate(model, CONFIG) as run:
        generate(model, prompt("qwen2_vl", size=(28, 70)), max_new_tokens=2, num_beams=2)
    for row in range(2):
        check(run.report(row), [(2, 5)] * 6)


def test_cells_that_were_left_out():
    model = build("video_llama_3")
    few_kept, wide_kept = [[0, 1, 2, 3], [1], [0, 3], [2, 3], [3]], [list(range(32)), [31], [4, 5, 17], [0, 8, 16, 24]]
    wide, few = compressed(wide_kept, grid=(4, 8), merge=1, seed=1), compressed(few_kept)
    grids, kept = [(4, 8)] * 4 + [(2, 2)] * 5, wide_kept + few_kept
    report = reported(model, joined([wide, few]))
    check(report, grids, kept)
    missing = [cell for cell in in_order(grids) if cell not in in_order(grids, kept)]
    assert report.to_dict()["left_out"] == missing
    # Frames of which no cell of the last row or column came in.
    report = reported(model, compressed([[0, 1, 2, 4], [1, 5], [0, 4, 6]] * 2, grid=(4, 4), merge=1))
    check(report, [(4, 4)] * 6, [[0, 1, 2, 4], [1, 5], [0, 4, 6]] * 2)


@pytest.mark.parametrize("family", WITH_IMAGES)
@pytest.mark.parametrize("first", [False, True])
def test_images_that_are_pruned(family, first):
    size = (28, 70) if family in GRIDS else 28
    inputs = with_image(family, first=first, size=size)
    report = reported(build(family), inputs, images="prune")
    if family in GRIDS:
        image, video = [(2, 2)], [(2, 5)] * 6
        check(report, image + video if first else video + image)
        return
    # Pictures of several resolutions, and tokens that end their rows.
    frame = 0 if first else 6
    assert report.grids.index(None) == frame
    with pytest.raises(
        ValueError, match=rf"grids: .* frame {frame} are not known, which has \d+ tokens: let .*image_grids"
    ):
        report.cells()
    for (_, columns), stage in zip(report.survivors, report.to_dict()["kept"], strict=True):
        alive = torch.isin(report.layout.index, columns)
        cells = zip(report.layout.frame[alive].tolist(), report.layout.position[alive].tolist(), strict=True)
        assert stage["cells"] == [[f, None, c] if f == frame else [f, c // 2, c % 2] for f, c in cells]


def test_a_family_that_tells_no_grids_or_wrong_ones(monkeypatch):
    monkeypatch.setattr(families, "FAMILIES", dict(families.FAMILIES))
    right = type(families.FAMILIES["qwen2_vl"])
    for told in (
        lambda self, model, arguments, sizes: None,
        lambda self, model, arguments, sizes: [None],
        lambda self, model, arguments, sizes: [],
        lambda self, model, arguments, sizes: [(2, 2)],
        lambda self, model, arguments, sizes: [(5, 3)],
        lambda self, model, arguments, sizes: [(-2, -5)],
    ):
        adatp.register_family(type("Mistaken", (right,), {"frame_grids": told})())
        report = reported(build("qwen2_vl"), prompt("qwen2_vl", size=(28, 70)))
        assert report.grids == (None,) * 6
        with pytest.raises(
            ValueError, match="grids: .* of frame 0 are not known, which has 10 tokens: let the family's"
        ):
            report.cells()
        assert json.loads(report.to_json())["grids"] == [None] * 6
    adatp.register_family(type("Right", (right,), {"frame_grids": lambda self, *_: torch.tensor([[5, 2]])})())
    check(reported(build("qwen2_vl"), prompt("qwen2_vl", size=(28, 70))), [(5, 2)] * 6)


def test_nothing_pruned():
    everything_stays = adatp.AdaTPConfig(target_flops=1.0, stages=(2, 3), spatial_dedup="off")
    report = reported(build("qwen2_vl"), prompt("qwen2_vl"), everything_stays)
    assert report.cells() == () and report.to_dict()["kept"] == []


KEYS = [
    "frames", "pictures_per_frame", "visual_tokens", "text_tokens", "segments", "salient_segments", "plan",
    "tokens_per_layer", "flops_ratio", "grids", "left_out", "kept", "seconds", "backends",
]  # fmt: skip


def plain(value):
    """Whether there is nothing in `value` but what JSON has."""
    if type(value) is dict:
        return all(type(key) is str and plain(entry) for key, entry in value.items())
    if type(value) is list:
        return all(map(plain, value))
    return type(value) in (str, int, float, bool, type(None))


@pytest.mark.parametrize("family", BUILDERS)
def test_json(family):
    relevance = [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]
    report = reported(model_of(family), prompt(family, size=WIDE_SIZE[family]), relevance=relevance)
    data = report.to_dict()
    assert plain(data) and list(data) == KEYS
    for text in (report.to_json(), report.to_json(indent=2)):
        assert json.loads(text) == data
    assert "\n" not in report.to_json() and '\n  "frames": 6' in report.to_json(indent=2)
    rows, columns = WIDE_GRID[family]
    assert (data["frames"], data["visual_tokens"], data["grids"]) == (6, 6 * rows * columns, [[rows, columns]] * 6)
    assert data["text_tokens"] == report.text_tokens and data["salient_segments"] == [1]
    assert data["segments"] == [0, 0, 1, 1, 2, 2] and data["left_out"] == []
    plan = data["plan"]
    assert [(stage["layer"], stage["total"]) for stage in plan["stages"]] == [
        (stage.layer, stage.total) for stage in report.plan.stages
    ]
    assert all(sum(stage["budgets"]) == stage["total"] for stage in plan["stages"])
    assert (plan["target_flops"], plan["alpha"], plan["capped"]) == (0.5, report.plan.alpha, report.plan.capped)
    assert data["tokens_per_layer"] == {"planned": [*report.planned_tokens], "actual": [*report.actual_tokens]}
    assert data["flops_ratio"] == {"planned": report.planned_flops_ratio, "actual": report.actual_flops_ratio}
    assert [(stage["layer"], stage["cells"]) for stage in data["kept"]] == [
        (layer, cells.tolist()) for layer, cells in report.cells()
    ]
    assert data["seconds"] == report.seconds and data["backends"] == report.backends


def test_json_of_an_explicit_schedule():
    config = adatp.AdaTPConfig(target_flops=None, stages=(2,), schedule=(0.5,))
    plan = json.loads(reported(build("qwen2_vl"), prompt("qwen2_vl"), config).to_json())["plan"]
    assert plan["target_flops"] is None and plan["alpha"] is None
