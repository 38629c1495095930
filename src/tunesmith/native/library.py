"""The kernels of this folder, compiled for this machine when they are first asked for."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.data.cache import cached_folder, key_of

if TYPE_CHECKING:
    import torch

    from tunesmith.native.structs import Struct

FLAGS = [
    "-std=c++17",
    "-O3",
    "-march=native",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-fopenmp-simd",
    "-fPIC",
    "-w",
]
"""No -ffast-math: it loses infinities, and GCC would have the whole process flush denormals. Threads are in native.h, not in pragmas."""
COMPILERS = ("g++", "clang++", "c++")
COMPILER_SECONDS = 300


def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where `why_not_native` has a reason."""
    return _load()[0]


def why_not_native() -> str | None:
    """Why there are no compiled kernels, in a few words; None when there are."""
    return _load()[1]


def call(kernel: str, *arguments: torch.Tensor | Struct | int | float | None) -> None:
    """Calls a kernel: tensors (their first element), structs and None as pointers, ints as int64_t, floats as double."""
    function = _FUNCTIONS.get(kernel) or _declare(kernel, arguments)
    function(*[value if value is None or type(value) in _C_TYPES else value.data_ptr() for value in arguments])  # type: ignore[union-attr]


_C_TYPES: dict[type, type[ctypes._SimpleCData[Any]]] = {int: ctypes.c_int64, bool: ctypes.c_int64, float: ctypes.c_double}
_FUNCTIONS: dict[str, Callable[..., None]] = {}


def _declare(kernel: str, arguments: Sequence[Any]) -> Callable[..., None]:
    native = library()
    assert native is not None, f"{kernel}: {why_not_native()}"
    function = getattr(native, kernel)
    function.argtypes, function.restype = [_C_TYPES.get(type(value), ctypes.c_void_p) for value in arguments], None
    _FUNCTIONS[kernel] = function
    return function  # type: ignore[no-any-return]


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    try:
        if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
            return None, f"not on {sys.platform} {platform.machine()}"
        openmp = _openmp_of_torch()
        compiler = _compiler()
        sources = sorted(Path(__file__).parent.glob("*.cpp"))
        texts = [file.read_bytes() for file in sorted([*sources, *Path(__file__).parent.glob("*.h")])]
        version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
        key = key_of(*texts, FLAGS, compiler, version, _processor(), str(openmp), openmp.stat().st_size)
        folder, _ = cached_folder("native", key, lambda folder: _compile(compiler, sources, openmp, folder))
        ctypes.CDLL(str(openmp), mode=ctypes.RTLD_GLOBAL)
        return ctypes.CDLL(str(folder / "native.so")), None
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        return None, str(error)


def _openmp_of_torch() -> Path:
    """The OpenMP library that torch brings: another one would have threads of its own."""
    import torch

    package = Path(torch.__file__).parent
    for folder in (package / "lib", package.parent / "torch.libs"):
        for file in sorted(folder.glob("libgomp*.so*")):
            return file
    raise RuntimeError("torch's OpenMP not found")


def _compiler() -> str:
    names = [os.environ["CXX"]] if os.environ.get("CXX") else COMPILERS
    for name in names:
        if path := shutil.which(name):
            return path
    raise RuntimeError(f"no compiler found ({', '.join(names)})")


def _compile(compiler: str, sources: list[Path], openmp: Path, folder: Path) -> None:
    wide = ["-mprefer-vector-width=512"] if platform.machine() == "x86_64" else []
    with tempfile.TemporaryDirectory() as temporary:
        objects = [f"{temporary}/{source.stem}.o" for source in sources]
        commands = [[compiler, *FLAGS, *wide, "-c", str(source), "-o", out] for source, out in zip(sources, objects, strict=True)]
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            list(pool.map(_run, commands))
        _run([compiler, "-shared", "-Wl,-z,defs", *objects, str(openmp), "-o", str(folder / "native.so")])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILER_SECONDS)
    if done.returncode:
        lines = done.stderr.splitlines() or ["no message"]
        raise RuntimeError(f"the compiler failed: {next((line for line in lines if 'error' in line), lines[0])}")


def _processor() -> list[str]:
    """What -march=native depends on: the model and the instructions it has."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return sorted({line for line in lines if line.startswith(("model name", "flags", "CPU part", "Features"))})
