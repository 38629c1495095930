"""Run in a process of its own, without tunesmith: loads a saved model by its card's code and writes what it computes.

    python -I reload_model.py MODEL_FOLDER REQUEST.json TENSORS.safetensors

The request holds the card's code, threads and whether the tokenizer may run code of its own; for texts: texts, pairs (or null),
and max_length; for token ids: ids, others (what else the model reads), positions whose logits are wanted, for each row
its source (or null) of which the tokenizer should make those ids, and perhaps `hidden`, to have the hidden states there as well; for
an encoder-decoder also the ids of targets, which positions then count, and max_source_length; for vectors: vectors_of (texts) and
max_length.
"""

import json
import sys
from pathlib import Path
from typing import Any


def main(folder: str, request_path: str, tensors_path: str) -> None:
    """Loads, tokenizes, computes and writes."""
    sys.modules["tunesmith"] = None  # type: ignore[assignment]
    import torch
    from safetensors.torch import save_file
    from transformers import AutoTokenizer

    request = json.loads(Path(request_path).read_text(encoding="utf-8"))
    known: dict[str, Any] = {"folder": folder}
    exec(compile(request["code"], "the model card", "exec"), known)
    model = known["model"].eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=request["trust_remote_code"])
    tokenizer.padding_side = "right"
    torch.set_num_threads(request["threads"])
    compute = compute_vectors if "vectors_of" in request else compute_tokens if "ids" in request else compute_rows
    if "targets" in request:
        compute = compute_targets
    ids, tensors = compute(model, tokenizer, request)
    save_file(tensors, tensors_path)
    names = {} if "vectors_of" in request else model.config.id2label
    labels = {int(index): label for index, label in names.items()}
    print(json.dumps({"ids": ids, "labels": labels}))


def compute_rows(model: Any, tokenizer: Any, request: dict[str, Any]) -> tuple[list[list[int]], dict[str, Any]]:
    """Token ids and logits [rows, outputs] of texts."""
    import torch

    ids, logits = [], []
    for index, text in enumerate(request["texts"]):
        pair = request["pairs"][index] if request["pairs"] else None
        inputs = tokenizer(text, pair, truncation=True, max_length=request["max_length"], return_tensors="pt")
        if not request["pairs"]:
            inputs.pop("token_type_ids", None)
        ids.append(inputs["input_ids"][0].tolist())
        with torch.inference_mode():
            logits.append(model(**inputs.to(model.device)).logits.float().cpu())
    return ids, {"logits": torch.cat(logits)}


def compute_vectors(model: Any, tokenizer: Any, request: dict[str, Any]) -> tuple[list[list[int]], dict[str, Any]]:
    """Token ids of texts, and what the model's `encode` makes of these: vectors [texts, dimensions]."""
    texts = request["vectors_of"]
    ids = [tokenizer(text, truncation=True, max_length=request["max_length"])["input_ids"] for text in texts]
    vectors = model.encode(texts, batch_size=1, convert_to_tensor=True, show_progress_bar=False, device="cpu")
    return ids, {"logits": vectors.float().cpu().contiguous()}


def compute_tokens(model: Any, tokenizer: Any, request: dict[str, Any]) -> tuple[list[list[int]], dict[str, Any]]:
    """Token ids, made of their sources where these are known; logits [positions, outputs] and hidden states
    [layers, positions, hidden]."""
    import torch

    ids: list[list[int]] = []
    logits, hidden = [], []
    for index, (row, others, positions) in enumerate(zip(request["ids"], request["others"], request["positions"], strict=True)):
        source = request["sources"][index] or {}
        if "messages" in source:
            ids.append(tokenizer.apply_chat_template(source["messages"], tokenize=True, return_dict=False))
        else:
            texts = {name: source[name] for name in ("text", "text_pair") if name in source}
            words = {"text": source["words"], "is_split_into_words": True} if "words" in source else texts
            ids.append(tokenizer(**words)["input_ids"] if words else row)
        with torch.inference_mode():
            inputs = {name: torch.tensor([values], device=model.device) for name, values in {"input_ids": row, **others}.items()}
            outputs = model(**inputs, output_hidden_states=bool(request.get("hidden")))
        computed = torch.stack([outputs.start_logits, outputs.end_logits], -1) if "start_logits" in outputs else outputs.logits
        logits.append((computed[0, positions] if computed.dim() == 3 else computed).float().cpu())
        if request.get("hidden"):
            hidden.append(torch.stack([state[0, positions].float().cpu() for state in outputs.hidden_states]))
    return ids, {"logits": torch.cat(logits), **({"hidden": torch.cat(hidden, dim=1)} if hidden else {})}


def compute_targets(model: Any, tokenizer: Any, request: dict[str, Any]) -> tuple[list[list[Any]], dict[str, Any]]:
    """Token ids of sources, targets (made of their texts where these are known) and what is written; logits [positions, vocabulary]."""
    import torch

    ids: list[list[Any]] = []
    hidden: list[Any] = []
    for source, target, texts in zip(request["ids"], request["targets"], request["sources"], strict=True):
        if texts:
            source = tokenizer(texts["text"], truncation=True, max_length=request["max_source_length"])["input_ids"]
            target = tokenizer(text_target=texts["target"])["input_ids"][: len(target)]
        ids.append([source, target])
    written, logits = read_and_write(model, request, hidden)
    found = [[*row, new] for row, new in zip(ids, written, strict=True)]
    return found, {"logits": torch.cat(logits), **({"hidden": torch.cat(hidden, dim=1)} if hidden else {})}


def read_and_write(model: Any, request: dict[str, Any], hidden: list[Any] | None = None) -> tuple[list[list[int]], list[Any]]:
    """What `generate` writes of each source, and logits [positions, vocabulary] of each target; `hidden` is filled if asked for."""
    import torch

    written, logits = [], []
    for source, target, positions in zip(request["ids"], request["targets"], request["positions"], strict=True):
        inputs = {"input_ids": torch.tensor([source], device=model.device)}
        with torch.inference_mode():
            written.append(model.generate(**inputs)[0].tolist())
            outputs = model(**inputs, labels=torch.tensor([target], device=model.device), output_hidden_states=bool(request.get("hidden")))
        logits.append(outputs.logits[0, positions].float().cpu())
        if request.get("hidden") and hidden is not None:
            hidden.append(torch.stack([state[0, positions].float().cpu() for state in outputs.decoder_hidden_states]))
    return written, logits


if __name__ == "__main__":
    main(*sys.argv[1:])
