"""The `task: masked_lm` section of a spec."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tunesmith.spec import Auto, NamedSection, PositiveInt

Probability = Annotated[float, Field(ge=0, le=1)]
FEWEST_TOKENS = 8
SPAN_SETTINGS = ("span_geometric_p", "max_span_words")


class MaskedLMSpec(NamedSection):
    """The tokens that were hidden in a text; which are hidden is drawn anew in each epoch."""

    name: str = "masked_lm"
    """`masked_lm`."""
    max_length: Annotated[int, Field(ge=FEWEST_TOKENS, lt=2**31)] | Auto = "auto"
    """Tokens of a block or a row, with the special ones."""
    examples: Literal["blocks", "rows"] = "blocks"
    """`blocks` lays documents (a file of running text, a row of anything else) end to end, with the tokenizer's separator between them, and
    cuts them into blocks of max_length; `rows` makes each row an example of its own, cut at max_length."""
    masking: Literal["tokens", "words", "spans"] = "tokens"
    """What is hidden together: single tokens; all tokens of a word; or spans of words (SpanBERT, arXiv:1907.10529)."""
    mlm_probability: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """The chance of each token or word to be predicted; of `spans`, the share of tokens."""
    mask_replace_prob: Probability = 0.8
    """Share of the predicted tokens in whose place the mask token stands; with `spans`, share of the spans."""
    random_replace_prob: Probability = 0.1
    """Share in whose place a random token stands; the rest stay as they are."""
    span_geometric_p: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Of the geometric distribution of the words in a span."""
    max_span_words: PositiveInt = 10
    """Most words in a span."""
    top_k: PositiveInt = 5
    """Candidates that `predict` gives for each mask."""

    @model_validator(mode="after")
    def _fits(self) -> MaskedLMSpec:
        if self.mask_replace_prob + self.random_replace_prob > 1:
            raise ValueError("a section in which mask_replace_prob and random_replace_prob are at most 1 together")
        idle = [name for name in SPAN_SETTINGS if getattr(self, name) != type(self).model_fields[name].default]
        if idle and self.masking != "spans":
            raise ValueError(f"a section without {', '.join(idle)}, which would have no effect unless masking: spans")
        return self
