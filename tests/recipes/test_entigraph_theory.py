"""EntiGraph's toy model: figures worked out independently, and laws that hold for every graph."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leaven.errors import UsageError
from leaven.evaluate.scaling import Curve

RECIPE = Path(__file__).parents[2] / "recipes" / "entigraph_theory.py"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = found  # dataclasses look their module up
    spec.loader.exec_module(found)
    return found


theory = load(RECIPE)
TIMES = [0, 100, 1000, 9900, 19800, 49500, 99000]

graphs = st.builds(theory.known_relations, st.integers(2, 12), st.floats(0.05, 0.6), st.integers(0, 10_000))


def one_growth(seed: int) -> Any:
    known = theory.known_relations(100, 0.03, seed)
    return theory.growth_of(known, theory.search_trees(known)[1])


@pytest.fixture(scope="module")
def several() -> list[Any]:
    return [one_growth(seed) for seed in range(20)]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(RECIPE), *arguments], capture_output=True, text=True, timeout=60
    )


# Figures


def test_extinction_and_the_share_that_can_be_reached() -> None:
    rho = theory.extinction(3.0)
    assert rho == pytest.approx(0.0595202, abs=5e-8)
    assert (1 - rho) ** 2 == pytest.approx(0.884502, abs=5e-7)


def test_exact_growth_of_the_first_graph() -> None:
    expected = [0.0297, 0.0556, 0.2200, 0.6965, 0.8153, 0.8715, 0.8743]
    assert one_growth(0).at(TIMES) == pytest.approx(expected, abs=6e-5)


def test_exact_growth_over_twenty_graphs(several: list[Any]) -> None:
    expected = [0.0299, 0.0562, 0.2221, 0.7018, 0.8219, 0.8785, 0.8813]
    mean = theory.mean_growth(several)
    assert mean.at(TIMES) == pytest.approx(expected, abs=6e-5)
    assert mean.at(TIMES) == pytest.approx(np.mean([one.at(TIMES) for one in several], axis=0))


@pytest.mark.parametrize(("t", "low", "high"), [(1000, 0.1150, 0.3354), (9900, 0.5891, 0.9011)])
def test_theorem_1_bounds(t: int, low: float, high: float, several: list[Any]) -> None:
    lower, upper = theory.bounds(t, 100, 0.03)
    assert (float(lower), float(upper)) == pytest.approx((low, high), abs=6e-5)
    assert all(lower <= one.at(t) <= upper for one in several)


def test_the_lower_bound_fails_for_few_entities_unless_it_has_slack(several: list[Any]) -> None:
    """p + C counts known relations twice, p of .03 in .88; 5% of slack make up for it."""
    mean = theory.mean_growth(several)
    lower, _ = theory.bounds(99000, 100, 0.03)
    assert lower > mean.at(99000)
    lower, upper = theory.bounds(TIMES, 100, 0.03, epsilon=0.05)
    assert (lower <= mean.at(TIMES)).all() and (mean.at(TIMES) <= upper).all()
    broken = theory.broken_from(mean, 100, 0.03)
    assert broken["upper"] is None
    assert 19800 < broken["lower"] < 49500


def test_the_branching_process_is_near_while_known_relations_do_not_matter(several: list[Any]) -> None:
    mean = theory.mean_growth(several)
    times = np.array([1000, 4950, 9900, 19800])
    assert np.abs(theory.branching(times, 100, 0.03) - mean.at(times)).max() < 0.03
    ends = theory.branching([0, 1e7], 100, 0.03)
    assert ends == pytest.approx([0.03, 0.03 + (1 - theory.extinction(3.0)) ** 2])


def test_the_branching_process_agrees_with_trees_that_are_drawn() -> None:
    """Its sum over levels of the mean of s^size, against Poisson trees of those levels at one s."""
    rng = np.random.default_rng(0)
    mean, t, pairs, draws = 3.0, 20_000, 9900, 4000
    missing = 0.0
    for level in range(8):  # deeper levels weigh 3^-8 and have no chance to be missing
        generation = size = np.ones(draws, dtype=np.int64)
        for _ in range(level):
            generation = rng.poisson(mean * generation)
            size = size + generation
        missing += (mean - 1) / mean ** (level + 1) * np.exp(-size * t / pairs).mean()
    found = 0.03 + (1 - theory.extinction(mean)) ** 2 * (1 - missing)
    assert theory.branching(t, 100, 0.03) == pytest.approx(found, abs=0.003)


def test_growth_has_three_phases(several: list[Any]) -> None:
    mean = theory.mean_growth(several)
    found = theory.phases(mean)
    start, first = float(mean.at(0)), float(mean.at(1) - mean.at(0))
    assert mean.at(found.linear_until) - start == pytest.approx(0.9 * first * found.linear_until)
    assert mean.at(found.level_from) - start == pytest.approx(0.9 * (mean.limit - start))
    assert found.linear_until == pytest.approx(210.5, abs=0.5)
    assert found.level_from == pytest.approx(16_456, rel=1e-3)
    assert found.straight_in_log > 0.95 > found.straight_in_t


def test_three_exponentials_fit_the_exact_growth(several: list[Any]) -> None:
    mean = theory.mean_growth(several)
    curve = theory.fit_growth(mean)
    assert len(curve.terms) == 3
    assert all(b > 0 for b, _ in curve.terms)
    assert curve.residual < 5e-4
    assert curve.at(TIMES) == pytest.approx(mean.at(TIMES), abs=1e-3)
    assert curve.a == pytest.approx(mean.limit, abs=1e-3)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_simulation_has_the_exact_expectation(seed: int) -> None:
    """40 plays of one graph; the mean must be within four standard errors of theirs, at every time."""
    known = theory.known_relations(100, 0.03, seed)
    parents, sizes = theory.search_trees(known)
    times = [0, 100, 1000, 5000]
    rng = np.random.default_rng(seed)
    plays = np.array([theory.simulate(known, parents, times, rng) for _ in range(40)])
    error = plays.std(0, ddof=1) / math.sqrt(len(plays))
    exact = theory.growth_of(known, sizes).at(times)
    assert plays[:, 0] == pytest.approx(exact[0])
    assert (np.abs(plays.mean(0) - exact)[1:] < 4 * error[1:]).all()
    assert error.max() < 0.002  # so that the line above can fail


# Laws


def test_a_path_of_four_by_hand() -> None:
    """0 -> 1 -> 2 -> 3, and 0 -> 2: from 0, the shortest path to 3 leads over 2."""
    known = np.zeros((4, 4), dtype=bool)
    known[[0, 1, 2, 0], [1, 2, 3, 2]] = True
    parents, sizes = theory.search_trees(known)
    assert parents.tolist() == [[-1, 0, 0, 2], [-1, -1, 1, 2], [-1, -1, -1, 2], [-1, -1, -1, -1]]
    assert sizes.tolist() == [[0, 1, 2, 1], [0, 0, 2, 1], [0, 0, 0, 1], [0, 0, 0, 0]]
    growth = theory.growth_of(known, sizes)
    assert (growth.pairs, growth.known, growth.counts.tolist()) == (12, 4, [0, 2, 0, 0])
    assert growth.at(2) == pytest.approx((4 + 2 * (1 - (11 / 12) ** 2)) / 12)
    assert growth.limit == pytest.approx(6 / 12)


def test_ties_go_to_the_lower_neighbour() -> None:
    known = np.zeros((4, 4), dtype=bool)
    known[[0, 0, 1, 2], [2, 1, 3, 3]] = True
    assert theory.search_trees(known)[0][0].tolist() == [-1, 0, 0, 1]


@settings(max_examples=50, deadline=None)
@given(graphs)
def test_trees_are_shortest_paths_and_sizes_add_up(known: np.ndarray) -> None:
    count = len(known)
    parents, sizes = theory.search_trees(known)
    # Lengths of shortest paths the slow way: powers of the adjacency matrix.
    length = np.where(np.eye(count, dtype=bool), 0, count)
    walks = np.eye(count, dtype=int)
    for steps in range(1, count):
        walks = np.minimum(walks @ known, 1)
        length = np.where((walks > 0) & (length == count), steps, length)
    reached = (length > 0) & (length < count)
    assert ((parents >= 0) == reached).all() and ((sizes > 0) == reached).all()
    for root, child in zip(*np.nonzero(reached), strict=True):
        before = parents[root, child]
        assert known[before, child] and length[root, before] == length[root, child] - 1
    # Every pair's path counts once for each entity on it, so sizes and lengths have one sum.
    assert sizes.sum() == length[reached].sum()


@settings(max_examples=50, deadline=None)
@given(graphs, st.integers(0, 2000))
def test_what_the_proof_of_theorem_1_uses_holds_for_every_graph(known: np.ndarray, t: int) -> None:
    """No chance is under 1 / pairs (lower), and by concavity the mean chance for all is at best (upper)."""
    growth = theory.growth_of(known, theory.search_trees(known)[1])
    total = growth.counts.sum()
    mean = (growth.counts * np.arange(len(known))).sum() / max(total, 1) / growth.pairs
    low, high = ((growth.known + total * (1 - (1 - q) ** t)) / growth.pairs for q in (1 / growth.pairs, mean))
    assert low - 1e-9 <= growth.at(t) <= high + 1e-9
    assert growth.at(t) <= growth.limit + 1e-9


@given(st.floats(1.001, 50))
def test_extinction_is_the_least_fixed_point(mean: float) -> None:
    rho = theory.extinction(mean)
    assert 0 <= rho < 1
    assert math.exp(mean * (rho - 1)) == pytest.approx(rho, abs=1e-9)
    assert mean * rho < 1  # at the least root the map is flatter than the diagonal


def test_a_process_that_cannot_grow_dies_out() -> None:
    assert theory.extinction(1.0) == theory.extinction(0.5) == 1.0


# The command


def test_the_command_prints_its_table_and_writes_what_it_found(tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    done = command("--entities", "30", "--probability", "0.1", "--seeds", "3", "--out", str(out))
    assert done.returncode == 0, done.stderr
    for word in ("simulation", "exact", "lower", "upper", "branching", "fit", "extinction = 0.0595202"):
        assert word in done.stdout
    assert [path.name for path in out.iterdir()] == ["theory.json"]
    found = json.loads((out / "theory.json").read_text())
    assert (found["entities"], found["probability"], found["seeds"]) == (30, 0.1, 3)
    assert [row["t"] for row in found["rows"]] == [0, 9, 87, 435, 870, 1740, 4350, 8700]
    last = found["rows"][-1]
    assert last["simulation"] == pytest.approx(found["limit"], abs=0.002)
    assert last["exact"] == pytest.approx(found["limit"], abs=1e-3)
    curve = Curve.from_json(found["fit"])
    rows = found["rows"]
    assert curve.at([row["t"] for row in rows]) == pytest.approx([row["fit"] for row in rows], abs=1e-12)
    assert f"{last['exact']:.4f}" in done.stdout


def test_one_graph_has_no_error_to_tell() -> None:
    found = theory.study(20, 0.15, 1)
    assert {row["error"] for row in found["rows"]} == {None}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--probability", "0.01"], "--entities times --probability is 1; the theory needs more than 1"),
        (["--probability", "1.5"], "--probability between 0 and 1"),
        (["--entities", "1"], "--entities must be 2 or more"),
        (["--seeds", "0"], "--seeds 1 or more"),
        (["--entities", "many"], "invalid int value"),
    ],
)
def test_a_wrong_setting_is_named_and_nothing_is_written(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    done = command(*arguments, "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert said in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = command(
        "--entities", "20", "--probability", "0.2", "--seeds", "1", "--out", str(tmp_path / "file")
    )
    assert done.returncode == 2
    assert "cannot write to" in done.stderr and "Traceback" not in done.stderr


def test_entities_that_cannot_learn_are_refused() -> None:
    with pytest.raises(UsageError, match="no pair can be learnt"):
        theory.study(2, 0.9, 1)
