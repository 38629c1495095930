"""What the model reads, learns and answers: encoding, vectors, losses, metrics, predictions.

The texts of a row lie end to end in its input_ids, and token_type_ids say which of them a token belongs to. So a row is as long as
its texts together, and a step is cut by what is computed; before the model reads them, texts become rows of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tunesmith.data.collate import LENGTH_MULTIPLE
from tunesmith.metrics.similarity import PairMeter, RankingMeter
from tunesmith.models.load import require_package
from tunesmith.registry import Meter
from tunesmith.tasks.embedding.decisions import LOSSES
from tunesmith.tasks.embedding.rows import TEXTS
from tunesmith.tasks.embedding.section import LABELLED, PAIRS, SCORED, TRIPLETS, EmbeddingSpec

if TYPE_CHECKING:
    import torch

UNKNOWN_FIX = "the tokenizer knows none of its characters: correct or remove the row"


def encode(section: EmbeddingSpec, batch: dict[str, list[Any]], tokenizer: Any, max_length: int) -> dict[str, list[Any]]:
    """input_ids of a row's texts end to end, token_type_ids (which text, from 0), full_length (tokens before the cut), labels (0 where rows
    have no score), and the fault of a row with a text of which the tokenizer knows nothing."""
    num_rows = len(batch["text"])
    columns: dict[str, list[Any]] = {name: [[] for _ in range(num_rows)] for name in ("input_ids", "token_type_ids")}
    columns["full_length"], columns["fault"] = [0] * num_rows, [None] * num_rows
    special = tokenizer.num_special_tokens_to_add()
    for number, name in enumerate(name for name in TEXTS if name in batch):
        whole = tokenizer(batch[name], truncation=False, padding=False, verbose=False)["input_ids"]
        for row, (text, ids) in enumerate(zip(batch[name], whole, strict=True)):
            columns["full_length"][row] += len(ids)
            if len(ids) <= special:
                columns["fault"][row] = ("data.empty_text", f"the {name} has no token", repr(text)[:80], UNKNOWN_FIX)
            if len(ids) > max_length:
                ids = tokenizer(text, truncation=True, max_length=max_length, padding=False)["input_ids"]
            columns["input_ids"][row] += ids
            columns["token_type_ids"][row] += [number] * len(ids)
    columns["labels"] = [encode_label(section, cell) for cell in batch.get("label", [()] * num_rows)]
    return columns


def encode_label(section: EmbeddingSpec, cell: Sequence[str]) -> float:
    """The cosine that a score means: 1 for the highest, 0 for the lowest, or -1 for a negative one; 0 where there is no score."""
    if not cell:
        return 0.0
    if not isinstance(section.score_range, list):
        return float(cell[0])
    low, high = section.score_range
    share = (float(cell[0]) - low) / (high - low)
    return 2 * share - 1 if low < 0 else share


def label_tensor(section: EmbeddingSpec, labels: Sequence[float], shape: tuple[int, int]) -> torch.Tensor:
    """Cosines, or 0 and 1, [batch]."""
    import torch

    return torch.tensor(labels, dtype=torch.float32)


def forward(section: EmbeddingSpec, model: Any, inputs: dict[str, torch.Tensor], labels: torch.Tensor | None) -> torch.Tensor:
    """A vector for each text of each row, [batch, texts, dimensions] in fp32."""
    import torch
    import torch.nn.functional as F  # noqa: N812

    is_token, owner = inputs["attention_mask"].bool(), inputs["token_type_ids"]
    num_texts = int(owner.max()) + 1
    lengths = torch.stack([((owner == number) & is_token).sum(1) for number in range(num_texts)], dim=1)
    longest = int(lengths.max())
    width = max(min(-(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE, int(section.max_length)), longest)
    mask = torch.arange(width, device=owner.device) < lengths.flatten()[:, None]
    ids = owner.new_full(mask.shape, getattr(model, "module", model).config.pad_token_id)
    # Row by row, the tokens of a batch are those of its texts one after the other.
    ids[mask] = inputs["input_ids"][is_token]
    hidden = model(input_ids=ids, attention_mask=mask.long())[0].float()
    vectors = pool(hidden, mask, str(section.pooling))
    if section.normalize:
        vectors = F.normalize(vectors, dim=-1)
    return vectors.unflatten(0, (-1, num_texts))  # type: ignore[no-any-return,no-untyped-call]


def pool(hidden: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """Vectors [texts, dimensions] of hidden states [texts, tokens, dimensions] where mask [texts, tokens] is true, as the module Pooling
    of sentence-transformers makes them."""
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "max":
        return hidden.masked_fill(~mask[..., None], float("-inf")).amax(1)
    num_tokens = mask.sum(1)
    if pooling == "lasttoken":
        return hidden.take_along_dim(num_tokens[:, None, None] - 1, dim=1).squeeze(1)
    return (hidden * mask[..., None]).sum(1) / num_tokens[:, None]


def loss(section: EmbeddingSpec, vectors: torch.Tensor, labels: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
    """The loss of these rows, times their number; with matryoshka_dimensions the sum over these."""
    import torch.nn.functional as F  # noqa: N812

    function, columns = _loss_function(section), [column.float() for column in vectors.unbind(1)]
    sizes = [] if section.matryoshka_dimensions == "none" else section.matryoshka_dimensions
    cut = [[F.normalize(column[:, :size], dim=-1) for column in columns] for size in sizes] or [columns]
    total: torch.Tensor = sum(function.compute_loss_from_embeddings(part, labels) for part in cut)
    return total * len(labels)


def _loss_function(section: EmbeddingSpec) -> Any:
    """The loss of sentence-transformers; it is handed vectors, and needs no model."""
    require_package("sentence_transformers", "embedding")
    from sentence_transformers.sentence_transformer import losses
    from sentence_transformers.sentence_transformer.losses.contrastive import SiameseDistanceMetric
    from sentence_transformers.sentence_transformer.losses.triplet import TripletDistanceMetric

    none: Any = None
    if section.loss == "multiple_negatives_ranking":
        return losses.MultipleNegativesRankingLoss(none, scale=section.scale)
    if section.loss == "cosine_similarity":
        return losses.CosineSimilarityLoss(none)
    if section.loss == "cosent":
        return losses.CoSENTLoss(none, scale=section.scale)
    if section.loss == "angle":
        return losses.AnglELoss(none, scale=section.scale)
    if section.loss == "triplet":
        distance = getattr(TripletDistanceMetric, str(section.distance).upper())
        return losses.TripletLoss(none, distance_metric=distance, triplet_margin=section.margin)
    distance = SiameseDistanceMetric.COSINE_DISTANCE if section.distance == "cosine" else None
    distance = distance or getattr(SiameseDistanceMetric, str(section.distance).upper())
    kind = losses.ContrastiveLoss if section.loss == "contrastive" else losses.OnlineContrastiveLoss
    return kind(none, distance_metric=distance, margin=section.margin)


def loss_weight(section: EmbeddingSpec, labels: Sequence[Any]) -> float:
    """The number of rows."""
    return float(len(labels))


def whole_step(section: EmbeddingSpec) -> Any:
    """Losses that compare rows see a step whole."""
    if not LOSSES[str(section.loss)].compares_rows:
        return None
    return "gradient_cache" if section.gradient_cache else "one_graph"


def meter(section: EmbeddingSpec, thresholds: Sequence[float] | None = None) -> Meter:
    """Correlations for scores, precision for labels, ranks for the rest."""
    return PairMeter(section.examples == LABELLED) if section.examples in (SCORED, LABELLED) else RankingMeter()


def metrics(section: EmbeddingSpec) -> dict[str, bool]:
    """What each kind of examples reports; greater is always better."""
    names = {
        SCORED: ("spearman", "pearson"),
        LABELLED: ("average_precision", "spearman", "pearson"),
        PAIRS: ("mrr", "recall_at_1", "recall_at_5", "recall_at_10"),
        TRIPLETS: ("mrr", "recall_at_1", "recall_at_5", "recall_at_10", "triplet_accuracy"),
    }[str(section.examples)]
    return dict.fromkeys(names, True)


def outputs(section: EmbeddingSpec, vectors: torch.Tensor, tuned: dict[str, Any], examples: Any = None) -> list[dict[str, Any]]:
    """`{embedding}` of a text, or `{score}`, the cosine, of two."""
    import torch.nn.functional as F  # noqa: N812

    if vectors.shape[1] == 1:
        return [{"embedding": vector} for vector in vectors[:, 0].tolist()]
    return [{"score": score} for score in F.cosine_similarity(vectors[:, 0], vectors[:, 1]).tolist()]
