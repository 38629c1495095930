"""Writing: prompts in, answers out, by transformers' `generate`; a row's answer does not depend on the batch it stands in.

Only what the spec says shapes an answer: sampling defaults that a checkpoint brings along are left aside, its end tokens are not.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import GenerationConfig, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from tunesmith.data.plan import cut_by_length
from tunesmith.engines.scoring import autocast
from tunesmith.errors import InputError, Problem
from tunesmith.models.load import NO_LIMIT, longest_input, reads_any_length
from tunesmith.spec import GenerationSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

UNFINISHED_CHARACTER = "\ufffd"
"""What a decoder writes for the bytes of a character that is not complete."""


@dataclass
class Generated:
    """One answer."""

    text: str
    """Without special tokens, and without the stop text that ended it."""
    num_tokens: int
    """All that were written: the end token and those of a stop text too."""
    finished: bool
    """Whether it ended by itself, by an end token or a stop text, and not by `max_new_tokens`."""
    score: float = 0.0
    """The mean probability (geometric) of its tokens; an encoder-decoder's."""


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    settings: GenerationSpec,
    precision: str = "fp32",
    rows_per_batch: int = 8,
    first_row: int = 0,
    advance: Callable[[int], None] = lambda rows: None,
) -> Iterator[tuple[int, Generated]]:
    """(index of the prompt, its answer) as batches of prompts of similar length finish, longest first.

    What is drawn for a row depends on its prompt, its number (the first has `first_row`) and the seed.
    Raises InputError when a prompt is empty, or longer than the model can go on from.
    """
    check_lengths(model, tokenizer, prompts, settings.max_new_tokens)
    lengths = [len(prompt) for prompt in prompts]
    for part in cut_by_length(lengths, rows_per_batch * max(lengths, default=0), rows_per_batch):
        rows = [int(index) for index in part]
        endings = _Endings(model, tokenizer, settings.stop, lengths[rows[0]], len(rows))
        ids = _write(model, [prompts[row] for row in rows], [first_row + row for row in rows], settings, precision, [endings])
        for position, row in enumerate(rows):
            new = ids[position, lengths[rows[0]] :].tolist()[: endings.num_tokens[position]]
            yield row, Generated(endings.read(new)[0], len(new), endings.ended[position])
        advance(len(rows))


def stream(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: list[int], settings: GenerationSpec
) -> Generator[str, None, None]:
    """The answer that `generate` gives to a single prompt, in pieces of whole characters, as it is written.

    Closing the iterator, or an exception in it such as KeyboardInterrupt, ends the writing after the token it is at.
    Raises InputError as `generate` does.
    """
    check_lengths(model, tokenizer, [prompt], settings.max_new_tokens)
    written: SimpleQueue[list[int] | BaseException | None] = SimpleQueue()
    cancelled = threading.Event()
    endings = _Endings(model, tokenizer, settings.stop, len(prompt), 1)

    def hand_over(ids: torch.Tensor, scores: Any) -> torch.Tensor:
        written.put(ids[0, len(prompt) :].tolist())
        return torch.full((1,), cancelled.is_set(), device=ids.device)

    def write() -> None:
        try:
            _write(model, [prompt], [0], settings, "fp32", [endings, hand_over])
            written.put(None)
        except BaseException as error:  # it belongs to who reads
            written.put(error)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    try:
        yield from _pieces(written, endings)
    finally:
        cancelled.set()
        writer.join()


def _pieces(written: SimpleQueue[Any], endings: _Endings) -> Iterator[str]:
    """What each list of tokens adds to the text before; the start of a stop text, or of a character, waits for what follows."""
    sent, text = 0, ""
    while (ids := written.get()) is not None:
        if isinstance(ids, BaseException):
            raise ids
        text, stopped = endings.read(ids)
        certain = len(text) if stopped else _certain_length(text, endings.stops)
        if certain > sent:
            yield text[sent:certain]
            sent = certain
    if text[sent:]:
        yield text[sent:]


def _certain_length(text: str, stops: Sequence[str]) -> int:
    """Characters that no further token can change or make part of a stop text."""
    text = text.rstrip(UNFINISHED_CHARACTER)
    begun = [size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size])]
    return len(text) - max(begun, default=0)


def check_lengths(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[list[int]], max_new_tokens: int) -> None:
    """Raises InputError with every prompt that is empty, or that leaves too little of what the model can read for so many new tokens."""
    longest = NO_LIMIT if reads_any_length(model.config) else longest_input(tokenizer, model)
    problems = []
    for index, prompt in enumerate(prompts):
        where = f"prompt {index + 1} of {len(prompts)}"
        if not prompt:
            problems.append(Problem("data.empty_text", "there is nothing to go on from", where, "no tokens", "give the row a text"))
        elif len(prompt) + max_new_tokens > longest:
            found = f"{len(prompt):,} tokens and max_new_tokens {max_new_tokens:,}; the model reads {longest:,}"
            room = longest - len(prompt)
            fix = f"max_new_tokens of at most {room:,}, or a shorter prompt" if room > 0 else "a shorter prompt"
            problems.append(Problem("data.too_long", "the prompt and its answer do not fit into the model", where, found, fix))
    if problems:
        raise InputError.from_problems(problems)


class _Endings:
    """Notes for each row after how many tokens it ended; transformers stops when all have."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str], start: int, num_rows: int) -> None:
        own = model.generation_config.eos_token_id
        named = [*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id]
        self.end_tokens = {int(token) for token in named if token is not None}
        self.tokenizer, self.stops, self.start = tokenizer, stops, start
        self.num_tokens = [0] * num_rows
        self.ended = [False] * num_rows

    def __call__(self, ids: torch.Tensor, scores: Any) -> torch.Tensor:
        for row, new in enumerate(ids[:, self.start :].tolist()):
            if not self.ended[row]:
                self.num_tokens[row] = len(new)
                self.ended[row] = new[-1] in self.end_tokens or (bool(self.stops) and self.read(new)[1])
        return torch.tensor(self.ended, device=ids.device)

    def read(self, ids: list[int]) -> tuple[str, bool]:
        """The text of what was written up to the first stop text, and whether there is one."""
        ids = [token for token in ids if token not in self.end_tokens]
        # Cleaning up would take away spaces that the model wrote.
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        places = [place for stop in self.stops if (place := text.find(stop)) >= 0]
        return (text[: min(places)], True) if places else (text, False)


class _Draw:
    """Adds to each row's scores noise of the row's own, so that the greatest is a draw from their softmax (Gumbel 1954)."""

    def __init__(self, prompts: Sequence[list[int]], rows: Sequence[int], seed: int) -> None:
        seeds = [
            np.random.SeedSequence([seed, row, *prompt]).generate_state(1, np.uint64) for row, prompt in zip(rows, prompts, strict=True)
        ]
        self.generators = [torch.Generator().manual_seed(int(state[0])) for state in seeds]

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        noise = torch.stack([torch.empty(scores.shape[-1]).exponential_(generator=generator) for generator in self.generators])
        return scores.float() - noise.log().to(scores.device)


def _write(
    model: PreTrainedModel, prompts: Sequence[list[int]], rows: Sequence[int], settings: GenerationSpec, precision: str, criteria: list[Any]
) -> torch.Tensor:
    """Token ids [rows, longest prompt + written]; who ends a row is `criteria`."""
    longest = max(map(len, prompts))
    # On the left with the row's own first token, which is masked: a pad token would count as written before for repetition_penalty.
    ids = torch.tensor([[prompt[0]] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    with plain_writer(model, GenerationConfig()) as writer, torch.inference_mode(), autocast(model, precision):
        written: torch.Tensor = writer.generate(
            ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=GenerationConfig(
                max_new_tokens=settings.max_new_tokens, repetition_penalty=settings.repetition_penalty, do_sample=False, use_cache=True
            ),
            logits_processor=_draws(settings, prompts, rows),
            stopping_criteria=criteria,
        )
    return written


def _draws(settings: GenerationSpec, prompts: Sequence[list[int]], rows: Sequence[int]) -> list[Any]:
    """Makes the greatest score a draw; transformers' own would draw all rows of a batch from one generator."""
    if not settings.do_sample:
        return []
    warpers: list[Any] = [TemperatureLogitsWarper(float(settings.temperature))]
    if settings.top_k:
        warpers.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        warpers.append(TopPLogitsWarper(settings.top_p))
    return [*warpers, _Draw(prompts, rows, settings.seed)]


@contextmanager
def plain_writer(model: Any, config: GenerationConfig) -> Iterator[Any]:
    """The model in eval mode, with these generation settings in the place of its checkpoint's: `generate` fills gaps with them."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    was_training = model.training
    model.eval()
    plain = copy.copy(inner)  # shares the weights; only what is set on it is its own
    plain.generation_config = config
    try:
        yield plain
    finally:
        model.train(was_training)
