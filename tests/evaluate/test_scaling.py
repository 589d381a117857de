"""Mixtures of exponentials: the paper's curve, found again from its points in any unit, and what every fit must be."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leaven.errors import UsageError
from leaven.evaluate.scaling import Curve, fit

# EntiGraph's accuracy on QuALITY by millions of synthetic tokens, as printed (seed 003, A.5.1).
PAPER = Curve(64.5456, ((13.8352, 0.9989), (8.4705, 0.8961), (3.932, 0.0546)))
TOKENS = np.array([0, 1, 2, 5, 10, 20, 50, 100, 200, 334, 455], dtype=float)  # millions

finite = st.floats(-1e3, 1e3).map(lambda value: round(value, 6))
# Counts as an experiment has them: different, some orders of magnitude apart, with figures that are anything.
points = st.lists(
    st.tuples(st.integers(0, 10**7), finite), min_size=7, max_size=12, unique_by=lambda one: one[0]
)


@pytest.mark.parametrize(
    ("tokens", "accuracy"),
    [
        (0, 38.308),
        (1, 42.921),
        (10, 48.034),
        (100, 52.152),
        (334, 54.966),
        (455, 56.161),
        (1000, 59.943),
    ],
)
def test_the_papers_curve_has_the_papers_values(tokens: float, accuracy: float) -> None:
    assert PAPER.at(tokens) == pytest.approx(accuracy, abs=0.0011)


def test_a_curve_keeps_the_shape_of_x() -> None:
    assert PAPER.at(3).shape == ()
    assert PAPER.at([[0, 1, 2]]).shape == (1, 3)
    assert PAPER.at(np.array([0, 455])) == pytest.approx([float(PAPER.at(0)), float(PAPER.at(455))])


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e6, 1e9])
@pytest.mark.parametrize("sign", [1, -1], ids=["rising", "falling"])
def test_a_curve_is_found_again_from_its_points(unit: float, sign: int) -> None:
    """Eleven points without noise, seven parameters: what is left is rounding (1e-14) times the problem's condition."""
    found = fit(TOKENS * unit, sign * PAPER.at(TOKENS))
    assert found.unit == unit
    assert found.a == pytest.approx(sign * PAPER.a, rel=1e-6)
    expected = np.array(PAPER.terms) * (sign, 1)
    assert np.array(found.terms) == pytest.approx(expected, rel=1e-6)
    assert found.residual == pytest.approx(0, abs=1e-6)
    assert found.at(1000 * unit) == pytest.approx(float(sign * PAPER.at(1000)), abs=1e-6)


@pytest.mark.parametrize("largest", [1e4, 1e8, 1e12])
def test_counts_of_any_size_can_be_fitted(largest: float) -> None:
    """Evenly in log from 100 tokens on: at most ten orders of magnitude between the nearest points and all."""
    x = np.geomspace(100, largest, 25)
    slow = Curve(0.7, ((0.4, math.exp(-0.01)), (0.2, math.exp(-3))), unit=largest / 300)
    found = fit(x, slow.at(x), terms=2)
    assert found.at(x) == pytest.approx(slow.at(x), abs=1e-5)
    assert found.a == pytest.approx(0.7, abs=1e-3)


def test_noise_is_averaged_out_and_becomes_the_residual() -> None:
    rng = np.random.default_rng(0)
    x = np.repeat(TOKENS, 20)  # 20 seeds at every budget
    found = fit(x, PAPER.at(x) + rng.normal(0, 0.3, len(x)))
    assert found.residual == pytest.approx(0.3, rel=0.15)
    # 220 points, 7 parameters: the curve's own error is 0.3 sqrt(7/220) = 0.05 on average; four of those
    assert np.abs(found.at(TOKENS) - PAPER.at(TOKENS)).max() < 0.2


def test_a_small_fall_under_much_noise_is_a_fall() -> None:
    """1,000 seeds at each of three budgets; the means are known to 3 / sqrt(1000) = 0.1."""
    x = np.repeat([0.0, 1.0, 2.0], 1000)
    truth = Curve(0.0, ((-1.0, 0.5),))
    found = fit(x, truth.at(x) + np.random.default_rng(0).normal(0, 3, len(x)), terms=1)
    assert found.terms[0][0] < 0
    assert found.at([0, 1, 2]) == pytest.approx(truth.at([0, 1, 2]), abs=0.4)


def test_terms_that_are_not_needed_are_left_out_or_agree() -> None:
    one = Curve(2.0, ((-1.5, 0.9),))
    found = fit(TOKENS, one.at(TOKENS), terms=2)
    assert found.a == pytest.approx(2.0, abs=1e-6)
    assert sum(b for b, _ in found.terms) == pytest.approx(-1.5, abs=1e-6)
    assert found.at([3, 70]) == pytest.approx(one.at([3, 70]), abs=1e-6)


def test_a_constant_has_no_terms() -> None:
    found = fit([1, 2, 3, 4, 5, 6, 7], [0.25] * 7)
    assert found == Curve(0.25, (), residual=0.0)
    assert found.at([0, 9]) == pytest.approx([0.25, 0.25])


def test_points_that_begin_late_are_described_from_zero_on() -> None:
    x = np.array([4, 5, 6, 8, 10, 15, 20]) * 1e5
    loss = Curve(3.0, ((-2.0, 0.1),), unit=1e6)
    found = fit(x, loss.at(x), terms=1)
    assert found.at(0) == pytest.approx(5.0, abs=1e-6)
    assert found.terms[0][0] == pytest.approx(-2.0, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    a=st.floats(-100, 100),
    b=st.floats(0.1, 50),
    falling=st.booleans(),
    half=st.floats(0.05, 0.9),
    exponent=st.integers(2, 12),
)
def test_any_single_exponential_is_found_again(
    a: float, b: float, falling: bool, half: float, exponent: int
) -> None:
    """`half` is where half of the way is made, as a share of the greatest count."""
    x = np.array([0, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0]) * 10.0**exponent
    truth = Curve(a, ((-b if falling else b, 0.5),), unit=half * 10.0**exponent)
    found = fit(x, truth.at(x), terms=1)
    assert found.a == pytest.approx(a, abs=1e-5 * b)
    assert found.at(x) == pytest.approx(truth.at(x), abs=1e-7 * b)
    assert found.terms[0][1] ** (1 / found.unit) == pytest.approx(0.5 ** (1 / truth.unit), abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(points, st.integers(1, 3))
def test_whatever_the_points_the_curve_is_a_mixture_of_one_direction(
    given_points: list[tuple[int, float]], terms: int
) -> None:
    x, y = np.array(given_points, dtype=float).T
    found = fit(x, y, terms=terms)
    assert len(found.terms) <= terms
    assert all(0 < r < 1 for _, r in found.terms)
    assert len({b > 0 for b, _ in found.terms}) <= 1
    assert [r for _, r in found.terms] == sorted((r for _, r in found.terms), reverse=True)
    left = y - found.at(x)
    assert found.residual == pytest.approx(math.sqrt(np.mean(left**2)), abs=1e-9)
    assert found.residual <= y.std() + 1e-9  # a constant is a mixture too
    assert fit(x[::-1], y[::-1], terms=terms) == found
    assert Curve.from_json(json.loads(json.dumps(found.to_json()))) == found


@settings(max_examples=20, deadline=None)
@given(points, st.sampled_from([1e-3, 1e3, 1e6]), st.floats(-50, 50), st.sampled_from([-3.0, -0.01, 100.0]))
def test_units_of_x_and_y_do_not_matter(
    given_points: list[tuple[int, float]], scale: float, shift: float, factor: float
) -> None:
    x, y = np.array(given_points, dtype=float).T
    plain, other = fit(x, y, terms=1), fit(x * scale, shift + factor * y, terms=1)
    assert other.residual == pytest.approx(
        abs(factor) * plain.residual, abs=abs(factor) * 1e-3 * (1e-3 + y.std())
    )


def test_more_terms_fit_no_worse_and_the_seed_decides_nothing_here() -> None:
    y = PAPER.at(TOKENS) + np.random.default_rng(1).normal(0, 0.1, len(TOKENS))
    residuals = [fit(TOKENS, y, terms=terms).residual for terms in (1, 2, 3)]
    assert residuals == sorted(residuals, reverse=True)
    several = [fit(TOKENS, y, seed=seed) for seed in range(4)]
    assert several[0] == fit(TOKENS, y, seed=0)
    assert [one.a for one in several] == pytest.approx([several[0].a] * 4, rel=1e-3)


@pytest.mark.parametrize(
    ("x", "y", "terms", "said"),
    [
        ([1, 2, 3, 4, 5, 6], [1] * 6, 3, "3 terms need points at 7 different x, there are 6; .* terms=2"),
        ([1, 1, 1, 2, 2, 2, 2], [1] * 7, 3, "there are 2; give at least 3 points"),
        ([], [], 1, "there are 0"),
        ([1, 2, 3], [1, 2], 1, r"x has shape \(3,\) and y \(2,\)"),
        ([[1, 2, 3]], [[1, 2, 3]], 1, "shape"),
        ([1, 2, math.inf], [1, 2, 3], 1, r"x\[2\] is inf"),
        ([1, -2, 3], [1, 2, 3], 1, r"x\[1\] is -2.0; every x must be finite and not negative"),
        ([1, 2, 3], [1, math.nan, 3], 1, r"y\[1\] is nan"),
        ([1, 2, 3], [1, 2, 3], 0, "terms is 0"),
        ([1e9, 1e9 + 1, 1e9 + 2], [1, 2, 3], 1, "too short a stretch"),
    ],
)
def test_what_cannot_be_fitted_is_refused_in_one_line(x: list, y: list, terms: int, said: str) -> None:
    with pytest.raises(UsageError, match=said) as error:
        fit(x, y, terms=terms)
    assert "\n" not in str(error.value)
