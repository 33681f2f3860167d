"""The command line: every command is a thin call of the room that does its work; `adatp --help` lists them."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

import adatp_kernels
from adatp_kernels.config import PRESETS
from adatp_kernels.mistakes import Mistake

app = typer.Typer(
    help="Prune the visual tokens of a Video LLM, without training.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 2 for a mistake of the user's."""
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a path may be of any bytes
    try:
        app(args=None if arguments is None else list(arguments), prog_name="adatp")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    return 0


def _run(job: Callable[[], Any]) -> None:
    """Do a job that needs the packages of the extra "demo"; a mistake of the user's is one line and the code 2."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
            job()
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith(adatp_kernels.__name__):
            raise
        _stop(f"this needs {error.name}: pip install 'adatp-kernels[demo]'", error)
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        _stop("the installed torchvision belongs to another torch; install the two together", error)
    except Mistake as mistake:
        _stop(str(mistake), mistake)


def _stop(line: str, error: Exception) -> None:
    print(f"error: {line}", file=sys.stderr)
    raise typer.Exit(2) from error


def _version(wanted: bool) -> None:
    if wanted:
        print(f"adatp-kernels {adatp_kernels.__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Before any command."""


_Preset = Enum("_Preset", [(name, name) for name in PRESETS])  # type: ignore[misc]
_Frames = Annotated[int | None, typer.Option(help="Frames of each video, evenly in time.  [default: 32]")]
_TargetFlops = Annotated[
    float | None, typer.Option(help="Ceiling for the FLOPs of the visual tokens, as a share of all.  [default: 0.273]")
]


@app.command()
def ask(
    model: Annotated[str, typer.Option(help="Hugging Face checkpoint of a supported family: a folder or an id.")],
    video: Annotated[list[str] | None, typer.Option(help="Video file; may be given several times.")] = None,
    image: Annotated[
        list[str] | None,
        typer.Option(
            help="Image file, before the videos; likewise. Beside a video it is left whole, alone it is pruned."
        ),
    ] = None,
    question: Annotated[
        list[str] | None,
        typer.Option(
            help="Likewise: a prompt each; the videos are encoded once.  [default: What happens in the video?]"
        ),
    ] = None,
    frames: _Frames = None,
    fps: Annotated[float | None, typer.Option(help="Frames a second, instead of --frames.")] = None,
    target_flops: _TargetFlops = None,
    preset: Annotated[_Preset | None, typer.Option(help="Another method than AdaTP.")] = None,
    stages: Annotated[
        str | None, typer.Option(help="Layers after which tokens go, as in 1,3,5, or the name of a choice of them.")
    ] = None,
    prior: Annotated[
        str | None, typer.Option(help="Positional prior, a file of adatp calibrate, for one number and size of frames.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="JSON of an AdaTPConfig, which the options above change.")] = None,
    device: Annotated[str, typer.Option(help="As cpu or cuda:1; auto is a GPU if there is one.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto (the checkpoint's), float32, bfloat16 or float16.")] = "auto",
    attn: Annotated[
        str | None, typer.Option(help="Attention of the decoder: eager, sdpa, flash_attention_2 or adatp.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Length of the answers.")] = 64,
    repeats: Annotated[int, typer.Option(help="Timed prefills of each; 0 for none.")] = 3,
    dense: Annotated[bool, typer.Option(help="Ask without pruning, too, to compare.")] = True,
    json: Annotated[Path | None, typer.Option(help="File for answers, plan, kept cells, times and memory.")] = None,
    output: Annotated[Path | None, typer.Option(help="Picture of what was left, a .png.")] = None,
) -> None:
    """Ask a Video LLM about videos and images, with and without pruning."""

    def job() -> None:
        from adatp_kernels.ask.command import run_ask
        from adatp_kernels.ask.options import AskOptions

        options = AskOptions(
            model=model,
            videos=tuple(video or ()),
            images=tuple(image or ()),
            questions=tuple(question or ("What happens in the video?",)),
            frames=frames,
            fps=fps,
            target_flops=target_flops,
            preset=preset and preset.value,
            stages=stages,
            prior=prior,
            config=config,
            device=device,
            dtype=dtype,
            attention=attn,
            max_new_tokens=max_new_tokens,
            repeats=repeats,
            dense=dense,
            json=json,
            output=output,
        )
        run_ask(options)

    _run(job)


@app.command()
def demo(
    video: Annotated[
        str | None, typer.Option(help="Video file, which a model with random weights is asked about.")
    ] = None,
    question: Annotated[str | None, typer.Option(help="What to ask about it.")] = None,
    frames: _Frames = None,
    target_flops: _TargetFlops = None,
    max_new_tokens: Annotated[int, typer.Option(help="Length of the answers about it.")] = 24,
    repeats: Annotated[int, typer.Option(help="Timed runs of each.")] = 2,
    output: Annotated[Path, typer.Option(help="Picture of what was left, a .png.")] = Path("adatp-demo.png"),
) -> None:
    """The built-in show: what pruning keeps, costs and saves, on models and clips of its own."""

    def job() -> None:
        from adatp_kernels.demo.run import DemoOptions, run_demo

        run_demo(DemoOptions(video, question, frames, output, target_flops, max_new_tokens, repeats))

    _run(job)


@app.command()
def evaluate(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer clips and controls: under two minutes.")] = False,
    clips: Annotated[int | None, typer.Option(help="Held-out clips.  [default: 2048; quick: 64]")] = None,
    model: Annotated[Path | None, typer.Option(help="Folder that the demo's training wrote.  [default: ours]")] = None,
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("adatp-evaluation"),
) -> None:
    """Compare pruning methods on clips whose answers are known."""

    def job() -> None:
        from adatp_kernels.evaluation.command import EvaluateOptions, run_evaluate

        run_evaluate(EvaluateOptions(quick, clips, model, output))

    _run(job)


@app.command()
def calibrate(
    model: Annotated[
        str | None, typer.Option(help="Hugging Face checkpoint.  [default: the trained one that ships]")
    ] = None,
    question: Annotated[str, typer.Option(help="What to ask meanwhile.")] = "What happens in the video?",
    frames: Annotated[int | None, typer.Option(help="Frames of a video.  [default: 32; of ours 16]")] = None,
    size: Annotated[
        str, typer.Option(help="Width and height of them, on which the cells of some models depend.")
    ] = "384x384",
    stages: Annotated[str | None, typer.Option(help="Layers after which tokens will go, as for ask.")] = None,
    clips: Annotated[int, typer.Option(help="How many empty videos.")] = 8,
    output: Annotated[Path, typer.Option(help="File to write.")] = Path("adatp-prior.safetensors"),
) -> None:
    """Measure a model's habits on empty videos: a positional prior."""

    def job() -> None:
        from adatp_kernels.demo.calibrate import CalibrateOptions, run_calibrate

        run_calibrate(CalibrateOptions(model, question, frames, size, stages, clips, output))

    _run(job)


@app.command()
def doctor() -> None:
    """Tell which versions, devices and backends are here."""
    from adatp_kernels.doctor import tell

    tell()
