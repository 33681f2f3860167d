"""adatp_qwen3_vl: Qwen3-VL."""

from lmms_eval.models.chat.qwen3_vl import Qwen3_VL

from adatp_kernels.integrations.lmms_eval.pruned import Pruned


class AdaTPQwen3VL(Pruned, Qwen3_VL):
    """The harness's ``qwen3_vl``, pruned."""
