"""Answers of tiny decoders, compared with what the model gives when each token is computed from all before it."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import torch
import transformers

from tiny_models import DECODERS, save_tiny
from tunesmith.engines.generation import Generated, _Endings, _pieces, generate, stream
from tunesmith.errors import InputError
from tunesmith.spec import GenerationSpec

PROMPTS = [[40, 41], [50, 51, 52, 53, 54, 55, 56, 57, 58], [60], [40, 41], [70, 260, 261, 262]]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A model as a training run has it, and its tokenizer."""
    return load("llama", tmp_path_factory.mktemp("llama"))


def load(kind: str, folder: Path) -> tuple[Any, Any]:
    save_tiny(kind, folder, "AutoModelForCausalLM")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model.config.use_cache = False
    return model.train(), transformers.AutoTokenizer.from_pretrained(folder)


def by_hand(model: Any, prompt: list[int], num_tokens: int, penalty: float = 1.0) -> list[int]:
    """The likeliest tokens, without cache, padding or batch."""
    model.eval()
    ids = list(prompt)
    for _ in range(num_tokens):
        with torch.no_grad():
            scores = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        seen = torch.tensor(sorted(set(ids)))
        scores[seen] = torch.where(scores[seen] > 0, scores[seen] / penalty, scores[seen] * penalty)
        ids.append(int(scores.argmax()))
        if ids[-1] == 0:
            break
    return ids[len(prompt) :]


def answers(llama: tuple[Any, Any], settings: GenerationSpec, prompts: list[list[int]] = PROMPTS, **more: Any) -> list[Generated]:
    return [answer for _, answer in sorted(generate(*llama, prompts, settings, **more), key=lambda pair: pair[0])]


@pytest.mark.parametrize("kind", sorted(DECODERS))
def test_the_likeliest_answer_does_not_depend_on_batch_padding_or_cache(kind: str, tmp_path: Path) -> None:
    model, tokenizer = load(kind, tmp_path)
    for penalty in (1.0, 1.3):
        settings = GenerationSpec(max_new_tokens=12, repetition_penalty=penalty)
        expected = [by_hand(model, prompt, 12, penalty) for prompt in PROMPTS]
        for rows_per_batch in (1, 3):
            found = answers((model, tokenizer), settings, rows_per_batch=rows_per_batch)
            assert [answer.text for answer in found] == [tokenizer.decode(ids, skip_special_tokens=True) for ids in expected]
            assert [answer.num_tokens for answer in found] == [len(ids) for ids in expected]
            assert [answer.finished for answer in found] == [ids[-1] == 0 for ids in expected]


def test_draws_do_not_depend_on_the_batch_and_follow_the_seed(llama: tuple[Any, Any]) -> None:
    settings = GenerationSpec(max_new_tokens=12, do_sample=True, temperature=0.9, top_p=0.95, repetition_penalty=1.2, seed=3)
    alone = answers(llama, settings, rows_per_batch=1)
    assert answers(llama, settings, rows_per_batch=8) == alone
    assert answers(llama, settings.model_copy(update={"seed": 4})) != alone
    assert PROMPTS[0] == PROMPTS[3]
    assert alone[0] != alone[3]
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    answers(llama, settings)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_draws_have_the_probabilities_that_temperature_and_top_k_say(llama: tuple[Any, Any]) -> None:
    model, tokenizer = llama
    settings = GenerationSpec(max_new_tokens=1, do_sample=True, temperature=0.7, top_k=4)
    counts = Counter(answer.text for answer in answers(llama, settings, [[50, 60]] * 3000, rows_per_batch=500))
    with torch.no_grad():
        best = model(input_ids=torch.tensor([[50, 60]])).logits[0, -1].topk(4)
    chances = (best.values / 0.7).softmax(-1).tolist()
    expected = {tokenizer.decode([token]): chance for token, chance in zip(best.indices.tolist(), chances, strict=True)}
    assert set(counts) == set(expected)
    assert {text: count / 3000 for text, count in counts.items()} == pytest.approx(expected, abs=0.035)


def test_any_end_token_of_the_checkpoint_ends_an_answer_and_is_no_part_of_it(llama: tuple[Any, Any]) -> None:
    model, tokenizer = llama
    expected = by_hand(model, PROMPTS[1], 9)
    end = next(index for index in range(2, 9) if expected[index] not in expected[:index])
    model.generation_config.eos_token_id = [0, expected[end]]
    try:
        settings = GenerationSpec(max_new_tokens=9)
        found = answers(llama, settings)
        assert found[1] == Generated(tokenizer.decode(expected[:end]), end + 1, True)
        assert "".join(stream(*llama, PROMPTS[1], settings)) == found[1].text
    finally:
        model.generation_config.eos_token_id = 0


def test_a_stop_text_ends_its_row_only_and_is_cut_out(llama: tuple[Any, Any]) -> None:
    tokenizer = llama[1]
    settings = GenerationSpec(max_new_tokens=12)
    plain = answers(llama, settings)
    stop = plain[1].text[3:6]  # begins and ends inside tokens
    found = answers(llama, settings.model_copy(update={"stop": [stop, "never written"]}), rows_per_batch=8)
    place = plain[1].text.index(stop)
    assert found[1].text == plain[1].text[:place]
    assert found[1].finished
    written = by_hand(llama[0], PROMPTS[1], 12)[: found[1].num_tokens]
    assert stop in tokenizer.decode(written)
    assert stop not in tokenizer.decode(written[:-1])
    others = [index for index, answer in enumerate(plain) if stop not in answer.text]
    assert others
    assert [found[index] for index in others] == [plain[index] for index in others]


def test_settings_of_the_checkpoint_do_not_leak_in_and_stay(llama: tuple[Any, Any]) -> None:
    model, _ = llama
    settings = GenerationSpec(max_new_tokens=8)
    plain = answers(llama, settings)
    own = {
        "do_sample": True,
        "temperature": 5.0,
        "no_repeat_ngram_size": 1,
        "suppress_tokens": by_hand(model, PROMPTS[0], 8),
        "num_beams": 3,
    }
    before = model.generation_config
    model.generation_config = transformers.GenerationConfig(**own, min_new_tokens=8, eos_token_id=0)
    try:
        assert answers(llama, settings) == plain
        assert model.generation_config.to_diff_dict().items() >= own.items()
    finally:
        model.generation_config = before


def test_the_model_is_left_as_it_was(llama: tuple[Any, Any]) -> None:
    model, _ = llama
    model.train()
    answers(llama, GenerationSpec(max_new_tokens=2))
    list(stream(*llama, PROMPTS[0], GenerationSpec(max_new_tokens=2)))
    assert model.training
    assert model.config.use_cache is False
    model(input_ids=torch.tensor([[50, 51]])).logits.sum().backward()
    assert model.lm_head.weight.grad is not None
    model.zero_grad()


def test_rows_are_counted_as_they_are_answered(llama: tuple[Any, Any]) -> None:
    done: list[int] = []
    answers(llama, GenerationSpec(max_new_tokens=1), rows_per_batch=3, advance=done.append)
    assert done == [3, 2]
    assert answers(llama, GenerationSpec(), prompts=[]) == []


def test_adapters_write_as_the_model_with_them(llama: tuple[Any, Any]) -> None:
    import copy

    import peft

    model, tokenizer = copy.deepcopy(llama[0]), llama[1]
    base = answers(llama, GenerationSpec(max_new_tokens=8))
    tuned = peft.get_peft_model(
        model, peft.LoraConfig(task_type="CAUSAL_LM", r=4, init_lora_weights=False, target_modules=["q_proj", "v_proj"])
    )
    found = answers((tuned, tokenizer), GenerationSpec(max_new_tokens=8))
    assert [answer.text for answer in found] == [
        tokenizer.decode(by_hand(tuned, prompt, 8), skip_special_tokens=True) for prompt in PROMPTS
    ]
    assert found != base


def test_bf16_computes_in_bf16(llama: tuple[Any, Any]) -> None:
    model, _ = llama
    seen: list[torch.dtype] = []
    hook = model.model.layers[0].mlp.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    try:
        answers(llama, GenerationSpec(max_new_tokens=2), precision="bf16")
    finally:
        hook.remove()
    assert set(seen) == {torch.bfloat16}


def test_a_prompt_without_room_for_an_answer_is_refused_with_the_numbers(llama: tuple[Any, Any]) -> None:
    settings = GenerationSpec(max_new_tokens=60)
    with pytest.raises(InputError) as caught:
        answers(llama, settings, [[50] * 4, [50] * 5, [], [50] * 64])
    assert caught.value.counts == {"data.too_long": 2, "data.empty_text": 1}
    first, empty, last = caught.value.problems
    assert (first.where, first.found) == ("prompt 2 of 4", "5 tokens and max_new_tokens 60; the model reads 64")
    assert first.fix == "max_new_tokens of at most 59, or a shorter prompt"
    assert (empty.where, last.fix) == ("prompt 3 of 4", "a shorter prompt")
    with pytest.raises(InputError, match=r"data\.too_long"):
        next(stream(*llama, [50] * 5, settings))
    assert len(answers(llama, settings, [[50] * 4])) == 1


@pytest.mark.parametrize("draws", [{}, {"do_sample": True, "seed": 7}])
def test_a_stream_gives_the_same_answer_in_whole_characters(llama: tuple[Any, Any], draws: dict[str, Any]) -> None:
    for prompt in PROMPTS[1:3]:
        settings = GenerationSpec(max_new_tokens=20, **draws)
        plain = answers(llama, settings, [prompt])[0]
        for stop in ([], [plain.text[4:8]], [plain.text[9:10]]):
            stopping = settings.model_copy(update={"stop": stop})
            pieces = list(stream(*llama, prompt, stopping))
            assert "".join(pieces) == answers(llama, stopping, [prompt])[0].text
            assert all(pieces)


def test_a_character_of_many_tokens_comes_whole_and_a_stop_text_never(llama: tuple[Any, Any]) -> None:
    ids = llama[1]("日本🌍 ok. Stop it", add_special_tokens=False)["input_ids"]
    assert len(ids) > 20
    written: SimpleQueue[Any] = SimpleQueue()
    for num_tokens in range(1, len(ids) + 1):
        written.put(ids[:num_tokens])
    written.put(None)
    pieces = list(_pieces(written, _Endings(*llama, [". Stop"], 0, 1)))
    assert [piece.strip() for piece in pieces[:4]] == ["", "日", "本", "🌍"]
    assert "".join(pieces) == " 日本🌍 ok"


@pytest.mark.parametrize("end", ["close", "throw"])
def test_a_stream_that_is_left_stops_writing(llama: tuple[Any, Any], end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = llama
    monkeypatch.setattr(model.config, "max_position_embeddings", 100_000)
    monkeypatch.setattr(tokenizer, "model_max_length", 100_000)
    steps: list[int] = []
    hook = model.register_forward_hook(lambda module, inputs, output: steps.append(1))
    threads = threading.active_count()
    try:
        pieces = stream(*llama, PROMPTS[1], GenerationSpec(max_new_tokens=50_000))
        next(pieces)
        assert threading.active_count() == threads + 1
        if end == "close":
            pieces.close()
        else:
            with pytest.raises(KeyboardInterrupt):
                pieces.throw(KeyboardInterrupt())
        assert threading.active_count() == threads
        assert len(steps) < 50_000
    finally:
        hook.remove()


def test_what_goes_wrong_while_writing_is_told_to_the_reader(llama: tuple[Any, Any]) -> None:
    model, _ = llama

    def fail(module: Any, inputs: Any, output: Any) -> None:
        raise RuntimeError("the third step failed")

    steps: list[int] = []
    hook = model.register_forward_hook(lambda *given: steps.append(1) if len(steps) < 2 else fail(*given))
    pieces = stream(*llama, PROMPTS[1], GenerationSpec(max_new_tokens=9))
    try:
        with pytest.raises(RuntimeError, match="the third step failed"):
            list(pieces)
    finally:
        hook.remove()
