"""Python code that lies beside a model's weights, which transformers calls remote code: it runs only where the environment names its hash.

The environment belongs to whoever starts the command; a spec, a model or a run directory may come from somebody else.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

from tunesmith.errors import InputError

VARIABLE = "TUNESMITH_TRUST_REMOTE_CODE"
"""Hashes of trusted code, parted by commas."""
CONFIGS = ("config.json", "tokenizer_config.json")
KNOWN = "a model that the installed transformers knows, or one that was converted to such a one"


def is_trusted(model: str | Path) -> bool:
    """Whether a folder's code may run: it has some, and the environment names its hash. Of a hub id nothing may."""
    named = [word.strip() for word in os.environ.get(VARIABLE, "").split(",") if word.strip()]
    return bool(named) and hash_of_code(Path(model)) in named


def hash_of_code(folder: Path) -> str | None:
    """`sha256:...` over the names and contents of all Python files under a folder; None where nothing names them as the model's code,
    or where code of another repository is named, which would be fetched from there."""
    files = code_files(folder)
    if not files or not (named := _named_code(folder)) or any("--" in name for name in named):
        return None
    digests = [f"{hashlib.sha256(file.read_bytes()).hexdigest()} {file.relative_to(folder).as_posix()}\n" for file in files]
    return f"sha256:{hashlib.sha256(''.join(digests).encode()).hexdigest()}"


def code_files(folder: Path) -> list[Path]:
    """The Python files under a folder, in order."""
    return sorted(folder.rglob("*.py"))


def copy_code(source: Path, target: Path) -> None:
    """Copies trusted code, so that a folder written with it has the same hash: upstream copies what is imported, and may leave out some."""
    if is_trusted(source):
        for file in code_files(source):
            place = target / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)


def refusal(what: str, folder: Path) -> InputError:
    """What is said of a model whose code may not run."""
    problem = f"the {what} is Python code that lies beside the weights, and it runs only where you say so"
    code, named = hash_of_code(folder), os.environ.get(VARIABLE)
    elsewhere = sorted(name.partition("--")[0] for name in _named_code(folder) if "--" in name)
    if code is not None:
        files = ", ".join(file.relative_to(folder).as_posix() for file in code_files(folder))
        found = f"{files}: {code}" + (f"; {VARIABLE} names {named}" if named else "")
        fix = f"{KNOWN}; or read the code and, if you trust it, export {VARIABLE}={code}"
    elif elsewhere:
        found, fix = f"auto_map names code of another repository, {elsewhere[0]}, which cannot be pinned", KNOWN
    else:
        found = "auto_map names code, and no Python file lies there: from the hub none is fetched"
        fix = f"{KNOWN}; or `hf download` it whole with --local-dir FOLDER, and model=FOLDER"
    return InputError("model.remote_code", problem, where=str(folder), found=found, fix=fix)


def _named_code(folder: Path) -> list[str]:
    """What the configurations of a folder name as the code of the model and its tokenizer."""
    names: list[str] = []
    for config in CONFIGS:
        try:
            automatic = json.loads((folder / config).read_text(encoding="utf-8")).get("auto_map") or {}
        except (OSError, ValueError, AttributeError):
            continue
        values = automatic.values() if isinstance(automatic, dict) else [automatic]
        names += [name for value in values for name in (value if isinstance(value, list) else [value]) if isinstance(name, str)]
    return names
