"""The spec: what a user may say about a run, each setting with its default and its meaning.

Command line, JSON schema, `init` and the documentation are projections of these models and hold no defaults of their own.
The sections of a task or a method live in that task's or method's own file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, field_validator, model_validator

Auto = Literal["auto"]
PositiveInt = Annotated[int, Field(gt=0, lt=2**31)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]


def _check_pattern(pattern: str) -> str:
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"should be a regular expression of Python: {error}") from None
    return pattern


Pattern = Annotated[str, AfterValidator(_check_pattern)]


class Section(BaseModel):
    """A part of the spec: frozen, and strict about names and types."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )


class NamedSection(Section):
    """A section that names a record (`task`, `method`, `model`); `full` is short for `{name: full}`."""

    name: str
    """Which one."""


class ModelSpec(NamedSection):
    """The pretrained model to start from."""

    name: str
    """An alias of `tunesmith models`, a path to a folder, or an id on the Hugging Face hub."""
    revision: str = "main"
    """Branch, tag or commit on the hub."""

    @field_validator("name", "revision")
    @classmethod
    def _is_named(cls, value: str, info: Any) -> str:
        if not value.strip() or value == "auto":
            raise ValueError(
                "should be an alias, a folder or a hub id" if info.field_name == "name" else "should be a branch, tag or commit"
            )
        return value


class TokenizerSpec(Section):
    """A tokenizer that is trained on the training rows."""

    train: Literal["wordpiece", "bpe", "unigram", "word", "character"] | Auto = "auto"
    """How it cuts a text; `bpe` is that of bytes, `word` parts words and marks. `auto` is the family's usual."""
    vocab_size: PositiveInt | Auto = "auto"
    """Tokens, with the special ones; `auto` is as many as the training rows have, up to 8,000."""
    lowercase: bool = False
    """Whether capitals are read as small letters."""


class NewModelSpec(Section):
    """A new model, its weights drawn at random from `train.seed`, and its tokenizer trained on the training rows."""

    new: str
    """The family: bert, distilbert, roberta, modernbert, electra, gpt2, llama, t5 or bart."""
    size: Literal["tiny", "mini", "small", "medium", "base"] = "tiny"
    """Layers x hidden size: tiny 2 x 128, mini 4 x 256, small 4 x 512, medium 8 x 512, base 12 x 768; a head is 64 wide."""
    tokenizer: TokenizerSpec = Field(default_factory=TokenizerSpec)
    """How it reads."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Any other field of the family's transformers configuration."""

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return f"new {self.size} {self.new}"


class DataSpec(Section):
    """Where the rows are and how to read them."""

    train: str | list[str]
    """A file, a folder, or a list of these: jsonl, json, csv, tsv, txt, conll, conllu, parquet, arrow, each also .gz or .zst; a folder
    written by `datasets`; or `hub:NAME[:CONFIG]:SPLIT`."""
    validation: str | list[str] | Annotated[float, Field(gt=0, lt=1)] = "10%"
    """A source as in `train`; or a share of it (`10%` or `0.1`), stratified and seeded, identical texts kept together; or `none`."""
    test: str | list[str] = "none"
    """A source as in `train`, used only for the last evaluation; or `none`."""
    root: str = "."
    """The folder that relative paths start from; itself relative to the folder of the spec."""
    columns: dict[str, str] | Auto = "auto"
    """Which column plays which role, e.g. `{text: review, label: stars}`. Columns without a header are column_1, column_2, ..."""
    format: Literal["auto", "jsonl", "json", "csv", "lines", "text", "label_first", "conll", "parquet", "arrow", "parallel"] = "auto"
    """`csv` is any delimited text; `lines` one text a line; `text` running text; `label_first` a label, a space, the text;
    `conll` one word a line in columns, a blank line between sentences, or CoNLL-U; `parallel` two files of as many lines, each line of
    the second what becomes of that of the first, as two files that differ in a language are (`[train.en, train.de]`)."""
    delimiter: str = "auto"
    """The character between fields of delimited text, e.g. `","` or `"\\t"`."""
    header: Auto | bool = "auto"
    """Whether the first line of delimited text names the columns."""
    quoting: Literal["auto", "standard", "none"] = "auto"
    """`standard`: a field may stand in double quotes; `none`: quotes are ordinary characters."""
    encoding: str = "auto"
    """`auto` is UTF-8, or what a byte-order mark says; otherwise a Python codec such as `latin-1`."""
    extra_fields: Literal["error", "ignore"] = "error"
    """What to do with fields beyond the last column of a line."""
    on_bad_row: Literal["error", "skip"] = "error"
    """`skip` leaves bad rows out and writes each, with the reason, to `rejected.jsonl` in the run."""

    @field_validator("train", "validation", "test")
    @classmethod
    def _names_something(cls, value: Any, info: Any) -> Any:
        if value in ("", []) or (isinstance(value, str) and not value.strip()):
            raise ValueError("should be a file, a folder, or a list of these")
        if info.field_name == "train" and value == "none":
            raise ValueError("should be a file, a folder, or a list of these: without training rows nothing is learnt")
        if not is_share(value):
            return value
        if info.field_name != "validation":
            raise ValueError("should be a file, a folder, or a list of these: only data.validation can be a share")
        if not 0 < share_of(value) < 1:
            raise ValueError("should be a share between 0% and 100%, such as 10%; a file; or none")
        return value


class TrainSpec(Section):
    """How to train. Beside `epochs`, `batch_size`, `precision` and `early_stopping_patience`, names and meanings are those of
    transformers' TrainingArguments."""

    epochs: Annotated[float, Field(gt=0)] = 3
    """How often each row is seen."""
    batch_size: PositiveInt = 32
    """Examples a step (times `gradient_accumulation_steps`). A step is cut by length into micro-batches with little padding; the
    gradient is that of the one batch."""
    learning_rate: Annotated[float, Field(gt=0)] | Auto = "auto"
    """The peak of the schedule; `auto` is the method's usual one."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seeds the split, the new head, the order of rows and dropout."""
    max_steps: PositiveInt | Literal["none"] = "none"
    """Optimizer steps to take in all; as in Trainer, it overrides `epochs`."""
    gradient_accumulation_steps: PositiveInt = 1
    """Batches summed before a step, weighted by examples."""
    max_tokens_per_micro_batch: PositiveInt | Auto = "auto"
    """Upper bound on padded tokens in one forward pass; lower it to save memory, the result stays the same."""
    pack: bool = False
    """Lay the examples of a micro-batch end to end, none of them seeing another, rather than pad them to one length."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`bf16`: weights in fp32, arithmetic in bf16 (autocast); `auto` measures whether it is faster on this machine."""
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    """The schedule after warm-up."""
    warmup_steps: NonNegative = 0
    """Steps over which the learning rate rises; below 1, a share of all steps."""
    weight_decay: NonNegative = 0.0
    """AdamW's decay, on all weights but norms and biases."""
    max_grad_norm: NonNegative = 1.0
    """Gradients are clipped to this norm; 0 turns clipping off."""
    adam_beta1: Share = 0.9
    """AdamW's first beta."""
    adam_beta2: Share = 0.999
    """AdamW's second beta."""
    adam_epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """AdamW's epsilon."""
    label_smoothing_factor: Share = 0.0
    """Share of each target that is spread over all classes."""
    logging_steps: PositiveInt | Auto = "auto"
    """Steps between logged losses; `auto` is about fifty times a run."""
    eval_steps: PositiveInt | Literal["epoch", "none"] | Auto = "auto"
    """When to evaluate on the validation set; `auto` is every epoch, `none` without a validation set."""
    save_steps: PositiveInt | Literal["epoch", "none"] | Auto = "auto"
    """When to write a checkpoint; `auto` is whenever the model is evaluated, or every epoch."""
    save_total_limit: PositiveInt | Literal["none"] = 2
    """Checkpoints to keep: the best and the newest."""
    load_best_model_at_end: bool | Auto = "auto"
    """Whether the model kept is the best checkpoint rather than the last; `auto`: yes, when it is evaluated and saved."""
    metric_for_best_model: str = "auto"
    """The validation metric that says which checkpoint is best; `auto` is the task's."""
    early_stopping_patience: PositiveInt | Literal["none"] = "none"
    """Stop after this many evaluations without a better one."""
    early_stopping_threshold: NonNegative = 0.0
    """How much better an evaluation must be to count."""
    on_non_finite: Literal["error", "skip"] = "error"
    """What to do where a loss or a gradient is not finite: end the run, or leave the weights as they are for that step, and say so."""
    eval_batch_size: PositiveInt = 64
    """Most examples in one forward pass of evaluation and prediction."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """Any other field of the installed TrainingArguments."""


class SpeedSpec(Section):
    """How the same is computed in less time. Every acceleration that this machine and model allow is used."""

    off: list[str] | Literal["all"] = Field(default_factory=list)
    """Accelerations to do without: see `tunesmith accelerations`; `all` computes as transformers does."""


class GenerationSpec(Section):
    """How a model writes; names and meanings are those of transformers' GenerationConfig."""

    max_new_tokens: PositiveInt = 256
    """Tokens after which an answer is stopped."""
    do_sample: bool = False
    """Draw tokens at random rather than take the likeliest."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Below 1 draws likely tokens more often; needs `do_sample`."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Draw only among the likeliest tokens that have this probability together; needs `do_sample`."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Draw only among this many likeliest tokens; 0 is all of them; needs `do_sample`."""
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
    """Above 1 makes tokens that were written before less likely."""
    stop: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    """Texts that end an answer, beside the model's own end."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seeds the draws."""

    @model_validator(mode="after")
    def _draws(self) -> GenerationSpec:
        drawing = ("temperature", "top_k", "top_p")
        idle = [name for name in drawing if getattr(self, name) != type(self).model_fields[name].default]
        if idle and not self.do_sample:
            raise ValueError(f"{', '.join(idle)} would have no effect without do_sample: true")
        return self


class BeamSearchSpec(Section):
    """How an encoder-decoder writes; names and meanings are those of transformers' GenerationConfig."""

    max_new_tokens: PositiveInt | Auto = "auto"
    """Tokens after which an answer is stopped; `auto` is half as many again as the longest target of a sample of the training rows."""
    min_new_tokens: Annotated[int, Field(ge=0)] = 0
    """Tokens before which no answer ends."""
    num_beams: PositiveInt = 1
    """Answers that are followed at a time, of which the best is given; 1 takes the likeliest token each time."""
    length_penalty: float = 1.0
    """The sum of log-probabilities is divided by the length to this power: above 0 longer answers win more often; needs `num_beams`."""
    early_stopping: bool | Literal["never"] = False
    """Whether the search ends with the first `num_beams` answers (`true`), when a better one is unlikely (`false`), or impossible
    (`never`); needs `num_beams`."""
    no_repeat_ngram_size: Annotated[int, Field(ge=0)] = 0
    """No so many tokens in a row are written twice; 0 allows it."""
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
    """Above 1 makes tokens that were written before less likely."""

    @model_validator(mode="after")
    def _searches(self) -> BeamSearchSpec:
        idle = [name for name in ("length_penalty", "early_stopping") if getattr(self, name) != type(self).model_fields[name].default]
        if idle and self.num_beams == 1:
            raise ValueError(f"{', '.join(idle)} would have no effect without num_beams")
        if self.max_new_tokens != "auto" and self.min_new_tokens > self.max_new_tokens:
            raise ValueError("min_new_tokens should be at most max_new_tokens")
        return self


class Places(dict[str, str]):
    """Where settings were written down, by dotted key; no part of what a spec says, so all are equal."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Places)

    __hash__ = None  # type: ignore[assignment]


class RunSpec(Section):
    """All that defines a run."""

    task: NamedSection
    """What is learnt: see `tunesmith tasks`."""
    model: ModelSpec | NewModelSpec
    """What it starts from: an alias, a folder or a hub id; or `{new: bert}`, a model that has learnt nothing yet."""
    data: DataSpec
    """Where the rows are."""
    method: NamedSection
    """Which weights are trained: see `tunesmith methods`."""
    train: TrainSpec = Field(default_factory=TrainSpec)
    """How it is trained."""
    speed: SpeedSpec = Field(default_factory=SpeedSpec)
    """What makes it fast."""
    _places: Places = PrivateAttr(default_factory=Places)

    def remember_places(self, places: Mapping[str, str]) -> None:
        """Keeps where settings were written down, for messages."""
        self._places = Places(places)

    def place(self, key: str) -> str:
        """`file:line, key` of a setting that was written down; any other text as it is."""
        parts = key.split(".")
        # `model: minilm` is short for `model: {name: minilm}`
        fewest = 1 if key in ("task.name", "method.name", "model.name", "data.train") else min(len(parts), 2)
        for end in range(len(parts), fewest - 1, -1):
            place = self._places.get(".".join(parts[:end]))
            if place is not None:
                return place if place.startswith("override ") else f"{place}, {key}"
        return key


def is_share(source: Any) -> bool:
    """Whether `data.validation` asks for a share of the training rows."""
    return isinstance(source, float) or (isinstance(source, str) and source.rstrip().endswith("%"))


def share_of(source: str | float) -> float:
    """The share that `10%` or 0.1 means; NaN when it means none."""
    try:
        return float(source.rstrip().removesuffix("%")) / 100 if isinstance(source, str) else source
    except ValueError:
        return math.nan
