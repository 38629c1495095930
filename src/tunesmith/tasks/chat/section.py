"""The `task: chat` section of a spec."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from tunesmith.spec import Auto, GenerationSpec, NamedSection, Pattern, PositiveInt


class ChatSpec(NamedSection):
    """The answers of an assistant in conversations."""

    name: str = "chat"
    """`chat`."""
    train_on: Literal["all_assistant", "last_assistant", "everything"] = "all_assistant"
    """What the model learns to write: each answer up to the token that ends it, the last answer only, or every token there is."""
    template: Literal["model", "chatml", "llama3", "gemma", "mistral", "zephyr", "alpaca"] = "model"
    """How a conversation becomes text: `model` is the model's own chat template; otherwise one that is given to the model, and saved with
    it. `zephyr`, `mistral` and `alpaca` need no new tokens."""
    system: str = "none"
    """A system prompt put first in every conversation that has none of its own."""
    paths: Literal["best", "all"] = "best"
    """Of a tree of messages: the path that takes the best-ranked reply at each turn, or every path from the prompt to a leaf."""
    leave_out: dict[str, str | bool | int | float] = Field(default_factory=dict)
    """Rows and messages in which one of these keys has this value are left out, those of a tree with all replies to them;
    e.g. `{synthetic: true}`."""
    too_long: Literal["error", "drop_turns", "truncate_prompt", "skip"] = "error"
    """What becomes of a conversation that is longer than `max_length`: an error; without its oldest turns; with its longest message that
    is not an answer cut at the start; or left out and counted. An answer is never cut."""
    max_length: PositiveInt | Auto = "auto"
    """The most tokens of a conversation; `auto` is what the model can read and the rows need."""
    generation: GenerationSpec = Field(default_factory=GenerationSpec)
    """How the model writes in evaluation and prediction."""
    metrics: list[Literal["exact_match", "number", "rouge", "bleu", "chrf", "pattern"]] = Field(default_factory=list)
    """What written answers are compared by, beside the loss; `number` compares the last numbers, `pattern` what `answer_pattern` finds."""
    answer_pattern: Pattern = "none"
    """A regular expression that cuts out of an answer what the metric `pattern` compares: its first group, or all it matches."""
    num_generated: Annotated[int, Field(ge=0)] = 16
    """Rows of `tunesmith evaluate` for which the model writes an answer: how many end by themselves, samples, and `metrics`; 0 is none."""

    @field_validator("metrics")
    @classmethod
    def _are_different(cls, metrics: list[str]) -> list[str]:
        if twice := sorted({name for name in metrics if metrics.count(name) > 1}):
            raise ValueError(f"should be different metrics, and {', '.join(twice)} is said twice")
        return metrics

    @model_validator(mode="after")
    def _has_effect(self) -> ChatSpec:
        if "pattern" in self.metrics and self.answer_pattern == "none":
            raise ValueError("the metric pattern needs answer_pattern: a regular expression that finds what is compared")
        if "pattern" not in self.metrics and self.answer_pattern != "none":
            raise ValueError("answer_pattern would have no effect without the metric pattern")
        if self.metrics and not self.num_generated:
            raise ValueError("metrics would have no effect with num_generated: 0: nothing is written to compute them from")
        return self
