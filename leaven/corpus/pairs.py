"""Pairs of related documents: step 1 of Synthetic Bootstrapped Pretraining (paper 003, 3.3.2 and B.1.1).

    unit vectors -> the 200 nearest of every document -> pairs above 0.75 -> without shared runs of 13 words

A pair (d1, d2) teaches a synthesizer to write d2 from d1, so both directions of a pair and several d2 for
one d1 are wanted, but no d2 that could be copied from d1: the paper lower-cases, deletes punctuation and
digits and drops the pair if any run of 13 tokens of d1 is in d2. Two things differ from the paper:

    search    theirs is approximate (ScaNN, 8 bits); this one is exact and does not depend on shards, see
              neighbours.py
    tokens    theirs are SentencePiece's, these are words; a text of fewer than 13 words is one run, so that
              short twins are dropped as well. A text without a letter has no run and is never dropped

Runs are compared by 64-bit hashes: texts of m and n words are dropped wrongly with probability m n / 2^64,
which makes 5e-7 wrong ones among a hundred million pairs of 300 words (of 4,096 words: 9e-5).

Shards: `pair` finds the pairs of any rows against all others, so rows can be dealt out to processes in any
way and the parts `joined`; `find_pairs` does all in one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from leaven.corpus.embed import Vectors
from leaven.corpus.neighbours import VALUES_AT_ONCE, Progress, Rows, neighbours, similarities
from leaven.corpus.shingles import occurs, shingle_all
from leaven.errors import UsageError

Flags = NDArray[np.bool_]

_SHINGLES = 24_000_000  # at once, some 30 bytes each
_LOOK_UPS = 4_000_000


class Pairing(BaseModel):
    """Which documents make a pair; the paper's figures.

    Args:
        threshold: a pair's similarity is above it.
        neighbours: nearest documents looked at for every document.
        shingle: words in a row that the two must not share.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    threshold: float = Field(0.75, ge=-1, lt=1)
    neighbours: int = Field(200, ge=1)
    shingle: int = Field(13, ge=1)


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs that were found, kept or not, by first and within it the most similar before.

    Args:
        first, second: row numbers of d1 and d2, shape (pairs,).
        similarity: inner products, shape (pairs,), float32.
        shares: whether the two share a run of `shingle` words, which rejects the pair, shape (pairs,).
        shingle: words in such a run.
        highest: similarity of the two most similar documents that were looked at, above the threshold or
            not; -inf where nothing was looked for.
    """

    first: Rows
    second: Rows
    similarity: Vectors
    shares: Flags
    shingle: int
    highest: float

    def kept(self) -> Pairs:
        """The pairs without a shared run."""
        return self.take(~self.shares)

    def rejected(self) -> Pairs:
        """The pairs with one."""
        return self.take(self.shares)

    def take(self, chosen: Any) -> Pairs:
        """Some of the pairs, by flags or row numbers."""
        first, second, similarity = self.first[chosen], self.second[chosen], self.similarity[chosen]
        return Pairs(first, second, similarity, self.shares[chosen], self.shingle, self.highest)

    def counts(self) -> dict[str, Any]:
        """``read`` = ``kept`` + ``rejected``, and ``reasons`` with the number rejected for each."""
        rejected = int(self.shares.sum())
        reasons = {f"shares {self.shingle} words in a row": rejected} if rejected else {}
        kept = len(self.shares) - rejected
        return {"read": len(self.shares), "kept": kept, "rejected": rejected, "reasons": reasons}


@dataclass(frozen=True, slots=True)
class Bin:
    """Pairs of one range of similarity; see `guide`.

    Args:
        low, high: similarity from `low` up to but not including `high` (1 is in the last).
        pairs: how many.
        duplicate: share of them with a shared run; nan without pairs.
        judged: how many have a judgement.
        relevant: share of those judged relevant; nan without any.
    """

    low: float
    high: float
    pairs: int
    duplicate: float
    judged: int
    relevant: float


def find_pairs(
    texts: Sequence[str], vectors: Vectors, config: Pairing, progress: Progress | None = None
) -> Pairs:
    """All pairs of a corpus.

    Args:
        texts: of the documents, read in ascending order, once or a few times.
        vectors: of unit length, shape (texts, d), float32; may be a memory map.
        progress: called with (documents searched for, documents).

    Raises:
        UsageError: fewer than two documents, all the same, or no pair is left.
    """
    check_corpus(texts)
    found = nearest_pairs(vectors, np.arange(len(texts)), config, progress=progress)
    return checked(without_runs(texts, found, config), config)


def pair(texts: Sequence[str], vectors: Vectors, keys: Rows, config: Pairing) -> Pairs:
    """Pairs whose first document is one of `keys`, among all documents; see `find_pairs`.

    Returns:
        also no pair at all: whether the corpus has some is known when all keys are `joined` and `checked`.
    """
    check_corpus(texts)
    return without_runs(texts, nearest_pairs(vectors, keys, config), config)


def check_corpus(texts: Sequence[str]) -> None:
    """Raise a UsageError for documents that cannot be paired at all."""
    if len(texts) < 2:
        raise UsageError(
            f"pairs need at least 2 documents, the corpus has {len(texts)}: add documents or cut into chunks"
        )
    if all(text == texts[0] for text in texts):
        raise UsageError(f"all {len(texts)} documents are the same text: pairs need documents that differ")


def checked(pairs: Pairs, config: Pairing) -> Pairs:
    """The pairs as they are, once it is known that some are kept.

    Raises:
        UsageError: none is; the line tells which threshold would give some.
    """
    if not len(pairs.first):
        # Clearly below it: `highest` is of float32, and 0.60000002 would not be above 0.6.
        lower = max(-1, math.ceil(pairs.highest * 100 - 0.01) / 100 - 0.01)
        raise UsageError(
            f"no two documents are more similar than threshold {config.threshold:g}: the highest similarity "
            f"is {pairs.highest:.3f}; threshold {lower:.2f} would give pairs"
        )
    if pairs.shares.all():
        raise UsageError(
            f"all {len(pairs.first)} pairs above threshold {config.threshold:g} share {pairs.shingle} words in "
            "a row: lower the threshold, or give documents that are not copies of one another"
        )
    return pairs


def joined(parts: Sequence[Pairs]) -> Pairs:
    """Parts of one corpus as one, in order of the first document; at least one part."""
    first, second, similarity, shares = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("first", "second", "similarity", "shares")
    )
    highest = max(part.highest for part in parts)
    whole = Pairs(first, second, similarity, shares, parts[0].shingle, highest)
    in_order = bool((first[1:] >= first[:-1]).all())
    return whole if in_order else whole.take(np.argsort(first, kind="stable"))


def without_runs(texts: Sequence[str], pairs: Pairs, config: Pairing) -> Pairs:
    """The same pairs, those that share a run of words marked as such."""
    shares = share_runs(texts, pairs.first, pairs.second, config.shingle)
    return Pairs(pairs.first, pairs.second, pairs.similarity, shares, config.shingle, pairs.highest)


def random_pairs(texts: Sequence[str], vectors: Vectors, count: int, config: Pairing, seed: int) -> Pairs:
    """Pairs drawn without regard to similarity, the control arm of paper 003, B.1.3.

    Args:
        count: pairs to keep, as many as the related ones; no ordered pair is drawn twice, none is of a
            document with itself, and those with a shared run are rejected and others drawn instead.

    Raises:
        UsageError: there are not so many.
    """
    check_corpus(texts)
    others = len(texts) - 1
    drawn = _distinct(others * len(texts), 2 * count, np.random.default_rng(seed))
    first, second = drawn // others, drawn % others
    second += second >= first
    shares = share_runs(texts, first[:count], second[:count], config.shingle)
    if shares.any():
        more = share_runs(texts, first[count:], second[count:], config.shingle)
        shares = np.concatenate((shares, more))
    kept = int((~shares).sum())
    if kept < count:
        raise UsageError(
            f"{count} random pairs were asked for, but of {len(shares)} drawn only {kept} do not share "
            f"{config.shingle} words in a row: ask for fewer, or give more documents"
        )
    end = int(np.searchsorted(np.cumsum(~shares), count)) + 1
    order = np.argsort(first[:end], kind="stable")
    first, second, shares = first[:end][order], second[:end][order], shares[:end][order]
    similarity = similarities(vectors, first, second)
    return Pairs(first, second, similarity, shares, config.shingle, float(similarity.max(initial=-math.inf)))


def _distinct(total: int, size: int, rng: np.random.Generator) -> Rows:
    """`size` different numbers below `total` in random order, or all of them if there are fewer."""
    if total <= 4 * size:
        return rng.permutation(total)[:size]
    drawn = np.zeros(0, dtype=np.int64)
    while len(drawn) < size:
        drawn = np.concatenate((drawn, rng.integers(total, size=size + 16)))
        drawn = drawn[np.sort(np.unique(drawn, return_index=True)[1])]
    return drawn[:size]


def guide(pairs: Pairs, width: float = 0.05, relevant: NDArray[np.float64] | None = None) -> list[Bin]:
    """What a threshold would let in: pairs, duplicates and relevance by similarity (paper 003, figure B.2).

    Meant for pairs of some random documents found with a low threshold: higher similarity brings more
    relevant pairs and more duplicates.

    Args:
        width: of a bin.
        relevant: a judge's answers, 1 for relevant and 0 for not, nan where not asked, shape (pairs,).

    Returns:
        bins from the lowest to the highest similarity, empty ones between them included.
    """
    if not len(pairs.first):
        return []
    similarity = np.clip(pairs.similarity.astype(np.float64), -1, 1)
    number = int(np.ceil(2 / width - 1e-9))
    edges = np.round(-1 + width * np.arange(number + 1), 9)
    # Against the edges as float32, because the similarities are.
    places = np.clip(np.searchsorted(edges.astype(np.float32), similarity, side="right") - 1, 0, number - 1)
    judged = np.zeros(len(places), dtype=bool) if relevant is None else ~np.isnan(relevant)
    good = np.zeros(len(places)) if relevant is None else np.nan_to_num(relevant)
    sums = [np.bincount(places, part, number) for part in (np.ones(len(places)), pairs.shares, judged, good)]
    bins = []
    for i in range(int(places.min()), int(places.max()) + 1):
        count, shared, asked, yes = (float(one[i]) for one in sums)
        duplicate, relevance = (a / b if b else math.nan for a, b in ((shared, count), (yes, asked)))
        bins.append(Bin(edges[i], edges[i + 1], int(count), duplicate, int(asked), relevance))
    return bins


def nearest_pairs(
    vectors: Vectors,
    keys: Rows,
    config: Pairing,
    *,
    values_at_once: int = VALUES_AT_ONCE,
    progress: Progress | None = None,
) -> Pairs:
    """Pairs by similarity alone; see `neighbours` for the arguments and errors."""
    first, second, similarity, highest = neighbours(
        vectors,
        keys,
        config.neighbours,
        config.threshold,
        values_at_once=values_at_once,
        progress=progress,
    )
    return Pairs(first, second, similarity, np.zeros(len(first), dtype=bool), config.shingle, highest)


def share_runs(texts: Sequence[str], first: Rows, second: Rows, n: int = 13) -> Flags:
    """Whether texts `first` and `second` of each pair share a run of `n` words, shape (pairs,).

    Letters only, in lower case; see the top of this file. Runs that are in one text only, nearly all, are
    sorted out first, in as many rounds over ranges of hashes as memory asks for.
    """
    used, number = np.unique(np.concatenate((first, second)), return_inverse=True)
    # The rule knows no direction: each two texts are compared once.
    low, high = np.sort(number.reshape(2, -1), axis=0)
    codes, places = np.unique(low * max(1, len(used)) + high, return_inverse=True)
    low, high = codes // max(1, len(used)), codes % max(1, len(used))
    shares = np.zeros(len(codes), dtype=bool)
    words = sum(len(texts[i]) for i in used.tolist()) // 5
    rounds = np.uint64(1 + words // _SHINGLES)
    for turn in range(int(rounds)):
        arrays = []
        for runs in shingle_all((texts[i] for i in used.tolist()), n, letters_only=True):
            arrays.append(runs if rounds == 1 else runs[runs % rounds == turn])
        if arrays:
            open_pairs = np.flatnonzero(~shares)
            shares[open_pairs] = _share_any(arrays, low[open_pairs], high[open_pairs])
    return shares[places]


def _share_any(arrays: list[NDArray[np.uint64]], first: Rows, second: Rows) -> Flags:
    """Whether arrays `first` and `second` of each pair, sorted and unique, have a value in common."""
    lengths = np.fromiter((len(array) for array in arrays), dtype=np.int64, count=len(arrays))
    values = np.concatenate(arrays)
    ordered = np.sort(values)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    inside = np.flatnonzero(occurs(values, repeated))
    kinds = max(1, len(repeated))
    # One number for (array, value), ascending because arrays and the values in each are.
    owners = np.searchsorted(np.cumsum(lengths), inside, side="right")
    held = owners * kinds + np.searchsorted(repeated, values[inside])
    sizes = np.bincount(owners, minlength=len(arrays))
    ends = np.cumsum(sizes)
    swap = sizes[first] > sizes[second]
    small, large = np.where(swap, second, first), np.where(swap, first, second)
    shares = np.zeros(len(first), dtype=bool)
    pairs = np.flatnonzero(sizes[small])
    batches = np.cumsum(sizes[small[pairs]]) // _LOOK_UPS
    for some in np.split(pairs, np.flatnonzero(np.diff(batches)) + 1) if len(pairs) else ():
        counts = sizes[small[some]]
        begins = np.cumsum(counts) - counts
        steps = np.arange(int(counts.sum())) - np.repeat(begins, counts)
        own = held[np.repeat(ends[small[some]] - counts, counts) + steps] % kinds
        sought = own + np.repeat(large[some], counts) * kinds
        hits = occurs(sought.view(np.uint64), held.view(np.uint64))
        shares[some] = np.logical_or.reduceat(hits, begins)
    return shares
