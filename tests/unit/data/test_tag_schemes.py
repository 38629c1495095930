"""Schemes of tags: as spans and back, and which it is."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import IOB1, IOB2, IOBES, Entities

from tunesmith.data.tag_schemes import SCHEMES, convert, detect, fault, spans, tags_of_types, write_tags

TAGS = ["O", *(f"{prefix}-{name}" for prefix in "BIES" for name in ("x", "y"))]
EXAMPLE = {
    "IOB2": "B-x I-x O B-x B-x I-x I-x O B-y",
    "IOB1": "I-x I-x O I-x B-x I-x I-x O I-y",
    "BIOES": "B-x E-x O S-x B-x I-x E-x O S-y",
    "BILOU": "B-x L-x O U-x B-x I-x L-x O U-y",
}


def pairs(*rows: list[str]) -> Counter[tuple[str, ...]]:
    return Counter(pair for row in rows for pair in pairwise(["", *row, ""]))


@st.composite
def entities(draw: st.DrawFn) -> tuple[list[tuple[str, int, int]], int]:
    found, at = [], 0
    for _ in range(draw(st.integers(0, 6))):
        start = at + draw(st.integers(0, 2))
        at = start + draw(st.integers(1, 3))
        found.append((draw(st.sampled_from("xy")), start, at))
    return found, at + draw(st.integers(0, 2))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("other", SCHEMES)
def test_each_scheme_is_written_in_each_other(scheme: str, other: str) -> None:
    assert convert(EXAMPLE[scheme].split(), scheme, other) == EXAMPLE[other].split()


@settings(max_examples=100, deadline=None)
@given(entities())
def test_what_is_written_is_read_back_and_is_legal(found: tuple[list[tuple[str, int, int]], int]) -> None:
    for scheme in SCHEMES:
        tags = write_tags(*found, scheme)
        assert spans(tags) == found[0]
        assert not any(fault(*pair, scheme) for pair in pairwise(["", *tags, ""]))
        assert set(tags) <= set(tags_of_types(["x", "y"], scheme))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(TAGS), max_size=12))
def test_spans_are_those_of_seqeval(tags: list[str]) -> None:
    assert spans(tags) == [(name, start, end + 1) for name, start, end in get_entities(tags)]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(TAGS), min_size=1, max_size=8))
def test_legal_rows_are_those_whose_strict_reading_is_the_lenient_one(tags: list[str]) -> None:
    for scheme, strict in (("IOB2", IOB2), ("BIOES", IOBES), ("IOB1", IOB1)):
        known = set(tags_of_types(["x", "y"], scheme))
        if not set(tags) <= known:
            continue
        legal = not any(fault(*pair, scheme) for pair in pairwise(["", *tags, ""]))
        read = [(found.tag, found.start, found.end) for found in Entities([tags], strict).entities[0]]
        if legal:
            assert read == spans(tags)
        elif scheme != "IOB1":
            assert write_tags(read, len(tags), scheme) != tags


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_scheme_is_seen(scheme: str) -> None:
    assert detect(pairs(EXAMPLE[scheme].split()))[0] == scheme


@pytest.mark.parametrize(
    ("rows", "scheme"),
    [
        (["B-x I-x O", "O I-y O", "B-y O O"], "IOB2"),  # one slip is no scheme
        (["B-x O B-x", "O B-x"], "IOB2"),
        (["I-x I-x O I-y"], "IOB1"),
        (["NOUN VERB PUNCT", "DET NOUN"], "none"),
        (["O O O"], "none"),
        (["0 1 2 0"], "none"),
        (["B-x I-x o", *["O O B-y I-y O O O O O O O O"] * 2], "IOB2"),  # o is a slip too
        (["NOUN B-x VERB"], "none"),
        (["S-x S-x O"], "none"),
        (["B-x E-x O O", "S-x O O"], "BIOES"),
    ],
)
def test_the_scheme_is_what_most_tags_say(rows: list[str], scheme: str) -> None:
    assert detect(pairs(*(row.split() for row in rows)))[0] == scheme


@pytest.mark.parametrize(
    ("previous", "tag", "scheme", "said"),
    [
        ("O", "I-x", "IOB2", "I-x after O: no B-x begins it"),
        ("", "I-x", "IOB2", "I-x on the first word"),
        ("B-y", "I-x", "IOB2", "I-x after B-y"),
        ("B-x", "B-x", "IOB2", ""),
        ("B-x", "", "IOB2", ""),
        ("O", "B-x", "IOB1", "B- only parts two neighbours"),
        ("I-x", "B-x", "IOB1", ""),
        ("B-x", "O", "BIOES", "B-x is not ended: O follows"),
        ("I-x", "", "BIOES", "I-x is not ended: nothing follows"),
        ("B-x", "S-x", "BIOES", "B-x is not ended"),
        ("E-x", "I-x", "BIOES", "no B-x begins it"),
        ("B-x", "L-x", "BILOU", ""),
        ("U-x", "L-x", "BILOU", "no B-x begins it"),
    ],
)
def test_what_breaks_a_scheme_is_said(previous: str, tag: str, scheme: str, said: str) -> None:
    assert said in fault(previous, tag, scheme)
    assert bool(fault(previous, tag, scheme)) == bool(said)
