"""Tags of rows: what each `auto` about them becomes, what the model learns from them, and what is wrong with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from tunesmith.data.label_names import misspelt, read_label_names
from tunesmith.data.tag_schemes import OUTSIDE, continues, convert, detect, fault, spans, split_tag, tags_of_types
from tunesmith.errors import InputError, did_you_mean
from tunesmith.registry import Decision, Fault
from tunesmith.tasks.token_classification.section import TokenClassificationSpec

SHOWN_FAULTS = 3
Pairs = Mapping[tuple[str, ...], int]
"""How often each pair of neighbouring tags stands in the data; before the first word and after the last stands `""`."""


def units(cell: Sequence[str]) -> Iterable[tuple[str, ...]]:
    """The pairs of neighbouring tags of a row."""
    return pairwise(["", *cell, ""])


def decide(section: TokenClassificationSpec, facts: Any) -> list[Decision]:
    """Names of ids, scheme of the data, scheme and tags of the model. Raises InputError when they cannot be seen."""
    decisions: list[Decision] = []

    def take(field: str, value: Any, because: str) -> None:
        nonlocal section
        decisions.append(Decision(f"task.{field}", value, because))
        section = section.model_copy(update={field: value})

    if isinstance(section.label_names, str) and section.label_names != "none":
        path = Path(facts.root) / section.label_names
        names = read_label_names(path)
        take("label_names", names, f"{len(names)} names in {path.name}")
    pairs: Counter[tuple[str, ...]] = Counter()
    for (previous, tag), count in facts.label_counts.items():
        pairs[_named(section, previous) or previous, _named(section, tag) or tag] += count
    if section.data_scheme == "auto":
        found, because = ("none", "task.scheme is none: tags are taken as they are") if section.scheme == "none" else detect(pairs)
        if found == "none" and section.scheme != "none":
            _refuse_numbers(section, pairs)
        take("data_scheme", found, because)
    if section.scheme == "auto":
        marks = section.data_scheme != "none"
        because = "what transformers' pipeline puts together" if marks else "the data's tags mark no beginnings of entities"
        take("scheme", "IOB2" if marks else "none", because)
    elif section.data_scheme == "none" and section.scheme != "none":
        fix = "task.scheme=none; or task.data_scheme, if the tags do mark entities"
        problem = f"tags that mark no beginnings of entities cannot be written as {section.scheme}"
        raise InputError("spec.conflict", problem, where="task.scheme", found=_shown(pairs), fix=fix)
    if section.labels == "auto":
        labels, because = _labels(section, pairs)
        same = facts.pretrained_labels and set(facts.pretrained_labels) == set(labels)
        take(
            "labels",
            list(facts.pretrained_labels) if same else labels,
            f"{because}; in the order of the checkpoint, which has the same" if same else because,
        )
    elif section.scheme != "none" and OUTSIDE not in section.labels:
        fix = "add O, the tag of words outside of entities; or task.scheme=none"
        raise InputError("spec.conflict", "task.labels lacks O", where="task.labels", found=", ".join(section.labels)[:100], fix=fix)
    return decisions


def _refuse_numbers(section: TokenClassificationSpec, pairs: Pairs) -> None:
    tags = {tag for _, tag in pairs if tag}
    if tags and all(tag.isdecimal() for tag in tags) and section.label_names == "none":
        fix = "task.label_names=[O, B-person, ...], or a file with one name a line; task.scheme=none if they are tags as they are"
        raise InputError("spec.undecided", "the tags are ids without names", where="task.label_names", found=_shown(pairs), fix=fix)


def _shown(pairs: Pairs) -> str:
    return ", ".join(sorted({tag for _, tag in pairs if tag})[:8])


def _labels(section: TokenClassificationSpec, pairs: Pairs) -> tuple[list[str], str]:
    counts = _type_counts(section.data_scheme, pairs)
    types = sorted(name for name in counts if misspelt(name, counts) is None)
    if section.scheme == "none" and isinstance(section.label_names, (list, dict)):
        named = section.label_names
        types = list(named.values()) if isinstance(named, dict) else list(named)
    if len(types) < (2 if section.scheme == "none" else 1):
        fix = "name the right columns in data.columns, or add rows with others"
        raise InputError("data.one_class", "there is nothing to tell apart", where="data.columns", found=_shown(pairs) or "no tag", fix=fix)
    if section.scheme == "none":
        return types, f"the {len(types)} tags of the training rows"
    shown = ", ".join(f"{name} {counts[name]:,}" for name in types[:8]) + (", ..." if len(types) > 8 else "")
    return tags_of_types(types, section.scheme), f"entities of the training rows: {shown}"


def _type_counts(data_scheme: str, pairs: Pairs) -> Counter[str]:
    """How often each type of entity stands in the data; of plain tags, each tag."""
    counts: Counter[str] = Counter()
    for (previous, tag), count in pairs.items():
        name = tag if data_scheme == "none" else "" if continues(previous, tag) else split_tag(tag)[1]
        if name:
            counts[name] += count
    return counts


def distribution(section: TokenClassificationSpec, pairs: Pairs) -> dict[str, int]:
    """Entities of each type, or words of each tag."""
    named: Counter[tuple[str, ...]] = Counter()
    for (previous, tag), count in pairs.items():
        named[_named(section, previous) or previous, _named(section, tag) or tag] += count
    return dict(_type_counts(section.data_scheme, named).most_common())


def _named(section: TokenClassificationSpec, tag: str) -> str | None:
    """The name of an id, or the tag itself; None when it has no name."""
    names = section.label_names
    if isinstance(names, str):
        return tag
    by_id = names if isinstance(names, dict) else {str(index): name for index, name in enumerate(names)}
    return by_id.get(tag, tag if tag in by_id.values() else None)


def model_tags(section: TokenClassificationSpec, cell: Sequence[str]) -> list[str]:
    """The tags of a row in the model's scheme."""
    return convert([_named(section, tag) or tag for tag in cell], section.data_scheme, section.scheme)


def target(section: TokenClassificationSpec, cell: Sequence[str]) -> list[int]:
    """Their ids."""
    ids = {label: index for index, label in enumerate(section.labels)}
    return [ids[tag] for tag in model_tags(section, cell)]


def lint(section: TokenClassificationSpec, batch: dict[str, list[Any]]) -> Iterator[tuple[int, Fault]]:
    """(row in batch, fault) for unknown tags, and for tags that break their scheme."""
    known = list(section.labels)
    if section.scheme != "none":
        known = tags_of_types(list(dict.fromkeys(split_tag(label)[1] for label in section.labels if label != OUTSIDE)), section.data_scheme)
    known_set, by_word = set(known), "correct the row, or data.on_bad_row=skip"
    for index, cell in enumerate(batch["label"]):
        named = [(tag, _named(section, tag)) for tag in cell]
        unknown = list(dict.fromkeys(tag for tag, name in named if name not in known_set))
        for tag in unknown[:SHOWN_FAULTS]:
            if tag is not None and _named(section, tag) is None:
                yield (
                    index,
                    ("data.unknown_label", "the tag has no name in task.label_names", repr(tag)[:60], "correct the row or the names"),
                )
                continue
            fix = f"{did_you_mean(tag, known)} If it is meant, name all in task.labels; data.on_bad_row=skip leaves the row out"
            where = f"{tag[:60]!r}, of {batch['words'][index][cell.index(tag)][:40]!r}"
            yield index, ("data.unknown_label", "the tag is not one of the task's", where, fix)
        if unknown or section.data_scheme == "none":
            continue
        tags = [name or "" for _, name in named]
        wrong = [(place, why) for place, pair in enumerate(pairwise(["", *tags, ""])) if (why := fault(*pair, section.data_scheme))]
        if wrong:
            words = [*batch["words"][index], "the end"]
            found = "; ".join(f"word {place + 1}, {words[place][:30]!r}: {why}" for place, why in wrong[:SHOWN_FAULTS])
            problem = f"the tags break their scheme, {section.data_scheme}"
            yield index, ("data.tags", problem, found[:200], f"{by_word}; or task.data_scheme, if they follow another")


def stratify(section: TokenClassificationSpec, cells: Sequence[Sequence[str]]) -> tuple[list[str], bool]:
    """The rarest type of entity in each row (or the rarest tag), which need not be on both sides of a split."""
    kinds = []
    for cell in cells:
        tags = model_tags(section, cell)
        kinds.append(set(tags) if section.scheme == "none" else {name for name, _, _ in spans(tags)})
    counts = Counter(name for found in kinds for name in found)
    return [min(found, key=lambda name: (counts[name], name), default="no entity") for found in kinds], False


def head(section: TokenClassificationSpec) -> dict[str, Any]:
    """Size and label names of the head."""
    names = dict(enumerate(section.labels))
    return {"num_labels": len(names), "id2label": names, "label2id": {name: index for index, name in names.items()}}
