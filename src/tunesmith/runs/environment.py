"""What a run ran on: versions, processor, memory; and what was measured of it."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tunesmith.data.cache import cached_folder, key_of

PACKAGES = ("tunesmith", "torch", "transformers", "peft", "accelerate", "datasets", "tokenizers", "numpy", "pydantic")


def describe_environment() -> dict[str, Any]:
    """Versions, processor, cores, memory and accelerators, as plain values."""
    import torch

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(total_memory_bytes() / 1e9, 1),
        "accelerators": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "versions": versions,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def total_memory_bytes() -> int:
    """Physical memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0


def peak_memory_bytes() -> int:
    """The most memory this process has had (resident)."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


_MEASURED: dict[tuple[Any, ...], Any] = {}
"""What this process has measured or read."""


def measured(what: str, *key: Any, measure: Callable[[], Any]) -> Any:
    """What `measure` finds on this machine, a plain value.

    Measured once for each processor, number of threads, torch and key, and kept in the cache: so the same spec decides the same tomorrow,
    whatever else the machine is doing then.
    """
    import torch

    def write(folder: Path) -> None:
        (folder / "value.json").write_text(json.dumps(measure()))

    known = (what, torch.get_num_threads(), *key)
    if known not in _MEASURED:
        folder, _ = cached_folder("values", key_of(what, _processor(), torch.get_num_threads(), torch.__version__, *key), write)
        _MEASURED[known] = json.loads((folder / "value.json").read_text())
    return _MEASURED[known]


def bf16_speedup() -> float:
    """How many times faster a matrix product of the size of a micro-batch is in bf16 than in fp32 on this machine."""
    return float(measured("bf16_speedup", measure=_measure_bf16_speedup))


def _measure_bf16_speedup(rows: int = 512, inner: int = 384, outer: int = 1536, repeats: int = 20) -> float:
    import torch

    def best(dtype: torch.dtype) -> float:
        left, right = torch.randn(rows, inner).to(dtype), torch.randn(outer, inner).to(dtype)
        times = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            torch.nn.functional.linear(left, right)
            times.append(time.perf_counter() - start)
        return min(times[1:])

    with torch.random.fork_rng(devices=[]):
        return best(torch.float32) / best(torch.bfloat16)
