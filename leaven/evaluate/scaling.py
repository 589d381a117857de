"""How a figure grows with more tokens: a mixture of exponentials, fitted by least squares.

    y(x) = a - b1 r1^(x/unit) - b2 r2^(x/unit) - ...        0 < r < 1

The form is that of EntiGraph's scaling law ("Synthetic continued pretraining", seed 003, section A.5.1, with three
terms): a figure moves fast at first, then about with the logarithm of the tokens, then levels off at `a`. All b
have one sign, positive for figures that rise (accuracy) and negative for those that fall (loss), so a fitted curve
never turns back.

For given r the best a and b follow from a linear problem (non-negative least squares), so the search is over the r
alone (variable projection, Golub and Pereyra 1973), on the logarithm of their decay per token, from several starts.
The paper fits all seven numbers at once; where that ends depends on its start and on the unit of x.

`a` is where the curve goes after the last point and is only as good as the bend that the points show: while they
still lie on a straight line, in x or in log x, next to nothing is known about it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from leaven.errors import UsageError

__all__ = ["Curve", "fit"]

STARTS = 12
# Limits of a term's decay (-ln r per x). Slower than this over all points is a straight line to more digits than
# any measurement has; faster than this between the two nearest points is a step that only the first point sees.
SLOWEST, FASTEST = 0.01, 10.0
_LARGEST = 600.0  # exponent that a float still holds

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """y(x) = a - sum of b r^(x/unit).

    Args:
        a: where it goes as x grows, in the unit of y.
        terms: (b, r) of every term, the slowest (greatest r) first; b in the unit of y.
        unit: what one power of r stands for, in the unit of x; keeps r off 1, where a float has few digits left.
        residual: root mean square distance to the points it was fitted to; None where it was not fitted.
    """

    a: float
    terms: tuple[tuple[float, float], ...]
    unit: float = 1.0
    residual: float | None = None

    def at(self, x: ArrayLike) -> Floats:
        """The curve's value for every x; same shape as `x`."""
        powers = np.asarray(x, dtype=float) / self.unit
        found = np.full(powers.shape, self.a)
        for b, r in self.terms:
            found -= b * r**powers
        return found

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, for `from_json`."""
        terms = [{"b": b, "r": r} for b, r in self.terms]
        return {"a": self.a, "terms": terms, "unit": self.unit, "residual": self.residual}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Curve:
        """What `to_json` made, from before or after a file."""
        terms = tuple((term["b"], term["r"]) for term in value["terms"])
        return cls(value["a"], terms, value["unit"], value["residual"])


def fit(x: ArrayLike, y: ArrayLike, terms: int = 3, *, seed: int = 0) -> Curve:
    """The mixture of exponentials nearest to the points by least squares, best of several starts.

    Args:
        x: token counts, shape (points,); in any unit, not negative, in any order.
        y: what was measured there, shape (points,).
        terms: exponentials at most; a term that the points have no use for is left out.
        seed: of the starts.

    Returns:
        the curve, with its residual.

    Raises:
        UsageError: lengths differ, a value is not finite or a count is negative, there are fewer different x than
            parameters (2 terms + 1), or all x lie so far from 0 that they say nothing about the way from there.
    """
    from scipy.optimize import least_squares

    x, y = _checked(x, y, terms)
    if np.ptp(y) == 0:
        return Curve(float(y[0]), (), residual=0.0)
    different, rank = np.unique(x, return_inverse=True)
    origin, span = float(x.min()), float(np.ptp(x))
    nearest = max(float(np.diff(different).min()), span * 1e-9)
    fastest = min(FASTEST / nearest, _LARGEST / origin) if origin else FASTEST / nearest
    since = (x - origin) / span
    low, high = math.log(SLOWEST), math.log(fastest * span)
    sign = 1.0 if np.cov(rank, y)[0, 1] >= 0 else -1.0
    target = sign * (y - y.mean()) / np.ptp(y)

    def search(start: Floats, tolerance: float) -> Any:
        return least_squares(
            lambda speeds: _project(since, target, np.exp(speeds))[1],
            start, bounds=(low, high), xtol=tolerance, ftol=tolerance, gtol=tolerance, max_nfev=200,
        )  # fmt: skip

    rng = np.random.default_rng(seed)
    even = np.linspace(low, high, terms + 2)[1:-1]
    starts = [even, *np.sort(rng.uniform(low, high, (STARTS - 1, terms)), axis=1)]
    nearly = min((search(start, 1e-6) for start in starts), key=lambda one: one.cost)
    speeds = np.exp(search(nearly.x, 1e-14).x)
    weights = _project(since, target, speeds)[0] * sign * np.ptp(y)
    # A power of 1000 (per token, thousand, million) that neither end of the speeds makes 0 or 1 as a float.
    unit = 1000.0 ** math.floor(math.log10(min(span, _LARGEST / fastest)) / 3)
    return _curve(x, y, speeds / span, weights, unit)


def _checked(x: ArrayLike, y: ArrayLike, terms: int) -> tuple[Floats, Floats]:
    """The points as arrays, or a line that says why they cannot be fitted."""
    if terms < 1:
        raise UsageError(f"scaling fit: terms is {terms}; give 1 or more")
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if x.ndim != 1 or x.shape != y.shape:
        raise UsageError(f"scaling fit: x has shape {x.shape} and y {y.shape}; give one y for every x")
    for name, values, wrong in (("x", x, ~np.isfinite(x) | (x < 0)), ("y", y, ~np.isfinite(y))):
        if wrong.any():
            place = int(np.flatnonzero(wrong)[0])
            kind = "finite and not negative" if name == "x" else "finite"
            raise UsageError(f"scaling fit: {name}[{place}] is {values[place]}; every {name} must be {kind}")
    needed, given = 2 * terms + 1, len(np.unique(x))
    if given < needed:
        most = (given - 1) // 2
        mend = f"give more points or ask for terms={most}" if most else "give at least 3 points"
        raise UsageError(
            f"scaling fit: {terms} terms need points at {needed} different x, there are {given}; {mend}"
        )
    if x.min() * FASTEST > np.ptp(x) * _LARGEST:
        raise UsageError(
            f"scaling fit: x from {x.min():g} to {x.max():g} is too short a stretch so far from 0; "
            "subtract what came before the first point"
        )
    order = np.lexsort((y, x))  # so that the order they came in decides nothing, not even by rounding
    return x[order], y[order]


def _project(since: Floats, target: Floats, speeds: Floats) -> tuple[Floats, Floats]:
    """Best weights, none negative, for terms of these speeds.

    Args:
        since: x from the first point on, shape (points,).
        target: y with mean 0, which takes `a` out of the problem, shape (points,).
        speeds: -ln r per unit of `since`, shape (terms,).

    Returns:
        (weights at the first point, residuals).
    """
    from scipy.optimize import nnls

    columns = -np.exp(-np.outer(since, speeds))
    columns -= columns.mean(0)
    norms = np.linalg.norm(columns, axis=0)
    weights, _ = nnls(columns / norms, target)
    weights /= norms
    return weights, columns @ weights - target


def _curve(x: Floats, y: Floats, speeds: Floats, weights: Floats, unit: float) -> Curve:
    """The curve of these terms: weights brought from the first point to x = 0, those of no use left out."""
    used = weights != 0
    speeds, weights = speeds[used], weights[used]
    order = np.argsort(speeds)
    terms = tuple(
        (float(weight * math.exp(speed * x.min())), math.exp(-speed * unit))
        for speed, weight in zip(speeds[order], weights[order], strict=True)
    )
    raw = Curve(0.0, terms, unit)
    a = float((y - raw.at(x)).mean())
    return Curve(a, terms, unit, float(np.sqrt(np.mean((y - a - raw.at(x)) ** 2))))
