"""Bytes of a file as numbered lines of text, streaming: gzip and zstandard, any codec, and each line that cannot be read named."""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tunesmith.errors import InputError, Problem

COMPRESSIONS = {".gz": "gzip", ".zst": "zstandard"}
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before utf-16: its mark starts with that of utf-16
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
CHUNK_BYTES = 1 << 20
ZSTD_CHUNK_BYTES = 1 << 13
"""Small, since a few compressed bytes may unfold to megabytes."""


class RawRow(NamedTuple):
    """One row as the file has it; `line` is where it starts, from 1 (of parquet and arrow the number of the row)."""

    line: int
    values: dict[str, Any]


class BadLine(NamedTuple):
    """One line or row that cannot be read."""

    line: int
    problem: Problem


PASSAGE = "\0passage"
"""Beside `text` in a row of running text: the number of the passage in its file. No column of a file can have this name."""


class Line(NamedTuple):
    """One physical line, without its line end."""

    number: int
    text: str


def place(path: Path, line: int) -> str:
    """`file:line`, as every problem of a row names it."""
    return f"{path.name}:{line}"


def bad_line(path: Path, line: int, code: str, problem: str, found: str = "", fix: str = "") -> BadLine:
    """A BadLine whose problem names the file and line."""
    return BadLine(line, Problem(code, problem, place(path, line), found, fix))


def shorten(text: str, length: int = 60) -> str:
    """The start of a text, quoted, for messages."""
    return repr(text if len(text) <= length else text[:length] + "...")


def content_suffix(path: Path) -> str:
    """The suffix that says the format: that before `.gz` or `.zst`, in lower case."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def read_chunks(path: Path) -> Iterator[bytes]:
    """The file's bytes, unpacked. Raises InputError when the file cannot be opened or its archive is damaged."""
    compression = COMPRESSIONS.get(path.suffix.lower(), "")
    num_bytes = 0
    try:
        for chunk in {"gzip": _gzip_chunks, "zstandard": _zstd_chunks}.get(compression, _plain_chunks)(path):
            num_bytes += len(chunk)
            yield chunk
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError("data.no_such_file", "there is no such file", found=str(path)) from None
    except IsADirectoryError:
        raise InputError("data.unreadable_file", "a folder stands where a file is needed", found=str(path)) from None
    except PermissionError:
        fix = f"chmod u+r {path}"
        raise InputError("data.unreadable_file", "the file may not be read by this user", found=str(path), fix=fix) from None
    except (OSError, EOFError, ValueError, zlib.error) as error:
        damaged = f"the {compression} archive is damaged or cut short" if compression else "the file cannot be read"
        found = f"{error}, after {num_bytes:,} bytes of content"
        fix = (
            "copy or download the file again"
            if num_bytes or not compression or isinstance(error, EOFError)
            else f"if it is not compressed, leave out {path.suffix}"
        )
        raise InputError("data.unreadable_file", damaged, where=path.name, found=found, fix=fix) from error


def _plain_chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _gzip_chunks(path: Path) -> Iterator[bytes]:
    with gzip.open(path, "rb") as file:
        while chunk := file.read1(CHUNK_BYTES):
            yield chunk


def _zstd_chunks(path: Path) -> Iterator[bytes]:
    # not zstandard's stream_reader: it takes a frame that is cut short for a complete one
    import zstandard

    frame = zstandard.ZstdDecompressor().decompressobj()
    started = False
    try:
        with path.open("rb") as file:
            while packed := file.read(ZSTD_CHUNK_BYTES):
                while packed:
                    started = True
                    if unpacked := frame.decompress(packed):
                        yield unpacked
                    packed = b""
                    if frame.eof:
                        packed = frame.unused_data
                        frame, started = zstandard.ZstdDecompressor().decompressobj(), False
    except zstandard.ZstdError as error:
        raise OSError(str(error)) from error
    if started:
        raise EOFError("the last frame has no end")


def byte_order_mark(start: bytes) -> tuple[bytes, str]:
    """The mark that a file starts with and the codec that it says; empty when there is none."""
    return next(((mark, codec) for mark, codec in BYTE_ORDER_MARKS if start.startswith(mark)), (b"", ""))


def resolve_encoding(name: str, start: bytes) -> tuple[str, int]:
    """The codec without a mark that a file is to be decoded with, and the bytes of the mark to leave out."""
    mark, marked = byte_order_mark(start)
    codec = codecs.lookup(name).name
    if codec in ("utf-16", "utf-32"):
        return (marked, len(mark)) if marked.startswith(codec) else (f"{codec}-le", 0)
    if codec == marked or mark == codecs.BOM_UTF8:
        return codec.removesuffix("-sig"), len(mark)
    return codec.removesuffix("-sig"), 0


def read_lines(path: Path, encoding: str) -> Iterator[Line | BadLine]:
    """The lines of a text file, split only at line feeds; a line that cannot be decoded, or holds a NUL, is a BadLine."""
    number = 0
    chunks = read_chunks(path)
    start = next(chunks, b"")
    codec, num_mark_bytes = resolve_encoding(encoding, start)
    newline = "\n".encode(codec)
    blocks = _blocks(start[num_mark_bytes:], chunks, newline)
    for block in blocks:
        if codec == "utf-8":
            try:
                text = block.decode()
            except UnicodeDecodeError:
                text = "\0"
            if "\0" not in text:
                for number, line in enumerate(text.split("\n"), number + 1):  # noqa: B020 goes on counting
                    yield Line(number, line[:-1] if line.endswith("\r") else line)
                continue
        for number, raw in enumerate(_split(block, newline), number + 1):  # noqa: B020
            yield _decode_line(path, number, raw, codec)


def _blocks(start: bytes, chunks: Iterator[bytes], newline: bytes) -> Iterator[bytes]:
    """The bytes cut into blocks of whole lines, without the line feed that ends each block."""
    pieces = [start]
    for chunk in chunks:
        if newline[-1:] in chunk or (len(newline) > 1 and newline[:1] in chunk):
            joined = b"".join((*pieces, chunk))
            end = _last_newline(joined, newline)
            if end >= 0:
                yield joined[:end]
                joined = joined[end + len(newline) :]
            pieces = [joined]
        else:
            pieces.append(chunk)
    rest = b"".join(pieces)
    if rest.endswith(newline) and _last_newline(rest, newline) == len(rest) - len(newline):
        yield rest[: -len(newline)]
    elif rest:
        yield rest


def _last_newline(block: bytes, newline: bytes) -> int:
    """Where the last line feed starts; in utf-16 and utf-32 it must lie on a whole unit."""
    end = block.rfind(newline)
    while end > 0 and end % len(newline):
        end = block.rfind(newline, 0, end + len(newline) - 1)
    return end if end >= 0 and end % len(newline) == 0 else -1


def _split(block: bytes, newline: bytes) -> list[bytes]:
    if len(newline) == 1:
        return block.split(newline)
    lines, start, at = [], 0, block.find(newline)
    while at >= 0:
        if at % len(newline) == 0:
            lines.append(block[start:at])
            start = at + len(newline)
            at = block.find(newline, start)
        else:
            at = block.find(newline, at + 1)
    return [*lines, block[start:]]


def _decode_line(path: Path, number: int, raw: bytes, codec: str) -> Line | BadLine:
    try:
        text = raw.decode(codec)
    except UnicodeError as error:
        return _undecodable(path, number, raw, codec, error)
    if "\0" in text:
        column = text.index("\0") + 1
        fix = "if the file is UTF-16 without a byte-order mark, data.encoding=utf-16; otherwise mend or remove the line"
        return bad_line(path, number, "data.unreadable_line", "the line holds a NUL byte", f"at column {column}: {shorten(text)}", fix)
    return Line(number, text[:-1] if text.endswith("\r") else text)


def _undecodable(path: Path, number: int, raw: bytes, codec: str, error: UnicodeError) -> BadLine:
    at = error.start if isinstance(error, UnicodeDecodeError) else 0
    column = len(raw[:at].decode(codec, "ignore")) + 1
    found = f"byte 0x{raw[at]:02x} at column {column}" if at < len(raw) else str(error)
    likely = next((codec for codec in ("cp1252", "latin-1") if _reads_as_text(raw, codec)), "")
    fix = "mend the line, or leave it out with data.on_bad_row=skip"
    if likely and not codec.startswith(("utf-16", "utf-32")):
        likely = "latin-1" if not any(0x80 <= byte <= 0x9F for byte in raw) else likely
        around = raw[max(0, at - 40) : at + 40].decode(likely).strip()
        found += f"; as {likely} it reads {shorten(around, 80)}"
        fix = f"data.encoding={likely} when the whole file is written so; otherwise {fix}"
    return bad_line(path, number, "data.encoding", f"the line is not valid {codec}", found, fix)


def _reads_as_text(raw: bytes, codec: str) -> bool:
    try:
        text = raw.decode(codec)
    except UnicodeDecodeError:
        return False
    return all(char.isprintable() or char.isspace() for char in text)
