"""A remembered launch takes the kernel that Triton would have taken for the same arguments, and no other."""

import itertools

import pytest
import torch
import triton
import triton.language as tl
from gates.compile_only import CompileOnlyDriver, compiling_for
from triton import knobs
from triton.runtime import JITFunction

from adatp_kernels.ops.triton import gather as moving
from adatp_kernels.ops.triton.launch import Launcher


@triton.jit(do_not_specialize=["size", "factor"])
def _kinds_kernel(x, y, size, stride, step, factor, FLAG: tl.constexpr, NAME: tl.constexpr, FOLLOWS: tl.constexpr):
    tl.store(y + tl.program_id(0) * stride, tl.load(x + size * step).to(tl.float32) * factor)


def arguments():
    """Tensors, numbers and constants of every kind that Triton tells apart, and of some that it does not."""
    memory = torch.zeros(64)
    tensors = [
        (memory, memory),
        (memory[1:], memory),
        (memory, memory[4:]),
        (memory.long(), memory),
        (memory, memory.half()),
    ]
    sizes = [
        (7, 16, 3),
        (8, 16, 3),
        (7, 32, 3),
        (7, 1, 3),
        (7, 2, 3),
        (7, 16, 1),
        (7, 16, 0),
        (7, 1 << 33, 3),
        (1 << 33, 16, 3),
    ]
    for (x, y), (size, stride, step), factor in itertools.product(tensors, sizes, (0.5, 1.0)):
        for flag, name, follows in ((False, "a", False), (True, "a", False), (False, "b", False), (False, "a", True)):
            constants = {"FLAG": flag, "NAME": name, "FOLLOWS": follows}
            yield (x, y), (size, stride, step, factor), constants, 4
    yield (memory, memory), (7, 16, 3, 0.5), constants, 8


@pytest.fixture
def launched(monkeypatch):
    """Which compiled kernel every launch reached."""
    reached = []
    monkeypatch.setattr(
        CompileOnlyDriver,
        "launcher_cls",
        lambda self, source, metadata: lambda *arguments: reached.append((arguments[4], arguments[9:])),
    )
    return reached


def test_the_remembered_kernel_is_the_one_that_triton_takes(launched, monkeypatch):
    launcher = Launcher(_kinds_kernel)
    with compiling_for("sm_90", [_kinds_kernel]):
        asked = []
        compile_ = launcher._compile
        monkeypatch.setattr(launcher, "_compile", lambda *rest: (asked.append(1), compile_(*rest))[1])
        for tensors, numbers, constants, warps in arguments():
            options = {"launch_pdl": True} if constants["FOLLOWS"] else {}
            _kinds_kernel[(3, 2, 1)](*tensors, *numbers, **constants, num_warps=warps, **options)
            for _ in range(2):
                launcher((3, 2, 1), tensors, numbers, constants, num_warps=warps)
            (by_triton, given), *ours = launched[-3:]
            assert all(function is by_triton for function, _ in ours)
            assert all(
                len(own) == len(given) and all(a is b for a, b in zip(own, given, strict=True)) for _, own in ours
            )
        assert len(asked) < sum(1 for _ in arguments()) < len(launched) / 2  # the second time it was remembered


@pytest.mark.parametrize("hook", ["launch_enter_hook", "launch_exit_hook"])
def test_a_profiler_is_told_of_every_launch(hook, launched, monkeypatch):
    launcher = Launcher(_kinds_kernel)
    tensors, numbers, constants, _ = next(iter(arguments()))

    def listen(metadata):
        assert metadata.get()["name"] == "_kinds_kernel"

    def tell(self, source, metadata):
        return lambda *arguments: (
            launched.append(arguments),
            [h(arguments[6]) for h in arguments[7:9] if h is not None],
        )

    monkeypatch.setattr(CompileOnlyDriver, "launcher_cls", tell)
    with compiling_for("sm_90", [_kinds_kernel]):
        launcher((1, 1, 1), tensors, numbers, constants)
        launcher((1, 1, 1), tensors, numbers, constants)
        assert launched[-1][6:9] == (None, None, None)
        told = []
        listener = lambda metadata: (told.append(1), listen(metadata))  # noqa: E731
        getattr(knobs.runtime, hook).add(listener)
        try:
            launcher((1, 1, 1), tensors, numbers, constants)
            launcher((1, 1, 1), tensors, numbers, constants)
        finally:
            getattr(knobs.runtime, hook).remove(listener)
        assert len(told) == 2
        launcher((1, 1, 1), tensors, numbers, constants)
        assert len(told) == 2 and len(launched) == 5


def test_a_kernel_that_nobody_compiled_is_not_remembered(monkeypatch):
    """As under a hook of Triton's that takes over the compilation."""
    launcher = Launcher(_kinds_kernel)
    tensors, numbers, constants, _ = next(iter(arguments()))
    with compiling_for("sm_90", [_kinds_kernel]):
        seen = []
        monkeypatch.setattr(knobs.runtime, "jit_cache_hook", lambda **_: seen.append(1) or True)
        for _ in range(3):
            launcher((1, 1, 1), tensors, numbers, constants)
        assert len(seen) == 3


def test_constants_in_another_order_are_refused():
    with (
        pytest.raises(RuntimeError, match="_kinds_kernel: expected the constants"),
        compiling_for("sm_90", [_kinds_kernel]),
    ):
        Launcher(_kinds_kernel)(
            (1, 1, 1), (torch.zeros(1),) * 2, (1, 1, 1, 1.0), {"NAME": "a", "FLAG": True, "FOLLOWS": True}
        )


def test_amd_kernels_are_launched_by_triton(monkeypatch):
    """Whose compiler asks for the size of a tensor's memory, too."""
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert not Launcher(_kinds_kernel)._remembers


def sources(offset, width, dtype=torch.bfloat16):
    return torch.zeros(1 * 40 * width + 16, dtype=dtype)[offset:][: 40 * width].view(1, 40, width)


class Uncompiled:
    """What Triton would compile for some arguments."""

    function = packed_metadata = launch_metadata = property(lambda self: lambda *_: None)

    def __init__(self, reached):
        self.reached = reached
        self.run = lambda *_: reached.append(self)

    def __getitem__(self, grid):
        return lambda *_: self.reached.append(self)


@pytest.fixture
def uncompiled(monkeypatch):
    """The same without compiling, for kernels whose variants would take minutes."""
    reached = []

    def compile_nothing(kernel, key, signature, device, *_):
        return kernel.device_caches[device][0].setdefault(key, Uncompiled(reached))

    monkeypatch.setattr(JITFunction, "_do_compile", compile_nothing)
    return reached


def test_the_remembered_gather_is_the_one_that_triton_takes(uncompiled):
    """Of tensors of many layouts and alignments, which travel alone and in company."""
    shapes = [sources(*of) for of in ((0, 64), (0, 32), (8, 64), (4, 64), (1, 64), (0, 20), (4, 20), (0, 1))]
    shapes += [
        sources(0, 3, torch.int64),
        sources(0, 5, torch.uint8),
        sources(0, 64)[..., ::2],
        sources(0, 64).transpose(0, 1),
    ]
    alone = [[tensor] for tensor in shapes]
    several = [list(pair) for pair in itertools.combinations(shapes[:-1], 2)] + [
        [shapes[0]] * n for n in (2, 5, 17, 70)
    ]
    with compiling_for("sm_90", [moving._gather_kernel]):
        for tensors in [*alone, *several]:
            dims = [(1, 0) if tensor.shape[0] == 40 else (0, 1) for tensor in tensors]
            for kept, stride in ((16, 1), (17, 1), (7, 2)):
                indices = torch.zeros(1, kept * stride, dtype=torch.int64)[:, ::stride]
                reached = []
                for remembers in (False, True, True):
                    moving._launch_kernel._remembers = remembers
                    before = len(uncompiled)
                    moving.gather(indices, tensors, dims)
                    reached.append(uncompiled[before:])
                assert reached[0] and reached[0] == reached[1] == reached[2]
    assert len(set(map(id, uncompiled))) > 30
