"""What the machine refuses while training, as errors that say what to do."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tunesmith.errors import RunError
from tunesmith.runs.environment import peak_memory_bytes, total_memory_bytes

NO_MEMORY = re.compile(r"not enough memory|can.t allocate memory|bad_alloc|could not create a (memory|primitive)", re.IGNORECASE)
NOT_WRITTEN = re.compile(r"PytorchStreamWriter|unexpected pos|file write failed|iostream error|I/O error|No space left|File too large")
WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory could not be had."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, (RuntimeError, OSError)) and bool(NO_MEMORY.search(str(error)))
    )


def out_of_memory(error: BaseException, tried: str) -> RunError:
    """The end of a run that nothing can be cut smaller for."""
    return RunError(
        "run.out_of_memory",
        "the machine ran out of memory",
        where=tried,
        found=f"{_shown(error)}; this process had up to {peak_memory_bytes() / 1e6:,.0f} MB of {total_memory_bytes() / 1e6:,.0f} MB",
        fix="a smaller model, method: lora, or a lower task.max_length; task.gradient_cache=true where a step is one graph; in "
        "evaluation, train.eval_batch_size; then `tunesmith resume`",
    )


@contextmanager
def explained(folder: str) -> Iterator[None]:
    """Turns what the machine refuses into RunErrors; `folder` is where checkpoints are written."""
    try:
        yield
    except RunError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise out_of_memory(error, "outside of a micro-batch: the optimizer, a checkpoint, or evaluation") from error
        if type(error).__name__ == "UnpicklingError":  # torch.load(weights_only=True) met more than tensors
            problem = "a file of the checkpoint holds more than tensors and plain values, and is not loaded"
            raise RunError("run.not_read", problem, found=_shown(error), fix="remove this checkpoint, then `tunesmith resume`") from error
        gone = isinstance(error, FileNotFoundError) and folder in str(error)
        refused = gone or (isinstance(error, OSError) and error.errno in WRITING)
        if refused or NOT_WRITTEN.search(str(error)):
            fix = "free some space or mend the folder, then `tunesmith resume`; the checkpoints before are untouched"
            raise RunError("run.not_written", "a checkpoint could not be written", found=_shown(error), fix=fix) from error
        raise


def _shown(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
