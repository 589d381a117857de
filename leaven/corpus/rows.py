"""Rows out of one open file: JSON lines, CSV, Parquet or plain text, plain or compressed, losing none.

datatrove's readers are not used for this, because they skip broken JSON lines, rows without text and
files that are not UTF-8 with a log line at most, give up on CSV fields above 128 KB, and read a zstd
file that was cut short as if it were whole. Here a row that cannot be read is a `Row` without values
that says why, and damage that hides an unknown number of rows is an error.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os.path
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import zstandard

from leaven.errors import UsageError

_COMPRESSED = (".gz", ".zst")
# What half of a surrogate pair looks like as a JSON escape, and in a string: Parquet takes none.
_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
_HALF = re.compile("[\ud800-\udfff]")


class Row:
    """One row as read: `values`, or what was wrong with it."""

    __slots__ = ("detail", "file", "number", "raw", "reason", "values")

    def __init__(self, file: str, number: int, values: dict[str, Any] | None) -> None:
        self.file, self.number, self.values = file, number, values
        self.reason = self.detail = self.raw = ""

    @property
    def place(self) -> str:
        return f"{self.file}:{self.number}"

    def broken(self, reason: str, detail: str, raw: str) -> Row:
        self.values, self.reason, self.detail, self.raw = None, reason, detail, raw
        return self


def _jsonl(file: IO[bytes], label: str) -> Iterator[Row]:
    for number, line in enumerate(file, start=1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            continue
        row = Row(label, number, None)
        try:
            text = line.decode("utf-8")
            values = json.loads(text)
            if not isinstance(values, dict):
                raise ValueError(f"an object was expected, not {type(values).__name__}")
        except UnicodeDecodeError as error:
            yield row.broken(
                "broken encoding", _not_utf8(error), line.decode("utf-8", "replace").rstrip("\r\n")
            )
        except (ValueError, RecursionError) as error:
            yield row.broken("broken json", one_line(error), text.rstrip("\r\n"))
        else:
            # Only an escape can bring half a surrogate pair into a line that is UTF-8; Parquet takes none.
            if _ESCAPE.search(line) and _HALF.search(json.dumps(values, ensure_ascii=False)):
                yield row.broken(
                    "broken encoding", "half of a surrogate pair (\\ud800-\\udfff)", text.rstrip("\r\n")
                )
            else:
                row.values = values
                yield row


def _csv(file: IO[bytes], label: str) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)  # a document is longer than the default of 128 KB
    # Broken bytes are carried as surrogates, so that the quoting still holds and only their row is rejected.
    lines = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.reader(lines, strict=True)
    columns = next(reader, [])
    end = reader.line_num
    for cells in reader:
        number, end = end + 1, reader.line_num
        if not cells:
            continue
        row = Row(label, number, dict(zip(columns, cells, strict=False)))
        joined = ",".join(cells)
        if _HALF.search(joined):
            raw = joined.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            row.broken("broken encoding", "not UTF-8", raw)
        elif len(cells) > len(columns):
            row.broken("broken csv", f"{len(cells)} cells under {len(columns)} columns", joined)
        yield row


def _text(file: IO[bytes], label: str) -> Iterator[Row]:
    """One document a file; titled by a Markdown file's first heading, else by the file's name."""
    data = file.read()
    row = Row(label, 1, None)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        yield row.broken("broken encoding", _not_utf8(error), data.decode("utf-8", "replace"))
        return
    stem, extension = os.path.splitext(uncompressed(label.rpartition("/")[2]))
    heading = re.search(r"^#{1,6}\s+(.+?)\s*#*\s*$", text, re.MULTILINE)
    title = heading[1] if heading and extension.lower() in (".md", ".markdown") else stem
    row.values = {"text": text, "title": title}
    yield row


def _parquet(file: IO[bytes], label: str) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=200):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(label, number, values)
    except pa.ArrowInvalid as error:
        raise UsageError(
            f"{label} is not a whole Parquet file (after row {number}): {one_line(error)}"
        ) from error


@contextmanager
def damage(label: str) -> Iterator[None]:
    """Damage that hides rows (a compressed file cut short, a failing disk) stops the reading."""
    try:
        yield
    except (EOFError, OSError, csv.Error, zlib.error, zstandard.ZstdError) as error:
        raise UsageError(
            f"{label} cannot be read to its end ({one_line(error)}); restore it or leave it out"
        ) from error


def decompress(raw: IO[bytes], name: str) -> IO[bytes]:
    if name.lower().endswith(".gz"):
        return io.BufferedReader(gzip.GzipFile(fileobj=raw), 1 << 20)
    if name.lower().endswith(".zst"):
        return io.BufferedReader(_Zstd(raw), 1 << 20)
    return raw


class _Zstd(io.RawIOBase):
    """A zstd file of one or more frames; unlike the library's stream reader, it notices a missing end."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw, self._new = raw, zstandard.ZstdDecompressor().decompressobj
        self._frame = self._new()
        self._begun = False
        self._input = self._output = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._output:
            data = self._input or self._raw.read(1 << 18)
            if not data:
                if self._begun:
                    raise EOFError("compressed data end before their end mark")
                return 0
            self._begun, self._output = True, self._frame.decompress(data)
            self._input = b""
            if self._frame.eof:
                self._input, self._frame, self._begun = self._frame.unused_data, self._new(), False
        size = min(len(buffer), len(self._output))
        buffer[:size], self._output = self._output[:size], self._output[size:]
        return size


def uncompressed(name: str) -> str:
    base, extension = os.path.splitext(name)
    return base if extension.lower() in _COMPRESSED else name


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"not UTF-8 at byte {error.start} (0x{error.object[error.start]:02x})"


def one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


READERS = {"jsonl": _jsonl, "csv": _csv, "text": _text, "parquet": _parquet}
