"""Lexical figures: how varied the wording is, and how much of it is the source's.

    context_length          mean tokens of a document (paper 001, 2.2 and appendix C)
    ngram_diversity         sum over n = 1..4 of distinct / all n-grams (paper 001, table 1)
    self_repetition         mean over documents of ln(1 + other documents' uses of its 4-grams)
    self_repetition_001     the same idea as paper 001's table 1 prints it: ln(k * sum of (N_i + 1))
    compression_ratio       bytes / gzip-compressed bytes (paper 001)
    type_token_ratio        distinct / all words (paper 000, table 6)
    tfidf_dissimilarity     1 - mean cosine of all pairs of documents' TF-IDF vectors (paper 000, table 6)
    duplicate_rate          share of documents that are near-duplicates of another that stays (paper 003,
                            3.5.2)
    ngram_overlap_2 .. 16   percent of words at which an n-gram of the source begins (paper 003, table 2.3)
    unique_genres, unique_audiences, unique_pairs     of MGA rows (paper 000, table 6)

Where the definition is in public code, ours is equal to it or the function says what differs. Words are as
written (split at white space) where the public definition has them so, else lower-case and without
punctuation.

Figures that grow or shrink with the amount of text (marked `matched`) are measured on the same number of
words in every column: as many as the smallest has (`base.common_amount`), in the first documents of the
seeded order. Without that a corpus would look repetitive just for being large.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from leaven.corpus.locate import SOURCE
from leaven.corpus.shingles import (
    Hashes,
    clusters,
    near_duplicates,
    ngrams,
    occurs,
    shingle_all,
    word_hashes_all,
)
from leaven.measure.base import Columns, Context, Figure, Options, Sample, common_amount, ratio
from leaven.measure.statistics import Interval, groups_of, jackknife

MOST_N = 4  # of n-gram diversity, as in public code
REPEATED_N = 4  # of self-repetition
SHINGLE_N = 5  # of duplicates

Groups = NDArray[np.intp]
Share = tuple[float, NDArray[np.float64]]  # of distinct n-grams: of all groups, and without each


class Config(Options):
    """Options of the lexical figures.

    Args:
        overlap: lengths of the n-grams looked for in the source.
        jaccard: least similarity of a near-duplicate, in shingles of 5 words (0.6 as in paper 003).
    """

    overlap: tuple[int, ...] = (2, 4, 8, 16)
    jaccard: float = Field(0.6, gt=0, le=1)


async def measure(columns: Columns, config: Config, context: Context) -> list[Figure]:
    """All lexical figures of every column."""
    amounts = {name: sum(map(len, sample.words)) for name, sample in columns.items()}
    least = common_amount(amounts)
    found: list[Figure] = []
    for number, (name, sample) in enumerate(columns.items()):
        context.progress("lexical", number, len(columns))
        found += _any_amount(sample, config, context.seed)
        if amounts[name] >= least:
            found += _same_amount(first_words(sample, least), least, config, context.seed)
    context.progress("lexical", len(columns), len(columns))
    return found


def _any_amount(sample: Sample, config: Config, seed: int) -> Iterator[Figure]:
    """Figures that do not depend on how much text there is."""
    rows, unit = len(sample), sample.unit
    make = partial(Figure, column=sample.name, n=rows, unit=unit)
    lengths, counted_in = context_lengths(sample)
    places = [0.05, 0.25, 0.5, 0.75, 0.95]
    quantiles = dict(zip(map(str, places), np.quantile(lengths, places).tolist(), strict=True))
    details = {"quantiles": quantiles, "histogram": histogram(lengths), "total": int(lengths.sum())}
    yield ratio("context_length", sample, lengths, seed=seed, note=counted_in, details=details)
    if rows > 1:
        value, interval = tfidf_dissimilarity(sample.texts, groups_of(sample.units, seed))
        yield make("tfidf_dissimilarity", value=value, interval=interval, better="higher")
    if any(source is not None for source in sample.source_of) and sample.name != SOURCE:
        for n in config.overlap:
            hits, words, units = ngram_overlap(sample, n)
            note = "percent of words" + (
                "" if len(units) == rows else f"; {rows - len(units)} without source"
            )
            name = f"ngram_overlap_{n}"
            yield ratio(name, sample, 100 * hits, words, units, seed=seed, better="lower", note=note)
    for name, keys in (
        ("unique_genres", ("genre",)),
        ("unique_audiences", ("audience",)),
        ("unique_pairs", ("genre", "audience")),
    ):
        values = variables(sample, keys)
        if values:
            note = f"of {len(values):,} texts"
            yield make(name, value=len(set(values)), n=len(values), better="higher", note=note)


def _same_amount(sample: Sample, words: int, config: Config, seed: int) -> Iterator[Figure]:
    """Figures that are only comparable on equal amounts of text."""
    groups = groups_of(sample.units, seed)
    note = f"on {words:,} words"
    make = partial(Figure, column=sample.name, n=len(sample), unit=sample.unit, matched=True, note=note)
    written = list(word_hashes_all(sample.texts, exact=True))
    value, interval = ngram_diversity(written, groups)
    yield make("ngram_diversity", value=value, interval=interval, better="higher")
    for name, definition in (("self_repetition", _package), ("self_repetition_001", _printed)):
        value, interval = self_repetition(written, groups, definition)
        yield make(name, value=value, interval=interval, better="lower")
    value, interval = compression_ratio(sample.texts, groups)
    yield make("compression_ratio", value=value, interval=interval, better="lower")
    value, interval = type_token_ratio(sample.words, groups)
    yield make("type_token_ratio", value=value, interval=interval, better="higher")
    repeated = duplicates(sample.texts, config.jaccard)
    details = {"jaccard": config.jaccard}
    yield ratio(
        "duplicate_rate",
        sample,
        repeated,
        seed=seed,
        better="lower",
        matched=True,
        note=note,
        details=details,
    )


def first_words(sample: Sample, words: int) -> Sample:
    """The first documents, in the sample's order, that together have at least `words` words."""
    total = np.cumsum([len(one) for one in sample.words])
    return sample.first(int(np.searchsorted(total, words)) + 1)


def context_lengths(sample: Sample) -> tuple[NDArray[np.int64], str]:
    """(length of every document, what it is counted in): the corpus's tokens if all rows have them."""
    tokens = [document.metadata.get("tokens") for document in sample.documents]
    if all(tokens):
        return np.array(tokens, dtype=np.int64), "tokens"
    return np.array([len(one) for one in sample.words], dtype=np.int64), "words"


def histogram(values: NDArray[np.int64], bins: int = 20) -> dict[str, list[float]]:
    """Counts in `bins` equal bins: ``edges`` (bins + 1) and ``counts`` (bins)."""
    counts, edges = np.histogram(values, bins)
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def ngram_diversity(
    words: Sequence[Hashes], groups: Groups, most: int = MOST_N
) -> tuple[float, Interval | None]:
    """Sum over n = 1..`most` of distinct / all n-grams; from 0 to `most`, higher is more varied.

    As ``ngram_diversity_score`` of the `diversity` package, except that no n-gram crosses from one document
    into the next: the order of documents decides nothing. On one single document the two are equal (the
    package rounds to three digits).

    Args:
        words: hashes of every document's words.
        groups: of the documents, for the interval.
    """
    every, document = _joined(words)
    # Nearly all of the work is sorting, which numpy does outside the interpreter's lock.
    with ThreadPoolExecutor(2) as threads:
        short = threads.submit(_short_shares, every, document, groups, min(most, 3))
        longer = [threads.submit(distinct_share, every, document, groups, n) for n in range(4, most + 1)]
        shares = short.result() + [one.result() for one in longer]
    value = sum(share for share, _ in shares)
    return value, jackknife(np.sum([without for _, without in shares], axis=0), value)


def _short_shares(words: Hashes, document: Groups, groups: Groups, most: int) -> list[Share]:
    """`distinct_share` for n = 1..`most` (3 or less) with one sort instead of one for each n.

    Three words as numbers fit into one: sorted by it, equal n-grams stand together for every n.
    """
    import pyarrow as pa

    encoded = pa.array(words).dictionary_encode()
    count = int(groups.max(initial=0)) + 1
    room, bits = (count - 1).bit_length(), len(encoded.dictionary).bit_length()
    if not len(words) or 3 * bits + room > 64:  # more than half a million different words
        return [distinct_share(words, document, groups, n) for n in range(1, most + 1)]
    number = encoded.indices.to_numpy().astype(np.uint64) + np.uint64(1)  # 0: the document ends before
    keys = number.copy()
    for ahead in (1, 2):
        keys <<= np.uint64(bits)
        same = document[ahead:] == document[:-ahead]
        keys[: len(same)] |= np.where(same, number[ahead:], np.uint64(0))
    if room:
        keys = keys << np.uint64(room) | groups[document].astype(np.uint64)
    keys.sort()
    group = (keys & np.uint64((1 << room) - 1)).astype(np.intp)
    found: list[Share] = []
    for n in range(1, most + 1):
        gram = keys >> np.uint64(room + bits * (3 - n))
        whole = gram & np.uint64((1 << bits) - 1) != 0
        new = np.concatenate(([True], gram[1:] != gram[:-1]))
        starts = np.flatnonzero(new)
        kept = whole[starts]
        distinct, runs = int(kept.sum()), int(whole.sum())
        without = np.full(count, np.nan)
        if room and runs:
            first, last = np.minimum.reduceat(group, starts), np.maximum.reduceat(group, starts)
            only_there = np.bincount(first[kept & (first == last)], minlength=count)
            runs_there = np.bincount(group[whole], minlength=count)
            with np.errstate(invalid="ignore", divide="ignore"):
                without = (distinct - only_there) / (runs - runs_there)
        found.append((distinct / runs if runs else 0.0, without))
    return found


def type_token_ratio(words: Sequence[Hashes], groups: Groups) -> tuple[float, Interval | None]:
    """Distinct / all words of all documents together (paper 000, table 6)."""
    value, replicates = distinct_share(*_joined(words), groups, 1)
    return value, jackknife(replicates, value)


def _joined(words: Sequence[Hashes]) -> tuple[Hashes, Groups]:
    """The words of all documents in a row, and the document of each."""
    every = np.concatenate(words) if len(words) else np.zeros(0, np.uint64)
    return every, np.repeat(np.arange(len(words)), [len(one) for one in words])


def distinct_share(words: Hashes, document: Groups, groups: Groups, n: int) -> Share:
    """Distinct / all n-grams inside documents, and the same without each group.

    Args:
        words: of all documents in a row; `document`: the document of each.
        groups: of the documents.

    Returns:
        (share, shape (groups,)); 0 and nan where there is no n-gram.
    """
    count = int(groups.max(initial=0)) + 1
    runs = ngrams(words, n)
    inside = document[: len(runs)] == document[n - 1 : n - 1 + len(runs)]
    runs, where = runs[inside], document[: len(runs)][inside]
    if not len(runs):
        return 0.0, np.full(count, np.nan)
    if count == 1:
        runs.sort()
        return (1 + int(np.count_nonzero(runs[1:] != runs[:-1]))) / len(runs), np.full(1, np.nan)
    group = groups[where].astype(np.uint64)
    bits = np.uint64((count - 1).bit_length())
    # The group in the lowest bits: one sort then shows each n-gram's first and last group.
    keyed = (runs >> bits << bits) | group
    keyed.sort()
    gram = keyed >> bits
    starts = np.flatnonzero(np.concatenate(([True], gram[1:] != gram[:-1])))
    ends = np.concatenate((starts[1:], [len(gram)])) - 1
    mask = (np.uint64(1) << bits) - np.uint64(1)
    first, last = keyed[starts] & mask, keyed[ends] & mask
    only_there = np.bincount(first[first == last].astype(np.intp), minlength=count)
    runs_there = np.bincount(group.astype(np.intp), minlength=count)
    with np.errstate(invalid="ignore", divide="ignore"):
        without = (len(starts) - only_there) / (len(runs) - runs_there)
    return len(starts) / len(runs), without


Repetition = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]


def _package(uses: NDArray[np.float64], grams: NDArray[np.float64]) -> NDArray[np.float64]:
    """As the `diversity` package has it: uses in other documents, plus one against ln 0."""
    return np.log(uses - grams + 1)


def _printed(uses: NDArray[np.float64], grams: NDArray[np.float64]) -> NDArray[np.float64]:
    """As paper 001 prints it, with N_i the other documents that use the i-th of the document's k n-grams."""
    return np.log(np.maximum(grams * uses, 1))


def self_repetition(
    words: Sequence[Hashes], groups: Groups, definition: Repetition = _package, n: int = REPEATED_N
) -> tuple[float, Interval | None]:
    """Mean over documents of how often their n-grams are used by other documents (Salkar et al. 2022).

    Equal to ``self_repetition_score`` of the `diversity` package with the default definition. A document of
    fewer than `n` words counts as 0, there and here.

    Args:
        words: hashes of every document's words.
        definition: from (sum over a document's distinct n-grams of the documents that use each, number of
            its distinct n-grams) to the document's score.
    """
    grams = [np.unique(ngrams(one, n)) for one in words]
    sizes = np.array([len(one) for one in grams], dtype=float)
    if not sizes.sum():
        return 0.0, None
    _, gram, users = np.unique(np.concatenate(grams), return_inverse=True, return_counts=True)
    document = np.repeat(np.arange(len(grams)), sizes.astype(np.intp))

    def scores(counts: NDArray[np.int64]) -> NDArray[np.float64]:
        uses = np.bincount(document, counts[gram], len(grams))
        return np.where(sizes > 0, definition(np.maximum(uses, sizes), sizes), 0.0)

    value = float(scores(users).mean())
    replicates = []
    for group in range(int(groups.max(initial=0)) + 1):
        inside = groups == group
        left = users - np.bincount(gram[inside[document]], minlength=len(users))
        kept = scores(left)[~inside]
        replicates.append(float(kept.mean()) if len(kept) else np.nan)
    return value, jackknife(replicates, value)


def compression_ratio(texts: Sequence[str], groups: Groups) -> tuple[float, Interval | None]:
    """Bytes / gzip-compressed bytes of the texts joined by spaces; higher is more repetitive.

    The `diversity` package's figure of this name is another one: it compresses what is already compressed and
    so divides by a gzip of a gzip. For the interval each group's share of the compressed bytes is read off
    the one stream, in the context of what came before it.
    """
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    count = int(groups.max(initial=0)) + 1
    plain, packed = np.zeros(count), np.zeros(count)
    order = np.argsort(groups, kind="stable")
    for group in range(count):
        data = " ".join(texts[i] for i in order if groups[i] == group).encode("utf-8", "surrogatepass")
        plain[group] = len(data)
        packed[group] = len(packer.compress(data)) + len(packer.flush(zlib.Z_SYNC_FLUSH))
    whole = " ".join(texts).encode("utf-8", "surrogatepass")
    if not whole:
        return 0.0, None
    once = zlib.compressobj(9, zlib.DEFLATED, 31)
    value = len(whole) / (len(once.compress(whole)) + len(once.flush()))
    with np.errstate(invalid="ignore", divide="ignore"):
        replicates = (plain.sum() - plain) / (packed.sum() - packed)
    return value, jackknife(replicates, value)


def tfidf_dissimilarity(texts: Sequence[str], groups: Groups) -> tuple[float, Interval | None]:
    """1 - mean cosine over all pairs of documents of their TF-IDF vectors (paper 000, table 6).

    Vectors are scikit-learn's ``TfidfVectorizer`` with its defaults (paper 000 names none). Exact over all
    pairs: the sum of all cosines is the squared length of the sum of the vectors.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    from leaven.measure.pairs import mean_dissimilarity

    try:
        vectors = TfidfVectorizer().fit_transform(texts)
    except ValueError:  # nothing but stop words: no text has a vector
        return float("nan"), None
    return mean_dissimilarity(vectors, groups)


def duplicates(texts: Sequence[str], jaccard: float) -> NDArray[np.float64]:
    """1 for every text that has a near-duplicate before it (so one of each cluster stays), shape (texts,)."""
    pairs = near_duplicates(list(shingle_all(texts, SHINGLE_N)), jaccard)
    first = clusters(pairs, len(texts))
    return (first != np.arange(len(texts))).astype(float)


def ngram_overlap(sample: Sample, n: int) -> tuple[NDArray[np.float64], NDArray[np.float64], list[str]]:
    """For every row with a known source: n-grams it shares with it, its words, and its unit.

    Every occurrence counts, and the sum is divided by words rather than n-grams, as paper 003 (2.5.2) does
    it. That paper counts tokens of a Llama tokenizer; here it is words, which makes short overlaps rarer.
    """
    known: dict[str, Hashes] = {}
    hits: list[int] = []
    words: list[int] = []
    units: list[str] = []
    for one, source, unit in zip(sample.words, sample.source_of, sample.units, strict=True):
        if source is None:
            continue
        if source.id not in known:
            known[source.id] = np.unique(ngrams(next(word_hashes_all([source.text])), n))
        hits.append(int(occurs(ngrams(one, n), known[source.id]).sum()))
        words.append(len(one))
        units.append(unit)
    return np.array(hits, dtype=float), np.array(words, dtype=float), units


def variables(sample: Sample, names: Sequence[str]) -> list[tuple[str, ...]]:
    """The values of these variables in every row that has them all."""
    rows = (document.metadata.get("variables") or {} for document in sample.documents)
    return [tuple(str(row[name]) for name in names) for row in rows if all(name in row for name in names)]
