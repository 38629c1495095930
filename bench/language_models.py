"""Language models before and after training: held loss, trained parameters, tokens a second and peak memory, each run in its own process.

    python -m bench.language_models examples/self_instruct.yaml --out runs.jsonl data.root=FOLDER
    python -m bench.language_models examples/self_instruct.yaml --methods lora qlora "{name: qlora, bits: 8}" freeze full --out runs.jsonl
    python -m bench.language_models --table runs.jsonl

Every run is `tunesmith train`, then `tunesmith evaluate --compare`, which evaluates the model that training started from on the same
held rows. Tokens a second are all tokens of the training rows (padding not counted) over the seconds of fitting, with evaluation and
checkpoints turned off while it is timed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tunesmith.verbs.init import spec_of

UNTIMED = ("train.eval_steps=none", "train.save_steps=none", "train.load_best_model_at_end=false")


def tunesmith(*arguments: str) -> dict[str, Any]:
    """What a command prints with --json."""
    done = subprocess.run([sys.executable, "-m", "tunesmith.cli", *arguments, "--json"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"tunesmith {' '.join(arguments)}\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def measure(spec: str, method: str, overrides: list[str]) -> dict[str, Any]:
    """One run."""
    task: Any = spec_of(spec, overrides).task
    # answers are written only where they are compared with something
    silent = ["task.num_generated=0"] if task.name == "chat" and not task.metrics else []
    settings = [*UNTIMED, *silent, *overrides, *([f"method={method}"] if method else [])]
    with tempfile.TemporaryDirectory() as folder:
        checked = tunesmith("check", spec, *settings, "--no-measure")
        result = tunesmith("train", spec, *settings, "--run", f"{folder}/run")
        compared = tunesmith("evaluate", f"{folder}/run", "--compare")
        adapters = [file.stat().st_size for file in Path(folder, "run/model").glob("*.safetensors")]
    lengths = checked["lengths"]["train"]
    epochs = result["steps"] / -(-lengths["rows"] // _rows_per_step(settings, spec))
    return {
        "spec": Path(spec).stem, "method": method or "as in the spec", "settings": overrides,
        "trainable": checked["parameters"]["trainable"], "steps": result["steps"],
        "tokens_per_second": round(epochs * lengths["tokens"] / result["fit_seconds"], 1),
        "peak_memory_mb": result["peak_memory_mb"], "saved_mb": round(sum(adapters) / 1e6, 1),
        "held_rows": compared["num_rows"], "held_tokens": compared["num_tokens"],
        "before": compared["base"]["metrics"], "after": compared["metrics"],
    }  # fmt: skip


def _rows_per_step(settings: list[str], spec: str) -> int:
    train = spec_of(spec, settings).train
    return train.batch_size * train.gradient_accumulation_steps


def table(path: Path) -> str:
    """Markdown of what was measured."""
    lines = [
        "| spec | method | trained parameters | steps | tokens/s | peak memory, MB | saved, MB | held loss before | after | held tokens |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for line in path.read_text().splitlines():
        run = json.loads(line)
        lines.append(
            f"| {run['spec']} | {run['method']} | {run['trainable']:,} | {run['steps']} | {run['tokens_per_second']:.0f} | "
            f"{run['peak_memory_mb']:,} | {run['saved_mb']:,.0f} | {run['before']['loss']:.3f} | {run['after']['loss']:.3f} | {run['held_tokens']:,} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Runs what is asked for, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", nargs="*")
    parser.add_argument("--methods", nargs="+", default=[""])
    parser.add_argument("--out", type=Path, default=Path("language_models.jsonl"))
    parser.add_argument("--table", type=Path)
    arguments, overrides = parser.parse_known_args()
    if arguments.table:
        print(table(arguments.table))
        return
    specs = [word for word in arguments.spec if "=" not in word]
    overrides += [word for word in arguments.spec if "=" in word]
    for spec in specs:
        for method in arguments.methods:
            found = measure(spec, method, overrides)
            with arguments.out.open("a") as file:
                file.write(json.dumps(found) + "\n")
            print(json.dumps(found))


if __name__ == "__main__":
    main()
