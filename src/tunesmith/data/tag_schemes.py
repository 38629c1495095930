"""Tags that mark entities word by word, in four schemes, as spans of words and back."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

SCHEMES = {"IOB2": "BIIB", "IOB1": "IIII", "BIOES": "BIES", "BILOU": "BILU"}
"""The prefixes of an entity's first, inner and last word, and of a single one; B in IOB1 parts it from a neighbour of its type."""
TAG = re.compile(r"([BIESLU])-(.+)", re.DOTALL)
OUTSIDE = "O"
AS_BIOES = {"L": "E", "U": "S"}
LEAST_FITTING = 0.9
"""Share of the words whose tags must have a scheme's shape for the rest to be mistakes."""

Span = tuple[str, int, int]
"""(type, first word, word after the last)."""


def split_tag(tag: str) -> tuple[str, str]:
    """(prefix as BIOES has it, type) of a tag; O, and what is no tag of a scheme, is ("O", "")."""
    match = TAG.fullmatch(tag)
    return (AS_BIOES.get(match[1], match[1]), match[2]) if match else (OUTSIDE, "")


def continues(previous: str, tag: str) -> bool:
    """Whether an entity goes on from one word to the next, as conlleval and seqeval have it."""
    (before, type_before), (prefix, type_now) = split_tag(previous), split_tag(tag)
    return prefix in "IE" and before in "BI" and type_before == type_now


def spans(tags: Sequence[str]) -> list[Span]:
    """The entities that tags mark; one that starts wrongly, as I- after O, starts there all the same."""
    found: list[Span] = []
    previous = OUTSIDE
    for index, tag in enumerate(tags):
        if continues(previous, tag):
            found[-1] = (*found[-1][:2], index + 1)
        elif split_tag(tag)[0] != OUTSIDE:
            found.append((split_tag(tag)[1], index, index + 1))
        previous = tag
    return found


def write_tags(entities: Sequence[Span], num_words: int, scheme: str) -> list[str]:
    """The tags [words] that mark entities which do not overlap, in order."""
    tags = [OUTSIDE] * num_words
    before: Span = ("", -1, -1)
    for name, start, end in entities:
        first, inner, last, single = tuple(SCHEMES[scheme])
        if scheme == "IOB1" and (before[0], before[2]) == (name, start):
            first = single = "B"
        prefixes = [first, *[inner] * (end - start - 2), last] if end - start > 1 else [single]
        tags[start:end] = [f"{prefix}-{name}" for prefix in prefixes]
        before = (name, start, end)
    return tags


def tags_of_types(types: Sequence[str], scheme: str) -> list[str]:
    """All tags of a scheme for these types of entity, O first."""
    return [OUTSIDE, *(f"{prefix}-{name}" for name in types for prefix in dict.fromkeys("B" + SCHEMES[scheme]))]


def convert(tags: Sequence[str], scheme: str, to: str) -> list[str]:
    """The same entities in another scheme."""
    return list(tags) if scheme == to else write_tags(spans(tags), len(tags), to)


def fault(previous: str, tag: str, scheme: str) -> str:
    """What is wrong with a tag after another (`""` before the first word and after the last); empty when nothing is."""
    prefix, name = split_tag(tag)
    before, name_before = split_tag(previous)
    shown = f"{tag} after {previous}" if previous else f"{tag} on the first word"
    if scheme == "IOB1":
        return f"{shown}: B- only parts two neighbours of one type" if prefix == "B" and name_before != name else ""
    if prefix in "IE" and not continues(previous, tag):
        return f"{shown}: no B-{name} begins it"
    if scheme != "IOB2" and before in "BI" and not continues(previous, tag):
        return f"{previous} is not ended: {tag or 'nothing'} follows"
    return ""


def detect(pairs: Mapping[tuple[str, ...], int]) -> tuple[str, str]:
    """(scheme or `none`, why) from how often each pair of neighbouring tags stands in the data, as in `fault`."""
    counts: Counter[str] = Counter()
    for (_, tag), count in pairs.items():
        counts[tag] += count if tag else 0
    marks = {tag: match[1] for tag in counts if (match := TAG.fullmatch(tag))}
    fitting = sum(counts[tag] for tag in counts if tag in marks or tag == OUTSIDE)
    if not marks or fitting < LEAST_FITTING * counts.total() or not set(marks.values()) & set("BI"):
        shown = ", ".join(tag for tag, _ in counts.most_common(4))
        return "none", f"tags such as {shown} mark no beginnings"
    prefixes = Counter[str]()
    for tag, prefix in marks.items():
        prefixes[prefix] += counts[tag]
    whole = {name for tag in marks for prefix, name in [split_tag(tag)] if prefix == "B"}
    for scheme, letters in (("BIOES", "ES"), ("BILOU", "LU")):
        ends = [tag for tag, prefix in marks.items() if prefix in letters and split_tag(tag)[1] in whole]
        if ends and sum(counts[tag] for tag in ends) > sum(prefixes[letter] for letter in "ESLU" if letter not in letters):
            return scheme, f"single words and last words have tags of their own, such as {ends[0]}"
    fresh: Counter[str] = Counter()
    for (previous, tag), count in pairs.items():
        if marks.get(tag) in ("B", "I") and split_tag(previous)[1] != split_tag(tag)[1]:
            fresh[marks[tag]] += count
    if fresh["B"] >= fresh["I"]:
        return "IOB2", f"{fresh['B']:,} entities begin with B-" + (f", {fresh['I']:,} with I-" if fresh["I"] else "")
    return "IOB1", f"{fresh['I']:,} entities begin with I-" + (f", {fresh['B']:,} with B-" if fresh["B"] else "")
