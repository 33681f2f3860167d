"""The command line: ``adatp demo`` does the main job; `adatp --help` lists the others."""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 2 for a mistake of the user's."""
    options = _parser().parse_args(arguments)
    return options.run(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="adatp", description="Prune the visual tokens of a Video LLM, without training."
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    demo = commands.add_parser("demo", help="ask a model about a video, with and without pruning")
    demo.add_argument("--video", type=Path, help="video file; without it, a synthetic clip is filmed first")
    demo.add_argument("--question", help="what to ask of a video or model of your own (default: what happens in it)")
    demo.add_argument(
        "--model",
        help="Hugging Face checkpoint, directory or id; without it, a small one that answers questions about the "
        "synthetic clip, or, with --video, one with random weights",
    )
    demo.add_argument("--frames", type=int, help="frames to sample evenly (default: 32)")
    demo.add_argument(
        "--output", type=Path, default=Path("adatp-demo.png"), help="picture to write, a .png (default: %(default)s)"
    )
    demo.add_argument(
        "--target-flops", type=float, default=0.273, help="share of the visual FLOPs to keep (default: %(default)s)"
    )
    demo.add_argument("--max-new-tokens", type=int, default=24, help="length of the answers (default: %(default)s)")
    demo.add_argument("--repeats", type=int, default=5, help="timed runs of each (default: %(default)s)")
    demo.set_defaults(run=_demo)
    calibrate = commands.add_parser("calibrate", help="measure a model's habits on empty videos: a positional prior")
    calibrate.add_argument("--model", help="Hugging Face checkpoint, directory or id; without it, the built-in one")
    calibrate.add_argument(
        "--question", default="What happens in the video?", help="what to ask meanwhile (default: %(default)r)"
    )
    calibrate.add_argument("--frames", type=int, default=32, help="frames per video (default: %(default)s)")
    calibrate.add_argument("--clips", type=int, default=8, help="how many empty videos (default: %(default)s)")
    calibrate.add_argument(
        "--output", type=Path, default=Path("adatp-prior.safetensors"), help="file to write (default: %(default)s)"
    )
    calibrate.set_defaults(run=_calibrate)
    evaluate = commands.add_parser("evaluate", help="compare pruning methods on clips whose answers are known")
    evaluate.add_argument("--quick", action="store_true", help="fewer clips and controls: under two minutes")
    evaluate.add_argument("--clips", type=int, help="how many held-out clips (default: 2048, quick: 64)")
    evaluate.add_argument("--model", type=Path, help="folder of a model that the demo's training wrote (default: ours)")
    evaluate.add_argument(
        "--output", type=Path, default=Path("adatp-evaluation"), help="folder for the results (default: %(default)s)"
    )
    evaluate.set_defaults(run=_evaluate)
    doctor = commands.add_parser("doctor", help="tell which versions, devices and backends are here")
    doctor.set_defaults(run=_doctor)
    return parser


def _demo(options: argparse.Namespace) -> int:
    def job(**fields: Any) -> None:
        from adatp_kernels.demo.run import DemoOptions, run_demo

        run_demo(DemoOptions(**fields))

    return _job(job, options)


def _calibrate(options: argparse.Namespace) -> int:
    def job(**fields: Any) -> None:
        from adatp_kernels.demo.calibrate import CalibrateOptions, run_calibrate

        run_calibrate(CalibrateOptions(**fields))

    return _job(job, options)


def _evaluate(options: argparse.Namespace) -> int:
    def job(**fields: Any) -> None:
        from adatp_kernels.evaluation.command import EvaluateOptions, run_evaluate

        run_evaluate(EvaluateOptions(**fields))

    return _job(job, options)


def _job(job: Callable[..., Any], options: argparse.Namespace) -> int:
    """Do a job that needs the demo's packages, with the options as keyword arguments."""
    try:
        from adatp_kernels.demo.errors import DemoError

        job(**{name: value for name, value in vars(options).items() if name != "run"})
    except ModuleNotFoundError as error:
        print(f"error: this needs {error.name}: pip install 'adatp-kernels[demo]'", file=sys.stderr)
        return 2
    except DemoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _doctor(options: argparse.Namespace) -> int:
    import torch

    from adatp_kernels.ops import backend_report

    print(f"python {platform.python_version()} on {platform.system()} {platform.machine()}")
    for package in ("adatp-kernels", "torch", "triton", "transformers"):
        try:
            print(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            print(f"{package} not installed")
    print(f"CUDA device: {torch.cuda.get_device_name() if torch.cuda.is_available() else 'none'}")
    print(f"backends, fastest first:\n{backend_report()}")
    return 0
