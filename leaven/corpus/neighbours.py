"""The k nearest of every row by inner product, exactly: the same answer however the work is divided.

float32 matrix products differ in their last bits with the shape of the blocks they are computed in, enough to
change the order of two neighbours, so a flat search (faiss) only proposes some more than k rows:

    faiss, part by part of the values -> k + 17 rows of each key -> inner products again in float64, rounded
    -> the k largest, ties by row number -> brute force in float64 for keys whose k-th place is left open

A place is left open if a row that was not proposed could, by the bound of float32's error, still belong
before it or tie with it: with more than k twins, mostly. Memory does not grow with keys times values.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from leaven.corpus.embed import Vectors
from leaven.errors import UsageError

Rows = NDArray[np.int64]
Progress = Callable[[int, int], None]
Found = tuple[Rows, Rows, Vectors]

KEYS_AT_ONCE = 8192  # rows that look for neighbours in one search
VALUES_AT_ONCE = 262_144  # rows that are looked through in one search
_MORE = 16  # rows proposed beyond k and the key itself, so that few places are left open
_PRODUCTS = 256  # inner products at once: both sides stay in the cache
_CELLS = 1 << 25  # similarities at once where brute force is needed


def neighbours(
    vectors: Vectors,
    keys: Rows,
    k: int,
    above: float = -2.0,
    *,
    values_at_once: int = VALUES_AT_ONCE,
    progress: Progress | None = None,
) -> tuple[Rows, Rows, Vectors, float]:
    """The `k` nearest rows of each key, itself excluded.

    Args:
        vectors: of unit length or zero, shape (rows, d), float32; may be a memory map.
        keys: row numbers, shape (keys,).
        above: neighbours that are not more similar are left out, which saves time and memory.
        values_at_once: rows in one search; beside the vectors and the result, memory holds 100 MB at k = 200
            and, of a memory map, one such part.
        progress: called with (keys searched for, keys).

    Returns:
        (keys, rows, inner products, highest): the first three of shape (found,), in the order of `keys` and
        for each the most similar before, ties by row number; `highest` is the largest inner product seen,
        above the bound or not, with the error of float32, -inf without any.

    Raises:
        UsageError: a vector is not of unit length, or faiss is not installed.
    """
    _check_lengths(vectors)
    found: list[Found] = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))]
    highest = -math.inf
    for start in range(0, len(keys), KEYS_AT_ONCE):
        some = keys[start : start + KEYS_AT_ONCE]
        place, rows, similarity, top = _nearest(vectors, some, k, above, values_at_once)
        found.append((some[place].astype(np.int64), rows, similarity))
        highest = max(highest, top)
        if progress:
            progress(start + len(some), len(keys))
    first, second, similarity = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return first, second, similarity, highest


def similarities(vectors: Vectors, first: Rows, second: Rows) -> Vectors:
    """Inner products of pairs of rows as float64 gives them, rounded to float32, shape (pairs,)."""
    found = np.empty(len(first), dtype=np.float32)
    # Filled again and again: fresh arrays of this size come as unmapped pages, which cost five times the sums.
    narrow = np.empty((_PRODUCTS, vectors.shape[1]), dtype=np.float32)
    wide = np.empty((2, _PRODUCTS, vectors.shape[1]))
    for start in range(0, len(first), _PRODUCTS):
        end = min(start + _PRODUCTS, len(first))
        for side, rows in enumerate((first[start:end], second[start:end])):
            np.take(vectors, rows, axis=0, out=narrow[: len(rows)], mode="clip")  # "raise" would copy
            wide[side, : len(rows)] = narrow[: len(rows)]
        found[start:end] = np.einsum("ij,ij->i", wide[0, : end - start], wide[1, : end - start])
    return found


def _check_lengths(vectors: Vectors) -> None:
    for start in range(0, len(vectors), VALUES_AT_ONCE):
        part = vectors[start : start + VALUES_AT_ONCE]
        squares = np.einsum("ij,ij->i", part, part)
        wrong = np.flatnonzero(~((np.abs(squares - 1) < 1e-3) | (squares == 0)))
        if len(wrong):
            raise UsageError(
                f"vector {start + wrong[0]} has the length {math.sqrt(squares[wrong[0]]):.3g}: similarities "
                "need vectors of unit length; divide each by its length"
            )


def _nearest(
    vectors: Vectors, keys: Rows, k: int, above: float, values_at_once: int
) -> tuple[Rows, Rows, Vectors, float]:
    """`neighbours` of few keys, with places in `keys` instead of row numbers."""
    proposed = min(len(vectors), k + 1 + _MORE)
    rough, rows = _search(vectors, keys, proposed, values_at_once)
    # Bound of a float32 inner product's error (Higham, 3.1) for lengths of 1, and of rounding the exact one.
    error = (vectors.shape[1] + 4) * 2.0**-24
    other = rows != keys[:, None]
    highest = float(np.where(other, rough, -np.inf).max(initial=-np.inf))
    place, column = np.nonzero(other & (rough > above - error))
    second = rows[place, column]
    exact = similarities(vectors, keys[place], second)
    place, second, exact = _best_of_each(place, second, exact, k, above)
    if proposed == len(vectors):
        return place, second, exact, highest
    counts = np.bincount(place, minlength=len(keys))
    kth = np.full(len(keys), above, dtype=np.float64)
    full = counts == k
    kth[full] = exact[np.cumsum(counts)[full] - 1]
    still_open = np.flatnonzero(rough[:, -1] + error >= kth)
    if len(still_open):
        settled = ~np.isin(place, still_open)
        again, rows_again, exact_again = _by_brute_force(vectors, keys[still_open], k, above)
        place = np.concatenate((place[settled], still_open[again]))
        second = np.concatenate((second[settled], rows_again))
        exact = np.concatenate((exact[settled], exact_again))
        place, second, exact = _best_of_each(place, second, exact, k, above)
    return place, second, exact, highest


def _search(vectors: Vectors, keys: Rows, most: int, at_once: int) -> tuple[Vectors, Rows]:
    """The `most` nearest rows by float32 products, best before; (products, rows), shape (keys, most)."""
    try:
        import faiss
    except ImportError as error:
        raise UsageError(f"neighbours need pip install 'leaven[embed]' ({error})") from error
    queries = np.ascontiguousarray(vectors[keys], dtype=np.float32)
    best = np.zeros((len(keys), 0), dtype=np.float32)
    rows = np.zeros((len(keys), 0), dtype=np.int64)
    for start in range(0, len(vectors), at_once):
        part = np.ascontiguousarray(vectors[start : start + at_once], dtype=np.float32)
        found, at = faiss.knn(queries, part, min(most, len(part)), metric=faiss.METRIC_INNER_PRODUCT)
        best, rows = np.concatenate((best, found), axis=1), np.concatenate((rows, at + start), axis=1)
        if start:
            order = np.argsort(-best, axis=1, kind="stable")[:, :most]
            best, rows = np.take_along_axis(best, order, 1), np.take_along_axis(rows, order, 1)
    return best, rows


def _best_of_each(place: Rows, rows: Rows, similarity: Vectors, k: int, above: float) -> Found:
    """Of each place the `k` most similar rows above the bound, ties by row number; sorted so."""
    good = np.flatnonzero(similarity > above)
    order = good[np.lexsort((rows[good], -similarity[good], place[good]))]
    place, rows, similarity = place[order], rows[order], similarity[order]
    kept = np.arange(len(place)) - np.searchsorted(place, place) < k
    return place[kept], rows[kept], similarity[kept]


def _by_brute_force(vectors: Vectors, keys: Rows, k: int, above: float) -> Found:
    """(places in `keys`, rows, similarities) of the `k` nearest by float64, whatever ties there are."""
    found: list[Found] = []
    step = max(1, _CELLS // len(vectors))
    for start in range(0, len(keys), step):
        chosen = keys[start : start + step]
        queries = vectors[chosen].astype(np.float64)
        table = np.empty((len(chosen), len(vectors)), dtype=np.float32)
        for at in range(0, len(vectors), 1 << 16):
            part = slice(at, at + (1 << 16))
            table[:, part] = queries @ vectors[part].astype(np.float64).T
        table[np.arange(len(chosen)), chosen] = -np.inf
        for i, row in enumerate(table):
            kth = np.partition(row, len(row) - k)[len(row) - k] if k < len(row) else -np.inf
            rows = np.flatnonzero((row >= kth) & (row > above))
            best = _best_of_each(np.full(len(rows), start + i), rows, row[rows], k, above)
            found.append(best)
    place, second, similarity = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return place, second, similarity
