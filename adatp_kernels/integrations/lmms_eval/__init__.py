"""lmms-eval's models with pruning: what the harness finds under the entry point group ``lmms_eval.models``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest

_MODELS = "adatp_kernels.integrations.lmms_eval.models"
# By the form of a prompt that the harness hands over: text with placeholders, or messages.
SIMPLE = {
    "adatp_llava_onevision": f"{_MODELS}.llava_onevision.AdaTPLlavaOnevision",
    "adatp_qwen2_vl": f"{_MODELS}.qwen2_vl.AdaTPQwen2VL",
}
CHAT = {
    "adatp_qwen2_5_vl": f"{_MODELS}.qwen2_5_vl.AdaTPQwen25VL",
    "adatp_qwen3_vl": f"{_MODELS}.qwen3_vl.AdaTPQwen3VL",
    "adatp_internvl": f"{_MODELS}.internvl.AdaTPInternVL",
}


def manifests() -> list[ModelManifest]:
    """The models' names and where they are; no model is imported until the harness is asked for it."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return [ModelManifest(model_id=name, simple_class_path=path) for name, path in SIMPLE.items()] + [
        ModelManifest(model_id=name, chat_class_path=path) for name, path in CHAT.items()
    ]
