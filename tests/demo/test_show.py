"""What `./run` shows: the way, with an untrained model, and its claim, with the one that ships."""

import functools
import json
import re

import numpy as np
import pytest
from PIL import Image

from adatp_kernels.cli import main
from adatp_kernels.demo import prefill, quiz, run, show
from adatp_kernels.demo.budgets import RECORD, load_budgets
from adatp_kernels.demo.clips.questions import KINDS
from adatp_kernels.demo.trained import MODEL, load_trained
from adatp_kernels.demo.training import recipe
from adatp_kernels.demo.training.network import build_network
from adatp_kernels.evaluation import budgets

SMALL = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 14, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    recipe.save(build_network(0), folder, {"measured": {"segments": {"threshold": 1.0}, "kinds": KINDS}})
    told = budgets.record(folder, clips=2)
    for number, entry in enumerate(told["budgets"], 1):  # an untrained model has no figures to tell apart
        entry |= {"accuracy": 1 - number / 10, "change": (-number / 20, -number / 15, -number / 25)}
    (folder / RECORD).write_text(json.dumps(told))
    return folder


@pytest.fixture
def printed(capsys, tmp_path, model, monkeypatch):
    """What a run with some arguments prints, with small models."""
    monkeypatch.setattr(run, "MODEL", model)
    monkeypatch.setattr(prefill, "build", functools.partial(prefill.build, **SMALL))

    def printed(*arguments):
        assert main(["demo", "--output", str(tmp_path / "kept.png"), "--repeats", "1", *arguments]) == 0
        return capsys.readouterr().out

    return printed


def test_parts_and_figures(printed, model, tmp_path):
    text = printed()
    assert max(len(line) for line in text.splitlines() if str(tmp_path) not in line) <= 120
    assert not any(line != line.rstrip() for line in text.splitlines())
    assert "read back: 16 of 96 frames" in text
    found = load_budgets(model)
    (drawn,) = [q.text for q in quiz.film_clip(show.CLIP, KINDS).questions if q.kind == show.DRAWN]
    assert f'what was left for "{drawn}": {tmp_path / "kept.png"}' in text
    assert np.asarray(Image.open(tmp_path / "kept.png")).ndim == 3
    answers, times = text.split("\n2. ")
    planned = re.search(r"pruned to 0\.(\d+) of the visual FLOPs", answers)
    assert float(f"0.{planned[1]}") == pytest.approx(found.shown.config.target_flops, abs=0.02)
    assert f"accuracy on {found.clips} clips" in answers
    assert re.search(rf"not pruned +{100 * found.dense:.1f}\n", answers)
    for entry in (found.shown, *found.others):
        how = (
            "stages after layers 7 and 10"
            if entry.config.stages == budgets.STAGES
            else "as published, with text relevance"
        )
        pattern = rf"{entry.config.target_flops} of the FLOPs, {how} +{100 * entry.accuracy:.1f}  "
        low, high = entry.change_interval
        change = f"{100 * entry.change:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
        assert re.search(pattern + re.escape(change), answers)
    assert (
        "pruned to 0.273 of the visual FLOPs" in times and "14 layers of width 32; 196 visual tokens a frame" in times
    )
    assert re.search(
        r"dense +\d+\.\d\d s +\d+\.\d MB\n +pruned +\d+\.\d\d s +\d+\.\d MB\n +ratio +\d+\.\d\d +0\.\d\d", times
    )


def test_a_target_of_ones_own_prunes_as_published(printed):
    text = printed("--target-flops", "0.3")
    assert len(re.findall(r"pruned to 0\.(?:29\d|30\d) of the visual FLOPs", text)) == 2


def test_pruned_equals_dense_where_the_shipped_model_is_asked():
    trained, config = load_trained(MODEL), load_budgets(MODEL).shown.config
    asked = quiz.ask(trained.demo, config, quiz.film_clip(show.CLIP, trained.kinds))
    assert [one.question.kind for one in asked] == list(KINDS)
    assert [one.question for one in asked if not (one.right("dense") and one.right("pruned"))] == []
