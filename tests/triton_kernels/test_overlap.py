"""Which launches overlap; that compiled kernels wait and signal is for the compile gate to see."""

import pytest
import torch

from adatp_kernels.ops.triton import tiles
from adatp_kernels.ops.triton.overlap import overlapping


@pytest.mark.parametrize("name", ["any", "sm_80", "sm_89", "gfx942"])
def test_no_kernel_waits_where_launches_do_not_overlap(name, monkeypatch):
    monkeypatch.setattr(tiles, "architecture", lambda device: name)
    for follows in (False, True):
        assert overlapping(torch.device("cpu"), follows=follows) == {"FOLLOWS": False, "SIGNALS": False}


@pytest.mark.parametrize("name", ["sm_90", "sm_100", "sm_120"])
def test_only_a_kernel_that_follows_another_is_launched_early(name, monkeypatch):
    """And it waits; one that is launched early and does not wait would read what is not written yet."""
    monkeypatch.setattr(tiles, "architecture", lambda device: name)
    for follows in (False, True):
        options = overlapping(torch.device("cpu"), follows=follows)
        assert options["FOLLOWS"] == options["launch_pdl"] == follows and options["SIGNALS"]
