"""Pruning inside Hugging Face Video LLMs: `accelerate` a model, generate as always, read the report."""

from adatp_kernels.integrations.transformers.acceleration import Acceleration, accelerate
from adatp_kernels.integrations.transformers.families import Family, register_family
from adatp_kernels.integrations.transformers.report import Report

__all__ = ["Acceleration", "Family", "Report", "accelerate", "register_family"]
