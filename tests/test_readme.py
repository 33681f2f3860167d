"""The Python in README and in the page on Hugging Face models runs, word for word; tables are those on record, links lead somewhere."""

import contextlib
import dataclasses
import io
import json
import re
from pathlib import Path

import accelerate
import pytest
import torch
import transformers
from family_models import build, prompt
from pruner_inputs import DIM, KV_HEADS, LAYERS, Decoder, rotary
from small_models import llava_onevision
from small_siglip import WordTokenizer, siglip

import adatp_kernels as adatp
from adatp_kernels.integrations.transformers import families

ROOT = Path(__file__).parent.parent
PAGES = [
    (ROOT / page).read_text(encoding="utf-8")
    for page in ("README.md", "adatp_kernels/integrations/transformers/README.md")
]
CONFIG = adatp.AdaTPConfig(target_flops=0.5, stages=(1, 2))


def block(containing):
    """The one fenced block of Python that holds some words."""
    blocks = [text for page in PAGES for text in re.findall(r"```python\n(.*?)```", page, re.DOTALL)]
    (found,) = [text for text in blocks if containing in text]
    return found


def test_a_hugging_face_model(capsys):
    model = build("llava_onevision")
    # The tiny model has too few layers for the default schedule.
    text = block("AdaTPConfig.preset").replace("target_flops=0.273)  ", "target_flops=0.5, stages=(1, 2))  ")
    exec(text, {"model": model, "inputs": {**prompt("llava_onevision"), "max_new_tokens": 2}})
    assert "FLOPs of the visual tokens: planned" in capsys.readouterr().out


class Layer:
    """A layer of the tests' decoder, in the words of README's loop."""

    def __init__(self, weights):
        self.weights = weights

    def project(self, hidden, cos, sin):
        heads = lambda x: x.unflatten(-1, (-1, DIM)).transpose(1, 2)  # noqa: E731
        half = DIM // 2
        turn = lambda x: x * cos[:, None] + torch.cat([-x[..., half:], x[..., :half]], -1) * sin[:, None]  # noqa: E731
        key, value = heads(hidden @ self.weights["kv"]).split(KV_HEADS, dim=1)
        return turn(heads(hidden @ self.weights["q"])), turn(key), value

    def finish(self, hidden, out):
        return hidden + out.transpose(1, 2).flatten(2) @ self.weights["out"]


def test_a_decoder_of_ones_own():
    layers = [Layer(weights) for weights in Decoder(torch.float64).layers]
    layout, length = adatp.VisualLayout.grid(num_frames=6, positions_per_frame=4, start=3), 32
    hidden = torch.randn(1, length + 1, layers[0].weights["q"].shape[0], dtype=torch.float64)
    cos, sin = (part.double() for part in rotary(length + 1))
    config = adatp.AdaTPConfig(target_flops=0.5, stages=(1,))
    names = {"adatp": adatp, "torch": torch, "layers": layers, "config": config}
    text = block("def write").replace("num_layers=28", f"num_layers={LAYERS}")
    exec(text, names)
    features = torch.eye(3).repeat_interleave(2, 0)
    read, cache, kept = names["read"](hidden[:, :-1], cos[:, :-1], sin[:, :-1], layout, features)
    written = names["write"](hidden[:, -1:], cos[:, -1:], sin[:, -1:], cache)
    left = kept.shape[1]
    assert 8 < left < length
    assert [key.shape[2] for key, _ in cache] == [length + 1] * 2 + [left + 1] * (LAYERS - 2)

    # All of it at once, with the keys masked that were pruned.
    columns = torch.cat([kept[0], torch.tensor([length])])
    mask = torch.zeros(1, 1, 1, length + 1, dtype=torch.bool).index_fill(-1, columns, True)
    for number, layer in enumerate(layers):
        out, _ = adatp.flash_attention(*layer.project(hidden, cos, sin), mask=mask if number > 1 else None)
        hidden = layer.finish(hidden, out)
    assert (read - hidden[:, kept[0]]).abs().max() <= 1e-12
    assert (written - hidden[:, -1:]).abs().max() <= 1e-12


def test_relevance_from_outside():
    model = llava_onevision()
    names = {
        "adatp": adatp,
        "model": model,
        "config": CONFIG,
        "inputs": {**prompt("llava_onevision", size=42), "max_new_tokens": 2},
        "scores": [0, 0, 1, 1, 0, 0],
        "other_scores": [0, 0, 0, 0, 1, 1],
    }
    exec(block("other_scores"), names)
    assert names["run"].report().salient == (2,)
    exec(block("siglip"), {**names, "siglip": siglip(), "tokenizer": WordTokenizer()})


def test_kept_cells_as_data_and_as_a_picture(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    model = build("qwen2_vl")
    with adatp.accelerate(model, CONFIG) as run, torch.no_grad():
        model(**prompt("qwen2_vl", size=(28, 56)))
    names = {"run": run, "frames": torch.zeros(12, 28, 56, 3, dtype=torch.uint8), "seconds": range(12)}
    exec(block("bincount"), {**names, "question": "What does the dog do?"})
    assert re.match(r"after layer 1: \[\d(, \d){5}\] tokens a frame\n", capsys.readouterr().out)
    assert json.loads(Path("kept.json").read_text())["grids"] == [[2, 4]] * 6
    assert Path("kept.png").read_bytes().startswith(b"\x89PNG")


def test_bias_and_a_prior(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    inputs = prompt("llava_onevision")
    names = {"adatp": adatp, "dataclasses": dataclasses, "model": build("llava_onevision"), "inputs": inputs}
    names |= {"config": CONFIG, "content_free_prompts": [inputs]}
    exec(block("bias_report"), names)
    exec(block("calibrate_prior"), names)
    assert "top 10 % of the visual tokens" in capsys.readouterr().out and Path("bias.png").exists()
    with adatp.accelerate(names["model"], names["config"]), torch.no_grad():
        names["model"](**inputs)


def test_a_family_of_ones_own(monkeypatch):
    monkeypatch.setattr(families, "FAMILIES", dict(families.FAMILIES))
    exec(block("adatp.register_family"), {"adatp": adatp})
    model = build("qwen2_vl")
    model.config.model_type = "my_video_llm"
    with adatp.accelerate(model, CONFIG) as run, torch.no_grad():
        model(**prompt("qwen2_vl"))
    assert run.report().layout.num_frames == 6 and run.report().grids == ((2, 2),) * 6


def test_several_processes(tmp_path):
    """With one of them; test_tensor_parallel has two."""
    build("llava_onevision").save_pretrained(tmp_path)
    inputs = {**prompt("llava_onevision"), "max_new_tokens": 2}
    names = {"adatp": adatp, "accelerate": accelerate, "config": CONFIG, "inputs": inputs, "prompts": [inputs, inputs]}
    text = block("tp_plan").replace(', tp_plan="auto"', "")
    exec(text, {**names, "transformers": transformers, "path": tmp_path})
    exec(block("PartialState"), {**names, "model": build("llava_onevision")})


def test_its_tables_are_those_of_the_comparison_that_is_on_record():
    record = (ROOT / "benches/results/evaluation/evaluation.md").read_text(encoding="utf-8")
    evaluation = (ROOT / "docs/evaluation.md").read_text(encoding="utf-8")
    tables = re.findall(r"^(\| (?:accuracy in %|at 0)[^\n]*\n\|---.*?)(?:\n\n|\Z)", record, re.DOTALL | re.MULTILINE)
    assert len(tables) == 3  # by budget, by kind of question, with a part of the method changed
    for table in tables:
        assert table in evaluation
    rows = re.findall(r"^\| (?:accuracy in %|adatp|fastv|not pruned) \| .*", PAGES[0], re.MULTILINE)
    assert len(rows) == 4 and all(f"\n{row}\n" in record for row in rows)


def test_what_a_target_comes_to():
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(block("shots"), {"adatp": adatp, "torch": torch})
    assert len(printed.getvalue().splitlines()) == 3 and f"```\n{printed.getvalue()}```" in PAGES[0]


def prose(path):
    """A page without its code."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "`", text)


def links(path):
    """What a page links to, web addresses aside."""
    found = re.findall(r"\]\(([^)\s]+)\)", prose(path))
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def anchors(path):
    """The names of a page's headings, as code hosts make them."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    names = []
    for heading in re.findall(r"^#+ (.*)", text, re.MULTILINE):
        words = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading).lower()
        name = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        again = sum(1 for other in names if re.fullmatch(rf"{re.escape(name)}(-\d+)?", other))
        names.append(f"{name}-{again}" if again else name)
    return names


MARKDOWN = sorted(
    [
        *ROOT.glob("*.md"),
        *(p for folder in ("adatp_kernels", "benches", "csrc", "docs") for p in (ROOT / folder).rglob("*.md")),
    ]
)


@pytest.mark.parametrize("page", MARKDOWN, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists() and target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target), link


def test_readme_links_every_page_once():
    linked = [link.partition("#")[0] for link in links(ROOT / "README.md")]
    for page in (*(ROOT / "docs").iterdir(), ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"):
        assert linked.count(page.relative_to(ROOT).as_posix()) == 1, page


def test_docstrings_of_single_operations_say_what_they_take_give_and_refuse():
    names = ("row_lse", "column_sums", "column_sums_varlen", "select", "gather", "prune")
    operations = [getattr(adatp.ops, name) for name in names]
    for operation in (*operations, adatp.flash_attention, adatp.flash_attention_varlen):
        for part in ("Parameters", "Returns", "Raises"):
            assert re.search(rf"^ *{part}\n *-+$", operation.__doc__, re.MULTILINE), (operation.__name__, part)
