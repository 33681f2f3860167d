"""What pyproject.toml cannot say: the compiled CPU library, and its sources beside it, for a wheel or an install.

The library is built when a compiler and PyTorch's headers are here, and otherwise at first use; so it is with an
editable install, whose sources may change.
"""

import importlib.util
import shutil
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
spec = importlib.util.spec_from_file_location("native_recipe", ROOT / "adatp_kernels/ops/native/recipe.py")
native = importlib.util.module_from_spec(spec)
spec.loader.exec_module(native)


def can_build() -> bool:
    """Whether a compiler and PyTorch's headers are here."""
    try:
        return bool(native.cpu_compiler() and native.torch_folder())
    except native.BuildError:
        return False


class BuildPackage(build_py):
    """Adds ``csrc/`` and the library to the package."""

    def run(self) -> None:
        """Build the package."""
        super().run()
        if self.editable_mode:
            return
        package = Path(self.build_lib) / "adatp_kernels"
        # What an earlier build left must not pass for this one's.
        shutil.rmtree(package / "csrc", ignore_errors=True)
        (package / native.CPU.library).unlink(missing_ok=True)
        shutil.copytree(ROOT / "csrc", package / "csrc")
        try:
            native.compile_library(native.CPU, package.resolve() / native.CPU.library)
        except native.BuildError as error:
            print(f"the CPU library will be built at first use: {error}")


class Wheel(bdist_wheel):
    """A wheel with a library is for one platform, but for every Python: the library does not know of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return the tag of Python, its ABI, and the platform."""
        python, abi, platform = super().get_tag()
        return (python, abi, platform) if self.root_is_pure else ("py3", "none", platform)


class Package(Distribution):
    """Says whether there will be compiled code, which setuptools can't know."""

    def has_ext_modules(self) -> bool:
        """Whether the files belong where a platform's own go."""
        return can_build()


setup(cmdclass={"build_py": BuildPackage, "bdist_wheel": Wheel}, distclass=Package)
