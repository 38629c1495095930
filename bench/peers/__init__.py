"""Who is compared: tunesmith and its peers, what each can do, and the environment it runs in."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bench.works import Work

TORCH = "torch==2.13.0"
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**34), "MALLOC_TOP_PAD_": str(2**26)}
"""glibc keeps what is freed, as a careful user would ask it to."""


def trains(work: Work) -> bool:
    """Works of optimizer steps."""
    return work.kind == "train"


def writes(work: Work) -> bool:
    """Works of a language model."""
    return work.per_token


def adapts_smollm2(work: Work) -> bool:
    """Works of adapters on the one model of the works that LitGPT knows."""
    return trains(work) and work.spec["model"] == "smollm2" and isinstance(work.spec["method"], dict)


def probes(work: Work) -> bool:
    """Works of a head on frozen features."""
    return work.kind == "probe"


def predicts(work: Work) -> bool:
    """Works of prediction."""
    return work.kind == "predict"


@dataclass(frozen=True)
class Peer:
    """One way to do a work."""

    name: str
    module: str
    """Of bench.peers, run with `python -m`."""
    variant: str
    summary: str
    does: Callable[[Work], bool]
    environment: dict[str, str] = field(default_factory=dict)
    venv: str = ""
    """Of VENVS; empty is the environment that bench itself runs in."""
    by_default: bool = True
    """Whether it is compared without being named."""


VENVS = {
    "trl": ["trl==1.16.0", "peft==0.21.2"],
    "setfit": ["setfit==1.2.0"],
    "llamafactory": ["llamafactory==0.9.5"],
    "litgpt": ["litgpt==0.5.13"],
}
"""What is installed, after torch, for peers that need an environment of their own."""

PEERS = {
    peer.name: peer
    for peer in (
        Peer("tunesmith", "tunesmith_run", "shipped", "as it ships", lambda work: True),
        Peer("trainer-shipped", "trainer", "shipped", "transformers.Trainer, default arguments: fp32", lambda work: work.kind != "predict"),
        Peer(
            "trainer-tuned", "trainer", "tuned", "bf16 autocast where that is faster, fused AdamW, rows grouped by length, glibc keeps memory",
            lambda work: work.kind != "predict", KEEP_MEMORY,
        ),
        Peer("pytorch-shipped", "pytorch", "shipped", "a plain loop: fp32", trains),
        Peer(
            "pytorch-tuned", "pytorch", "tuned", "bf16 autocast where that is faster, fused AdamW, each step sorted by length and cut, glibc keeps memory",
            trains, KEEP_MEMORY,
        ),
        Peer("pytorch-compiled", "pytorch", "compiled", "pytorch-tuned with torch.compile(dynamic=True)", trains, KEEP_MEMORY, by_default=False),
        Peer("trl-shipped", "trl_sft", "shipped", "SFTTrainer, default arguments: bf16, gradient checkpointing", writes, venv="trl"),
        Peer(
            "trl-tuned", "trl_sft", "tuned", "bf16 where that is faster, no checkpointing, padding_free for chats, glibc keeps memory",
            writes, KEEP_MEMORY, "trl",
        ),
        Peer(
            "trl-packed", "trl_sft", "packed", "no checkpointing, packing, glibc keeps memory", lambda work: work.spec.get("task", {}).get("name") == "chat",
            KEEP_MEMORY, "trl",
        ),
        Peer("llamafactory-shipped", "llama_factory", "shipped", "run_exp, default arguments: fp32, gradient checkpointing", writes, venv="llamafactory"),
        Peer(
            "llamafactory-tuned", "llama_factory", "tuned", "bf16 where that is faster, no checkpointing, glibc keeps memory",
            writes, KEEP_MEMORY, "llamafactory",
        ),
        Peer("litgpt-shipped", "lit_gpt", "shipped", "its LoRA, default arguments: bf16 mixed precision, a row at a time", adapts_smollm2, venv="litgpt"),
        Peer(
            "litgpt-tuned", "lit_gpt", "tuned", "its LoRA, weights in bf16 where that is faster, fused AdamW, each step sorted by length and cut, glibc keeps memory",
            adapts_smollm2, KEEP_MEMORY, "litgpt",
        ),
        Peer("sentence-transformers-shipped", "features", "shipped", "encode() and LogisticRegression", probes),
        Peer(
            "sentence-transformers-tuned", "features", "tuned", "encode() in bf16 where that is faster and LogisticRegression, glibc keeps memory",
            probes, KEEP_MEMORY,
        ),
        Peer("setfit", "features", "setfit", "SetFit's train_classifier", probes, venv="setfit"),
        Peer("pipeline-shipped", "pipeline", "shipped", "transformers.pipeline, a row at a time, fp32", predicts),
        Peer(
            "pipeline-tuned", "pipeline", "tuned", "the same in batches sorted by length, bf16 where that is faster, glibc keeps memory",
            predicts, KEEP_MEMORY,
        ),
    )
}  # fmt: skip

CANNOT_RUN = {
    "unsloth": (
        "it has a backend for processors without a GPU (transformers, peft and trl with settings of its own), but 2026.10.9 could not be installed: "
        "`No matching distribution found for certifi>=2026.10.19`, which it requires"
    ),
}
"""Peers that cannot be run, and the message they end with."""


def python_of(peer: Peer, venvs: Path) -> str:
    """The Python that runs a peer; its environment is made if it is not there yet.

    Raises RuntimeError with pip's last words.
    """
    if not peer.venv:
        return sys.executable
    folder = venvs / peer.venv
    python, stamp = folder / "bin" / "python", folder / "installed.txt"
    wanted = "\n".join([TORCH, *VENVS[peer.venv]])
    if stamp.is_file() and stamp.read_text() == wanted:
        return str(python)
    print(f"making an environment for {peer.venv} in {folder}", flush=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # torch by its exact version first: a newer one would bring gigabytes for GPUs
    for command in ([sys.executable, "-m", "venv", str(folder)], [*install, TORCH], [*install, TORCH, *VENVS[peer.venv]]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"not installed: {done.stderr.strip().splitlines()[-1][:400]}")
    stamp.write_text(wanted)
    return str(python)
