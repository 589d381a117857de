"""The filter against texts that say the same in nearly the same words.

Of near-duplicates the first in order stays, and the others are rejected with the id of the one they repeat. A
row is only held against rows that are kept themselves, so a chain a ~ b ~ c loses b, and c too only if it
resembles a. That also keeps a model's favourite answer cheap: a thousand near-copies are compared with the
first of them, not with each other.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from leaven.clean.base import Filter, Options, Place, Rows, Verdict
from leaven.corpus.shingles import Hashes, band_keys, is_filled, jaccard, minhash, shingle_all
from leaven.document import Document

_SIGNED_AT_ONCE = 10_000  # rows whose shingles are in memory together


class NearDuplicates(Filter):
    """Rejects a text that nearly repeats an earlier one."""

    name = "near_duplicates"
    surveys_rows = True

    class Config(Options):
        """Options of `near_duplicates`.

        Args:
            n: words in a shingle.
            threshold: least Jaccard similarity of two texts' shingle sets that makes the second a duplicate.
                Our own choice with `n`: 0.6 on 5-grams is about one word in twenty changed.
        """

        n: int = Field(5, ge=1)
        threshold: float = Field(0.6, ge=0.5, le=1)

    config: Config

    def survey(self, rows: Rows) -> None:
        """Find the duplicates in two readings.

        The first keeps hashed MinHash bands (256 bytes a row) and so finds the rows that share a band with
        another; the second goes through those in order and compares their shingles exactly.
        """
        keys, chosen = self._sign(rows)
        suspects, again = itertools.tee(
            (number, place, row) for number, (place, row) in enumerate(rows()) if chosen[number]
        )
        arrays = shingle_all((row.text for _, _, row in again), self.config.n)
        self._twins: dict[Place, tuple[str, float]] = {}
        self._compared = 0
        kept: dict[int, tuple[str, Hashes]] = {}
        holding: dict[tuple[int, int], list[int]] = defaultdict(list)
        for (number, place, row), array in zip(suspects, arrays, strict=True):
            bands = list(enumerate(keys[number].tolist()))
            near = {k for band in bands for k in holding.get(band, ())}
            self._compared += len(near)
            similarity, nearest = max(((jaccard(kept[k][1], array), -k) for k in near), default=(0.0, 0))
            if similarity >= self.config.threshold:
                self._twins[place] = kept[-nearest][0], similarity
                continue
            kept[number] = row.id, array
            for band in bands:
                holding[band].append(number)

    def _sign(self, rows: Rows) -> tuple[Hashes, NDArray[np.bool_]]:
        """Band keys of all rows, and which rows share one with another row."""
        keys: list[Hashes] = []
        filled: list[NDArray[np.bool_]] = []
        texts = (row.text for _, row in rows())
        arrays = shingle_all(texts, self.config.n)
        while True:
            batch = list(itertools.islice(arrays, _SIGNED_AT_ONCE))
            signatures = minhash(batch)
            keys.append(band_keys(signatures))
            filled.append(is_filled(signatures))
            if len(batch) < _SIGNED_AT_ONCE:
                break
        found = np.concatenate(keys)
        usable = np.concatenate(filled)
        chosen = np.zeros(len(found), dtype=bool)
        for column in found.T:
            values, counts = np.unique(column[usable], return_counts=True)
            chosen |= np.isin(column, values[counts > 1])
        return found, chosen & usable

    def check(self, document: Document, place: Place = (0, 0)) -> Verdict:
        """The verdict on the row that stood at `place` in the survey."""
        if place not in self._twins:
            return Verdict(True, None)
        twin, similarity = self._twins[place]
        facts = {"twin": twin}
        return Verdict(False, round(similarity, 4), f"Jaccard {similarity:.2f} to {twin}", facts=facts)

    def report(self) -> dict[str, Any]:
        return {"compared_pairs": self._compared, "rejected": len(self._twins)}
