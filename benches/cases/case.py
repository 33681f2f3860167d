"""One shape of one operation, with its variants, and the scales at which cases are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from measure import poisoned_memory
from torch import Tensor


@dataclass(frozen=True)
class Scale:
    """A decoder layer and a machine: how large a case is, and which of our backends run it.

    Attributes
    ----------
    backends : dict of str to str
        Our variants: what their names end with, and the backend they name.
    """

    device: torch.device
    dtype: torch.dtype
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    cells: int
    backends: dict[str, str] = field(default_factory=dict)
    before: int = 14  # text tokens before the video

    @property
    def exact(self) -> bool:
        """Whether the inputs hold enough digits for results to agree to five of them."""
        return self.dtype == torch.float32


def gpu_scale(native: bool) -> Scale:
    """LLaVA-OneVision-7B's layer in bfloat16; with the CUDA library where there is one."""
    backends = {"": "triton"} | ({" (native)": "native"} if native else {})
    return Scale(torch.device("cuda"), torch.bfloat16, 28, 4, 128, 3584, 196, backends)


def dry_scale(backends: dict[str, str]) -> Scale:
    """As small as can be, for Triton's interpreter and other backends on a CPU."""
    return Scale(torch.device("cpu"), torch.float32, 2, 1, 64, 32, 4, backends, before=3)


@dataclass
class Variant:
    """A way to run a case; `backend` is ours that it runs on, None for a baseline."""

    call: Callable[..., Any]
    backend: str | None = None


@dataclass
class Case:
    """One shape of one suite.

    Attributes
    ----------
    make : callable (seed) -> inputs
        Fresh random inputs on the device.
    variants : dict of str to Variant
        Results are tensors, or tuples and lists of them.
    check : callable (name, result, inputs)
        Raises if a variant's result is wrong.
    bytes, flop : int
        The fewest that any version moves and computes.
    operation : str
        What is run, in the words by which a failing test keeps it from being timed; the suite's name by default.
    absent : dict of str to str
        Rivals that cannot run here, and why.
    """

    suite: str
    shape: dict[str, Any]
    make: Callable[[int], tuple]
    variants: dict[str, Variant]
    check: Callable[[str, Any, tuple], None]
    bytes: int
    flop: int
    operation: str = ""
    absent: dict[str, str] = field(default_factory=dict)
    verified: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.operation = self.operation or self.suite

    @property
    def title(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.shape.items())

    def __str__(self) -> str:
        return self.title

    def verify(self, name: str) -> None:
        """Check a variant on inputs of its own, in poisoned memory, once per process.

        Raises
        ------
        AssertionError
            If it is wrong.
        """
        if name not in self.verified:
            inputs = self.make(1234)
            with poisoned_memory():
                result = self.variants[name].call(*inputs)
            self.check(name, result, inputs)
            self.verified.add(name)


def attention_inputs(scale: Scale, visual: int, text: int, batch: int, seed: int, rows: int) -> tuple[Tensor, Tensor]:
    """Query [B, Hq, rows, D] and key [B, Hkv, N, D] of a prompt: text, the video, text."""
    generator = torch.Generator(scale.device).manual_seed(seed)
    random = {"generator": generator, "device": scale.device, "dtype": scale.dtype}
    length = scale.before + visual + text
    query = torch.randn(batch, scale.heads, rows, scale.head_dim, **random)
    return query, torch.randn(batch, scale.kv_heads, length, scale.head_dim, **random)


def travelling(scale: Scale, length: int, batch: int, seed: int) -> list[Tensor]:
    """Hidden states, cos, sin, and one layer's keys and values."""
    generator = torch.Generator(scale.device).manual_seed(seed)
    kv = (batch, scale.kv_heads, length, scale.head_dim)
    shapes = [(batch, length, scale.hidden), *[(1, length, scale.head_dim)] * 2, kv, kv]
    return [torch.randn(shape, generator=generator, device=scale.device, dtype=scale.dtype) for shape in shapes]


DIMS = [1, 1, 1, 2, 2]  # of `travelling`, the tokens' dimensions


def moved_bytes(scale: Scale, kept: int, batch: int) -> int:
    """What reading and writing the kept tokens of `travelling` takes."""
    per_token = batch * (scale.hidden + 2 * scale.kv_heads * scale.head_dim) + 2 * scale.head_dim
    return 2 * kept * per_token * scale.dtype.itemsize


def score_floor(scale: Scale, visual: int, text: int, batch: int) -> tuple[int, int]:
    """Bytes and FLOPs of scores: keys, rows and an LSE are read once, scores are written."""
    read = batch * (scale.kv_heads * visual + scale.heads * text) * scale.head_dim * scale.dtype.itemsize
    return read + batch * visual * 4, 2 * batch * scale.heads * text * visual * scale.head_dim


def assert_close(scale: Scale, name: str, result: Tensor, exact: Tensor) -> None:
    """Scores may differ from the exact ones by rounding, by their relative L2 distance."""
    error = ((result.double() - exact).norm() / exact.norm()).item()
    assert error < (1e-5 if scale.exact else 1e-2), f"{name} is off by {error:.1e}"


def assert_chosen(scale: Scale, name: str, indices: Tensor, expected: Tensor) -> None:
    """Scores of different rounding may rank neighbours differently at the edge of a budget, and nothing else."""
    assert indices.shape == expected.shape, f"{name} keeps {list(indices.shape)}, not {list(expected.shape)}"
    assert (indices.diff(dim=1) > 0).all(), f"{name}: indices do not ascend"
    same = sum(torch.isin(a, b).sum().item() for a, b in zip(indices, expected, strict=True))
    share = same / expected.numel()
    assert share >= (0.999 if scale.exact else 0.99), f"{name} chooses only {share:.2%} of what the reference does"
