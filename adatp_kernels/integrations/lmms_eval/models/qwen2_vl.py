"""adatp_qwen2_vl: Qwen2-VL."""

from lmms_eval.models.simple.qwen2_vl import Qwen2_VL

from adatp_kernels.integrations.lmms_eval.positions import TrainedPositions
from adatp_kernels.integrations.lmms_eval.pruned import Pruned


class AdaTPQwen2VL(TrainedPositions, Pruned, Qwen2_VL):
    """The harness's ``qwen2_vl``, pruned; the question is read where the model was trained to."""
