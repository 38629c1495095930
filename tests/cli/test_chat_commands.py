"""The commands on language models, as a user has them: check, train, evaluate, predict, chat, merge; and what they refuse."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from error_examples import documented
from tiny_conversations import conversations, save_chat_model, write_conversations, write_prose
from tiny_models import save_tiny, write_jsonl
from tunesmith.cli import main
from tunesmith.errors import Problem
from tunesmith.prepare import prepare
from tunesmith.registry import METHODS
from tunesmith.runs.directory import RunDirectory
from tunesmith.verbs.reload_model import compute_tokens
from tunesmith.verbs.run import open_run

SETTINGS = [
    "task=chat", "task.generation.max_new_tokens=16", "train.precision=fp32", "train.batch_size=8", "train.learning_rate=2e-2",
    "data.validation=25%", "train.eval_steps=none", "train.save_steps=none",
]  # fmt: skip
QUESTION = "the story was warm"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_conversations(tmp_path_factory.mktemp("data") / "conversations.jsonl", 48)


def _run(*arguments: str) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of a command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(arguments))
    return code, out.getvalue(), err.getvalue()


def _json(*arguments: str) -> Any:
    code, out, err = _run(*arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def _problem(code: int, *arguments: str) -> dict[str, str]:
    """The one problem that a command ends with, by this exit code."""
    found, out, _ = _run(*arguments, "--json")
    (problem,) = json.loads(out)["error"]["problems"]
    assert found == code, problem
    return dict(problem)


def _trained(run: Path, data: Path, model: Path, *overrides: str) -> Path:
    printed = _json("train", str(data), f"model={model}", *SETTINGS, *overrides, "--run", str(run))
    assert printed["run"] == str(run)
    assert printed["metrics"]["perplexity"] > 1
    return run


@pytest.fixture(scope="module")
def lora(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `train` with adapters that learnt something."""
    return _trained(
        tmp_path_factory.mktemp("runs") / "lora",
        data,
        model,
        "method=lora",
        "method.modules_to_save=[lm_head]",
        "train.epochs=12",
        "task.metrics=[exact_match,rouge]",
    )


@pytest.fixture
def reload_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proofs run the code of the card in this process: a fresh one takes seconds, and other tests have it."""

    def reload_model(folder: Path, request: dict[str, Any]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        names: dict[str, Any] = {"folder": str(folder)}
        exec(request["code"], names)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        ids, tensors = compute_tokens(names["model"].eval(), tokenizer, request)
        return {"ids": ids, "labels": {}}, tensors

    monkeypatch.setattr("tunesmith.verbs.prove.reload_model_in_fresh_process", reload_model)
    monkeypatch.setattr("tunesmith.verbs.merge.reload_model_in_fresh_process", reload_model)


def test_check_shows_what_is_trained(model: Path, data: Path) -> None:
    arguments = ("check", str(data), f"model={model}", "--no-measure")
    report = _json(*arguments)
    lengths = report["lengths"]["train"]
    assert 0.1 < lengths["trained_tokens"] / lengths["tokens"] < 0.5
    row = report["rows"][0]
    trained = [piece for piece, is_trained in zip(row["pieces"], row["trained"], strict=True) if is_trained]
    assert trained.count("<|im_end|>") in (1, 2)
    assert "<|im_start|>" not in trained
    code, shown, _ = _run(*arguments)
    assert code == 0
    assert f"{lengths['trained_tokens']:,} of {lengths['tokens']:,} tokens are trained" in shown
    rows = shown.partition("rows as the model sees them:")[2]
    assert rows.count("«") == rows.count("»") >= 3
    assert rows.count("|<|im_end|>»") == rows.count("«")
    assert "|".join("assistant") in rows.partition("«")[0].splitlines()[-2]


@pytest.mark.parametrize("kind", ["chat", "causal_lm", "text_classification"])
def test_the_task_is_seen_from_the_data(kind: str, data: Path, tmp_path: Path) -> None:
    prose, rows = write_prose(tmp_path / "prose.txt"), write_jsonl(tmp_path / "rows.jsonl")
    table = tmp_path / "labels.csv"
    parsed = [json.loads(line) for line in rows.read_text().splitlines()]
    table.write_text("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in parsed))
    file = {"chat": data, "causal_lm": prose, "text_classification": table}[kind]
    code, spec, _ = _run("init", str(file))
    assert code == 0
    assert f"\ntask: {kind}" in f"\n{spec}" or f"name: {kind}" in spec


def test_check_reads_prose_and_conversations_by_their_task(model: Path, data: Path, tmp_path: Path) -> None:
    prose = _json("check", str(write_prose(tmp_path / "prose.txt", 2000)), f"model={model}", "--no-measure")
    assert prose["lengths"]["train"]["trained_tokens"] == prose["lengths"]["train"]["tokens"]
    decided = {decision["field"]: decision["value"] for decision in prose["decisions"]}
    assert decided["task.max_length"] == 128
    chat = _json("check", str(data), f"model={model}", "--no-measure")
    assert {decision["field"]: decision["value"] for decision in chat["decisions"]}["shape of the conversations"] == "messages"


def test_train_keeps_adapters_and_their_proof(lora: Path) -> None:
    names = {path.name for path in (lora / "model").iterdir()}
    assert names >= {"adapter_model.safetensors", "adapter_config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"}
    assert "model.safetensors" not in names
    proof = json.loads((lora / "proof.json").read_text())
    assert proof["proven"]
    assert proof["same_tokens"]
    assert proof["num_rows"] == 12


def test_evaluate_writes_answers_and_compares(lora: Path) -> None:
    result = _json("evaluate", str(lora), "--compare")
    for found in (result, result["base"]):
        assert found["metrics"].keys() >= {"perplexity", "token_accuracy", "loss", "ended", "mean_tokens", "exact_match", "rougeL"}
        assert found["num_generated"] == 12
        assert len(found["samples"]) == 8
        assert found["samples"][0].keys() == {"place", "prompt", "reference", "answer", "finished"}
    assert result["metrics"]["perplexity"] < 0.5 * result["base"]["metrics"]["perplexity"]
    assert result["metrics"]["ended"] > result["base"]["metrics"]["ended"] == 0
    assert [row["reference"] for row in result["samples"]] == [row["reference"] for row in result["base"]["samples"]]
    assert result["metrics"]["perplexity"] == json.loads((lora / "result.json").read_text())["validation"]["perplexity"]
    code, shown, _ = _run("evaluate", str(lora), "--compare")
    assert code == 0
    for part in ("validation, 12 rows:", "the model before training", "asked", "wanted", "before", "written"):
        assert part in shown, part


def test_predict_from_texts_and_from_files_of_every_shape(lora: Path, data: Path, tmp_path: Path) -> None:
    (row,) = _json("predict", str(lora), "--text", QUESTION)["predictions"]
    assert row["messages"] == [{"role": "user", "content": QUESTION}]
    assert row.keys() == {"messages", "answer", "finished", "num_tokens"}
    assert row["finished"]
    assert 0 < row["num_tokens"] < 16
    out = tmp_path / "answers.jsonl"
    printed = _json("predict", str(lora), str(data), "--out", str(out))
    assert (printed["rows"], printed["out"]) == (48, str(out))
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert [answer["messages"] for answer in written] == conversations(48)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"instruction": text}) + "\n" for text in (QUESTION, "the film was bad")))
    asked = _json("predict", str(lora), str(prompts))["predictions"]
    assert asked[0] == row
    assert asked[1]["messages"] == [{"role": "user", "content": "the film was bad"}]
    code, shown, _ = _run("predict", str(lora), "--text", QUESTION)
    assert code == 0
    assert shown == (row["answer"] if row["finished"] else f"{row['answer']} ...") + "\n"


LOADED_ALONE = """
import json, sys
from pathlib import Path
sys.modules["tunesmith"] = None
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
base, adapters, merged, question = sys.argv[1:]
messages = [{"role": "user", "content": question}]
tokenizer = AutoTokenizer.from_pretrained(adapters)
models = {
    "merged": AutoModelForCausalLM.from_pretrained(merged),
    "transformers": AutoModelForCausalLM.from_pretrained(adapters),
    "PeftModel": PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapters),
    "AutoPeftModel": AutoPeftModelForCausalLM.from_pretrained(adapters),
    "base": AutoModelForCausalLM.from_pretrained(base),
}
ids = torch.tensor([tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)])
said = {}
with torch.inference_mode():
    for name, model in models.items():
        said[name] = model.eval()(input_ids=ids).logits[0, -1].tolist()
card = Path(adapters, "README.md").read_text().partition("```python\\n")[2].partition("```")[0]
exec(card.replace('folder = "."', "folder = adapters"))
for name, writer in (("card", model), ("alone", adapters), ("whole", merged)):
    write = pipeline("text-generation", writer, tokenizer=tokenizer)
    said[name] = write(messages, max_new_tokens=16, do_sample=False)[0]["generated_text"][-1]["content"]
print(json.dumps(said))
"""


def test_merge_is_proven_and_all_load_without_tunesmith(lora: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    printed = _json("merge", str(lora), "--out", str(out))
    assert printed["out"] == str(out)
    assert printed["proof"]["proven"]
    assert printed["proof"]["top_1_agreement"] == 1
    assert json.loads((out / "proof.json").read_text()) == printed["proof"]
    assert {path.name for path in out.iterdir()} >= {"model.safetensors", "config.json", "tokenizer.json", "README.md", "proof.json"}
    command = [sys.executable, "-c", LOADED_ALONE, str(model), str(lora / "model"), str(out), QUESTION]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    expected = torch.tensor(said["merged"])
    for name in ("transformers", "PeftModel", "AutoPeftModel"):
        torch.testing.assert_close(torch.tensor(said[name]), expected, rtol=1e-4, atol=1e-4, msg=name)
    assert (torch.tensor(said["base"]) - expected).abs().max() > 0.1
    (answer,) = _json("predict", str(lora), "--text", QUESTION)["predictions"]
    assert said["card"] == said["whole"] == answer["answer"]
    # The base's own generation config is in force here, which knows no end of a turn.
    assert said["alone"].startswith(answer["answer"])
    problem = _problem(2, "merge", str(lora), "--out", str(out))
    assert problem["code"] == "usage.output_exists"
    assert problem["where"] == str(out)


def test_a_merge_that_is_wrong_names_the_block_and_leaves_nothing(
    lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reload_here: None
) -> None:
    method = METHODS.get("lora")

    def damaging(base: Any, folder: Path) -> Any:
        assert method.merge is not None
        merged = method.merge(base, folder)
        with torch.no_grad():
            merged.model.layers[1].mlp.down_proj.weight *= 1.2
        return merged

    monkeypatch.setitem(METHODS._records, "lora", replace(method, merge=damaging))
    out = tmp_path / "merged"
    problem = _problem(1, "merge", str(lora), "--out", str(out))
    assert problem["code"] == "run.proof"
    assert "block 1 differs most" in problem["found"]
    assert "logits differ" in problem["found"]
    assert list(tmp_path.iterdir()) == []
    kept = json.loads((lora / "merge-proof.json").read_text())
    assert problem["where"] == str(lora / "merge-proof.json")
    assert not kept["proven"]


def test_chat_answers_piped_lines(lora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def chat(*arguments: str, lines: str = f"{QUESTION}\n") -> str:
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        code, out, err = _run("chat", str(lora), *arguments)
        assert code == 0, err
        return out

    tuned, base = chat(), chat("--base")
    assert tuned.rstrip("\n") == _json("predict", str(lora), "--text", QUESTION)["predictions"][0]["answer"]
    assert base != tuned
    assert chat("--compare") == f"tuned:\n{tuned}base:\n{base}"
    assert chat(lines=f"{QUESTION}\n/reset\n{QUESTION}\n/quit\nnever asked\n") == tuned + tuned
    assert len(chat("max_new_tokens=2", "--base")) < len(base)
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{QUESTION}\n"))
    assert _run("chat", str(lora), "--base", "--compare")[0] == 2
    assert _run("chat", str(lora), "max_new_token=2")[0] == 2


def test_a_quantised_base_is_trained_evaluated_and_merged_in_full_precision(
    model: Path, data: Path, tmp_path: Path, reload_here: None
) -> None:
    run = _trained(tmp_path / "run", data, model, "method=qlora", "method.bits=4", "train.epochs=2", "task.num_generated=2")
    assert json.loads((run / "proof.json").read_text())["proven"]
    result = _json("evaluate", str(run))
    assert result["metrics"]["loss"] == json.loads((run / "result.json").read_text())["validation"]["loss"]
    proof = _json("merge", str(run), "--out", str(tmp_path / "merged"))["proof"]
    assert proof["proven"]
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert "quantization_config" not in config
    merged, base = load_file(tmp_path / "merged" / "model.safetensors"), load_file(model / "model.safetensors")
    assert merged.keys() == base.keys()
    assert {tensor.dtype for tensor in merged.values()} == {torch.float32}
    changed = {name for name, tensor in base.items() if not torch.equal(tensor, merged[name])}
    assert changed == {name for name in base if name.endswith("_proj.weight")}


def test_a_template_that_brings_tokens_comes_along_everywhere(data: Path, tmp_path: Path, reload_here: None) -> None:
    bare = save_tiny("llama", tmp_path / "bare", "AutoModelForCausalLM")
    assert _problem(2, "check", str(data), f"model={bare}", "--no-measure")["code"] == "model.template"
    conversation = {"messages": [{"role": "user", "content": "good"}, {"role": "assistant", "content": "fine"}]}
    short = tmp_path / "short.jsonl"
    words = ["good", "great", "fine", "warm", "film", "story", "town", "day"]
    short.write_text("".join(json.dumps(conversation).replace("good", word) + "\n" for word in words))
    run = _trained(tmp_path / "run", short, bare, "method=lora", "task.template=chatml", "train.epochs=2", "task.num_generated=2")
    first, second = (_json("evaluate", str(run), "--compare") for _ in range(2))
    assert first == second, "the rows of new tokens should not be drawn anew"
    start = prepare(RunDirectory.open(run).spec()).model.get_base_model().state_dict()
    base = open_run(run).base_model.state_dict()
    plain = {name.replace(".token_adapter", "").replace(".base_layer", ""): tensor for name, tensor in start.items()}
    assert all(torch.equal(tensor, plain[name]) for name, tensor in base.items())
    assert _json("merge", str(run), "--out", str(tmp_path / "merged"))["proof"]["proven"]
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert merged.get_input_embeddings().num_embeddings == len(tokenizer)
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in merged.generation_config.eos_token_id


def test_a_whole_model_has_nothing_to_merge(model: Path, data: Path, tmp_path: Path, reload_here: None) -> None:
    run = _trained(tmp_path / "run", data, model, "method=full", "train.max_steps=2")
    problem = _problem(2, "merge", str(run), "--out", str(tmp_path / "merged"))
    assert problem["code"] == "usage.argument"
    assert problem["found"] == "full"
    assert not (tmp_path / "merged").exists()


class SpareConfig(transformers.LlamaConfig):
    """A Llama's."""

    model_type = "spare_llama"


class SpareLlama(transformers.LlamaForCausalLM):
    """A Llama with a layer that nothing passes through."""

    config_class = SpareConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model.spare = torch.nn.Linear(config.hidden_size, config.hidden_size, bias=False)


def test_an_adapter_that_no_gradient_reaches_ends_the_run_at_its_first_step(
    model: Path, data: Path, tmp_path: Path, reload_here: None
) -> None:
    transformers.AutoConfig.register("spare_llama", SpareConfig, exist_ok=True)
    transformers.AutoModelForCausalLM.register(SpareConfig, SpareLlama, exist_ok=True)
    config = {**json.loads((model / "config.json").read_text()), "model_type": "spare_llama"}
    spare = SpareLlama(SpareConfig(**config))
    folder = tmp_path / "model"
    spare.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    arguments = [str(data), f"model={folder}", *SETTINGS, "method=lora", "train.max_steps=1"]
    problem = _problem(1, "train", *arguments, "--run", str(tmp_path / "run"))
    assert problem == _problem(1, "check", *arguments)
    assert problem["code"] == "method.idle"
    assert problem["where"] == "step 1"
    assert "spare.lora_A" in problem["found"]
    assert "layers" not in problem["found"]
    assert "method.target_modules" in problem["fix"]
    documented("method.idle", "tunesmith train chat.jsonl task=chat method=lora model=MODEL", str(Problem(**problem)), {})
    _json("train", *arguments, "method.target_modules=[q_proj,v_proj]", "--run", str(tmp_path / "mended"))


@pytest.mark.parametrize(
    ("module", "extra", "overrides"),
    [
        ("bitsandbytes", "quant", ["method=qlora"]),
        ("gguf", "gguf", ["model=model.gguf"]),
    ],
)
def test_an_extra_that_is_missing_is_named(
    module: str, extra: str, overrides: list[str], model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, module, None)
    problem = _problem(2, "check", str(data), f"model={model}", "task=chat", *overrides)
    assert problem["code"] == "usage.missing_extra"
    assert module in problem["problem"]
    assert problem["fix"] == f"pip install 'tunesmith[{extra}]'"
    if extra == "quant":
        command = "tunesmith check chat.jsonl task=chat method=qlora model=MODEL"
        documented("usage.missing_extra", command, str(Problem(**problem)), {})


def test_a_metric_whose_package_is_missing_names_the_extra(lora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    problem = _problem(2, "evaluate", str(lora))
    assert problem["code"] == "usage.missing_extra"
    assert "rouge_score" in problem["problem"]
    assert problem["fix"] == "pip install 'tunesmith[eval]'"


def test_settings_of_a_task_that_is_not_named_are_those_of_the_task_that_the_data_looks_like(tmp_path: Path) -> None:
    from tunesmith.verbs.init import spec_of

    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a day", "completion": "warm"}\n')
    spec = spec_of(path, ["task.system=Be brief.", "task.generation.max_new_tokens=7"])
    assert (spec.task.name, spec.model.name) == ("chat", "smollm2")
    assert spec.task.system == "Be brief."
    assert spec.task.generation.max_new_tokens == 7
