"""Run in a process of its own, without tunesmith: loads a saved model by its card's code and writes the logits it computes.

    python -I reload_model.py MODEL_FOLDER REQUEST.json LOGITS.safetensors

The request holds the card's code, texts, pairs (or null), max_length and rows_per_batch.
"""

import json
import sys
from pathlib import Path
from typing import Any


def main(folder: str, request_path: str, logits_path: str) -> None:
    """Loads, tokenizes, computes and writes."""
    sys.modules["tunesmith"] = None  # type: ignore[assignment]
    import torch
    from safetensors.torch import save_file
    from transformers import AutoTokenizer

    request = json.loads(Path(request_path).read_text(encoding="utf-8"))
    names: dict[str, Any] = {"folder": folder}
    exec(compile(request["code"], "the model card", "exec"), names)
    model = names["model"].eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side = "right"
    torch.set_num_threads(request["threads"])
    ids, logits = [], []
    size = request["rows_per_batch"]
    for start in range(0, len(request["texts"]), size):
        texts = request["texts"][start : start + size]
        pairs = request["pairs"][start : start + size] if request["pairs"] else None
        batch = tokenizer(texts, pairs, truncation=True, max_length=request["max_length"], padding=True, return_tensors="pt")
        if not request["pairs"]:
            batch.pop("token_type_ids", None)
        ids += [row[mask.bool()].tolist() for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
        with torch.inference_mode():
            logits.append(model(**batch).logits.float())
    save_file({"logits": torch.cat(logits)}, logits_path)
    labels = {int(index): label for index, label in model.config.id2label.items()}
    print(json.dumps({"ids": ids, "labels": labels}))


if __name__ == "__main__":
    main(*sys.argv[1:])
