"""Parallel texts: two files of as many lines, each line of the second what becomes of that of the first."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

from tunesmith.data.text import BadLine, RawRow, read_lines
from tunesmith.errors import InputError

COLUMN = "translation"
"""Holds both texts by their languages, the source's first, as datasets of translations do."""
LANGUAGE = re.compile(r"([a-z]{2,3})([_-][A-Za-z]{2,4})?")
LANGUAGES = frozenset(
    """aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el en eo es et eu fa ff
    fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu ja jv ka kg ki kj kk kl km kn ko kr ks ku
    kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne ng nl nn no nr nv ny oc oj om or os pa pi pl ps pt qu
    rm rn ro ru rw sa sc sd se sg si sk sl sm sn so sq sr ss st su sv sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo
    wa wo xh yi yo za zh zu afr amh ara aze azj bak ben bos bre bul cat ces cmn cym dan deu ell eng epo est eus fas fin fra gla gle glg
    guj hau heb hin hrv hun hye ibo ind isl ita jpn kan kat kaz khm kor kur lao lat lav lit ltz lvs mal mar mkd mlg mon msa mya nep nld
    nno nob nor pan pes pol por pus ron rus sin slk slv som spa sqi srp swa swe swh tam tat tel tgl tha tur ukr urd uzb uzn vie wuu xho
    yor yue zho zsm zul""".split()  # noqa: SIM905 one code a line would be pages
)
"""Codes of ISO 639, of two letters and, of the more usual languages, of three: a name may hold other short words (`one`, `pos`, `dev`)."""
NO_LANGUAGES = ("source", "target")
Pair = tuple[Path, Path]


def find_pairs(files: Sequence[Path], format: str, running_text: bool) -> list[Pair]:
    """The files two by two, where `format` says so or, left open, every two are named alike but for their languages; else none.

    Raises InputError when files that ought to be pairs are not.
    """
    pairs = list(zip(files[::2], files[1::2], strict=False))
    if format == "parallel":
        if len(files) % 2 or not files:
            fix = "list the source's file and the target's: data.train=[train.en, train.de]"
            raise InputError("spec.value", "parallel texts are pairs of files", found=f"{len(files)} files", fix=fix)
        return pairs
    alike = len(files) % 2 == 0 and all(languages(*pair) != NO_LANGUAGES for pair in pairs)
    return pairs if format == "auto" and alike and not running_text else []


def languages(first: Path, second: Path) -> tuple[str, str]:
    """The languages in which the names of two files differ: `train.en.gz` and `train.de.gz`; or `source` and `target`."""
    one, other = first.name.split("."), second.name.split(".")
    apart = [pair for pair in zip(one, other, strict=False) if pair[0] != pair[1]]
    if len(one) == len(other) and len(apart) == 1 and all(map(_is_language, apart[0])):
        return apart[0]
    return NO_LANGUAGES


def _is_language(part: str) -> bool:
    found = LANGUAGE.fullmatch(part)
    return found is not None and found[1] in LANGUAGES


def pair_name(pair: Pair) -> str:
    """What the two files are called together, as in `name:line`."""
    return f"{pair[0].name}+{pair[1].name}"


def read_pair(pair: Pair, encodings: tuple[str, str]) -> Iterator[RawRow | BadLine]:
    """A row for each line of the two; one that is blank in either is not left out.

    Raises InputError at the end when one has more lines.
    """
    names = languages(*pair)
    first, second = (read_lines(path, encoding) for path, encoding in zip(pair, encodings, strict=True))
    num_both, num_more = 0, [0, 0]
    for one, other in zip_longest(first, second):
        if one is None or other is None:
            num_more[one is None] += 1
            continue
        num_both += 1
        if isinstance(one, BadLine):
            yield one
        elif isinstance(other, BadLine):
            yield other
        else:
            yield RawRow(num_both, {COLUMN: dict(zip(names, (one.text, other.text), strict=True))})
    if any(num_more):
        found = f"{num_both + num_more[0]:,} lines in {pair[0].name}, {num_both + num_more[1]:,} in {pair[1].name}"
        fix = "give files of which line matches line; data.format=lines reads each as texts of its own"
        raise InputError("data.line_count", "the files of a pair have not as many lines", where=pair_name(pair), found=found, fix=fix)
    if not num_both:
        raise InputError("data.empty_file", "the files hold no rows", where=pair_name(pair), fix="name other files")
