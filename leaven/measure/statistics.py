"""Intervals: what would this figure have been on other documents of the same kind?

What is drawn anew is the `unit`, not the row: children of one source resemble one another, so where rows have
sources the sources are drawn, each with all its children. Two ways, by what the figure is:

    bootstrap         functions of sums over rows (a mean, a share, a rate): the bootstrap, with Hesterberg's
                      widened percentiles ("What Teachers Should Know About the Bootstrap", 2015), because the
                      plain ones are too narrow for few units (8 sources: 88% where 95% is said)
    jackknife         figures of the whole set (distinct n-grams, compression, mean similarity of pairs):
                      leave out one group of units at a time. Drawing with replacement would put copies into
                      the set, which such figures see as repetition

Differences are paired where both corpora were written from the same sources: the same sources are drawn for
both, so what is hard about a source cancels out. Everything is a function of the seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
DRAWS = 2000
GROUPS = 20  # of the jackknife, where there are more units
_CELLS = 20_000_000  # of the matrix of draws held at once

Floats = NDArray[np.float64]
Statistic = Callable[..., Floats]
Side = tuple[ArrayLike, ArrayLike | None, Sequence[Hashable]]


@dataclass(frozen=True, slots=True)
class Interval:
    """A 95% interval.

    Args:
        kind: how it was found; ``wilson`` stands in where a share is 0 or 1 and there is no spread to draw
            from.
        units: how many things were drawn or left out; fewer than 10 give a rough interval.
    """

    low: float
    high: float
    kind: Literal["bootstrap", "jackknife", "wilson"]
    units: int


def groups_of(units: Sequence[Hashable], seed: int, most: int = GROUPS) -> NDArray[np.intp]:
    """A group number for every row, so that no unit is split.

    Args:
        units: the unit of every row, shape (rows,).
        most: groups; with fewer units each unit is a group. Larger numbers of units are dealt out at random.

    Returns:
        shape (rows,), values from 0 to the number of groups - 1.
    """
    numbers = _numbers(units)
    count = int(numbers.max(initial=-1)) + 1
    if count <= most:
        return numbers
    dealt = np.arange(count) % most
    np.random.default_rng(seed).shuffle(dealt)
    return dealt[numbers]


def bootstrap(
    parts: Sequence[ArrayLike],
    statistic: Statistic,
    units: Sequence[Hashable] | None = None,
    *,
    seed: int,
    draws: int = DRAWS,
) -> tuple[float, Interval | None]:
    """A function of sums over rows, with its interval.

    Args:
        parts: what is summed, each of shape (rows,).
        statistic: from the sums to the figure; called with scalars and with arrays of shape (draws,).
        units: the unit of every row; None draws rows.

    Returns:
        (value, interval); no interval for fewer than two units. nan for no rows.
    """
    sums = [_by_unit(part, units) for part in parts]
    count = len(sums[0])
    if not count:
        return math.nan, None
    with np.errstate(invalid="ignore", divide="ignore"):
        value = float(statistic(*(one.sum(keepdims=True) for one in sums))[0])
        if count < 2 or not math.isfinite(value):
            return value, None
        rng = np.random.default_rng(seed)
        step = max(1, _CELLS // count)
        found: list[Floats] = []
        for start in range(0, draws, step):
            chosen = rng.integers(count, size=(min(step, draws - start), count))
            found.append(statistic(*(one[chosen].sum(1) for one in sums)))
    drawn = np.concatenate(found)
    return value, _percentiles(drawn[np.isfinite(drawn)], count)


def bootstrap_ratio(
    numerators: ArrayLike,
    denominators: ArrayLike | None = None,
    units: Sequence[Hashable] | None = None,
    *,
    seed: int,
    draws: int = DRAWS,
) -> tuple[float, Interval | None]:
    """A ratio of sums over rows, such as a mean or a share, with its interval; see `bootstrap`.

    Args:
        numerators: shape (rows,).
        denominators: shape (rows,); None is all ones, which gives the mean.
    """
    over = np.asarray(numerators, dtype=float)
    if denominators is None and len(over) and (not over.any() or (over == 1).all()):
        share = float(over[0])
        count = len(over) if units is None else len(set(units))
        return share, wilson(round(share * count), count) if count > 1 else None
    under = np.ones_like(over) if denominators is None else denominators
    return bootstrap([over, under], _ratio, units, seed=seed, draws=draws)


def _ratio(over: Floats, under: Floats) -> Floats:
    return over / under


def paired_difference(
    first: Side, second: Side, *, seed: int, draws: int = DRAWS
) -> tuple[float, Interval | None]:
    """First ratio minus the second, drawing the units that both have.

    Args:
        first, second: (numerators, denominators, units) as of `bootstrap_ratio`.

    Returns:
        (difference, interval) over the common units; nan if there is none.
    """
    common = set(first[2]) & set(second[2])
    parts: list[Floats] = []
    for over, under, units in (first, second):
        kept = [i for i, unit in enumerate(units) if unit in common]
        chosen = [units[i] for i in kept]
        below = np.ones(len(units)) if under is None else np.asarray(under, dtype=float)
        parts += [_by_unit(np.asarray(part, dtype=float)[kept], chosen) for part in (over, below)]
    return bootstrap(parts, lambda a, b, c, d: a / b - c / d, seed=seed, draws=draws)


def jackknife(replicates: ArrayLike, value: float) -> Interval | None:
    """Interval around `value` from the values without one group each.

    Args:
        replicates: the figure without group g, for every g, shape (groups,).

    Returns:
        value +- t * standard error, or None for fewer than two groups.
    """
    from scipy.stats import t

    found = np.asarray(replicates, dtype=float)
    count = len(found)
    if count < 2 or not np.isfinite(found).all():
        return None
    error = math.sqrt((count - 1) / count * float(((found - found.mean()) ** 2).sum()))
    reach = float(t.ppf((1 + LEVEL) / 2, count - 1)) * error
    return Interval(value - reach, value + reach, "jackknife", count)


def wilson(successes: int, trials: int) -> Interval:
    """Wilson's score interval of a share."""
    from scipy.stats import binomtest

    found = binomtest(successes, trials).proportion_ci(LEVEL, method="wilson")
    return Interval(float(found.low), float(found.high), "wilson", trials)


@dataclass(frozen=True)
class Agreement:
    """Cohen's kappa of two raters.

    Args:
        kappa: 1 is full agreement, 0 what chance gives.
        weighted: with squared distances as weights, where classes are numbers in order; else None.
        observed: share of items on which both agree.
        table: counts by (first rater's class, second's).
    """

    kappa: float
    interval: Interval | None
    weighted: float | None
    observed: float
    items: int
    table: dict[tuple[Any, Any], int]


def cohen_kappa(first: Sequence[Any], second: Sequence[Any], *, seed: int, draws: int = DRAWS) -> Agreement:
    """Agreement beyond chance of two raters on the same items (Cohen 1960; weighted: 1968).

    Args:
        first, second: classes given to the items, shape (items,).

    Raises:
        ValueError: no items, or numbers of them that differ.
    """
    if not first or len(first) != len(second):
        raise ValueError("both raters must have rated the same items, and at least one")
    classes = sorted(set(first) | set(second), key=lambda one: (str(type(one)), one))
    number = {name: i for i, name in enumerate(classes)}
    size = len(classes)
    cells = np.array([number[a] * size + number[b] for a, b in zip(first, second, strict=True)])
    counts = np.bincount(cells, minlength=size * size).reshape(size, size)
    ordered = all(isinstance(name, int | float) and not isinstance(name, bool) for name in classes)
    rng = np.random.default_rng(seed)
    drawn = [
        _kappa(np.bincount(cells[rng.integers(len(cells), size=len(cells))], minlength=size * size), size)
        for _ in range(draws)
    ]
    finite = np.array([one for one in drawn if not math.isnan(one)])
    kappa = _kappa(counts, size)
    interval = _percentiles(finite, len(cells)) if len(finite) > draws // 2 and len(cells) > 1 else None
    table = {(a, b): int(counts[i, j]) for a, i in number.items() for b, j in number.items() if counts[i, j]}
    distances = np.subtract.outer(classes, classes).astype(float) ** 2 if ordered and size > 2 else None
    weighted = None if distances is None else _kappa(counts, size, distances)
    return Agreement(kappa, interval, weighted, float(np.trace(counts) / counts.sum()), len(cells), table)


def _kappa(counts: NDArray[Any], size: int, weights: Floats | None = None) -> float:
    """nan where both raters gave one and the same class to everything: there is no chance to go beyond."""
    counts = counts.reshape(size, size) / counts.sum()
    penalty = 1 - np.eye(size) if weights is None else weights
    expected = float((np.outer(counts.sum(1), counts.sum(0)) * penalty).sum())
    return math.nan if expected == 0 else 1 - float((counts * penalty).sum()) / expected


def _numbers(units: Sequence[Hashable]) -> NDArray[np.intp]:
    """Units as numbers by their sorted order, so that the order of rows decides nothing."""
    order = {unit: i for i, unit in enumerate(sorted(set(units), key=repr))}
    return np.fromiter((order[unit] for unit in units), dtype=np.intp, count=len(units))


def _by_unit(rows: ArrayLike, units: Sequence[Hashable] | None) -> Floats:
    """Sums over the rows of each unit, shape (units,)."""
    values = np.asarray(rows, dtype=float)
    if units is None:
        return values
    numbers = _numbers(units)
    return np.bincount(numbers, values, int(numbers.max(initial=-1)) + 1).astype(float)


def _percentiles(drawn: Floats, count: int) -> Interval | None:
    """Hesterberg's expanded percentiles: tails so far out that for a normal mean they meet the t interval."""
    from scipy.stats import norm, t

    if not len(drawn):
        return None
    reach = math.sqrt(count / (count - 1)) * float(t.ppf((1 + LEVEL) / 2, count - 1))
    tail = float(norm.cdf(-reach))
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(float(low), float(high), "bootstrap", count)
