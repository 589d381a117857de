"""Long documents into chunks under a token limit, cut where a reader would pause.

Cuts fall on paragraph borders, else sentence borders, else (a sentence longer than the limit) line
and word borders. A border is worse when the text before it does not end a sentence: that keeps a
heading with what it heads, and survives scans whose line breaks are doubled in mid-sentence.
Lengths are evened out, so there is no tiny last chunk.

What is guaranteed: chunks are slices of the document in order, and only whitespace at the cuts is
left out; every chunk is within the limit by the caller's own counter, except a single word that is
longer than the limit; the same text always gives the same chunks.

Why not a package: semantic-text-splitter (Rust, no dependencies) is sound, but counts one candidate
at a time, which took 4.5 s on 75 stories (559k tokens) against 1.4 s for the batched counts here, and
it cannot even out the last chunk.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from leaven.document import Document, child_id

Count = Callable[[Sequence[str]], list[int]]

_PARAGRAPH = re.compile(r"\n\s*\n\s*")
# A sentence ends at its punctuation and closing quotes; scripts without spaces need none after it.
_SENTENCE = re.compile(r"""[.!?…]+["'”\u2019»)\]]*\s+|[。\uff01\uff1f]+["'”\u2019」』\uff09]*\s*""")
_LINE = re.compile(r"\n\s*")
_WORD = re.compile(r"\s+")
_LAST_WORD = re.compile(r"(\w+)\.\s*$")
_ABBREVIATIONS = frozenset(
    [
        "mr",
        "mrs",
        "ms",
        "dr",
        "prof",
        "st",
        "sr",
        "jr",
        "vs",
        "etc",
        "eg",
        "ie",
        "cf",
        "no",
        "vol",
        "fig",
        "al",
        "gen",
        "col",
        "capt",
        "lt",
        "sgt",
        "rev",
    ]
)
_CLOSING = "\"'”\u2019»)]」』\uff09*_"
_FINAL = ".!?…:。\uff01\uff1f"

# How much a cut at each kind of border is worth avoiding, as a share of the limit: a cut may move this
# far from the even length to reach a better border. Our choice.
_PENALTY = {"paragraph": 0.0, "sentence": 0.1, "broken paragraph": 0.3, "line": 0.3, "word": 0.35}
# Paragraphs above this share of the limit are also cut between sentences, so that lengths can be evened.
_GRAIN = 1 / 8


@dataclass(frozen=True, slots=True)
class _Piece:
    """A span of the text with the whitespace after it, and the kind of border it ends at."""

    start: int
    end: int
    tokens: int
    border: str


def split_text(text: str, limit: int, count: Count) -> list[tuple[str, int]]:
    """Cut a text into chunks of at most `limit` tokens.

    Args:
        limit: most tokens in a chunk, at least 1.
        count: tokens of each text, called with many texts at once.

    Returns:
        (chunk, its tokens) in order; one entry, the text itself, where it fits whole.
    """
    if limit < 1:
        raise ValueError(f"limit must be at least 1, not {limit}")
    (whole,) = count([text])
    if whole <= limit:
        return [(text, whole)]
    return list(_fit(text, _pieces(text, limit, count), limit, count, at_least=1))


def chunk_document(document: Document, limit: int, count: Count) -> list[Document]:
    """A document as chunks of at most `limit` tokens, each a document with `tokens` in its metadata.

    A document that fits is returned itself, under its own id. A chunk's id depends on (parent id,
    index) only; it inherits the parent's metadata and adds `sources`, `parent`, `chunk` (from 0) and
    `chunks`.
    """
    parts = split_text(document.text, limit, count)
    if len(parts) == 1:
        document.metadata["tokens"] = parts[0][1]
        return [document]
    lineage = {"sources": [document.id], "parent": document.id, "chunks": len(parts)}
    return [
        Document(
            text=text,
            id=child_id([document.id], "", "chunk", {"chunk": index}),
            metadata={**document.metadata, **lineage, "chunk": index, "tokens": tokens},
        )
        for index, (text, tokens) in enumerate(parts)
    ]


def _ends_sentence(text: str, end: int) -> bool:
    return text[max(0, end - 200) : end].rstrip().rstrip(_CLOSING).endswith(tuple(_FINAL))


def _is_abbreviation(text: str, end: int) -> bool:
    match = _LAST_WORD.search(text, max(0, end - 40), end)
    if match is None:
        return False
    word = match[1]
    return word.lower() in _ABBREVIATIONS or (len(word) == 1 and word.isupper())


def _borders(text: str, start: int, end: int, level: str) -> Iterator[tuple[int, str]]:
    """Where to cut text[start:end], and what kind of border each place is; ends with `end` excluded."""
    pattern = {"paragraph": _PARAGRAPH, "sentence": _SENTENCE, "line": _LINE, "word": _WORD}[level]
    for match in pattern.finditer(text, start, end):
        cut = match.end()
        if not start < cut < end:
            continue
        if level == "sentence" and (text[cut].islower() or _is_abbreviation(text, cut)):
            continue
        yield cut, "broken paragraph" if level == "paragraph" and not _ends_sentence(text, cut) else level


def _pieces(text: str, limit: int, count: Count) -> list[_Piece]:
    """The finest spans worth moving about: paragraphs, or their sentences, lines and words where too long."""
    start = len(text) - len(text.lstrip())
    pieces = [_Piece(start, len(text.rstrip()), limit + 1, "paragraph")]
    for level in ("paragraph", "sentence", "line", "word"):
        most = max(1, int(limit * _GRAIN)) if level == "sentence" else limit
        finer: list[_Piece] = []
        fresh: list[int] = []
        for piece in pieces:
            cuts = list(_borders(text, piece.start, piece.end, level)) if piece.tokens > most else []
            if not cuts:
                finer.append(piece)
                continue
            begin = piece.start
            for end, border in [*cuts, (piece.end, piece.border)]:
                fresh.append(len(finer))
                finer.append(_Piece(begin, end, 0, border))
                begin = end
        tokens = count([text[finer[i].start : finer[i].end] for i in fresh]) if fresh else []
        for i, number in zip(fresh, tokens, strict=True):
            finer[i] = _Piece(finer[i].start, finer[i].end, number, finer[i].border)
        pieces = finer
    return pieces


def _pack(pieces: Sequence[_Piece], limit: int, at_least: int) -> list[Sequence[_Piece]]:
    """Group pieces into runs within the limit by the sum of their tokens, of nearly equal length."""
    number = max(at_least, math.ceil(sum(piece.tokens for piece in pieces) / limit))
    while len(groups := _divide(pieces, limit, number)) > number:
        number = len(groups)  # the pieces do not fill the limit: share out anew among as many as it takes
    return groups


def _divide(pieces: Sequence[_Piece], limit: int, number: int) -> list[Sequence[_Piece]]:
    """Cut off one run after another, each near an equal share of what is left for `number` runs."""
    groups: list[Sequence[_Piece]] = []
    rest = sum(piece.tokens for piece in pieces)
    while pieces:
        left = max(number - len(groups), math.ceil(rest / limit))
        if left <= 1 or len(pieces) == 1:
            return [*groups, pieces]
        best, best_score, filled, taken = 1, math.inf, 0, pieces[0].tokens
        for size, piece in enumerate(pieces[:-1], start=1):
            filled += piece.tokens
            if filled > limit and size > 1:
                break
            score = abs(filled - rest / left) / limit + _PENALTY[piece.border]
            if score < best_score:
                best, best_score, taken = size, score, filled
        groups.append(pieces[:best])
        pieces, rest = pieces[best:], rest - taken
    return groups


def _fit(
    text: str, pieces: Sequence[_Piece], limit: int, count: Count, at_least: int
) -> Iterator[tuple[str, int]]:
    """Chunks that are within the limit when counted whole.

    Tokens of joined pieces need not add up to the sum of theirs, so every chunk is counted again and
    one that came out too long is divided.
    """
    groups = _pack(pieces, limit, at_least)
    chunks = [text[group[0].start : group[-1].end].strip() for group in groups]
    for group, chunk, tokens in zip(groups, chunks, count(chunks), strict=True):
        if tokens > limit and len(group) > 1:
            yield from _fit(text, group, limit, count, at_least=2)
        else:
            yield chunk, tokens
