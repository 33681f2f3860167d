"""Models that other packages wrapped, spread or compiled are pruned as they would be without."""

import accelerate
import peft
import pytest
import torch
from family_models import BUILDERS, batch_of, build, prompt
from masked_reference import TOLERANCE, MaskedReference, generate, survivors_of
from torch.compiler import is_dynamo_compiling
from transformers import DynamicCache

import adatp_kernels as adatp
from adatp_kernels.integrations.transformers import families
from adatp_kernels.integrations.transformers.dynamo import eval_frame_callback
from adatp_kernels.integrations.transformers.prefill import VideoPrefill
from adatp_kernels.integrations.transformers.tap import AttentionTap, Seen
from adatp_kernels.integrations.transformers.visuals import find_visuals

CONFIG = adatp.AdaTPConfig(target_flops=0.5, stages=(2, 3, 6, 9))


def pruned(model, inputs, config=CONFIG):
    with adatp.accelerate(model, config) as run:
        sequences, logits, _ = generate(model, inputs, max_new_tokens=4)
    return sequences, logits, run.report().survivors


@pytest.mark.parametrize("family", BUILDERS)
def test_adapters_of_peft(family):
    def adapted(attention="sdpa"):
        torch.manual_seed(5)
        lora = peft.LoraConfig(target_modules=r".*\.layers\..*\.(q_proj|v_proj)", init_lora_weights=False)
        return peft.get_peft_model(build(family, attention), lora).eval()

    inputs = prompt(family)
    sequences, logits, survivors = pruned(adapted(), inputs)
    full = adapted("eager").get_base_model()
    MaskedReference(full).add(survivors, 0, inputs["input_ids"].shape[1])
    expected_sequences, expected, _ = generate(full, inputs, max_new_tokens=4)
    assert sequences.equal(expected_sequences)
    assert (logits - expected).abs().max() <= TOLERANCE
    # Sensitivity: the adapters do something.
    assert (logits - pruned(build(family), inputs)[1]).abs().max() > 100 * TOLERANCE
    model = adapted()
    with adatp.accelerate(model, CONFIG), pytest.raises(RuntimeError, match="accelerated already"):
        adatp.accelerate(model.get_base_model(), CONFIG)


@pytest.mark.filterwarnings("ignore:The following device_map keys", "ignore:You are calling .generate")
@pytest.mark.parametrize(
    ("family", "how", "compact"),
    [
        ("llava_onevision", "cpu_offload", False),
        ("qwen3_vl", "cpu_offload", True),
        ("llava_onevision", "disk_offload", True),
        ("qwen2_vl", "device_map", False),
    ],
)
def test_hooks_of_accelerate(family, how, compact, tmp_path):
    """Weights that come from elsewhere for every layer, before and after which our hooks run."""
    config = adatp.AdaTPConfig(target_flops=0.5, stages=(2, 3, 6, 9), compact_cache=compact)
    inputs = batch_of([prompt(family), prompt(family, seed=1, after=(7, 8))])
    expected = pruned(build(family), inputs, config)
    model = build(family)
    if how == "cpu_offload":
        accelerate.cpu_offload(model, execution_device="cpu")
    elif how == "disk_offload":
        accelerate.disk_offload(model, tmp_path, execution_device="cpu")
    else:
        layers = {
            f"model.language_model.layers.{number}": "cpu" if number < 5 else "disk"
            for number in range(len(model.model.language_model.layers))
        }
        rest = {
            name: "cpu" for name, _ in model.named_parameters() if not name.startswith("model.language_model.layers.")
        }
        accelerate.dispatch_model(model, rest | layers, main_device="cpu", offload_dir=tmp_path)
    try:
        generate(model, inputs, max_new_tokens=1)
    except NotImplementedError:  # 5.24 encodes LLaVA-OneVision's videos where no hook brings the weights
        pytest.skip("this version of transformers cannot run such an offloaded model, pruned or not")
    sequences, logits, survivors = pruned(model, inputs, config)
    assert sequences.equal(expected[0]) and logits.equal(expected[1])
    assert all(kept.equal(other) for (_, kept), (_, other) in zip(survivors, expected[2], strict=True))


def prefill_on_two_devices(devices, compact, rotary="cpu"):
    """A prompt that has passed layers 0 to 3, which live on these devices, the stage after layer 3 included.

    What it begins with is on the CPU, its cos and sin on the device `rotary`.
    """
    model, inputs = build("llava_onevision"), prompt("llava_onevision")
    inputs["attention_mask"][0, 0] = 0
    config = adatp.AdaTPConfig(target_flops=0.5, stages=(3, 6), compact_cache=compact, backend="reference")
    run = adatp.accelerate(model, config)
    prefill = VideoPrefill(run._pruner, inputs, find_visuals(families.find(model), model, inputs))
    run.remove()
    length, cache = inputs["input_ids"].shape[1], DynamicCache()
    hidden, angles = torch.randn(1, length, 64), tuple(torch.randn(1, length, 16, device=rotary) for _ in range(2))
    kwargs = {"past_key_values": cache, "position_embeddings": angles}
    prefill.begin(hidden, kwargs, prefill.frame_means(hidden), [None])
    for number, device in enumerate(devices):
        entry = torch.randn(1, 2, length, 16, device=device)
        cache.update(entry, entry, number)
        prefill.before_layer(number, hidden, kwargs)
    query, key = torch.randn(1, 4, length, 16, device=devices[3]), torch.randn(1, 2, length, 16, device=devices[3])
    hidden = prefill.after_layer(3, hidden.to(devices[3]), Seen(query, key, None, None))
    assert hidden.shape == (1, prefill.state.length, 64) and hidden.device.type == devices[3]
    assert prefill.state.length < length - 1  # the padding is gone, too
    assert all(part.shape[1] == hidden.shape[1] and part.device == hidden.device for part in prefill.rotary)
    return prefill, cache, hidden, kwargs


@pytest.mark.parametrize("rotary", ["cpu", "meta"])
def test_a_stage_on_another_device_than_the_last(rotary):
    """The second device is "meta": nothing may stay behind, nothing may be mixed."""
    prefill, cache, hidden, kwargs = prefill_on_two_devices(["cpu", "cpu", "cpu", "meta"], compact=False, rotary=rotary)
    assert prefill.state.kept.is_meta
    length = cache.layers[0].keys.shape[2]
    kwargs = {**kwargs, "attention_mask": torch.ones(1, 1, length, length, dtype=torch.bool, device="meta")}
    assert prefill.before_layer(4, hidden, kwargs)["attention_mask"].shape == (1, 1, *[hidden.shape[1]] * 2)


def test_a_cache_on_several_devices_is_compacted_on_each():
    prefill, cache, hidden, _ = prefill_on_two_devices(["meta", "cpu", "meta", "cpu"], compact=True)
    assert [layer.keys.shape[2] for layer in cache.layers] == [hidden.shape[1]] * 4
    assert [layer.values.device.type for layer in cache.layers] == ["meta", "cpu", "meta", "cpu"]
    assert prefill.state.kept.device.type == "cpu"


def test_a_model_that_is_compiled_after_it_was_accelerated():
    config = adatp.AdaTPConfig(target_flops=0.6, stages=(1, 2))
    model = build("llava_onevision", layers=5)
    inputs = batch_of([prompt("llava_onevision"), prompt("llava_onevision", seed=1, after=(7, 8))])
    dense = generate(model, inputs, max_new_tokens=2)[1]
    with adatp.accelerate(model, config) as run:
        model.compile(backend="eager")
        _, logits, _ = generate(model, inputs, max_new_tokens=2)
    full = build("llava_onevision", "eager", layers=5)
    MaskedReference(full).add(survivors_of(run, 2), 0, inputs["input_ids"].shape[1])
    assert (logits - generate(full, inputs, max_new_tokens=2)[1]).abs().max() <= TOLERANCE
    assert (generate(model, inputs, max_new_tokens=2)[1] - dense).abs().max() <= TOLERANCE
    with pytest.raises(ValueError, match="model: LlavaOnevisionForConditionalGeneration is compiled already"):
        adatp.accelerate(model, config)
    torch._dynamo.reset()


def test_a_model_that_was_compiled_before_is_refused_where_it_can_be_told():
    model, inputs = build("llava_onevision"), prompt("llava_onevision")
    with pytest.raises(ValueError, match="model: OptimizedModule is compiled already; accelerate first, then compile"):
        adatp.accelerate(torch.compile(model, backend="eager"), CONFIG)
    compiled = torch.compile(model, backend="eager")  # leaves no trace in the model itself
    with torch.no_grad():
        dense = compiled(**inputs).logits
        with adatp.accelerate(model, CONFIG):
            logits = model(**inputs).logits
            assert compiled(**inputs).logits.equal(logits) and logits.shape[1] < dense.shape[1]
        assert compiled(**inputs).logits.equal(dense)
    model.model.language_model.forward = torch.compile(model.model.language_model.forward, backend="eager")
    with pytest.raises(ValueError, match="model: model.language_model is compiled already"):
        adatp.accelerate(model, CONFIG)
    torch._dynamo.reset()


@pytest.mark.parametrize("part", ["model.language_model", "model.language_model.layers.2"])
def test_a_part_that_was_compiled_on_text_prunes_the_video_that_follows(part):
    """Compiled code does not notice hooks that come later; so what watches the layers is there from the beginning."""
    config = adatp.AdaTPConfig(target_flops=0.6, stages=(1, 2))
    inputs = prompt("llava_onevision")
    expected = pruned(build("llava_onevision", layers=5), inputs, config)[1]
    model = build("llava_onevision", layers=5)
    dense = generate(model, inputs, max_new_tokens=4)[1]
    with adatp.accelerate(model, config):
        model.get_submodule(part).compile(backend="eager")
        generate(model, {name: inputs[name][:, -5:] for name in ("input_ids", "attention_mask")}, max_new_tokens=2)
        assert (generate(model, inputs, max_new_tokens=4)[1] - expected).abs().max() <= TOLERANCE
    assert (generate(model, inputs, max_new_tokens=4)[1] - dense).abs().max() <= TOLERANCE
    torch._dynamo.reset()


@pytest.mark.parametrize("part", ["", ".layers.2", ".layers.2.self_attn"])
def test_dynamo_keeps_out_of_what_prunes(part, monkeypatch):
    """It neither traces these functions nor looks at their frames: they run once a prompt and differ every time."""
    called = []

    def watch(owner, name):
        own = getattr(owner, name)

        def watched(*args):
            called.append((name, is_dynamo_compiling() or eval_frame_callback() is not None))
            return own(*args)

        monkeypatch.setattr(owner, name, watched)

    watch(VideoPrefill, "before_layer"), watch(VideoPrefill, "after_layer"), watch(AttentionTap, "function")
    model, inputs = build("llava_onevision", layers=5), prompt("llava_onevision")
    with adatp.accelerate(model, adatp.AdaTPConfig(target_flops=0.6, stages=(1, 2))):
        model.get_submodule("model.language_model" + part).compile(backend="eager")
        generate(model, inputs, max_new_tokens=1)
    torch._dynamo.reset()
    assert set(called) == {("before_layer", False), ("after_layer", False), ("function", False)}
