"""Word n-grams ("shingles") of texts as 64-bit hashes, and near-duplicates among many texts.

    text -> words -> word hashes -> n-gram hashes -> sorted unique shingles
    shingles of many texts -> MinHash signatures -> bands -> candidate pairs -> exact Jaccard -> pairs

Cleaning, pair mining for SBP (paper 003, appendix B.2) and the measures all count with these shingles, so
the one definition of "the same words in a row" lives here. Hashes are fixed numbers, the same in every
process and on every machine; two different n-grams share one with probability 2^-64.

MinHash (Broder 1997) only proposes pairs; each proposed pair is then verified on the shingles themselves, so
no reported pair is wrong and only some pairs at the threshold can be missed. With `BANDS` bands of `ROWS`
values a pair of Jaccard J is proposed with probability 1 - (1 - J^ROWS)^BANDS: 0.9996 at J = 0.6, 0.97 at
0.47, 0.03 at 0.1.

Words are what white space and punctuation separate; scripts written without spaces (Chinese, Japanese, Thai)
give one "word" per run of characters and need another splitter first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

BANDS, ROWS = 32, 3
_SEED = 0x1EA7E2
_BATCH_CHARACTERS = 200_000  # texts hashed at once: hides numpy's cost per call and stays in the cache
_BATCH_SHINGLES = 65_536

_NOT_WORD = re.compile(r"[\W_]+")
_NOT_LETTER = re.compile(r"[^\w\s]+|[\d_]+")
# The same for ASCII as byte tables, some ten times faster: lower-case or a space, and what is deleted.
_ASCII = bytes(ord(chr(c).lower()) if chr(c).isalnum() else 32 for c in range(128)) + bytes(range(128, 256))
_ASCII_DELETED = bytes(c for c in range(128) if not chr(c).isalpha() and not chr(c).isspace())


def _mixed(x: Hashes) -> Hashes:
    """The finaliser of splitmix64: every bit of the input moves every bit of the output."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


# A random 64-bit number for every byte, so that no two short words can cancel out.
_BYTE_VALUES: Hashes = _mixed(np.arange(1, 257, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))


_POWERS: dict[int, Hashes] = {}


def _powers(base: int, size: int) -> Hashes:
    """base^0, base^1, ... modulo 2^64, at least `size` of them; the longest table so far is kept."""
    if base not in _POWERS or len(_POWERS[base]) < size:
        values = np.full(1 << max(10, size.bit_length()), base, dtype=np.uint64)
        values[0] = 1
        _POWERS[base] = np.cumprod(values, dtype=np.uint64)
    return _POWERS[base]


def _sums(values: Hashes, starts: NDArray[np.intp], ends: NDArray[np.intp], base: int) -> Hashes:
    """Mixed polynomial hash of every ``values[start:end]``, whatever lies before it.

    Prefix sums of value * base^position; a difference of two, divided by base^start, is the hash of what is
    between them (an odd base has an inverse modulo 2^64).
    """
    sums = np.zeros(len(values) + 1, dtype=np.uint64)
    np.cumsum(values * _powers(base, len(values))[: len(values)], out=sums[1:])
    return _mixed((sums[ends] - sums[starts]) * _powers(pow(base, -1, 2**64), len(values))[starts])


def _normalised(text: str, letters_only: bool) -> bytes:
    if text.isascii():
        data = text.encode("ascii")
        return data.translate(_ASCII, _ASCII_DELETED) if letters_only else data.translate(_ASCII)
    lower = text.lower()
    if letters_only:
        return " ".join(_NOT_LETTER.sub("", lower).split()).encode("utf-8", "surrogatepass")
    return _NOT_WORD.sub(" ", lower).encode("utf-8", "surrogatepass")


def words(text: str, letters_only: bool = False) -> list[str]:
    """Lower-case words of a text, in order.

    Args:
        letters_only: delete punctuation and digits instead of splitting at punctuation, so that
            ``Mr. O'Neil's 3 well-known`` gives ``mr oneils wellknown`` (paper 003, B.2); otherwise it gives
            ``mr o neil s 3 well known``.
    """
    return _normalised(text, letters_only).decode("utf-8", "surrogatepass").split()


def word_hashes(text: str, letters_only: bool = False) -> Hashes:
    """Hashes of `words`, in order, shape (words,)."""
    return _hash_words(_normalised(text, letters_only))[0]


def word_hashes_all(texts: Iterable[str], exact: bool = False) -> Iterator[Hashes]:
    """`word_hashes` of every text in order, several times faster than one by one.

    Args:
        exact: words as they are written, split at white space only (as ``str.split`` gives them), so that
            ``The`` and ``the,`` are two.
    """
    batch: list[bytes] = []
    size = 0
    for text in texts:
        batch.append(_as_written(text) if exact else _normalised(text, letters_only=False))
        size += len(batch[-1])
        if size > _BATCH_CHARACTERS:
            yield from _word_batch(batch)
            batch, size = [], 0
    yield from _word_batch(batch)


def _as_written(text: str) -> bytes:
    """UTF-8 with ASCII spaces only, so that words are what bytes above 32 stand together."""
    plain = text if text.isascii() else " ".join(text.split())
    return plain.encode("utf-8", "surrogatepass")


def _word_batch(batch: list[bytes]) -> Iterator[Hashes]:
    hashes, bounds = _hash_batch(batch)
    for first, last in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        yield hashes[first:last]


def _hash_batch(batch: list[bytes]) -> tuple[Hashes, NDArray[np.intp]]:
    """Hashes of the words of all texts in a row, and where each text's begin and end."""
    hashes, starts = _hash_words(b"\n".join(batch))
    lengths = np.fromiter((len(data) + 1 for data in batch), dtype=np.int64, count=len(batch))
    return hashes, np.searchsorted(starts, np.concatenate(([0], np.cumsum(lengths))))


def _hash_words(data: bytes) -> tuple[Hashes, NDArray[np.intp]]:
    """Hashes of the words in normalised bytes, and where each begins."""
    letters = np.frombuffer(data, dtype=np.uint8)
    inside = np.zeros(len(letters) + 2, dtype=np.int8)
    np.greater(letters, 32, out=inside[1:-1], casting="unsafe")
    edges = np.diff(inside)
    starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    return _sums(_BYTE_VALUES[letters], starts, ends, 0x5851F42D4C957F2D), starts


def ngrams(hashes: Hashes, n: int) -> Hashes:
    """Hashes of all runs of `n` words, in order, shape (max(0, words - n + 1),)."""
    count = max(0, len(hashes) - n + 1)
    starts = np.arange(count)
    return _sums(hashes, starts, starts + n, 0x2545F4914F6CDD1D)


def _unique(values: Hashes) -> Hashes:
    ordered = np.sort(values)
    keep = np.ones(len(ordered), dtype=bool)
    np.not_equal(ordered[1:], ordered[:-1], out=keep[1:])
    return ordered[keep]


def shingles(text: str, n: int = 5, letters_only: bool = False) -> Hashes:
    """Sorted unique n-gram hashes of a text; empty when it has fewer than `n` words."""
    return _unique(ngrams(word_hashes(text, letters_only), n))


def shingle_all(texts: Iterable[str], n: int = 5, letters_only: bool = False) -> Iterator[Hashes]:
    """`shingles` of every text in order, several times faster than one by one.

    A text with fewer than `n` words gives one shingle, all its words, so that short texts have twins as well;
    a text without words gives none.
    """
    batch: list[bytes] = []
    size = 0
    for text in texts:
        batch.append(_normalised(text, letters_only))
        size += len(batch[-1])
        if size > _BATCH_CHARACTERS:
            yield from _shingle_batch(batch, n)
            batch, size = [], 0
    yield from _shingle_batch(batch, n)


def _shingle_batch(batch: list[bytes], n: int) -> Iterator[Hashes]:
    hashes, bounds = _hash_batch(batch)
    all_runs = ngrams(hashes, n)
    for first, last in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        runs = all_runs[first : max(first, last - n + 1)]
        yield _unique(runs if len(runs) else ngrams(hashes[first:last], max(1, last - first)))


def jaccard(a: Hashes, b: Hashes) -> float:
    """Exact Jaccard similarity of two sorted unique arrays; 0 when both are empty."""
    both = shared(a, b)
    return both / (len(a) + len(b) - both) if both else 0.0


def shared(a: Hashes, b: Hashes) -> int:
    """How many values two sorted unique arrays have in common."""
    return int(np.count_nonzero(occurs(a, b))) if len(a) <= len(b) else shared(b, a)


def occurs(values: Hashes, known: Hashes) -> NDArray[np.bool_]:
    """For each of `values` (in any order) whether it is in the sorted array `known`."""
    if not len(known):
        return np.zeros(len(values), dtype=bool)
    places = np.searchsorted(known, values)
    places[places == len(known)] = 0
    found: NDArray[np.bool_] = known[places] == values
    return found


def shared_share(of: Hashes, known: Hashes) -> float:
    """Share of the unique shingles `of` that are also in `known`; 0 when `of` is empty."""
    return float(occurs(of, known).mean()) if len(of) else 0.0


def any_shared(a: Hashes, b: Hashes) -> bool:
    """Whether two sorted unique arrays have a value in common."""
    return shared(a, b) > 0


def repeated(text: str, n: int = 13, letters_only: bool = True) -> int:
    """How many different runs of `n` words occur more than once in the text."""
    ordered = np.sort(ngrams(word_hashes(text, letters_only), n))
    return len(_unique(ordered[1:][ordered[1:] == ordered[:-1]]))


def repeats_shingle(text: str, n: int = 13) -> bool:
    """Whether a run of `n` words occurs twice, the sign of a degenerated sample (paper 003, B.2)."""
    return repeated(text, n) > 0


def minhash(arrays: Sequence[Hashes], values: int = BANDS * ROWS, seed: int = _SEED) -> NDArray[np.uint32]:
    """MinHash signatures, shape (arrays, values); two agree in each value with probability Jaccard.

    Each value is the least of (a * x + b) mod 2^32 over the array, with its own odd a and b. The signature of
    an empty array is 2^32 - 1 throughout.
    """
    random = np.random.default_rng(seed)
    a = random.integers(0, 2**31, values, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    b = random.integers(0, 2**32, values, dtype=np.uint32)
    signatures = np.full((len(arrays), values), 2**32 - 1, dtype=np.uint32)
    lengths = np.fromiter((len(array) for array in arrays), dtype=np.int64, count=len(arrays))
    full = np.flatnonzero(lengths)
    batches = np.cumsum(lengths[full]) // _BATCH_SHINGLES
    for rows in np.split(full, np.flatnonzero(np.diff(batches)) + 1) if len(full) else ():
        flat = (np.concatenate([arrays[i] for i in rows]) >> np.uint64(32)).astype(np.uint32)
        bounds = np.concatenate(([0], np.cumsum(lengths[rows])[:-1]))
        moved = np.empty_like(flat)
        for k in range(values):
            np.multiply(flat, a[k], out=moved)
            np.add(moved, b[k], out=moved)
            signatures[rows, k] = np.minimum.reduceat(moved, bounds)
    return signatures


def band_keys(signatures: NDArray[np.uint32], bands: int = BANDS) -> Hashes:
    """One hash for each band of each signature, shape (arrays, bands)."""
    count, values = signatures.shape
    rows = values // bands
    parts = signatures[:, : bands * rows].reshape(count, bands, rows)
    keys = np.zeros((count, bands), dtype=np.uint64)
    for row in range(rows):
        keys = _mixed(keys + parts[:, :, row] + np.uint64(0x369DEA0F31A53F85))
    return keys


def candidate_pairs(signatures: NDArray[np.uint32], bands: int = BANDS) -> NDArray[np.int64]:
    """Pairs (i, j), i < j, that agree in all values of at least one band; shape (pairs, 2), sorted.

    There are k (k - 1) / 2 of them in a cluster of k.
    """
    count = len(signatures)
    found = np.zeros(0, dtype=np.int64)
    usable = np.flatnonzero(is_filled(signatures))
    keys = band_keys(signatures[usable], bands)
    for band in range(bands):
        order = np.argsort(keys[:, band], kind="stable")
        found = np.union1d(found, _pairs_in_runs(keys[order, band], usable[order], count))
    return np.stack((found // max(1, count), found % max(1, count)), axis=1)


def is_filled(signatures: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Which signatures are not of empty arrays, shape (arrays,)."""
    filled: NDArray[np.bool_] = (signatures != 2**32 - 1).any(axis=1)
    return filled


def _pairs_in_runs(ordered: Hashes, ids: NDArray[np.intp], count: int) -> NDArray[np.int64]:
    """All pairs of ids whose ordered keys are equal, each as i * count + j with i < j."""
    pairs: list[NDArray[np.int64]] = []
    distance = 1
    places = np.arange(len(ordered))
    while len(places := places[places + distance < len(ordered)]):
        # Runs are contiguous: who has no equal at this distance has none at a greater one.
        places = places[ordered[places] == ordered[places + distance]]
        first, second = ids[places], ids[places + distance]
        pairs.append(np.minimum(first, second).astype(np.int64) * count + np.maximum(first, second))
        distance += 1
    return np.concatenate(pairs) if pairs else np.zeros(0, dtype=np.int64)


def verified(
    arrays: Sequence[Hashes], pairs: NDArray[np.int64], threshold: float
) -> list[tuple[int, int, float]]:
    """The pairs (i, j, jaccard) whose exact Jaccard similarity is at least `threshold`, in order.

    Args:
        pairs: (i, j) by row, sorted by i.
    """
    found: list[tuple[int, int, float]] = []
    if not len(pairs):
        return found
    firsts, starts = np.unique(pairs[:, 0], return_index=True)
    ends = [*starts[1:].tolist(), len(pairs)]
    for i, start, end in zip(firsts.tolist(), starts.tolist(), ends, strict=True):
        others = pairs[start:end, 1]
        lengths = np.fromiter((len(arrays[j]) for j in others), dtype=np.int64, count=len(others))
        hits = occurs(np.concatenate([arrays[j] for j in others]), arrays[i])
        both = np.add.reduceat(hits, np.concatenate(([0], np.cumsum(lengths)[:-1])), dtype=np.int64)
        similarity = both / (len(arrays[i]) + lengths - both)
        found += [(i, int(others[k]), float(similarity[k])) for k in np.flatnonzero(similarity >= threshold)]
    return found


def near_duplicates(
    arrays: Sequence[Hashes], threshold: float = 0.6, bands: int = BANDS, rows: int = ROWS
) -> list[tuple[int, int, float]]:
    """Pairs of near-duplicates (i, j, exact jaccard), i < j, in order.

    Args:
        arrays: sorted unique shingles, one array per text; an empty one has no duplicates.
        threshold: least Jaccard similarity, above 0.
        bands, rows: of the MinHash signature; see the top of this file for what they find.
    """
    return verified(arrays, candidate_pairs(minhash(arrays, bands * rows), bands), threshold)


def clusters(pairs: Iterable[tuple[int, int, float]], count: int) -> NDArray[np.int64]:
    """The least index of each item's connected cluster (union-find), shape (count,)."""
    parent = list(range(count))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i, j, _ in pairs:
        a, b = sorted((root(i), root(j)))
        parent[b] = a
    return np.array([root(i) for i in range(count)], dtype=np.int64)
