"""Weights that are still what their file holds: their memory can be given back, and the system reads them again when they are asked for."""

from __future__ import annotations

import ctypes
import mmap
import sys
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

MADV_DONTNEED = 4
"""madvise(2): drops pages; those of a private mapping of a file are read from it again, and changes of them are lost."""
PRESENT, SWAPPED, OF_FILE = (np.uint64(1 << bit) for bit in (63, 62, 61))
"""Bits of /proc/self/pagemap. A page of a private mapping that was written to is no longer the file's."""


def give_back(tensor: torch.Tensor) -> bool:
    """Gives back the memory of a contiguous tensor if it is an unchanged mapping of a file, and says whether; its values stay."""
    if sys.platform != "linux" or tensor.device.type != "cpu" or not tensor.is_contiguous():
        return False
    try:
        address, pages = pages_of(tensor)
    except OSError:  # a system that does not show it
        return False
    if not len(pages) or (pages & SWAPPED).any() or not (pages & OF_FILE)[(pages & PRESENT) != 0].all():
        return False
    madvise = ctypes.CDLL(None).madvise
    return not madvise(ctypes.c_void_p(address), ctypes.c_size_t(len(pages) * mmap.PAGESIZE), MADV_DONTNEED)


def pages_of(tensor: torch.Tensor) -> tuple[int, np.ndarray]:
    """Address of the first page that lies within a contiguous tensor, and what /proc/self/pagemap says of each that does."""
    first = -(-tensor.data_ptr() // mmap.PAGESIZE)
    num_pages = max((tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE - first, 0)
    with open("/proc/self/pagemap", "rb", buffering=0) as file:
        file.seek(8 * first)
        return first * mmap.PAGESIZE, np.frombuffer(file.read(8 * num_pages), np.uint64)
