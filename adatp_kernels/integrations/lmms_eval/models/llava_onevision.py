"""adatp_llava_onevision: LLaVA-OneVision as converted to transformers."""

from __future__ import annotations

from typing import Any

from accelerate import PartialState
from lmms_eval.models.simple.llava_hf import LlavaHf

from adatp_kernels.integrations.lmms_eval.pruned import Pruned


class AdaTPLlavaOnevision(Pruned, LlavaHf):
    """The harness's ``llava_hf``, pruned.

    Its ``llava_onevision`` runs the authors' own code, not transformers'. Of the two forms of ``llava_hf`` this is the
    simple one: the other hands over every frame of a file, whatever ``max_frames_num`` says.
    """

    def __init__(self, **arguments: Any) -> None:
        if PartialState().num_processes == 1:
            # The default of `llava_hf`, an empty string, is no device map to transformers 5.
            arguments.setdefault("device_map", arguments.get("device", "cuda"))
        super().__init__(**arguments)
