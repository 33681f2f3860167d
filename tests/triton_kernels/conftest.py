"""These tests run the kernels themselves: on CUDA tensors, or on CPU tensors by Triton's interpreter.

The interpreter is chosen when kernels are made, so it needs a process of its own: TRITON_INTERPRET=1 pytest
tests/triton_kernels, which is what tests/test_triton.py starts where there is no GPU.
"""

import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

if INTERPRETED:
    import interpreter_bounds

    interpreter_bounds.check_bounds()


def pytest_ignore_collect(collection_path, config):
    return not (INTERPRETED or torch.cuda.is_available()) or None


@pytest.fixture
def device():
    return torch.device("cpu" if INTERPRETED else "cuda")


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch):
    """What a kernel forgets to write is NaN, or a number that no result has."""
    empty = torch.empty

    def poisoned(*shape, **options):
        memory = empty(*shape, **options)
        if memory.numel() > 10**7:  # a test's own, and never touched
            return memory
        return memory.fill_(float("nan") if memory.is_floating_point() else 77)

    monkeypatch.setattr(torch, "empty", poisoned)
