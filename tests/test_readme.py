"""The README's Python runs, word for word."""

import re
from pathlib import Path

import torch
from family_models import build, prompt

import adatp_kernels as adatp
from adatp_kernels.integrations.transformers import families

README = (Path(__file__).parent.parent / "README.md").read_text()


def block(containing):
    """The one fenced block of Python that holds some words."""
    (found,) = [text for text in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if containing in text]
    return found


def test_a_hugging_face_model(capsys):
    model = build("llava_onevision")
    # The tiny model has too few layers for the default schedule.
    text = block("with adatp.accelerate").replace("target_flops=0.273)  ", "target_flops=0.5, stages=(1, 2))  ")
    exec(text, {"model": model, "inputs": {**prompt("llava_onevision"), "max_new_tokens": 2}})
    assert "FLOPs of the visual tokens: planned" in capsys.readouterr().out


def test_a_family_of_ones_own(monkeypatch):
    monkeypatch.setattr(families, "FAMILIES", dict(families.FAMILIES))
    exec(block("adatp.register_family"), {"adatp": adatp})
    model = build("qwen2_vl")
    model.config.model_type = "my_video_llm"
    with adatp.accelerate(model, adatp.AdaTPConfig(target_flops=0.5, stages=(1, 2))) as run, torch.no_grad():
        model(**prompt("qwen2_vl"))
    assert run.report().layout.num_frames == 6
