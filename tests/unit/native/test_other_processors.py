"""The kernels as other processors have them compiled, with fewer instructions or with tile registers, hold what they hold here."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tunesmith.native import library

ROOT = Path(__file__).parents[3]
TESTS = "tests/unit/native", "tests/unit/speed", "tests/invariants/test_accelerations.py"
WHAT_IT_HAS = """
from tunesmith.native.library import why_not_native
from tunesmith.native.products import has_products, has_tiles
print(why_not_native(), has_tiles(), has_products())
"""


@dataclass(frozen=True)
class Processor:
    """How the compiler is told of it."""

    flags: str
    needs: str
    """What the processor that runs the tests must have itself."""
    has: str
    """What `WHAT_IT_HAS` prints."""
    options: tuple[str, ...] = ()
    """Of pytest."""


TILES = Processor(
    f"-D__AMX_BF16__ -include {shlex.quote(str(Path(__file__).with_name('emulated_tiles.h')))}",
    "avx512_bf16",
    "None True True",
    ("--deselect", "tests/unit/native/test_products.py::test_tiles_are_what_the_processor_says_it_has"),
)
PROCESSORS = {
    "tile registers": TILES,
    "AVX-512": Processor("-march=skylake-avx512", "avx512vl", "None False False"),
    "AVX2": Processor("-march=haswell", "avx2", "None False False"),
    "SSE2": Processor("-march=x86-64", "sse2", "None False False"),
}
FLAGS = Path("/proc/cpuinfo").read_text().split() if library.library() is not None else []


@pytest.mark.slow
@pytest.mark.parametrize(
    "processor",
    [
        pytest.param(
            processor, id=name, marks=pytest.mark.skipif(processor.needs not in FLAGS, reason=f"it takes {processor.needs}, and a compiler")
        )
        for name, processor in PROCESSORS.items()
    ],
)
def test_kernels_of_another_processor(processor: Processor, tmp_path: Path) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text(f'#!/bin/sh\nexec {shlex.quote(library._compiler())} "$@" {processor.flags}\n')
    compiler.chmod(0o755)
    environment = {**os.environ, "CXX": str(compiler), "XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTEST_ADDOPTS": ""}

    def python(*arguments: str) -> str:
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
        return done.stdout

    assert python("-c", WHAT_IT_HAS).strip().endswith(processor.has)
    python("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", *processor.options, *TESTS)
