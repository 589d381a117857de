"""The mean over all pairs of documents without looking at a pair.

For unit vectors e the sum of all cosines is |sum e|^2, so the mean over the n (n - 1) ordered pairs is
(|sum e|^2 - n) / (n (n - 1)): O(n d) time and O(d) memory. Paper 000 calls 1 - mean the heterogeneity score,
paper 002 diversity.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from leaven.measure.statistics import Interval, jackknife

_BLOCK = 8192  # rows summed at once


def mean_dissimilarity(vectors: Any, groups: NDArray[np.intp]) -> tuple[float, Interval | None]:
    """1 - mean cosine over all pairs of rows, with the interval that leaves out one group at a time.

    Args:
        vectors: shape (rows, d), dense or scipy-sparse; rows of unit length (a zero row is like no other).
        groups: group of every row as numbers from 0, shape (rows,); pairs inside a group count as well.

    Returns:
        nan for fewer than two rows.
    """
    from scipy.sparse import csr_array

    rows, width = vectors.shape
    if rows < 2:
        return float("nan"), None
    count = int(groups.max()) + 1
    sums, squares = np.zeros((count, width)), np.zeros(count)
    for start in range(0, rows, _BLOCK):
        block, group = vectors[start : start + _BLOCK], groups[start : start + _BLOCK]
        ones = np.ones(len(group), dtype=np.float64)
        members = csr_array((ones, (group, np.arange(len(group)))), shape=(count, len(group)))
        part = members @ block.astype(np.float64)
        sums += part.toarray() if hasattr(part, "toarray") else part
        squares += np.bincount(group, _squares(block), count)
    sizes = np.bincount(groups, minlength=count)
    value = _dissimilarity(sums.sum(0), squares.sum(), rows)
    replicates = [
        _dissimilarity(sums.sum(0) - sums[g], squares.sum() - squares[g], rows - sizes[g])
        for g in range(count)
    ]
    return value, jackknife(replicates, value)


def _dissimilarity(total: NDArray[np.float64], squares: float, rows: int) -> float:
    return 1 - float((total @ total - squares) / (rows * (rows - 1))) if rows > 1 else float("nan")


def _squares(block: Any) -> NDArray[np.float64]:
    """Squared length of every row."""
    if hasattr(block, "multiply"):
        return np.asarray(block.multiply(block).sum(axis=1), dtype=np.float64).ravel()
    found: NDArray[np.float64] = np.einsum("ij,ij->i", block, block, dtype=np.float64)
    return found
