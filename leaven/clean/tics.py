"""The filter against phrases that a model puts into everything it writes.

Paper 000 (MGA, 3.2) ends by filtering "high-frequency generative patterns (e.g. 'Please note that ...')" and
gives neither list nor threshold. Here a tic is either

- one of `PHRASES`, our own list of stock phrases of chat models, or
- a word n-gram found in the output itself: it stands in the children of many different sources, and per word
  of text many times as often as in the sources. A name or a term of one subject stands in the children of
  few sources, or in the sources too; lines that are markdown headings (EntiGraph's "### Discussion of ...")
  are a format and not looked at.

The n-grams are counted in two readings of the rows: the first adds up hashed counts in a table of fixed size,
which can only overestimate; the second looks exactly at the few that may pass.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from typing import Any

import numpy as np
from pydantic import Field

from leaven.clean.base import Filter, Options, Place, Rows, Sources, Verdict
from leaven.corpus.shingles import Hashes, ngrams, occurs, shingles, word_hashes, words
from leaven.document import Document

PHRASES = (
    r"please note that",
    r"(?:it(?: is|'s) (?:also )?)?(?:important|worth|essential|crucial|vital) (?:to (?:note|remember|mention|"
    r"recogni[sz]e|understand|acknowledge)|noting|mentioning|remembering) that",
    r"it should be noted that",
    r"it goes without saying",
    r"delv(?:e|es|ed|ing) (?:deeper )?into",
    r"(?:a|the) (?:rich |vibrant |intricate )+tapestry",
    r"(?:stands?|serves?|serving|standing) as a (?:testament|reminder|beacon) (?:to|of|that)",
    r"(?:is|was|are) a testament to",
    r"in today's (?:fast-paced|digital|modern|ever-changing|rapidly (?:changing|evolving)) (?:world|age|era)",
    r"in the ever-(?:evolving|changing) (?:world|landscape|realm)",
    r"navigat(?:e|ing) the (?:complex|intricate)\w*(?: landscape| world)?",
    r"play(?:s|ed|ing)? a (?:crucial|pivotal|vital|significant|key) role in",
    r"(?:a|the) (?:multifaceted|nuanced) (?:approach|understanding|nature|tapestry)",
    r"(?:let's|let us) (?:dive|delve) (?:in|into|deeper)",
    r"unlock(?:s|ing)? the (?:full )?(?:potential|secrets|power) of",
    r"embark(?:s|ed|ing)? on (?:a|this|the) journey",
    r"(?:in conclusion|in summary|to sum up|to summarize|overall), (?:it is|it's|the|this|we)",
    r"not only (?:a|an|the) [^.,;\n]{1,60} but also a testament",
    r"remember,? (?:it is|it's) (?:always )?(?:important|essential|crucial)",
    r"always consult (?:with )?a (?:qualified|licensed|healthcare|medical|legal|professional)",
)  # fmt: skip
_PHRASE = re.compile(rf"\b(?:{'|'.join(PHRASES)})\b", re.IGNORECASE)
_HEADING = re.compile(r"^[ \t]*#{1,6}[ \t].*$", re.MULTILINE)

_TABLE = 1 << 22  # hashed counts: 16 MiB
_REPORTED = 50


def _prose(text: str) -> str:
    """The text without heading lines and with plain apostrophes."""
    return _HEADING.sub("", text).replace("’", "'")  # noqa: RUF001


class Tics(Filter):
    """Rejects texts with too many stock phrases, known or found in the output itself."""

    name = "tics"
    surveys_rows = True

    class Config(Options):
        """Options of `tics`; all our own choice, the paper names none.

        Args:
            max_count: most tics a text may have.
            max_share: greatest share of its words that may stand in tics; matters for short texts.
            n: words in the n-grams looked for in the output.
            min_families: fewest sources whose children must have an n-gram.
            min_share: least share of all sources whose children must have it.
            ratio: how many times as often as in the sources it must stand, per word of text; one occurrence
                is added to the sources', so that a small corpus proves nothing by its silence.
        """

        max_count: int = Field(2, ge=0)
        max_share: float = Field(0.1, ge=0, le=1)
        n: int = Field(5, ge=4, le=8)
        min_families: int = Field(5, ge=2)
        min_share: float = Field(0.02, ge=0, le=1)
        ratio: float = Field(10.0, ge=1)

    config: Config

    def __init__(self, config: Tics.Config | None = None) -> None:
        super().__init__(config)
        self._found: Hashes = np.zeros(0, dtype=np.uint64)
        self._listed: list[dict[str, Any]] = []

    def open(self, sources: Sources) -> None:
        self._sources = sources

    def survey(self, rows: Rows) -> None:
        """Find the n-grams; see the top of this file."""
        self._listed = []
        table = np.zeros(_TABLE, dtype=np.int32)
        child_words, families = 0, set()
        for _, document in rows():
            own = shingles(_prose(document.text), self.config.n)
            table[(own % np.uint64(_TABLE)).astype(np.int64)] += 1
            child_words += len(own)
            families.add(_family(document))
        needed = max(self.config.min_families, round(self.config.min_share * len(families)))
        source_words = sum(max(0, len(words(s.text)) - self.config.n + 1) for s in self._sources)
        floor = max(needed, self.config.ratio * child_words / max(1, source_words))
        holding = self._holding(rows, table >= floor)
        chosen = {h: seen for h, seen in holding.items() if len(seen) >= needed}
        in_sources = self._count_in_sources(chosen)
        for h, seen in chosen.items():
            often = sum(seen.values()) / child_words
            seldom = (in_sources[h] + 1) / max(1, source_words)
            if often >= self.config.ratio * seldom:
                self._listed.append(
                    {"hash": h, "rows": sum(seen.values()), "families": len(seen), "ratio": often / seldom}
                )
        self._found = np.sort(np.array([one["hash"] for one in self._listed], dtype=np.uint64))
        self._name_them(rows)

    def _holding(self, rows: Rows, passing: np.ndarray[Any, np.dtype[np.bool_]]) -> dict[int, Counter[str]]:
        """For each n-gram that may pass, in how many rows of each family it stands."""
        holding: dict[int, Counter[str]] = defaultdict(Counter)
        if not passing.any():
            return holding
        for _, document in rows():
            own = shingles(_prose(document.text), self.config.n)
            family = _family(document)
            for h in own[passing[(own % np.uint64(_TABLE)).astype(np.int64)]].tolist():
                holding[h][family] += 1
        return holding

    def _count_in_sources(self, chosen: dict[int, Counter[str]]) -> Counter[int]:
        """In how many sources each of the chosen n-grams stands."""
        counts: Counter[int] = Counter()
        known = np.sort(np.array(list(chosen), dtype=np.uint64))
        for source in self._sources if len(known) else ():
            own = shingles(_prose(source.text), self.config.n)
            counts.update(own[occurs(own, known)].tolist())
        return counts

    def _name_them(self, rows: Rows) -> None:
        """Put the words beside the hashes, from the first row that has them."""
        unnamed = {one["hash"]: one for one in self._listed}
        for _, document in rows() if unnamed else ():
            prose = _prose(document.text)
            for start in np.flatnonzero(
                occurs(ngrams(word_hashes(prose), self.config.n), self._found)
            ).tolist():
                one = unnamed.pop(int(ngrams(word_hashes(prose), self.config.n)[start]), None)
                if one is not None:
                    one["phrase"] = " ".join(words(prose)[start : start + self.config.n])
            if not unnamed:
                break

    def check(self, document: Document, place: Place = (0, 0)) -> Verdict:
        prose = _prose(document.text)
        total = len(prose.split())
        phrases = [match.group() for match in _PHRASE.finditer(prose)]
        grams, inside = self._grams_in(prose)
        found = phrases + grams
        covered = sum(len(phrase.split()) for phrase in phrases) + inside
        share = round(covered / total, 4) if total else 0.0
        keep = len(found) <= self.config.max_count and share <= self.config.max_share
        listing = ", ".join(repr(phrase) for phrase in found[:5])
        facts = {"share": share} | ({"found": found[:10]} if found else {})
        return Verdict(
            keep,
            len(found),
            "" if keep else f"{len(found)} tics, {share:.0%} of its words: {listing}",
            facts=facts,
        )

    def _grams_in(self, prose: str) -> tuple[list[str], int]:
        """Runs of words covered by found n-grams, and how many words they cover."""
        if not len(self._found):
            return [], 0
        hits = np.flatnonzero(occurs(ngrams(word_hashes(prose), self.config.n), self._found)).tolist()
        runs: list[list[int]] = []
        for start in hits:
            if runs and start <= runs[-1][1]:
                runs[-1][1] = start + self.config.n
            else:
                runs.append([start, start + self.config.n])
        text = words(prose) if runs else []
        return [" ".join(text[start:end]) for start, end in runs], sum(end - start for start, end in runs)

    def report(self) -> dict[str, Any]:
        ordered = sorted(self._listed, key=lambda one: (-one["rows"], one["phrase"]))
        shown = [
            {
                "phrase": one["phrase"],
                "rows": one["rows"],
                "families": one["families"],
                "ratio": round(one["ratio"], 1),
            }
            for one in ordered[:_REPORTED]
        ]
        return {"ngrams": len(ordered), "most_frequent": shown}


def _family(document: Document) -> str:
    """What a row counts under: its first source, or itself if it has none."""
    return str(next(iter(document.metadata.get("sources") or ()), document.id))
