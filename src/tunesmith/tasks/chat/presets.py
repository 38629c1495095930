"""Chat templates that can be given to a model which has none of its own."""

from __future__ import annotations

from dataclasses import dataclass

EOS = "eos_token"


@dataclass(frozen=True)
class Preset:
    """A chat template, and the tokens it needs."""

    template: str
    """Jinja, as `tokenizer.chat_template`; it writes a bos token only if the tokenizer has one."""
    tokens: tuple[str, ...] = ()
    """Special tokens it writes, added where the tokenizer lacks them."""
    end_of_turn: str = EOS
    """The token that ends a turn; `eos_token` is the tokenizer's own."""


_BOS = "{{ bos_token if bos_token is defined and bos_token else '' }}"

CHATML = Preset(
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    ("<|im_start|>", "<|im_end|>"),
    "<|im_end|>",
)
LLAMA3 = Preset(
    _BOS + "{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'"
    " + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
    ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "<|eot_id|>",
)
# Gemma and Mistral know no system turn: its text stands before the first question, as their later templates have it.
_SYSTEM_IN_QUESTION = (
    "{% set system = messages[0]['content'] | trim + '\\n\\n' if messages[0]['role'] == 'system' else '' %}"
    "{% set turns = messages[1:] if system else messages %}"
)
GEMMA = Preset(
    _BOS + _SYSTEM_IN_QUESTION + "{% for message in turns %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n'"
    " + (system if loop.first else '') + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}",
    ("<start_of_turn>", "<end_of_turn>"),
    "<end_of_turn>",
)
MISTRAL = Preset(
    _BOS + _SYSTEM_IN_QUESTION + "{% for message in turns %}{% if message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] | trim + eos_token }}{% else %}"
    "{{ '[INST] ' + (system if loop.first else '') + message['content'] | trim + ' [/INST]' }}{% endif %}{% endfor %}"
)
ZEPHYR = Preset(
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
ALPACA = Preset(
    _BOS + "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] | trim + '\\n\\n' }}"
    "{% elif message['role'] == 'user' %}{{ '### Instruction:\\n' + message['content'] | trim + '\\n\\n' }}"
    "{% else %}{{ '### Response:\\n' + message['content'] | trim + eos_token + '\\n\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"
)
PRESETS = {"chatml": CHATML, "llama3": LLAMA3, "gemma": GEMMA, "mistral": MISTRAL, "zephyr": ZEPHYR, "alpaca": ALPACA}
"""By the name that `task.template` takes."""
