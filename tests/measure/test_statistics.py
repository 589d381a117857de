"""Intervals cover, seeds reproduce, and kappa is kappa."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import cohen_kappa_score

from leaven.measure.lexical import ngram_diversity
from leaven.measure.pairs import mean_dissimilarity
from leaven.measure.statistics import (
    Interval,
    bootstrap,
    bootstrap_ratio,
    cohen_kappa,
    groups_of,
    jackknife,
    paired_difference,
    wilson,
)

TRIALS = 500


def covered(draw: Callable[[np.random.Generator], Interval | None], truth: float) -> float:
    """Share of intervals, from independent data, that hold the truth."""
    rng = np.random.default_rng(1)
    found = [draw(rng) for _ in range(TRIALS)]
    return float(np.mean([one is not None and one.low <= truth <= one.high for one in found]))


@pytest.mark.parametrize("count", [8, 40])
def test_a_mean_is_covered(count: int) -> None:
    share = covered(lambda rng: bootstrap_ratio(rng.normal(3, 2, count), seed=0, draws=400)[1], 3.0)
    assert 0.92 <= share <= 0.98


def test_a_mean_of_rows_that_resemble_one_another_is_covered_by_drawing_their_sources() -> None:
    units = [f"source {i // 10}" for i in range(200)]

    def rows(rng: np.random.Generator) -> NDArray[np.float64]:
        return np.repeat(rng.normal(0, 1, 20), 10) + rng.normal(0, 0.3, 200)

    share = covered(lambda rng: bootstrap_ratio(rows(rng), None, units, seed=0, draws=400)[1], 0.0)
    assert 0.92 <= share <= 0.98
    naive = covered(lambda rng: bootstrap_ratio(rows(rng), seed=0, draws=400)[1], 0.0)
    assert naive < 0.7, "drawing rows would have been far too sure"


def test_a_ratio_and_a_share_are_covered() -> None:
    def ratio(rng: np.random.Generator) -> Interval | None:
        under = rng.integers(50, 150, 60)
        return bootstrap_ratio(rng.binomial(under, 0.1), under, seed=0, draws=400)[1]

    assert 0.92 <= covered(ratio, 0.1) <= 0.98
    share = covered(lambda rng: bootstrap_ratio(rng.random(60) < 0.2, seed=0, draws=400)[1], 0.2)
    assert 0.92 <= share <= 0.98


def test_a_difference_of_pairs_is_covered_and_much_narrower_than_unpaired() -> None:
    units = [str(i) for i in range(30)]

    def pair(rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        hard = rng.normal(0, 5, 30)
        return hard + rng.normal(1, 1, 30), hard + rng.normal(0, 1, 30)

    def interval(rng: np.random.Generator) -> Interval | None:
        first, second = pair(rng)
        return paired_difference((first, None, units), (second, None, units), seed=0, draws=400)[1]

    assert 0.92 <= covered(interval, 1.0) <= 0.98
    first, second = pair(np.random.default_rng(5))
    together = paired_difference((first, None, units), (second, None, units), seed=0)[1]
    alone = bootstrap_ratio(first, seed=0)[1]
    assert together and alone and together.high - together.low < 0.4 * (alone.high - alone.low)


def test_figures_of_a_whole_set_are_covered_by_the_jackknife() -> None:
    """Documents of words drawn by Zipf's law: the truth is the mean figure over many such sets."""

    def documents(rng: np.random.Generator) -> list[NDArray[np.uint64]]:
        return [rng.zipf(1.5, 60).astype(np.uint64) for _ in range(60)]

    groups = groups_of([str(i) for i in range(60)], 0)
    rng = np.random.default_rng(2)
    truth = float(np.mean([ngram_diversity(documents(rng), groups)[0] for _ in range(400)]))
    assert 0.92 <= covered(lambda rng: ngram_diversity(documents(rng), groups)[1], truth) <= 0.98


def test_the_mean_over_pairs_is_covered() -> None:
    def vectors(rng: np.random.Generator) -> NDArray[np.float64]:
        raw = rng.normal(0, 1, (80, 16)) + 0.7
        return raw / np.linalg.norm(raw, axis=1, keepdims=True)

    groups = np.arange(80) % 20
    rng = np.random.default_rng(2)
    truth = float(np.mean([mean_dissimilarity(vectors(rng), groups)[0] for _ in range(400)]))
    assert 0.92 <= covered(lambda rng: mean_dissimilarity(vectors(rng), groups)[1], truth) <= 0.98


def test_the_same_seed_gives_the_same_interval_whatever_the_order_of_rows() -> None:
    values = [1.0, 2.0, 5.0, 9.0, *np.random.default_rng(0).normal(4, 2, 30).tolist()]
    units = ["b", "a", "b", "c", *(f"d{i // 2}" for i in range(30))]
    found = bootstrap_ratio(values, None, units, seed=7)
    assert found == bootstrap_ratio(values, None, units, seed=7)
    assert found == bootstrap_ratio(values[::-1], None, units[::-1], seed=7)
    assert found != bootstrap_ratio(values, None, units, seed=8)
    assert found[1] and found[1].units == 18


def test_a_share_of_none_or_all_is_not_certain() -> None:
    value, interval = bootstrap_ratio([0.0] * 20, seed=0)
    assert value == 0 and interval == wilson(0, 20) and 0.1 < interval.high < 0.2
    value, interval = bootstrap_ratio([1.0] * 20, None, ["a"] * 10 + ["b"] * 10, seed=0)
    assert value == 1 and interval == wilson(2, 2), "two sources say less than twenty rows"


def test_too_little_to_tell_has_no_interval() -> None:
    assert bootstrap_ratio([3.0], seed=0) == (3.0, None)
    assert bootstrap_ratio([1.0, 2.0], None, ["one", "one"], seed=0) == (1.5, None)
    value, interval = bootstrap_ratio([], seed=0)
    assert math.isnan(value) and interval is None
    assert jackknife([1.0], 1.0) is None and jackknife([1.0, math.nan], 1.0) is None


def test_any_function_of_sums_has_an_interval() -> None:
    value, interval = bootstrap([[2.0, 4.0, 6.0], [1.0, 1.0, 1.0]], lambda a, b: np.exp(a / b), seed=0)
    assert value == pytest.approx(math.exp(4)) and interval and interval.low < value < interval.high


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=60), st.integers(2, 6))
def test_no_unit_is_split_between_groups(units: list[str], most: int) -> None:
    groups = groups_of(units, 3, most)
    assert len(groups) == len(units) and set(groups) == set(range(min(most, len(set(units)))))
    assert len(set(zip(units, groups.tolist(), strict=True))) == len(set(units))


ratings = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=2, max_size=50)


@given(ratings)
def test_kappa_is_scikit_learns(pairs: list[tuple[int, int]]) -> None:
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    found = cohen_kappa(first, second, seed=0, draws=10)
    assert found.observed == pytest.approx(np.mean(np.array(first) == np.array(second)))
    if len(set(first) | set(second)) > 1:
        assert found.kappa == pytest.approx(cohen_kappa_score(first, second), nan_ok=True)
    if len(set(first) | set(second)) > 2:
        weighted = cohen_kappa_score(first, second, labels=range(1, 6), weights="quadratic")
        assert found.weighted == pytest.approx(weighted, nan_ok=True)
    assert sum(found.table.values()) == len(pairs)
