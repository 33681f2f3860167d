"""adatp_internvl: InternVL 3 and 3.5 as converted to transformers."""

from lmms_eval.models.chat.internvl_hf import InternVLHf

from adatp_kernels.integrations.lmms_eval.pruned import Pruned


class AdaTPInternVL(Pruned, InternVLHf):
    """The harness's ``internvl_hf``, pruned."""
