"""The `task: token_classification` section of a spec."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from tunesmith.data.label_names import LabelNames, check_names
from tunesmith.spec import Auto, NamedSection

Scheme = Literal["IOB2", "IOB1", "BIOES", "BILOU", "none"]


class TokenClassificationSpec(NamedSection):
    """A tag for each word: named entities, parts of speech."""

    name: str = "token_classification"
    """`token_classification`."""
    scheme: Scheme | Auto = "auto"
    """How the model's tags mark entities; the data's tags are converted. `none`: tags that mark none, such as parts of speech. `auto` is
    IOB2 where the data's tags mark entities, for that is what transformers' pipeline puts together."""
    data_scheme: Scheme | Auto = "auto"
    """How the tags in the files mark entities; `auto` sees it from those of the training rows."""
    labels: list[str] | Auto = "auto"
    """The model's tags in the order of their ids, such as `[O, B-person, I-person]`; `auto` takes those of the training rows (or of a
    checkpoint that has the same)."""
    label_names: LabelNames = "none"
    """Names for tags that are ids: a list, a mapping, a file with one name a line (the first is id 0), or `none`."""
    label_all_tokens: bool = False
    """Whether all sub-words of a word are trained, those after the first as going on (I-) where it begins an entity; otherwise only the
    first is."""
    words: Literal["punctuation", "whitespace", "characters"] = "punctuation"
    """What the words of a text are: `punctuation` parts them at white space, each mark of punctuation a word of its own (as BERT does);
    `whitespace` only there; `characters` makes each character one. Rows of tokens have words of their own."""
    max_length: Annotated[int, Field(ge=8, lt=2**31)] | Auto = "auto"
    """Tokens of a window: a longer row is read in several, and nothing of it is cut; `auto` is what the model reads."""
    stride: Annotated[int, Field(ge=0, lt=2**31)] = 64
    """Tokens that neighbouring windows of a long row share, at most half a window; each word is learnt and predicted in the window that
    shows most around it."""
    aggregation_strategy: Literal["simple", "first", "average", "max"] = "first"
    """How a word's prediction is made of its sub-words', as in transformers' pipeline: its first one's, their mean, that of the surest; or,
    with `simple`, not at all: entities are put together from sub-words."""

    @field_validator("labels")
    @classmethod
    def _are_tags(cls, labels: Any) -> Any:
        if labels != "auto":
            check_names(labels)
        return labels
