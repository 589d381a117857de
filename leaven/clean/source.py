"""Filters that hold a text against the documents it was written from: too near, or too far.

`copying` measures how much of a text is taken over word for word; a "new" document that repeats its source
brings repetition, not data. `coverage` measures how many of the source's keywords come back; a text with
hardly any has lost its subject. Paper 000 (MGA, 3.2) ends its pipeline by removing "documents with extremely
low keyword coverage with the source document" and leaves open what a keyword is and what is low.
"""

from __future__ import annotations

import math
from collections import Counter
from functools import lru_cache

import numpy as np
from pydantic import Field

from leaven.clean.base import Filter, Options, Place, Sources, Verdict
from leaven.corpus.shingles import Hashes, occurs, shingles, words
from leaven.document import Document

_SOURCES_HELD = 64  # children lie together, so a source's shingles are needed for a while and then no more

# Function words that no tf-idf of a corpus of a few documents would recognise as such.
_STOP_WORDS = """
a about above after again against all also am an and any are as at be because been before being below between
both but by can could did do does doing down during each even few for from further had has have having he her
here hers him himself his how i if in into is it its itself just like made make many may me might more most
much must my myself no nor not now of off on once one only or other our out over own same said say says see
she should so some such than that the their them themselves then there these they this those though through to
too two under until up upon us very was way we well were what when where which while who whom whose why will
with would yet you your yours
"""
_STOP = frozenset(_STOP_WORDS.split())


class Copying(Filter):
    """Rejects texts that take too much over from their sources word for word."""

    name = "copying"

    class Config(Options):
        """Options of `copying`.

        Args:
            n: words in a shingle; 13 as in paper 003 (SBP, appendix B.2), in lower case without punctuation
                and digits.
            max_share: greatest share of the text's shingles that may also stand in one source. Our own
                choice: in the recorded stories no rewriting copies a single shingle, while light editing
                (MGA's "strict") copies up to 28 %, 7 % in the median.
        """

        n: int = Field(13, ge=2)
        max_share: float = Field(0.1, ge=0, le=1)

    config: Config

    def open(self, sources: Sources) -> None:
        self.sources = sources

        def shingles_of(identifier: str, text: str) -> Hashes:
            return shingles(text, self.config.n, letters_only=True)

        self._shingles = lru_cache(maxsize=_SOURCES_HELD)(shingles_of)

    def check(self, document: Document, place: Place = (0, 0)) -> Verdict:
        sources = self.sources.of(document)
        own = shingles(document.text, self.config.n, letters_only=True)
        if not sources or not len(own):
            return Verdict(True, None)
        copied = [occurs(own, self._shingles(source.id, source.text)) for source in sources]
        share = float(np.logical_or.reduce(copied).mean())
        detail = f"{share:.0%} of its {self.config.n}-word shingles stand in its sources"
        keep = share <= self.config.max_share
        return Verdict(keep, round(share, 4), "" if keep else detail)


class Coverage(Filter):
    """Rejects texts that hold hardly any of their source's keywords."""

    name = "coverage"

    class Config(Options):
        """Options of `coverage`; all our own choice, the paper names none.

        Args:
            keywords: how many words of greatest tf-idf (over the corpus) count as a source's keywords.
            min_share: least share of them that the text must hold, in the same form. In the recorded stories
                faithful texts hold 15 % or more (base reformulations 40 %), texts that took the source as
                mere inspiration (MGA's "relaxed") 5 % in the median, and texts about another story 0 %.
        """

        keywords: int = Field(20, ge=1)
        min_share: float = Field(0.1, ge=0, le=1)

    config: Config

    def open(self, sources: Sources) -> None:
        self.sources = sources
        self._holding: Counter[str] = Counter()
        self._documents = 0
        for source in sources:
            self._holding.update(set(_content_words(source.text)))
            self._documents += 1
        self._keywords = lru_cache(maxsize=_SOURCES_HELD)(self.keywords)

    def keywords(self, text: str) -> frozenset[str]:
        """The words of greatest (1 + ln tf) * ln((1 + documents) / documents with the word)."""
        counts = Counter(_content_words(text))

        def weight(word: str) -> float:
            rarity = math.log((1 + self._documents) / max(1, self._holding[word]))
            return (1 + math.log(counts[word])) * rarity

        # Alphabetical among equals, so that the choice does not hang on the order of the text.
        return frozenset(sorted(counts, key=lambda word: (-weight(word), word))[: self.config.keywords])

    def check(self, document: Document, place: Place = (0, 0)) -> Verdict:
        wanted = [self._keywords(source.text) for source in self.sources.of(document)]
        wanted = [keywords for keywords in wanted if keywords]
        if not wanted:
            return Verdict(True, None)
        own = set(words(document.text))
        share = max(len(own & keywords) / len(keywords) for keywords in wanted)
        keep = share >= self.config.min_share
        return Verdict(keep, round(share, 4), "" if keep else f"holds {share:.0%} of its source's keywords")


def _content_words(text: str) -> list[str]:
    return [word for word in words(text) if len(word) > 2 and word not in _STOP and not word.isdigit()]
