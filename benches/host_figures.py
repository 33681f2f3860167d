"""What `host_time.py` measures, each line in one process; of another commit, too, whose package is then the first to be found.

What the lines are, and how they are compared, stands there.
"""

from __future__ import annotations

import contextlib
import copy
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch

# The tiny model: so many layers make 15 stages, and of so small a frame there is one token.
LAYERS, FRAMES, SIDE = 28, 32, 14
VIDEO = 91
# LLaVA-OneVision-7B and a video of 32 frames; what travels is narrower, since nothing is moved.
DECODER = {"num_layers": 28, "hidden_size": 3584, "key_width": 512, "mlp_width": 18944}
HEADS, KEY_HEADS, HEAD_DIM, BEFORE, GRID, TEXT = 28, 4, 128, 14, (32, 196), 64


def figures(quick: bool) -> dict[str, float | str]:
    """Every line, in microseconds; or, in words, why a tree cannot be measured in it."""
    torch.set_num_threads(1)
    found: dict[str, float | str] = {}
    with torch.no_grad():
        for measure in (prompts, decoding, planning, stages, attention):
            try:
                found |= measure(2 if quick else sys.maxsize)
            except Exception as error:  # another commit may lack what is measured; the rest is worth having
                found[measure.__name__] = f"{measure.__name__} not measured: {type(error).__name__}: {error}"
    return found


def median_time(call: Callable[[], Any], repetitions: int, calls: int = 1) -> float:
    """CPU microseconds of a call, the median over `repetitions` of so many `calls`."""
    call()

    def several() -> None:
        for _ in range(calls):  # results go at once, so that what is timed is no search for memory
            call()

    return statistics.median(clock(several) / calls for _ in range(repetitions))


def clock(call: Callable[[], Any]) -> float:
    """CPU microseconds of one call."""
    before = time.process_time_ns()
    call()
    return (time.process_time_ns() - before) / 1e3


# The tiny model.


def tiny_model() -> Any:
    """A LLaVA-OneVision of 28 layers in which next to nothing is computed; the same at every call."""
    import transformers

    size = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4}
    vision = {"model_type": "siglip_vision_model", **size, "num_hidden_layers": 1, "image_size": SIDE, "patch_size": 7}
    text = {"model_type": "qwen2", **size, "num_key_value_heads": 2, "num_hidden_layers": LAYERS, "vocab_size": 100}
    config = transformers.LlavaOnevisionConfig(
        text_config=text, vision_config=vision, image_token_index=90, video_token_index=VIDEO,
        image_grid_pinpoints=[[SIDE, SIDE]],
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.LlavaOnevisionForConditionalGeneration._from_config(config, attn_implementation="sdpa").eval()


def tiny_config() -> Any:
    """All 15 stages drop something: strict deduplication would leave the first one's cells to all others."""
    import adatp_kernels as adatp

    return adatp.AdaTPConfig(target_flops=0.5, schedule="linear", spatial_dedup="soft")


def tiny_prompt(seed: int) -> dict[str, Any]:
    """A video of several shots, whose frames differ a little within a shot, and a question of some length."""
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    cuts = sorted(draw.sample(range(1, FRAMES), 7))
    shot = torch.tensor([sum(cut <= frame for cut in cuts) for frame in range(FRAMES)])
    scenes = torch.randn(len(cuts) + 1, 3, SIDE, SIDE, generator=generator)
    pixels = scenes[shot] + 0.1 * torch.randn(FRAMES, 3, SIDE, SIDE, generator=generator)
    after = [5 + word % 50 for word in range(draw.randint(8, 40))]
    ids = torch.tensor([[1, *[VIDEO] * (FRAMES + 1), *after]])
    return {"input_ids": ids, "pixel_values_videos": pixels[None], "logits_to_keep": 1}


def prompts(most: int) -> dict[str, float]:
    import adatp_kernels as adatp

    dense, pruned = tiny_model(), tiny_model()
    found: dict[str, float] = {}
    with adatp.accelerate(pruned, tiny_config()) as run:
        for seed in range(min(4, most)):  # warm
            dense(**tiny_prompt(seed)), pruned(**tiny_prompt(seed))
        if len(run.report().survivors) < 15 or max(run.report().segments) < 1:
            raise RuntimeError(f"the tiny model's prompt is no example of what is pruned:\n{run.report()}")
        for kind, first in (("new", 100), ("again", None)):
            times = []
            for number in range(min(40, most)):
                inputs = tiny_prompt(7 if first is None else first + number)
                both = {dense: 0.0, pruned: 0.0}
                for model in (dense, pruned) if number % 2 else (pruned, dense):
                    both[model] = clock(lambda model=model, inputs=inputs: model(**inputs))
                times.append((both[dense], both[pruned]))
            found[f"prompt, {kind}: dense"] = statistics.median(alone for alone, _ in times)
            found[f"prompt, {kind}: pruned"] = statistics.median(ours for _, ours in times)
            found[f"prompt, {kind}: extra"] = statistics.median(ours - alone for alone, ours in times)
    return found


def decoding(most: int) -> dict[str, float]:
    import adatp_kernels as adatp

    # One model, accelerated and not in turn, on one cache: two models differ by more than what is looked for.
    model, token = tiny_model(), torch.tensor([[5]])
    with adatp.accelerate(model, tiny_config()):
        cache = model(**tiny_prompt(0)).past_key_values

    def alone(served: bool = True) -> float:
        held, tokens = copy.deepcopy(cache), min(24, most)  # every answer begins at the same length
        held.layers[0].served = served  # read without acceleration, too: one token needs no mask

        def decode() -> None:
            for _ in range(tokens):
                model(input_ids=token, past_key_values=held, logits_to_keep=1)

        decode()  # the first after a change find nothing where it was
        return clock(decode) / tokens

    def accelerated() -> float:
        with adatp.accelerate(model, tiny_config()):
            return alone(served=False)

    times = []
    for number in range(min(40, most)):
        turn = {kind: kind() for kind in ((alone, accelerated) if number % 2 else (accelerated, alone))}
        times.append((turn[alone], turn[accelerated]))
    return {
        "decoded token: dense": statistics.median(dense for dense, _ in times),
        "decoded token: accelerated": statistics.median(ours for _, ours in times),
        "decoded token: extra a layer": statistics.median((ours - dense) / LAYERS for dense, ours in times),
    }


# At LLaVA-OneVision-7B's size.


def planning(most: int) -> dict[str, float]:
    import adatp_kernels as adatp

    frames, cells = GRID
    pruner = adatp.AdaTPPruner(adatp.AdaTPConfig(target_flops=0.273), **DECODER)
    draw = random.Random(0)

    def begin(starts: list[int]) -> float:
        layout = adatp.VisualLayout.grid(frames, cells, BEFORE)  # equal to the last one, but another object
        segments = torch.tensor([sum(start <= frame for start in starts) for frame in range(frames)])
        return clock(lambda: pruner.begin(layout, BEFORE + frames * cells + TEXT, segments=segments))

    begin([16]), begin([16])
    new = [begin(sorted(draw.sample(range(1, frames), 7))) for _ in range(min(30, most))]
    again = [begin([4, 8, 12, 16, 20, 24, 28]) for _ in range(min(30, most) + 1)][1:]
    return {"begin, new": statistics.median(new), "begin, again": statistics.median(again)}


def stages(most: int) -> dict[str, float]:
    found: dict[str, float] = {}
    for backend, without_launches in (("triton", triton_without_launches), ("native", native_without_launches)):
        with without_launches():
            stage = first_stage(backend)
            found[f"stage, {backend}"] = median_time(stage, min(15, most), min(20, most))
            if backend == "triton":  # the native backend's stage is one launch
                parts = [phases(stage) for _ in range(min(300, most))]
                for name in parts[0]:
                    found[f"stage, {backend}: {name}"] = statistics.median(part[name] for part in parts)
    return found


def first_stage(backend: str) -> Callable[..., Any]:
    """The first stage of a prompt with everything that travels without a cache that is compacted."""
    import adatp_kernels as adatp

    frames, cells = GRID
    length = BEFORE + frames * cells + TEXT
    half = {"dtype": torch.bfloat16}
    query, key = torch.empty(1, HEADS, length, HEAD_DIM, **half), torch.empty(1, KEY_HEADS, length, HEAD_DIM, **half)
    hidden = torch.empty(1, length, 64, **half)
    cos, sin = torch.empty(1, length, HEAD_DIM, **half), torch.empty(1, length, HEAD_DIM, **half)
    pruner = adatp.AdaTPPruner(adatp.AdaTPConfig(target_flops=0.273, backend=backend), **DECODER)
    layout = adatp.VisualLayout.grid(frames, cells, BEFORE)
    state, lse = pruner.begin(layout, length, segments=torch.arange(frames) // 4), torch.zeros(1, HEADS, length)
    return lambda **options: pruner(state, query, key, (hidden, cos, sin), dims=1, lse=lse, **options)


def phases(stage: Callable[..., Any]) -> dict[str, float]:
    """CPU microseconds of score, select and gather in one stage; what comes before them is the score's."""
    marks: list[tuple[str, int]] = []
    before = time.process_time_ns()
    stage(on_phase=lambda phase: marks.append((phase, time.process_time_ns())))
    times = {}
    marks.append(("rest", time.process_time_ns()))
    for phase, now in marks:
        times["gather" if phase == "compact" else phase], before = (now - before) / 1e3, now
    return times


@contextlib.contextmanager
def triton_without_launches() -> Iterator[None]:
    """Within, CPU tensors pass for those of an sm_90: kernels are compiled for one, and where it would run them nothing is."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver

    from adatp_kernels.ops.triton import backend, tiles

    class Nothing:
        utils = SimpleNamespace(
            get_device_properties=lambda device: {
                "max_shared_mem": 232448, "multiprocessor_count": 132, "warpSize": 32, "max_num_regs": 65536,
            },
            load_binary=lambda name, kernel, shared, device: (object(), object(), 0, 0, 1024),
            unload_module=lambda module: None,
        )  # fmt: skip
        get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
        get_current_device = staticmethod(lambda: 0)
        get_current_stream = staticmethod(lambda device=None: 0)
        get_active_torch_device = staticmethod(lambda: torch.device("cpu"))

        def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
            return lambda *arguments, **_: None

    before, architecture = driver._active, tiles.architecture
    driver.set_active(Nothing())
    # As under Triton's interpreter, tensors may be the CPU's; all else that is asked of them is asked as ever.
    tiles.architecture, backend.INTERPRETED = lambda device: "sm_90", True
    try:
        yield
    finally:
        driver._active, tiles.architecture, backend.INTERPRETED = before, architecture, False


@contextlib.contextmanager
def native_without_launches() -> Iterator[None]:
    """Within, CPU tensors pass for a GPU's, and the operators of the CUDA library do nothing."""
    from adatp_kernels.ops.native import backend, cuda
    from adatp_kernels.ops.native.build import Library

    class Operators:
        def __getattr__(self, name: str) -> Callable[..., None]:
            self.__dict__[name] = nothing = lambda *_: None
            nothing.default = nothing
            return nothing

    before = cuda._DEVICE, cuda.load, backend._library
    cuda._DEVICE, cuda.load, backend._library = "cpu", lambda: Library(Path(), "nowhere"), lambda tensor: cuda
    torch.ops.adatp_cuda = Operators()
    try:
        yield
    finally:
        cuda._DEVICE, cuda.load, backend._library = before
        del torch.ops.adatp_cuda


class OnGpu(torch.Tensor):
    """A CPU tensor that says it is a GPU's."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = torch.device("cuda", 0)
    is_cuda, is_cpu = True, False


def attention(most: int) -> dict[str, float]:
    """One token's attention, by the flash-attn 2 that is found here: one that returns its query."""
    from adatp_kernels import attention as ours

    lse = torch.zeros(1, HEADS, 1)

    def flash_attn_func(
        q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None,
        deterministic=False, return_attn_probs=False,
    ):  # fmt: skip
        return q, lse, None

    module = ModuleType("flash_attn")
    module.__spec__, module.flash_attn_func = ModuleSpec("flash_attn", None), flash_attn_func
    query, key = (
        torch.empty(1, heads, rows, HEAD_DIM, dtype=torch.bfloat16).as_subclass(OnGpu)
        for heads, rows in ((HEADS, 1), (KEY_HEADS, 6272))
    )

    def capability(device: Any = None) -> tuple[int, int]:
        return 9, 0

    def hardware(device: Any) -> tuple[str, tuple[int, int]]:
        return "cuda", (9, 0)

    call = lambda: ours.flash_attention(query, key, key, provider="flash_attn_2")  # noqa: E731
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(sys.modules, {"flash_attn": module}))
        stack.enter_context(mock.patch.object(torch.cuda, "get_device_capability", capability))
        stack.enter_context(mock.patch.object(torch.cuda, "device_of", contextlib.nullcontext))
        if isinstance(getattr(ours, "call", None), ModuleType):  # it remembers what it was told of devices
            stack.enter_context(mock.patch.object(ours.call, "hardware", hardware))
        return {"attention with its LSE, a layer": median_time(call, min(15, most), min(200, most))}
