"""What is observed of an unpruned model's attention, and the report and the prior made of it."""

import dataclasses

import pytest
import torch
from family_models import build, joined
from family_models import prompt as prompt_of
from small_models import ATTENTION, CELLS, CONFIG, LAYERS, llava_onevision, prompt
from snapshots import assert_unchanged, snapshot
from transformers import BatchFeature, DynamicCache

import adatp_kernels as adatp
from adatp_kernels.integrations.transformers.bias import report_of
from adatp_kernels.integrations.transformers.observe import Observed, observe


@pytest.mark.parametrize("queries", ["text", "last"])
@pytest.mark.parametrize("attention", ATTENTION)
def test_observed_scores_are_those_of_the_materialised_attention_map(attention, queries):
    model, inputs = llava_onevision(attention), prompt()
    padded = {
        **inputs,
        **{
            name: torch.nn.functional.pad(inputs[name], (3, 0))  # no id and masked
            for name in ("input_ids", "attention_mask")
        },
    }
    with torch.no_grad():
        maps = llava_onevision("eager")(**inputs, output_attentions=True).attentions
        model(**inputs)  # transformers installs hooks of its own at the first call
    before = snapshot(model)
    for given, shift in ((inputs, 0), (padded, 3)):
        seen = observe(model, given, dataclasses.replace(CONFIG, queries=queries))
        assert seen.layers == tuple(range(LAYERS)) and seen.segments.tolist() == [0, 0, 1, 1, 2, 2]
        index = seen.layout.index - shift
        first = -1 if queries == "last" else int(index[-1]) + 1
        for layer, attended in enumerate(maps):
            expected = attended[0, :, first:].double().mean((0, 1))[index]
            assert (seen.scores[layer] - expected).abs().max() < 1e-6 < expected.max()
    assert_unchanged(model, before)


def test_chosen_layers_and_another_family():
    model, inputs = build("qwen3_vl"), prompt_of("qwen3_vl")
    with torch.no_grad():
        maps = build("qwen3_vl", "eager")(**inputs, output_attentions=True).attentions
    seen = observe(model, inputs, adatp.AdaTPConfig(target_flops=0.5, stages=(2, 3)), layers=(5, 2))
    last = int(seen.layout.index[-1])
    for row, layer in enumerate((5, 2)):
        expected = maps[layer][0, :, last + 1 :].mean((0, 1))[seen.layout.index]
        assert (seen.scores[row] - expected).abs().max() < 1e-6


def observed(scores, segments, cells=4):
    layout = adatp.VisualLayout.grid(len(segments), cells, start=2)
    return Observed(layout, torch.tensor(segments), tuple(range(len(scores))), scores)


def test_report_counts_frames_and_positions():
    scores = torch.zeros(2, 32)
    scores[0, [28, 29, 30, 31]] = torch.tensor([1.0, 2.0, 3.0, 4.0])  # layer 0: the last frame alone
    scores[1, [1, 5, 9, 13]] = torch.tensor([4.0, 3.0, 2.0, 1.0])  # layer 1: one position, in the first four frames
    config = adatp.AdaTPConfig(target_flops=0.5, stages=(1,))
    report = report_of(observed(scores, [0, 0, 0, 0, 1, 1, 1, 1]), config, share=0.125)
    assert report.frames_before.tolist() == [[0] * 7 + [1], [0.25] * 4 + [0] * 4]
    assert report.positions_before.tolist() == [[0.25] * 4, [0, 1, 0, 0]]
    # Two of each segment, and of each position of a segment only one.
    assert report.frames_after[0, :4].sum() == report.frames_after[0, 4:].sum() == 0.5
    assert report.frames_after[0, 7] == 0.5
    assert report.positions_after[1].max() == 0.5
    late, late_after = report.last_frames()
    assert late.tolist() == [1, 0] and late_after.tolist() == [0.5, 0]
    assert report.fullest_position()[0].tolist() == [1, 4]
    lines = str(report).splitlines()
    assert "12.5 %" in lines[0] and "last 1 of 8 frames" in lines[1]
    assert lines[2].split() == ["0", "100.0", "%", "→", "50.0", "%", "1.00", "×", "→", "1.00", "×"]
    off = dataclasses.replace(config, spatial_dedup="off")
    assert report_of(observed(scores, [0] * 8), off, share=0.125).frames_after.equal(report.frames_before)


def test_report_when_deduplication_leaves_less_than_the_share():
    """Of 32 tokens, the best 28; one per position of a segment are 8."""
    scores = torch.arange(32.0)[None]
    config = adatp.AdaTPConfig(target_flops=0.5, stages=(1,))
    for dedup, after in (("strict", [0, 0, 0, 0.5] * 2), ("off", [2 / 28, *[4 / 28] * 3] * 2)):
        report = report_of(
            observed(scores, [0, 0, 0, 0, 1, 1, 1, 1]), dataclasses.replace(config, spatial_dedup=dedup), share=0.8749
        )
        assert report.frames_before.allclose(torch.tensor([[0.0, *[4 / 28] * 7]]))  # rounded up
        assert report.frames_after.allclose(torch.tensor([after]))


def test_masked_tokens_are_not_observed_asking():
    model, inputs = llava_onevision(), prompt()
    where = inputs["input_ids"].shape[1] - 2
    longer = {
        "input_ids": torch.cat(
            [inputs["input_ids"][:, :where], torch.tensor([[77]]), inputs["input_ids"][:, where:]], 1
        ),
        "pixel_values_videos": inputs["pixel_values_videos"],
    }
    longer["attention_mask"] = torch.ones_like(longer["input_ids"]).index_fill(1, torch.tensor([where]), 0)
    with torch.no_grad():
        maps = llava_onevision("eager")(**longer, output_attentions=True).attentions
    seen = observe(model, longer, CONFIG)
    rows = [row for row in range(int(seen.layout.index[-1]) + 1, longer["input_ids"].shape[1]) if row != where]
    for layer, attended in enumerate(maps):
        expected = attended[0, :, rows].double().mean((0, 1))[seen.layout.index]
        assert (seen.scores[layer] - expected).abs().max() < 1e-6


def test_report_knows_the_prior(tmp_path):
    scores = torch.ones(1, 8)
    scores[0, 6:] = 2.0
    adatp.save_prior(torch.tensor([[5.0, 1, 5, 1], [1, 1, 1, 1]]), tmp_path / "prior.safetensors")
    config = adatp.AdaTPConfig(
        target_flops=0.5, stages=(1,), spatial_dedup="off", prior=str(tmp_path / "prior.safetensors")
    )
    report = report_of(observed(scores, [0, 0]), config, share=0.25)
    assert report.frames_before.tolist() == [[0, 1]] and report.frames_after.tolist() == [[1, 0]]


def test_report_of_a_model(tmp_path):
    report = adatp.bias_report(llava_onevision(), prompt(), CONFIG, share=0.3)
    assert report.frames_before.shape == (LAYERS, 6) and report.positions_after.shape == (LAYERS, CELLS)
    for values in (report.frames_before, report.frames_after, report.positions_before, report.positions_after):
        assert values.sum(1).allclose(torch.ones(LAYERS))
    # Every segment has its part: 16 tokens, of three segments.
    assert report.frames_after.view(LAYERS, 3, 2).sum(2).allclose(torch.tensor([6, 5, 5]) / 16)
    report.plot(tmp_path / "bias.png")
    assert (tmp_path / "bias.png").read_bytes().startswith(b"\x89PNG")


def test_report_of_several_prompts_is_their_mean():
    model, prompts = llava_onevision(), [prompt(), prompt(seed=1, shots=2)]
    alone = [adatp.bias_report(model, one, CONFIG) for one in prompts]
    both = adatp.bias_report(model, iter(prompts), CONFIG)
    for field in ("frames_before", "frames_after", "positions_before", "positions_after"):
        mean = (getattr(alone[0], field) + getattr(alone[1], field)) / 2
        assert getattr(both, field).allclose(mean)
        assert not getattr(alone[0], field).allclose(mean)
    with pytest.raises(ValueError, match=r"inputs: expected prompts of equally many frames .* \[\(4, 9\), \(6, 9\)\]"):
        adatp.bias_report(model, [prompt(), prompt(frames=4)], CONFIG)
    with pytest.raises(ValueError, match="inputs: expected at least one prompt, got none"):
        adatp.bias_report(model, [], CONFIG)


def test_mistakes():
    model, inputs = llava_onevision(), prompt()
    twice = {name: torch.cat([tensor] * 2) for name, tensor in inputs.items()}
    with pytest.raises(ValueError, match=r"input_ids: expected one prompt, shape \[1, N\], got torch.Size\(\[2,"):
        adatp.bias_report(model, twice, CONFIG)
    with pytest.raises(ValueError, match=r"share: expected a number in \(0.0, 1.0\], got 0"):
        adatp.bias_report(model, inputs, CONFIG, share=0)
    with pytest.raises(ValueError, match="prompts: expected at least one, got none"):
        adatp.calibrate_prior(model, [], CONFIG)
    with pytest.raises(
        ValueError, match="prompts: expected the same layout in all, got 6 frames of 54 tokens, then 4 of 36"
    ):
        adatp.calibrate_prior(model, [inputs, prompt(frames=4)], CONFIG)


@pytest.mark.parametrize("family", ["llava_onevision", "internvl"])
def test_prompts_that_show_no_video_or_go_on_from_a_cache(family):
    model, inputs, config = build(family), prompt_of(family), adatp.AdaTPConfig(target_flops=0.5, stages=(2,))
    text = {"input_ids": torch.tensor([[1, 2, 3]]), "attention_mask": None}
    cache = DynamicCache(config=model.config.get_text_config())
    pixels = next(name for name in inputs if name.startswith("pixel"))
    for measure in (adatp.bias_report, adatp.calibrate_prior):
        with pytest.raises(
            ValueError, match=rf"^{pixels}: expected with a prompt to observe, got only attention_mask, input_ids"
        ):
            measure(model, text, config)
        with pytest.raises(ValueError, match="^past_key_values: expected None with a prompt to observe"):
            measure(model, {**inputs, "past_key_values": cache}, config)


@pytest.mark.parametrize("said", [{"use_cache": True}, {"logits_to_keep": 0}, {"logits_to_keep": 3}])
def test_what_a_prompt_says_about_its_answer_changes_nothing(said):
    model, inputs = llava_onevision(), prompt()
    report, prior = adatp.bias_report(model, inputs, CONFIG), adatp.calibrate_prior(model, inputs, CONFIG)
    given = {**inputs, **said}
    assert adatp.bias_report(model, given, CONFIG).frames_before.equal(report.frames_before)
    assert adatp.calibrate_prior(model, given, CONFIG).equal(prior)
    assert given.keys() == inputs.keys() | said.keys()


def test_last_frames_are_some_of_those_there_are():
    report = adatp.bias_report(llava_onevision(), prompt(), CONFIG)
    assert report.last_frames(6)[0].allclose(torch.ones(LAYERS))
    assert report.last_frames(1)[0].equal(report.frames_before[:, 5])
    assert report.last_frames(2)[1].equal(report.frames_after[:, 4:].sum(1))
    for count in (0, -1):
        with pytest.raises(ValueError, match=f"^count: expected an integer of at least 1, got {count}"):
            report.last_frames(count)
    with pytest.raises(ValueError, match="^count: expected 1 to 6, the number of frames, got 7"):
        report.last_frames(7)
    with pytest.raises(TypeError, match="^count: expected an integer, got 1.5"):
        report.last_frames(1.5)


@pytest.mark.parametrize("make", [dict, BatchFeature])
def test_one_prompt_or_several(make):
    """As a dict, or as processors return it, which is none."""
    model, inputs = llava_onevision(), make(prompt())
    prior = adatp.calibrate_prior(model, inputs, CONFIG)
    assert prior.equal(adatp.calibrate_prior(model, [inputs], CONFIG))
    assert prior.equal(adatp.calibrate_prior(model, iter([inputs, inputs]), CONFIG))
    report = adatp.bias_report(model, inputs, CONFIG)
    assert report.frames_before.equal(adatp.bias_report(model, [inputs], CONFIG).frames_before)
    for wrong in ("prompt", 3, [inputs["input_ids"]], None):
        with pytest.raises(TypeError, match=r"prompts: expected what the model's forward takes, by name.* got "):
            adatp.calibrate_prior(model, wrong, CONFIG)
        with pytest.raises(TypeError, match=r"inputs: expected what the model's forward takes, by name.* got "):
            adatp.bias_report(model, wrong, CONFIG)


def test_the_prior_evens_out_what_it_was_made_of():
    model, inputs = llava_onevision(), prompt(shots=1)
    config = adatp.AdaTPConfig(target_flops=0.5, stages=(2,))
    prior = adatp.calibrate_prior(model, [inputs], config)
    seen = observe(model, inputs, config, layers=(2,))
    evened = seen.scores[0] * prior[seen.layout.frame, seen.layout.position]
    assert evened.allclose(seen.scores[0].mean().expand_as(evened), rtol=1e-4)
    assert evened.max() < 1.01 * evened.min() < 0.9 * seen.scores[0].max()
    # Over layers and prompts it is the mean that is evened out.
    several = [inputs, prompt(shots=1, seed=1)]
    prior = adatp.calibrate_prior(model, several, CONFIG)
    shares = torch.stack([observe(model, one, CONFIG, CONFIG.stages).scores for one in several]).flatten(0, 1)
    shares = (shares / shares.sum(1, keepdim=True)).mean(0)
    evened = shares * prior[seen.layout.frame, seen.layout.position]
    assert evened.allclose(shares.mean().expand_as(evened), rtol=1e-4)


def test_a_configured_prior_is_the_one_that_prunes(tmp_path):
    path = tmp_path / "prior.safetensors"
    favours = torch.ones(6, CELLS)
    favours[1::2] = 1000.0  # of the two frames of each segment the second
    adatp.save_prior(favours, path, {"made of": "nothing"})
    model, inputs = llava_onevision(), prompt()
    config = dataclasses.replace(CONFIG, prior=path)
    assert adatp.AdaTPConfig.from_json(config.to_json()) == config
    kept = {}
    for name, one in (("with", config), ("without", CONFIG)):
        with adatp.accelerate(model, one) as run, torch.no_grad():
            model(**inputs)
        report = run.report()
        alive = torch.isin(report.layout.index, report.survivors[-1][1])
        kept[name] = report.layout.frame[alive].remainder(2)
    assert kept["with"].bool().all() and not kept["without"].bool().all()
    with adatp.accelerate(model, config) as run, torch.no_grad():
        # Of a batch every row has it, too; a video of another length is refused.
        other = prompt(seed=1)
        model(**{name: torch.cat([inputs[name], other[name]]) for name in inputs})
        for row in range(2):
            report = run.report(row)
            alive = torch.isin(report.layout.index, report.survivors[-1][1])
            assert report.layout.frame[alive].remainder(2).bool().all()
        with pytest.raises(ValueError, match=r"prior: expected shape \[num_frames, positions\] = \[4, at least 9\]"):
            model(**prompt(frames=4))
    with adatp.accelerate(build("qwen2_vl"), config) as run, pytest.raises(ValueError, match=r"prior: .* = \[8, "):
        run._model(**joined([prompt_of("qwen2_vl", frames=4)] * 2))


@pytest.mark.parametrize("what", [adatp.bias_report, adatp.calibrate_prior])
def test_who_may_observe_and_what(what):
    model = build("internvl")
    with pytest.raises(TypeError, match="config: expected an AdaTPConfig, got dict"):
        what(model, prompt_of("internvl"), {"target_flops": 0.5})
    ends = adatp.AdaTPConfig(target_flops=0.5, stages=(2,), score="random")  # for which nobody has to ask
    with pytest.raises(ValueError, match="input_ids: expected text behind the last visual token"):
        what(model, prompt_of("internvl", after=()), ends)
