"""tunesmith fine-tunes Hugging Face models from one strict spec and proves what it hands you."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_ADDRESSES = {
    "train": "tunesmith.pipeline",
    "resume": "tunesmith.pipeline",
    "check": "tunesmith.verbs.check",
    "open_run": "tunesmith.verbs.run",
    "Run": "tunesmith.verbs.run",
    "load_spec": "tunesmith.strict",
    "RunSpec": "tunesmith.spec",
    "Task": "tunesmith.registry",
    "Method": "tunesmith.registry",
    "Role": "tunesmith.registry",
    "Decision": "tunesmith.registry",
    "register_task": "tunesmith.registry",
    "register_method": "tunesmith.registry",
    "TunesmithError": "tunesmith.errors",
    "InputError": "tunesmith.errors",
    "RunError": "tunesmith.errors",
}
__all__ = ["__version__", *_ADDRESSES]

if TYPE_CHECKING:
    from tunesmith.errors import InputError, RunError, TunesmithError
    from tunesmith.pipeline import resume, train
    from tunesmith.registry import Decision, Method, Role, Task, register_method, register_task
    from tunesmith.spec import RunSpec
    from tunesmith.strict import load_spec
    from tunesmith.verbs.check import check
    from tunesmith.verbs.run import Run, open_run


def __getattr__(name: str) -> Any:
    if name not in _ADDRESSES:
        raise AttributeError(f"module 'tunesmith' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_ADDRESSES[name]), name)
