"""The `task: embedding` section of a spec."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from tunesmith.spec import Auto, NamedSection, PositiveInt

PAIRS, TRIPLETS, SCORED, LABELLED = "pairs", "triplets", "scored_pairs", "labelled_pairs"
Loss = Literal["multiple_negatives_ranking", "cosine_similarity", "cosent", "angle", "triplet", "contrastive", "online_contrastive"]


class EmbeddingSpec(NamedSection):
    """A vector for each text, such that texts that belong together lie close together; losses are those of sentence-transformers."""

    name: str = "embedding"
    """`embedding`."""
    examples: Literal["pairs", "triplets", "scored_pairs", "labelled_pairs"] | Auto = "auto"
    """What a row is: two texts that belong together (`pairs`), these and a third that does not (`triplets`), two texts and how similar
    they are (`scored_pairs`), or two texts and whether they belong together, 1 or 0 (`labelled_pairs`); `auto` sees it from the columns."""
    loss: Loss | Auto = "auto"
    """`multiple_negatives_ranking` takes the other rows of a step for negatives (pairs, triplets); `cosine_similarity` is the squared
    error of the cosine, `cosent` and `angle` compare the order of similarities in a step (scored and labelled pairs); `triplet` wants
    the negative further away than the positive (triplets); `contrastive`, and `online_contrastive` for the hard ones of a step
    (labelled pairs). `auto` is multiple_negatives_ranking, cosent or contrastive."""
    scale: Annotated[float, Field(gt=0)] | Literal["none"] | Auto = "auto"
    """What similarities are multiplied by, the inverse of a temperature, in `multiple_negatives_ranking`, `cosent` and `angle`; `auto`
    is 20."""
    distance: Literal["cosine", "euclidean", "manhattan", "none"] | Auto = "auto"
    """The distance in `triplet`, `contrastive` and `online_contrastive`; `auto` is euclidean for `triplet`, else cosine."""
    margin: Annotated[float, Field(gt=0)] | Literal["none"] | Auto = "auto"
    """How much further away a negative is to be: in `triplet` than the positive (`auto` is 5, and 0.5 of the cosine), in `contrastive`
    and `online_contrastive` than the anchor (`auto` is 0.5)."""
    score_range: list[float] | Literal["none"] | Auto = "auto"
    """The lowest and the highest score of scored pairs; they are scaled so that the highest is a cosine of 1 and the lowest one of 0, or
    of -1 where it is negative. `auto` is [0, 1], [-1, 1], or from 0 to the highest of the training rows."""
    matryoshka_dimensions: list[PositiveInt] | Literal["none"] = "none"
    """Sizes to which vectors may be cut (Kusupati et al. 2022): the loss is the sum over these."""
    gradient_cache: bool = False
    """Where a loss compares the rows of a step, compute each micro-batch twice and hold only one in memory; gradients are the same."""
    no_duplicates: bool | Auto = "auto"
    """Whether rows that share a text are kept out of one step, as far as that can be, where other rows are negatives
    (`multiple_negatives_ranking`); `auto` is yes there."""
    pooling: Literal["mean", "cls", "max", "lasttoken"] | Auto = "auto"
    """What of the hidden states is the vector; `auto` is what the model's folder says, else the last token of a causal language model
    and the mean of others."""
    normalize: bool | Auto = "auto"
    """Whether vectors have length 1; `auto` is what the model's folder says, else no."""
    max_length: PositiveInt | Auto = "auto"
    """Tokens after which a text is cut; `auto` is what the model's folder says, else the model's limit."""

    @field_validator("score_range")
    @classmethod
    def _rises(cls, value: Any) -> Any:
        if isinstance(value, list) and not (len(value) == 2 and value[0] < value[1]):
            raise ValueError("should be the lowest and the highest score, such as [0, 5]")
        return value

    @field_validator("matryoshka_dimensions")
    @classmethod
    def _are_sizes(cls, value: Any) -> Any:
        if isinstance(value, list) and (not value or len(set(value)) < len(value)):
            raise ValueError("should be different sizes, such as [384, 192, 96], or none")
        return value
