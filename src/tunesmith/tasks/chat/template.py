"""The model's chat template: chosen, checked, and asked which tokens of a conversation the model must write itself.

The tokens to train follow from what the model sees when it answers. The prompt of an answer, `template(turns before it,
add_generation_prompt=True)`, must be the start of the whole conversation, in text and in tokens; what follows it, up to the first token
at which generation stops, is the answer. Nothing is searched for in the text.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from tunesmith.data.text import shorten
from tunesmith.errors import InputError
from tunesmith.models.load import ensure_pad_token
from tunesmith.registry import Decision, Fault
from tunesmith.tasks.chat.presets import EOS, PRESETS
from tunesmith.tasks.chat.section import ChatSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Messages = Sequence[dict[str, Any]]
T = TypeVar("T")
QUESTION = [{"role": "user", "content": "a"}]
OTHER_TEMPLATE = "mend chat_template.jinja of the model; task.template=chatml, or another, replaces it"


@dataclass(frozen=True)
class Conversation:
    """A conversation in tokens."""

    ids: list[int]
    trained: list[bool]
    """Whether each token is learnt, [tokens]."""
    answers: list[tuple[int, int]]
    """Start and end of each answer that was looked at; its last token is the one at which generation stops."""


@dataclass(frozen=True)
class Turn:
    """What the template writes around an answer."""

    lead: str
    """Between the prompt and the answer: nothing, a space, an empty block of thoughts."""
    tail: str
    """After an answer at the end of a conversation."""
    stop: str
    """The start of `tail` that the model must write: up to and with the token at which generation stops."""
    stop_id: int


class UnfitError(ValueError):
    """A conversation cannot be trained on; `fault` says why."""

    def __init__(self, problem: str, found: str, fix: str) -> None:
        self.fault: Fault = ("data.conversation", problem, found, fix)
        super().__init__(problem)


def render(tokenizer: PreTrainedTokenizerBase, messages: Messages, add_generation_prompt: bool = False) -> str:
    """The conversation as the template writes it. Raises UnfitError when the template refuses it."""
    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=add_generation_prompt))
    except Exception as error:  # a template is a program of the model's: it may raise anything
        found = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        fix = f"write the conversation as the model's template wants it; {OTHER_TEMPLATE}; or data.on_bad_row=skip"
        raise UnfitError("the model's chat template refuses the conversation", found, fix) from None


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> Any:
    """Texts that a template wrote, as `apply_chat_template` tokenizes them: it writes bos and its like itself."""
    if not texts:
        return {"input_ids": []}
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)


def answer_turn(tokenizer: PreTrainedTokenizerBase) -> Turn:
    """What the template writes around any answer. Raises InputError when it cannot be used for training."""
    try:
        bare, prompt = render(tokenizer, QUESTION), render(tokenizer, QUESTION, add_generation_prompt=True)
        one, two = (render(tokenizer, [*QUESTION, {"role": "assistant", "content": answer}]) for answer in "xy")
    except UnfitError as error:
        raise unusable("the chat template fails on a question and an answer", error.fault[2]) from None
    if not one.startswith(prompt):
        at = len(_common_start(one, prompt))
        found = f"before it generates: {shorten(prompt[at:])}; in a conversation: {shorten(one[at:])}"
        raise unusable("the chat template does not write an answer after the prompt it is generated from", found)
    tail = _common_start(one[::-1], two[::-1])[::-1]
    lead = _common_start(one[len(prompt) :], two[len(prompt) :])
    if one != f"{prompt}{lead}x{tail}" or two != f"{prompt}{lead}y{tail}":
        raise unusable("the chat template does not write answers as they are", shorten(one[len(prompt) :]))
    if prompt == bare and lead.strip():
        raise unusable("the chat template does not open the assistant's turn (add_generation_prompt has no effect)", shorten(lead))
    added = tokenizer.added_tokens_encoder
    stops = [(tail.find(token), -len(token), token, token_id) for token, token_id in added.items() if token in tail]
    if not stops:
        raise unusable("the chat template ends an answer with no token at which generation could stop", shorten(tail))
    position, _, token, token_id = min(stops)
    return Turn(lead, tail, tail[:position] + token, token_id)


def _common_start(one: str, two: str) -> str:
    return os.path.commonprefix([one, two])  # noqa: RUF071 characters are what is to be compared


def unusable(problem: str, found: str) -> InputError:
    """The error of a template that fits no conversation."""
    return InputError("model.template", problem, where="task.template", found=found, fix=OTHER_TEMPLATE)


def encode_conversation(tokenizer: PreTrainedTokenizerBase, messages: Messages, train_on: str) -> Conversation | Fault:
    """One conversation in tokens, or why it cannot be trained on."""
    return encode_conversations(tokenizer, [messages], train_on)[0]


def encode_conversations(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Messages], train_on: str
) -> list[Conversation | Fault]:
    """Each conversation in tokens, or why it cannot be trained on. Raises InputError when the template itself cannot be used."""
    turn = answer_turn(tokenizer)
    layouts = [_try(_lay_out, tokenizer, turn, messages, train_on) for messages in conversations]
    tokens = tokenize(tokenizer, [layout.text for layout in layouts if isinstance(layout, _Layout)])
    borders = _borders(tokenizer, tokens, [layout for layout in layouts if isinstance(layout, _Layout)])
    encoded: list[Conversation | Fault] = []
    index = 0
    for layout in layouts:
        if isinstance(layout, _Layout):
            encoded.append(_try(_mark, turn, layout, tokens, index, borders[index], train_on))
            index += 1
        else:
            encoded.append(layout)
    return encoded


def _try(function: Callable[..., T], *arguments: Any) -> T | Fault:
    try:
        return function(*arguments)
    except UnfitError as error:
        return error.fault


@dataclass(frozen=True)
class _Layout:
    text: str
    prompts: list[str]
    """What each answer is generated from: starts of `text`."""
    ends: list[int]
    """Where each answer ends in `text`, behind the token that stops generation; in characters."""


def _lay_out(tokenizer: PreTrainedTokenizerBase, turn: Turn, messages: Messages, train_on: str) -> _Layout:
    layout = _Layout(render(tokenizer, messages), [], [])
    for message in messages:
        # Thoughts of earlier answers may go, as they do when the model generates; nothing else may.
        if message["role"] != "assistant" and not _holds(layout.text, message["content"]):
            raise UnfitError(f"the chat template leaves out what the {message['role']} says", shorten(message["content"]), OTHER_TEMPLATE)
    if train_on == "everything":
        return layout
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        raise UnfitError("the conversation has no answer to learn from", f"{len(messages)} turns", "add the assistant's answer")
    for index in answers if train_on == "all_assistant" else answers[-1:]:
        if index == 0:
            raise UnfitError("the conversation starts with an answer", shorten(messages[0]["content"]), "add the question before it")
        prompt = render(tokenizer, messages[:index], add_generation_prompt=True)
        alone = layout.text if index == len(messages) - 1 else render(tokenizer, messages[: index + 1])
        if not (alone.startswith(prompt) and alone.endswith(turn.tail)):
            raise _changed(messages, index, prompt, alone)
        answer = alone[len(prompt) : len(alone) - len(turn.tail)]
        if not layout.text.startswith(produced := prompt + answer + turn.stop):
            raise _changed(messages, index, produced, layout.text)
        if not _holds(answer, content := messages[index]["content"]):
            raise UnfitError("the chat template leaves out a part of the answer", shorten(content), f"shorten the answer; {OTHER_TEMPLATE}")
        layout.prompts.append(prompt)
        layout.ends.append(len(produced))
    return layout


def _holds(text: str, content: str) -> bool:
    """Whether a text has the content in it, but for white space, which templates trim."""
    return content in text or "".join(content.split()) in "".join(text.split())


def _changed(messages: Messages, index: int, generated: str, text: str) -> UnfitError:
    at = len(_common_start(generated, text))
    place = f"message {index + 1} of {len(messages)}"
    found = f"{place}; when it is generated: {shorten(generated[at:])}; in the conversation: {shorten(text[at:])}"
    later = any(message["role"] == "assistant" for message in messages[index + 1 :])
    fix = f"task.train_on=last_assistant; or {OTHER_TEMPLATE}" if later else OTHER_TEMPLATE
    return UnfitError("the chat template writes an answer otherwise once the conversation goes on", found, fix)


def _borders(tokenizer: PreTrainedTokenizerBase, tokens: Any, layouts: Sequence[_Layout]) -> list[list[tuple[int, list[int]]]]:
    """Of each answer's prompt its end, tokenized alone as generation does: (where that stands in the conversation, its tokens).

    A tokenizer cuts a text at added tokens before all else, so what stands before the last of them depends on nothing behind it.
    """
    added = set(tokenizer.added_tokens_decoder)
    starts: list[list[int]] = []
    texts = []
    for index, layout in enumerate(layouts):
        ids = tokens["input_ids"][index]
        starts.append([])
        for prompt in layout.prompts:
            last = tokens.char_to_token(index, len(prompt) - 1) or 0
            start = next((token for token in range(last, 0, -1) if ids[token] in added), 0)
            starts[-1].append(start)
            texts.append(prompt[tokens.token_to_chars(index, start).start if start else 0 :])
    ends = iter(tokenize(tokenizer, texts)["input_ids"])
    return [[(start, next(ends)) for start in row] for row in starts]


def _mark(turn: Turn, layout: _Layout, tokens: Any, index: int, borders: list[tuple[int, list[int]]], train_on: str) -> Conversation:
    ids = list(tokens["input_ids"][index])
    trained = [train_on == "everything"] * len(ids)
    answers = []
    for prompt, end, (border, prompt_ids) in zip(layout.prompts, layout.ends, borders, strict=True):
        start = border + len(prompt_ids)
        stop = tokens.char_to_token(index, end - 1)
        if ids[border:start] != prompt_ids:
            problem = "a token stands across the border between prompt and answer, so the prompt alone gives other tokens"
            raise UnfitError(problem, shorten(layout.text[len(prompt) - 10 : len(prompt) + 10]), "start the answer without white space")
        if stop is None or turn.stop_id in ids[start:stop] or ids[stop] != turn.stop_id:
            found = shorten(layout.text[len(prompt) : end])
            raise UnfitError("the answer contains the token that ends it", found, "take the token out of the answer")
        trained[start : stop + 1] = [True] * (stop + 1 - start)
        answers.append((start, stop + 1))
    return Conversation(ids, trained, answers)


def fit_template(section: ChatSpec, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> list[Decision]:
    """Gives tokenizer and model the template asked for, a token that stops generation and one that pads; and says what was done.

    Raises InputError when there is no template, or none that can be trained with.
    """
    if not tokenizer.is_fast:
        problem = "the tokenizer cannot say which characters a token stands for"
        raise InputError("model.tokenizer", problem, found=type(tokenizer).__name__, fix="save it as tokenizer.json")
    decisions = _choose_template(section, tokenizer, model)
    probe = encode_conversation(tokenizer, [*QUESTION, {"role": "assistant", "content": "x"}], "last_assistant")
    if not isinstance(probe, Conversation):
        raise unusable(probe[1], probe[2])
    decisions += check_stop_token(tokenizer, model, probe)
    return [*decisions, *_choose_pad_token(tokenizer, model), *_peculiarities(tokenizer, probe)]


def _choose_template(section: ChatSpec, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> list[Decision]:
    own = tokenizer.chat_template
    if section.template == "model":
        if own is None:
            fix = f"task.template, one of {', '.join(PRESETS)}; or start from a model that was trained to chat"
            raise InputError("model.template", "the model has no chat template", where="task.template", found="none", fix=fix)
        return []
    preset = PRESETS[section.template]
    if own == preset.template:
        return []
    because = "task.template asks for it; " + ("the model had none" if own is None else "it replaces the model's own")
    decisions = [Decision("chat template", section.template, because)]
    tokenizer.chat_template = preset.template
    new = [token for token in preset.tokens if token not in tokenizer.get_vocab()]
    # Those the tokenizer has already are named too: text must not be cut through them.
    tokenizer.add_special_tokens({"extra_special_tokens": list(preset.tokens)}, replace_extra_special_tokens=False)
    if new:
        because = "the template writes them, the tokenizer did not know them"
        decisions.append(Decision("new tokens", ", ".join(new), because))
    num_rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > num_rows:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=True)
        because = "more tokens than the model had; the new rows start at the mean of the others"
        decisions.append(Decision("embeddings", f"{len(tokenizer)} rows, {num_rows} before", because))
    if preset.end_of_turn != EOS and tokenizer.eos_token != preset.end_of_turn:
        tokenizer.eos_token = preset.end_of_turn
        decisions.append(Decision("eos token", preset.end_of_turn, "it ends a turn of the template"))
    elif preset.end_of_turn == EOS and tokenizer.eos_token is None:
        problem = f"the tokenizer has no eos token, which the template {section.template} ends a turn with"
        raise InputError("model.template", problem, where="task.template", fix="task.template=chatml brings one")
    return decisions


def check_stop_token(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, conversation: Conversation) -> list[Decision]:
    """Makes generation stop at the token that ends each answer of the conversation."""
    assert model.generation_config is not None
    eos = model.generation_config.eos_token_id
    known = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
    new = sorted({conversation.ids[end - 1] for _, end in conversation.answers} - set(known))
    if not new:
        return []
    model.generation_config.eos_token_id = [*known, *new] if known else new
    names = ", ".join(str(tokenizer.convert_ids_to_tokens(token)) for token in new)
    because = f"the template ends an answer with {names}, at which generation did not stop"
    return [Decision("generation_config.eos_token_id", model.generation_config.eos_token_id, because)]


def _choose_pad_token(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> list[Decision]:
    decisions = []
    stop = str(tokenizer.convert_ids_to_tokens(answer_turn(tokenizer).stop_id))
    if tokenizer.pad_token in (None, stop):
        named_pad = [token for token in tokenizer.added_tokens_encoder if "pad" in token.lower()]
        others = [
            token for token in (*named_pad, tokenizer.unk_token, tokenizer.eos_token, tokenizer.bos_token) if token not in (None, stop)
        ]
        if others:
            tokenizer.pad_token = others[0]
            decisions.append(Decision("pad token", others[0], f"so that it is not {stop}, which ends answers; padding is never read"))
    decisions += ensure_pad_token(tokenizer, model)
    assert model.generation_config is not None
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return decisions


def _peculiarities(tokenizer: PreTrainedTokenizerBase, probe: Conversation) -> list[Decision]:
    """What the template does that its user might not expect."""
    decisions = []
    template, turn = tokenizer.get_chat_template(), answer_turn(tokenizer)
    if turn.lead.strip():
        decisions.append(
            Decision("start of answers", turn.lead, "the template writes it between a prompt and its answer, so it is learnt too")
        )
    if "strftime_now" in template:
        decisions.append(Decision("date", "today", "the template may write the day into a prompt: rows encoded on another day differ"))
    bos = tokenizer.bos_token_id
    if bos is not None and tokenizer("a")["input_ids"][0] == bos != probe.ids[0]:
        decisions.append(
            Decision("bos token", "none", "the template writes none, and apply_chat_template adds none, so neither does training")
        )
    if re.search(r"{%-?\s*generation\s*-?%}", template):
        messages = [*QUESTION, {"role": "assistant", "content": "x"}]
        own = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)["assistant_masks"]
        if [bool(token) for token in own] != probe.trained:
            shown = tokenizer.decode([token for token, trained in zip(probe.ids, probe.trained, strict=True) if trained])
            because = "from the prompt to the token that stops generation; the template's own generation block marks other tokens"
            decisions.append(Decision("trained tokens", shown, because))
    return decisions
