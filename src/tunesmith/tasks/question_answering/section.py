"""The `task: question_answering` section of a spec."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tunesmith.spec import Auto, NamedSection, PositiveInt


class QuestionAnsweringSpec(NamedSection):
    """The answer to a question, as a span of its context. Names are those of transformers' `run_qa.py` where it has them."""

    name: str = "question_answering"
    """`question_answering`."""
    version_2_with_negative: bool | Auto = "auto"
    """Whether a question may have no answer in its context, as in SQuAD 2; `auto` sees it from the training rows."""
    null_score_diff_threshold: float | Literal["validation", "none"] | Auto = "auto"
    """By how much the score of no answer must exceed that of the best span for the answer to be none. `validation` takes what is best for
    f1 on the validation set, as SQuAD's evaluator does (0 where there is no such set); `auto` is that where a question may have no
    answer, else `none`."""
    max_length: Annotated[int, Field(ge=16, lt=2**31)] | Auto = "auto"
    """Tokens of a window: a longer context is read in several, each with the whole question; `auto` is what the model reads."""
    stride: Annotated[int, Field(ge=0, lt=2**31)] = 128
    """Tokens that neighbouring windows of a context share, at most half of those that fit beside the question."""
    max_answer_length: PositiveInt | Auto = "auto"
    """Tokens of the longest span that is given as an answer; `auto` is 30, or as many as the longest training answer has."""
    n_best: Annotated[int, Field(ge=1, le=100)] = 1
    """Answers that a prediction lists, from the likeliest; 1 lists no other than its own."""
