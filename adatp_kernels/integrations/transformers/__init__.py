"""Pruning inside Hugging Face Video LLMs: `accelerate` a model, generate as always, read the report."""

from adatp_kernels.integrations.transformers.acceleration import Acceleration, accelerate
from adatp_kernels.integrations.transformers.report import Report

__all__ = ["Acceleration", "Report", "accelerate"]
