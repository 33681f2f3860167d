"""The command line lists its commands, knows what was meant, and ends with 2 where a user is mistaken."""

import builtins
import re
import subprocess
import sys

import pytest

import adatp_kernels
from adatp_kernels.cli import main

COMMANDS = ("ask", "demo", "evaluate", "calibrate", "doctor")


def run(capsys, *arguments):
    code = main([*map(str, arguments)])
    return code, capsys.readouterr()


def test_help_lists_every_command_and_every_command_has_help(capsys):
    code, printed = run(capsys, "--help")
    assert code == 0
    assert tuple(re.findall(r"^  (\w+)  ", printed.out.split("Commands:")[1], re.MULTILINE)) == COMMANDS
    for command in COMMANDS:
        code, printed = run(capsys, command, "--help")
        assert code == 0 and f"Usage: adatp {command}" in printed.out


def test_any_path_can_be_printed(capsys):
    run(capsys, "--version")
    print("\udcff")
    assert capsys.readouterr().out == "\\udcff\n"


def test_version(capsys):
    assert run(capsys, "--version")[1].out == f"adatp-kernels {adatp_kernels.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("evalute",), "No such command 'evalute'. Did you mean 'evaluate'?"),
        (("demo", "--nonsense"), "No such option: --nonsense"),
        (("demo", "--output", "x.png", "extra"), "unexpected extra argument"),
        (("demo", "--frames", "many"), "Invalid value for '--frames'"),
        (("ask",), "Missing option '--model'"),
        (("ask", "--model", "x", "--preset", "fastw"), "'fastw' is not one of 'adatp', 'fastv'"),
    ],
)
def test_what_is_mistyped_ends_with_code_2(capsys, arguments, said):
    code, printed = run(capsys, *arguments)
    assert code == 2 and said in printed.err and "Traceback" not in printed.err


def test_a_missing_package_is_named(capsys, monkeypatch):
    """A package of the extra that is not installed: here, as if PyAV were not."""
    for name in [name for name in sys.modules if name.split(".")[0] == "av" or "adatp_kernels.video" in name]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("ask.command", "demo.run", "demo.quiz", "demo.video"):
        monkeypatch.delitem(sys.modules, f"adatp_kernels.{name}", raising=False)
    imported = builtins.__import__

    def without(name, *arguments, **keywords):
        if name.split(".")[0] == "av":
            raise ModuleNotFoundError("No module named 'av'", name="av")
        return imported(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    code, printed = run(capsys, "ask", "--model", "x", "--video", "x.mp4")
    assert (code, printed.err) == (2, "error: this needs av: pip install 'adatp-kernels[demo]'\n")


def test_a_torchvision_of_another_torch_is_named(capsys, monkeypatch):
    from adatp_kernels.ask import command

    def broken(options):
        raise RuntimeError(message)

    monkeypatch.setattr(command, "run_ask", broken)
    message = "operator torchvision::nms does not exist"
    code, printed = run(capsys, "ask", "--model", "x")
    assert code == 2 and printed.err.startswith("error: the installed torchvision belongs to another torch")
    message = "something else"
    with pytest.raises(RuntimeError, match="something else"):
        run(capsys, "ask", "--model", "x")


def test_a_warning_is_one_line(capsys, monkeypatch):
    import warnings

    from adatp_kernels.ask import command

    monkeypatch.setattr(command, "run_ask", lambda options: warnings.warn("mind this", stacklevel=1))
    shown = warnings.showwarning
    assert run(capsys, "ask", "--model", "x")[1].err == "warning: mind this\n"
    assert warnings.showwarning is shown


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--video", b"no checkpoint in"),
        ("--question", b"--question: expected text in UTF-8"),
        ("--model", b"no such model, in a folder or on the Hugging Face Hub: \\udcff\\udcfe"),
        ("--json", b"no such directory for the JSON: \\udcff\\udcfe"),
    ],
)
def test_bytes_that_are_no_text_are_refused_or_printed_somehow(tmp_path, option, said):
    """A file's name need not be UTF-8; what is asked must be."""
    arguments = {"--model": str(tmp_path), "--video": "clip.mp4", option: b"\xff\xfe" + b"/x" * (option == "--json")}
    words = [word for pair in arguments.items() for word in pair]
    done = subprocess.run([sys.executable, "-m", "adatp_kernels", "ask", *words], capture_output=True, check=False)
    assert done.returncode == 2 and said in done.stderr and b"Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_doctor_tells_versions_and_backends(capsys):
    code, printed = run(capsys, "doctor")
    assert code == 0
    assert "reference  available" in printed.out and "torch 2" in printed.out
    assert "triton     not available" in printed.out and "flash-attn not installed" in printed.out
