"""adatp_qwen2_5_vl: Qwen2.5-VL."""

from lmms_eval.models.chat.qwen2_5_vl import Qwen2_5_VL

from adatp_kernels.integrations.lmms_eval.positions import TrainedPositions
from adatp_kernels.integrations.lmms_eval.pruned import Pruned


class AdaTPQwen25VL(TrainedPositions, Pruned, Qwen2_5_VL):
    """The harness's ``qwen2_5_vl``, pruned; the question is read where the model was trained to."""
