"""Compare what `adatp_kernels/attention` takes for granted of other packages with their own sources; run by hand, outside CI.

    python tests/real_providers.py [--flash-attention CHECKOUT] [--dependencies]

Downloads flash-attn, flash-attn-4 and flashinfer-python (with pip, as it is set up here; nothing is compiled, no GPU is needed) and
reads their functions' parameters, what they return, which head dims they refuse, and how their LSE is laid out. Then the real packages
are imported with the compiled modules they need replaced by empty ones, and asked what `adatp_kernels` would ask. FlashAttention 3 with a
flag for the LSE is on no registry: name a checkout of its repository for that. With --dependencies, flash-attn-4 and flashinfer-python
are installed with all they need (1.4 GB), into a folder of their own beside this Python's PyTorch, and imported unchanged.
"""

from __future__ import annotations

import argparse
import ast
import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from attention_signatures import FLASHINFER, SIGNATURES

FLASH_ATTN, FLASH_ATTN_4, FLASHINFER_PYTHON = "flash-attn==2.8.3", "flash-attn-4==4.0.0b36", "flashinfer-python==0.7.2"
WRAPPER = "BatchPrefillWithRaggedKVCacheWrapper"

# With the packages' folders on the path: what is found, in the words of a refusal.
ASK = """
import sys, types
from adatp_kernels.attention import flash_attn
for name in sys.argv[1].split(",") if sys.argv[1] else []:  # compiled modules, and packages that need a GPU to build
    sys.modules[name] = types.ModuleType(name)
for version, module in flash_attn.MODULES.items():
    for packed in (False, True):
        found = flash_attn.function(module, packed)
        print(f"{version} {'varlen' if packed else 'dense'}:", found if isinstance(found, str) else f"takes {list(found.keywords)}")
from adatp_kernels.attention import flashinfer
found = flashinfer.wrapper()
print("flashinfer:", found if isinstance(found, str) else found.__name__)
"""


def pip(*arguments: str, python: str = sys.executable) -> None:
    """Run pip; flash-attn's setup.py must not compile to say its name."""
    environment = {**os.environ, "FLASH_ATTENTION_SKIP_CUDA_BUILD": "TRUE"}
    command = [python, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True, env=environment)


def function(source: str, name: str, owner: str | None = None) -> ast.FunctionDef:
    """The last definition of a function or method; those before it are overloads."""
    body = ast.parse(source).body
    if owner is not None:
        body = next(node for node in body if isinstance(node, ast.ClassDef) and node.name == owner).body
    return [node for node in body if isinstance(node, ast.FunctionDef) and node.name == name][-1]


def parameters(node: ast.FunctionDef) -> str:
    """Names and defaults, without types."""
    for argument in [*node.args.args, *node.args.kwonlyargs, *filter(None, [node.args.vararg, node.args.kwarg])]:
        argument.annotation = None
    return ast.unparse(node.args)


class Comparison:
    """Prints each comparison and remembers whether all were equal."""

    failed = False

    def say(self, what: str, equal: bool, seen: str = "") -> None:
        """One line."""
        self.failed |= not equal
        print(f"{'as assumed' if equal else 'OTHERWISE '}  {what}{'' if equal else f': {seen}'}")

    def signatures(self, version: str, path: Path) -> None:
        """Both functions of a version of flash-attn."""
        source = path.read_text(encoding="utf-8")
        for name in ("flash_attn_func", "flash_attn_varlen_func"):
            seen = parameters(function(source, name))
            self.say(f"{version}: parameters of {name}", seen == SIGNATURES[version, name], seen)

    def contains(self, what: str, path: Path, *texts: str) -> None:
        """That a file still says what was read there."""
        source = " ".join(path.read_text(encoding="utf-8").split())
        missing = [text for text in texts if text not in source]
        self.say(what, not missing, f"{path.name} lacks {missing}")


def beside_this_python(folder: Path, *packages: str) -> str:
    """A Python with these packages, and all that this one has."""
    venv.create(folder, with_pip=True)
    python = str(folder / "bin/python")
    site = Path(
        subprocess.check_output(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
        ).strip()
    )
    (site / "beside.pth").write_text(sysconfig.get_path("purelib"))
    pip("install", *packages, python=python)
    return python


def ask(
    what: str,
    expected: dict[str, str],
    comparison: Comparison,
    empty: str,
    *folders: Path,
    python: str = sys.executable,
) -> None:
    """What `adatp_kernels` finds with `folders` on the path; `expected` are the beginnings of its words."""
    root = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (root, *folders)))}
    command = [python, "-c", ASK, empty]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    seen = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    for key, beginning in expected.items():
        comparison.say(
            f"{what}, {key}: {beginning} …", seen.get(key, "").startswith(beginning), seen.get(key, done.stderr)
        )


def main(arguments: list[str] | None = None) -> int:
    """Print every comparison; 1 if one is otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flash-attention", type=Path, help="a checkout of FlashAttention's repository, for version 3")
    parser.add_argument(
        "--dependencies", action="store_true", help="import flash-attn-4 and flashinfer-python as they are"
    )
    options = parser.parse_args(arguments)
    comparison = Comparison()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        pip("download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation", "-d", scratch, FLASH_ATTN)
        (archive,) = folder.glob("flash_attn-*.tar.gz")
        with tarfile.open(archive) as files:
            files.extractall(folder, filter="data")
        (tree,) = folder.glob("flash_attn-*/")
        four, inference = folder / "four", folder / "inference"
        pip("install", "--no-deps", "--target", str(four), FLASH_ATTN_4)
        pip("install", "--no-deps", "--target", str(inference), FLASHINFER_PYTHON)

        comparison.signatures("2", tree / "flash_attn/flash_attn_interface.py")
        comparison.signatures("3 old", tree / "hopper/flash_attn_interface.py")
        comparison.signatures("4 old", tree / "flash_attn/cute/interface.py")
        interface = four / "flash_attn/cute/interface.py"
        comparison.signatures("4", interface)
        if options.flash_attention:
            comparison.signatures("3", options.flash_attention / "hopper/flash_attn_interface.py")
        prefill = inference / "flashinfer/prefill.py"
        source = prefill.read_text(encoding="utf-8")
        for name, assumed in FLASHINFER.items():
            seen = parameters(function(source, name, WRAPPER))
            comparison.say(f"flashinfer: parameters of {WRAPPER}.{name}", seen == assumed, seen)

        comparison.contains(
            "2 returns the LSE behind the output", tree / "flash_attn/flash_attn_interface.py",
            "return out if not return_softmax else (out, softmax_lse, S_dmask)",
        )  # fmt: skip
        comparison.contains(
            "4 runs on 8.x to 12.x, refuses head dims between 128 and 256 on 10 and 11, and looks at the current device", interface,
            "assert arch // 10 in [8, 9, 10, 11, 12]", "is_standard_range = 8 <= head_dim <= 128",
            "torch.cuda.get_device_capability()", "lse: (nheads, total_q)",
        )  # fmt: skip
        comparison.contains(
            "flashinfer's plan copies the bounds to the host; its LSE is transposed and scaled on request", prefill,
            'qo_indptr_host = qo_indptr.to("cpu")', 'if lse_layout == "NH":', "torch.mul(src, ln2, out=lse_out)",
        )  # fmt: skip

        compiled = "flash_attn_2_cuda"
        ask(
            "flash-attn alone",
            {
                "2 dense": "takes ['return_attn_probs']",
                "2 varlen": "takes ['return_attn_probs']",
                "3 dense": "the module flash_attn_interface is not installed",
                "4 dense": "the module flash_attn.cute cannot be imported: ModuleNotFoundError",
            },
            comparison, compiled, tree,
        )  # fmt: skip
        ask(
            "flash-attn-4 alone, without nvidia-cutlass-dsl",
            {
                "2 dense": "the module flash_attn has no flash_attn_func",
                "4 dense": "the module flash_attn.cute cannot be imported: ModuleNotFoundError",
            },
            comparison, "", four,
        )  # fmt: skip
        ask("nothing", {f"{version} dense": "the module" for version in (2, 3, 4)}, comparison, "")
        ask(
            "FlashAttention 3 of flash-attn's tree",
            {"3 dense": "flash_attn_func of the module flash_attn_interface has no parameter for the LSE"},
            comparison, "flash_attn_3,flash_attn_3._C", tree / "hopper",
        )  # fmt: skip
        if options.flash_attention:
            ask(
                "FlashAttention 3 of the checkout", {"3 dense": "takes ['return_attn_probs']"}, comparison,
                "flash_attn_3,flash_attn_3._C", options.flash_attention / "hopper",
            )  # fmt: skip
        if options.dependencies:
            ask(
                "flash-attn-4 and flashinfer-python",
                {
                    "2 dense": "the module flash_attn has no flash_attn_func",
                    "4 dense": "takes ['return_lse']",
                    "4 varlen": "takes ['return_lse']",
                    "flashinfer": WRAPPER,
                },
                comparison, "", python=beside_this_python(folder / "beside", FLASH_ATTN_4, FLASHINFER_PYTHON),
            )  # fmt: skip
    return int(comparison.failed)


if __name__ == "__main__":
    sys.exit(main())
