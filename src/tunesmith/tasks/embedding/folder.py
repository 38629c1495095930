"""What a model's folder says to sentence-transformers: read from the folder that training starts from, written beside the trained model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tunesmith.errors import InputError
from tunesmith.models.load import ensure_pad_token, longest_input
from tunesmith.registry import Decision
from tunesmith.tasks.embedding.section import EmbeddingSpec

KNOWN_MODULES = ("Transformer", "Pooling", "Normalize")
LEGACY_POOLING = {"cls": "cls_token", "max": "max_tokens", "mean": "mean_tokens", "lasttoken": "lasttoken"}
LOADER = """from sentence_transformers import SentenceTransformer

model = SentenceTransformer(folder, model_kwargs={"dtype": "float32"})"""


def fit_tokenizer(section: EmbeddingSpec, tokenizer: Any, model: Any) -> list[Decision]:
    """A pad token where there is none; pooling, normalize and max_length as the model's folder says.

    Raises InputError when the folder holds parts that would be lost, or vectors are shorter than they are to be cut to.
    """
    sizes = [] if section.matryoshka_dimensions == "none" else section.matryoshka_dimensions
    if sizes and max(sizes) > model.config.hidden_size:
        found, fix = f"{max(sizes)}", f"at most {model.config.hidden_size}"
        raise InputError("spec.value", "the model's vectors are shorter", where="task.matryoshka_dimensions", found=found, fix=fix)
    folder = Path(tokenizer.name_or_path)
    modules = {str(module["type"]).rpartition(".")[2]: module["path"] for module in _json(folder / "modules.json", [])}
    said = _json(folder / modules["Pooling"] / "config.json", {}) if "Pooling" in modules else {}
    decisions = ensure_pad_token(tokenizer, model)
    if section.pooling == "auto":
        if others := [name for name in modules if name not in KNOWN_MODULES]:
            problem, fix = "the model's folder has parts that would not be trained or kept", "task.pooling=mean, to go without them"
            raise InputError("model.load", problem, where=str(folder / "modules.json"), found=", ".join(others), fix=fix)
        decisions.append(Decision("task.pooling", *_pooling(said, modules, model, folder)))
    if section.normalize == "auto":
        because = "as modules.json of the model says" if modules else "the model's folder says nothing of it"
        decisions.append(Decision("task.normalize", "Normalize" in modules, because))
    if section.max_length == "auto":
        limit, own = longest_input(tokenizer, model), _json(folder / "sentence_bert_config.json", {}).get("max_seq_length")
        because = "as sentence_bert_config.json of the model says" if own else "the model's limit"
        decisions.append(Decision("task.max_length", min(int(own or limit), limit), f"{because}: unused length costs nothing"))
    return decisions


def _json(path: Path, default: Any) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else default


def _pooling(said: dict[str, Any], modules: dict[str, str], model: Any, folder: Path) -> tuple[str, str]:
    if not said:
        is_causal = str((model.config.architectures or [""])[0]).endswith("ForCausalLM")
        return ("lasttoken", "only it has read the whole text") if is_causal else ("mean", "the model's folder says nothing of it")
    own = said.get("pooling_mode") or [mode for mode, name in LEGACY_POOLING.items() if said.get(f"pooling_mode_{name}")]
    own = own[0] if isinstance(own, list) and len(own) == 1 else own
    if own not in LEGACY_POOLING:
        found = ", ".join(key for key, value in said.items() if value is True) if isinstance(own, list) else str(own)
        where = str(folder / modules["Pooling"] / "config.json")
        raise InputError("model.load", "the model pools in a way that is not known here", where=where, found=found, fix="task.pooling=mean")
    return own, f"as {modules['Pooling']}/config.json of the model says"


def finish(section: EmbeddingSpec, model: Any, tokenizer: Any, folder: Path) -> None:
    """Writes modules.json and what it names, in the form that every version of sentence-transformers reads."""
    modules = ["Transformer", "Pooling", *(["Normalize"] if section.normalize else [])]
    paths = ["", "1_Pooling", "2_Normalize"]
    _write(
        folder / "modules.json",
        [
            {"idx": index, "name": str(index), "path": paths[index], "type": f"sentence_transformers.models.{name}"}
            for index, name in enumerate(modules)
        ],
    )
    _write(folder / "sentence_bert_config.json", {"max_seq_length": section.max_length, "do_lower_case": False})
    _write(folder / "config_sentence_transformers.json", {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"})
    modes = {f"pooling_mode_{name}": mode == section.pooling for mode, name in LEGACY_POOLING.items()}
    _write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": model.config.hidden_size, **modes})
    if section.normalize:
        (folder / "2_Normalize").mkdir(exist_ok=True)


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
