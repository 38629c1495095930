"""The `task: seq2seq` section of a spec."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, field_validator, model_validator

from tunesmith.spec import Auto, BeamSearchSpec, NamedSection

Length = Annotated[int, Field(gt=1, lt=2**31)]
LANGUAGES = ("source_language", "target_language")


class Seq2SeqSpec(NamedSection):
    """One text becomes another: summaries, translations, answers."""

    name: str = "seq2seq"
    """`seq2seq`."""
    prefix: str = ""
    """Text put before every source, such as `"summarize: "`, which T5 was taught."""
    source_language: Annotated[str, Field(min_length=1)] = "auto"
    """The language of the sources: which text of a row with several is read, and which code a tokenizer of many languages (mBART, NLLB,
    M2M) puts to it; `auto` is the first of a row's two, `none` where neither rows nor tokenizer have languages."""
    target_language: Annotated[str, Field(min_length=1)] = "auto"
    """The same of the targets; with a tokenizer of many languages it is what writing starts with."""
    max_source_length: Length | Auto = "auto"
    """The most tokens of a source, with the prefix; what is longer loses its end."""
    max_target_length: Length | Auto = "auto"
    """The most tokens of a target that are learnt; of one that is longer the end is not, so the model is not taught to stop there."""
    targets: Literal["first", "each"] = "first"
    """Of several targets of a row: whether the first is learnt or each, in examples of their own. Answers are scored against all."""
    generation: BeamSearchSpec = Field(default_factory=BeamSearchSpec)
    """How the model writes in evaluation and prediction, and by itself once it is saved."""
    metrics: list[Literal["exact_match", "rouge", "bleu", "chrf"]] | Auto = "auto"
    """What written answers are compared by, beside the loss. `auto` is bleu and chrf for rows of two languages, exact_match and chrf where
    targets have five words or fewer, otherwise rouge."""
    num_generated: Annotated[int, Field(gt=0)] | Literal["all"] = "all"
    """Rows for which an answer is written when the run ends and in `tunesmith evaluate`, evenly spread."""
    num_generated_in_training: Annotated[int, Field(ge=0)] | Auto = "auto"
    """The same whenever the model is evaluated in training; with 0 the best checkpoint is chosen by perplexity."""
    _rows_have_languages: bool = PrivateAttr(default=False)

    @field_validator("metrics")
    @classmethod
    def _are_different(cls, metrics: Any) -> Any:
        if metrics != "auto" and (twice := sorted({name for name in metrics if metrics.count(name) > 1})):
            raise ValueError(f"should be different metrics, and {', '.join(twice)} is said twice")
        return metrics

    @model_validator(mode="after")
    def _has_effect(self) -> Seq2SeqSpec:
        if not self.metrics and self.num_generated_in_training not in ("auto", 0):
            raise ValueError("num_generated_in_training would have no effect with metrics: []: nothing is compared")
        return self
