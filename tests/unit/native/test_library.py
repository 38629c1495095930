"""The kernels are compiled once, with torch's threads, and their absence is a reason and no error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from tunesmith.native.library import library, why_not_native

LOAD = """
from tunesmith.native import library as native
compiled = []
compile = native._compile
native._compile = lambda *given: (compiled.append(1), compile(*given))
print(native.library() is not None, len(compiled), native.why_not_native())
"""
OPENMP = """
import torch
from tunesmith.native.library import library
native = library()
for threads in (1, 2, 3):
    torch.set_num_threads(threads)
    assert native.omp_get_max_threads() == threads
torch.randn(200, 200) @ torch.randn(200, 200)
lines = [line.split()[-1] for line in open("/proc/self/maps") if "omp" in line.split("/")[-1]]
print(len({line for line in lines if ".so" in line}))
"""


def run(code: str, **environment: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_there_is_one_library() -> None:
    assert library() is not None
    assert library() is library()
    assert why_not_native() is None


def test_it_is_compiled_once_and_shares_the_threads_of_torch(tmp_path: Path) -> None:
    assert run(LOAD, XDG_CACHE_HOME=str(tmp_path)) == "True 1 None"
    assert run(LOAD, XDG_CACHE_HOME=str(tmp_path)) == "True 0 None"
    assert run(OPENMP, XDG_CACHE_HOME=str(tmp_path)) == "1"


def test_no_compiler_is_a_reason(tmp_path: Path) -> None:
    named = run(LOAD, XDG_CACHE_HOME=str(tmp_path), CXX="/nonexistent")
    assert named == "False 0 no compiler found (/nonexistent)"
    found = run(LOAD, XDG_CACHE_HOME=str(tmp_path), CXX="", PATH=str(tmp_path))
    assert found == "False 0 no compiler found (g++, clang++, c++)"
    assert not (tmp_path / "tunesmith").exists()


def test_a_compiler_that_fails_is_a_reason(tmp_path: Path) -> None:
    compiler = tmp_path / "cxx"
    compiler.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo one && exit 0\necho "in file x" >&2\necho "x.cpp:1: error: no" >&2\nexit 1\n'
    )
    compiler.chmod(0o755)
    assert run(LOAD, XDG_CACHE_HOME=str(tmp_path), CXX=str(compiler)) == "False 1 the compiler failed: x.cpp:1: error: no"


def test_a_cache_that_cannot_be_written_is_a_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert run(LOAD, XDG_CACHE_HOME=str(tmp_path / "file")).startswith("False 0 [Errno")


def test_denormal_numbers_are_left_alone() -> None:
    assert library() is not None
    assert (torch.tensor([1e-40]) * 1.0).item() > 0
