"""Makes the folder of a new model: its configuration and a tokenizer trained on the training rows; weights are drawn when it is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.data.cache import cached_folder, key_of
from tunesmith.data.lint import label_hashes, text_hashes
from tunesmith.data.rows import Rows
from tunesmith.errors import InputError
from tunesmith.models.catalog import ModelFiles
from tunesmith.models.families import check_family, family_config, find_family, longest_text
from tunesmith.models.load import load_tokenizer
from tunesmith.models.new_tokenizer import describe_tokenizer, train_tokenizer, wrap_tokenizer
from tunesmith.registry import Decision, Task
from tunesmith.spec import NewModelSpec


def make_model(spec: NewModelSpec, task: Task, rows: Rows, work: Path, use_cache: bool) -> tuple[ModelFiles, list[Decision]]:
    """The files of a new model, whose tokenizer has seen these rows, and what was decided.

    Raises InputError when the spec asks for what cannot be made, or the rows have no text.
    """
    import tokenizers
    import transformers

    check_family(spec, task)
    family = find_family(spec.new)
    columns = task.tokenizer_columns or [name for name, kind in task.canonical.items() if kind == "text"]
    text_columns = [name for name in columns if name in rows.dataset.column_names]
    if not text_columns:
        raise InputError(
            "spec.conflict",
            "the task's rows have no plain text that a tokenizer could be trained on",
            where="model.tokenizer",
            fix="name a pretrained model",
        )

    def texts() -> Iterator[str]:
        for _, batch in rows.batches():
            for name in text_columns:
                for cell in batch[name]:
                    yield from [cell] if isinstance(cell, str) else cell

    def make(folder: Path) -> None:
        tokenizer = wrap_tokenizer(train_tokenizer(spec.tokenizer, family, texts), family)
        config = family_config(spec, tokenizer)
        tokenizer.model_max_length = longest_text(spec, config)
        tokenizer.save_pretrained(folder)
        config.save_pretrained(folder)

    if use_cache:
        targets = label_hashes(rows).tobytes() if "label" in text_columns else b""
        code = [path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("*.py")) if path.stem in MAKERS]
        key = key_of(
            spec.model_dump(mode="json"), text_hashes(rows).tobytes(), targets, code, tokenizers.__version__, transformers.__version__
        )
        folder, _ = cached_folder("new", key, make)
    else:
        folder = work / "new"
        folder.mkdir()
        make(folder)
    kind = family.tokenizer if spec.tokenizer.train == "auto" else spec.tokenizer.train
    tokenizer: Any = load_tokenizer(folder)
    decisions = [
        Decision("model.tokenizer.train", kind, f"the usual one of {spec.new}"),
        Decision("model.tokenizer.vocab_size", len(tokenizer), "as many as the training rows have, up to 8,000"),
    ]
    undecided = [decision for decision in decisions if getattr(spec.tokenizer, decision.field.rpartition(".")[2]) == "auto"]
    files = ModelFiles(folder, f"a new {family.summary}, {spec.size}", spec.name, is_new=True)
    return files, [*undecided, describe_tokenizer(kind, tokenizer, len(rows), texts)]


MAKERS = ("families", "new_tokenizer", "new_model")
