"""Where the compiled library comes from, and that everything works wherever it cannot."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from compiler import compiler_or_skip

from adatp_kernels.ops.native import build, recipe
from adatp_kernels.ops.native.recipe import CPU, CUDA

SELECT = """
import logging, sys, torch
from adatp_kernels import ops
kept = ops.select(torch.tensor([[3.0, 1.0, 2.0]]), torch.zeros(3, dtype=torch.long), torch.arange(3), [2])
assert kept.tolist() == [[0, 2]], kept
print(ops.backend_report())
"""


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """The library, compiled once, in a cache of its own."""
    compiler_or_skip()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADATP_CACHE", str(tmp_path_factory.mktemp("cache")))
        return build.find_or_build(CPU)


@pytest.fixture
def cache(compiled, tmp_path, monkeypatch):
    """An empty cache, and a compiler that is fast because it copies."""
    built = []

    def copy(recipe, target):
        built.append(target)
        shutil.copy(compiled.path, target)

    monkeypatch.setenv("ADATP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "compile_library", copy)
    return built


def in_a_new_process(**environment):
    environment = {**os.environ, **environment}
    result = subprocess.run(
        [sys.executable, "-c", SELECT], env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return result.stdout, result.stderr


def test_built_at_first_use_and_cached_for_the_next(compiled):
    assert "built with" in compiled.origin
    report, log = in_a_new_process(ADATP_CACHE=str(compiled.path.parent.parent))
    assert f"native     available: cached in {compiled.path.parent}" in report
    assert "select on native" in report
    assert "compiling" not in log


def test_without_a_compiler_the_reference_runs(tmp_path):
    report, _ = in_a_new_process(PATH="", CXX="", ADATP_CACHE=str(tmp_path))
    assert "native     not available: it cannot be loaded: no C++ compiler: none of g++, c++, clang++ on PATH" in report
    assert "select on reference" in report


def test_a_compiler_that_fails_is_quoted(tmp_path):
    report, _ = in_a_new_process(CXX="false", ADATP_CACHE=str(tmp_path))
    assert "native     not available: it cannot be loaded: false failed" in report
    assert "select on reference" in report
    assert not list(tmp_path.rglob("*.so"))  # nothing half finished is left
    report, _ = in_a_new_process(CXX="/nowhere/g++", ADATP_CACHE=str(tmp_path))
    assert "native     not available" in report and "/nowhere/g++" in report


def test_a_cache_that_cannot_be_written(cache, monkeypatch):
    """/proc takes no folders, not even from root."""
    monkeypatch.setenv("ADATP_CACHE", "/proc/adatp")
    library = build.find_or_build(CPU)
    assert library.path.is_file() and len(cache) == 1
    assert "for this process alone: /proc/adatp" in library.origin


def test_a_cache_that_can_only_be_read_is_used(cache, monkeypatch):
    first = build.find_or_build(CPU)
    monkeypatch.setattr(Path, "mkdir", None)
    assert build.find_or_build(CPU).path == first.path
    assert len(cache) == 1


@pytest.mark.parametrize("damage", ["shorter", "changed", "empty", "no checksum", "garbage for a checksum"])
def test_a_damaged_library_is_built_again(cache, damage):
    library = build.find_or_build(CPU)
    content = library.path.read_bytes()
    if damage == "no checksum":
        (library.path.parent / "sha256").unlink()
    elif damage == "garbage for a checksum":
        (library.path.parent / "sha256").write_bytes(b"\xff\xfe\x80")
    else:
        broken = {"shorter": content[:-4096], "changed": content[:9000] + b"\0\1\2" + content[9003:], "empty": b""}
        library.path.write_bytes(broken[damage])
    again = build.find_or_build(CPU)
    assert again.path == library.path and again.path.read_bytes() == content
    assert "built again, because the one there was damaged" in again.origin
    assert build.find_or_build(CPU).origin.startswith("cached")
    assert len(cache) == 2


def test_a_library_that_came_with_the_package_is_preferred_unless_it_cannot_be_loaded(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "PACKAGE", tmp_path)
    (tmp_path / CPU.library).write_bytes(b"not a library")
    assert build.find_or_build(CPU) == build.Library(tmp_path / CPU.library, "installed with the package")
    library = build.find_or_build(CPU, anew=True)
    assert library.path.parent.parent == tmp_path / "cache" and "built again" in library.origin


def test_the_cache_knows_sources_compiler_and_flags(monkeypatch, tmp_path):
    for variable in ("CXX", "ADATP_CXXFLAGS"):
        monkeypatch.delenv(variable, raising=False)
    keys = [CPU.key()]
    monkeypatch.setenv("CXX", "false")
    keys.append(CPU.key())
    monkeypatch.setenv("ADATP_CXXFLAGS", "-O1")
    keys.append(CPU.key())
    shutil.copytree(recipe.source_folder(), tmp_path / "csrc")
    monkeypatch.setattr(recipe, "source_folder", lambda: tmp_path / "csrc")
    assert CPU.key() == keys[-1]
    (tmp_path / "csrc/include/adatp/cuda/stage.cuh").write_text("the GPU's")
    assert CPU.key() == keys[-1]
    with open(tmp_path / "csrc/include/adatp/select_loops.inl", "a") as file:
        file.write("// more\n")
    keys.append(CPU.key())
    assert len(set(keys)) == 4


def test_the_cuda_library_is_for_the_architectures_asked_for(monkeypatch):
    monkeypatch.delenv("ADATP_CUDA_ARCHS", raising=False)
    assert [flag.removeprefix("-gencode=arch=") for flag in CUDA.flags() if "gencode" in flag] == [
        "compute_80,code=sm_80",
        "compute_90a,code=sm_90a",
        "compute_100,code=sm_100",
        "compute_100,code=compute_100",
    ]
    monkeypatch.setenv("ADATP_CUDA_ARCHS", "sm_90a, compute_90")
    assert [flag[-10:] for flag in CUDA.flags() if "gencode" in flag] == ["ode=sm_90a", "compute_90"]
    monkeypatch.setenv("ADATP_CUDA_ARCHS", "90a")
    with pytest.raises(recipe.BuildError, match="^ADATP_CUDA_ARCHS: '90a'"):
        CUDA.flags()


def test_without_a_cuda_compiler_the_native_backend_says_so(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CUDA_HOME", raising=False)
    with pytest.raises(recipe.BuildError, match="^no CUDA compiler: nvcc is not on PATH"):
        build.find_or_build(CUDA)


def test_where_the_cache_is(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    for name in ("ADATP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert build.cache_folder() == Path("/home/someone/.cache/adatp_kernels")
    monkeypatch.setenv("XDG_CACHE_HOME", "/tmp/caches")
    assert build.cache_folder() == Path("/tmp/caches/adatp_kernels")
    monkeypatch.setenv("ADATP_CACHE", "/tmp/mine")
    assert build.cache_folder() == Path("/tmp/mine")


def test_a_user_without_a_home(cache, monkeypatch):
    for name in ("HOME", "ADATP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert "for this process alone: /dev/null/adatp_kernels" in build.find_or_build(CPU).origin
    assert not Path("~").exists()


def test_two_processes_build_at_once(compiled, tmp_path):
    """One compiles; the other waits, and takes what it finds."""
    script = "from adatp_kernels.ops.native import build, recipe; print(build.find_or_build(recipe.CPU).origin)"
    environment = {**os.environ, "ADATP_CACHE": str(tmp_path), "ADATP_CXXFLAGS": "-O0"}
    processes = [
        subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in "ab"
    ]
    origins = sorted(
        process.communicate(timeout=300)[0].split(" with ")[0].split(" in ")[0].strip() for process in processes
    )
    assert origins == ["built", "cached"]
    assert len(list(tmp_path.rglob("*.so"))) == 1
