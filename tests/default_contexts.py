"""Other devices and dtypes for new tensors to have by default, under which results must stay what they are."""

import contextlib

import pytest
import torch
from masked_reference import generate

import adatp_kernels as adatp


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


# "meta" stands for "cuda": what is made there cannot meet the host's tensors.
DEFAULTS = {
    "device": lambda: torch.device("meta"),
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
}
of_defaults = pytest.mark.parametrize("default", DEFAULTS.values(), ids=DEFAULTS)


def check_same(default, act):
    """That `act`, which makes no inputs of its own, returns the same tensors under the `default`."""
    expected = act()
    with default():
        given = act()
    assert [tensor.dtype for tensor in given] == [tensor.dtype for tensor in expected]
    assert len(expected) > 0 and all(map(torch.equal, given, expected))


def answers(model, inputs, config, **options):
    """What an accelerated `generate` gives, and what is left in every layer."""
    with adatp.accelerate(model, config, **options) as run:
        sequences, logits, _ = generate(model, inputs, max_new_tokens=3)
    return [sequences, logits, *[kept for row in range(len(sequences)) for _, kept in run.report(row).survivors]]
