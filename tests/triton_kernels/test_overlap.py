"""Which launches overlap; that compiled kernels wait and signal is for the compile gate to see."""

import pytest
import torch
from triton.runtime.interpreter import InterpretedFunction

from adatp_kernels.ops.triton import tiles
from adatp_kernels.ops.triton.launch import Launcher
from adatp_kernels.ops.triton.overlap import overlapping


@pytest.fixture(autouse=True)
def asked_anew():
    overlapping.cache_clear()
    yield
    overlapping.cache_clear()


@pytest.mark.parametrize("name", ["any", "sm_80", "sm_89", "gfx942"])
def test_no_kernel_waits_where_launches_do_not_overlap(name, monkeypatch):
    monkeypatch.setattr(tiles, "architecture", lambda device: name)
    for follows in (False, True):
        assert overlapping(torch.device("cpu"), follows=follows) == {"FOLLOWS": False, "SIGNALS": False}


class Recorder(InterpretedFunction):
    """In the place of a kernel."""

    def __init__(self):
        self.arg_names, self.options = ["tensor", "number", "FOLLOWS", "SIGNALS"], None

    def __getitem__(self, grid):
        return lambda *_, **options: self.__dict__.update(options=options)


@pytest.mark.parametrize("name", ["sm_90", "sm_100", "sm_120"])
def test_only_a_kernel_that_follows_another_is_launched_early(name, monkeypatch):
    """And it waits; one that is launched early and does not wait would read what is not written yet."""
    monkeypatch.setattr(tiles, "architecture", lambda device: name)
    for follows in (False, True):
        overlapping.cache_clear()
        flags = overlapping(torch.device("cpu"), follows=follows)
        assert flags == {"FOLLOWS": follows, "SIGNALS": True}
        kernel = Recorder()
        Launcher(kernel)((1, 1, 1), (torch.zeros(1),), (3,), flags)
        assert kernel.options.get("launch_pdl", False) == follows
