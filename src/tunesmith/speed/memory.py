"""Memory that is kept for the next tensor rather than given back to the system after each."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

from tunesmith.registry import Acceleration
from tunesmith.speed.facts import Facts, Unfit

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
KEPT = {M_MMAP_THRESHOLD: 1 << 30, M_TRIM_THRESHOLD: (1 << 31) - 1, M_TOP_PAD: 1 << 26}
DEFAULTS = {M_MMAP_THRESHOLD: 128 << 10, M_TRIM_THRESHOLD: 128 << 10, M_TOP_PAD: 128 << 10}
"""mallopt(3)."""


def why_not(facts: Facts) -> str | None:
    """Another device, or another system."""
    if not facts.on_cpu:
        return "tensors live on the device"
    return None if sys.platform == "linux" else "only glibc's allocator is known"


def apply(facts: Facts) -> Callable[[], None]:
    """Tells glibc to keep freed memory while this lasts; afterwards it is given back, and glibc's defaults hold."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        mallopt, malloc_trim = libc.mallopt, libc.malloc_trim
    except (OSError, AttributeError):
        raise Unfit("the allocator is not glibc's") from None
    for name, value in KEPT.items():
        mallopt(name, value)

    def undo() -> None:
        for name, value in DEFAULTS.items():
            mallopt(name, value)
        malloc_trim(0)

    return undo


MEMORY = Acceleration(name="memory", summary="the allocator keeps freed memory for the next tensor", why_not=why_not, apply=apply)
