"""Pruning inside Hugging Face Video LLMs: `accelerate` a model, generate as always, read the report."""

from adatp_kernels.integrations.transformers.acceleration import Acceleration, accelerate
from adatp_kernels.integrations.transformers.bias import BiasReport, bias_report
from adatp_kernels.integrations.transformers.calibration import calibrate_prior
from adatp_kernels.integrations.transformers.families import Family, register_family
from adatp_kernels.integrations.transformers.mrope import mrope_positions
from adatp_kernels.integrations.transformers.report import Report

__all__ = [
    "Acceleration",
    "BiasReport",
    "Family",
    "Report",
    "accelerate",
    "bias_report",
    "calibrate_prior",
    "mrope_positions",
    "register_family",
]
