"""What a search found, and whether to believe it.

    progress       best and mean score, completion rate, epoch by epoch (paper 003, figure 4.6)
    kinds          hyper-parameters against algorithms (table 4.2), told from the patch: one that changes nothing but
                   literals and plain settings tunes, any other one changes what is computed
    noise floor    a single run that is nearer to the baseline than this may be the baseline
    confirmation   the winner against the baseline on fresh seeds, and in another setting, with an interval: the best of
                   many noisy scores always looks good (4.6.1 names the lack of it as the first limit of its results)

What is run is the search's and the confirmation's; all else is arithmetic on what the archive holds.
"""

from __future__ import annotations

import ast
import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from leaven.errors import UsageError
from leaven.search.archive import Archive, Attempt, Idea
from leaven.search.environment import Code, Environment, Metric
from leaven.search.patch import apply
from leaven.search.workers import Workers

LEVEL = 0.95
CONFIRM_SEEDS = 5
FIRST_FRESH_SEED = 1000  # no search uses it
Change = Literal["hyper-parameter", "algorithmic"]


@dataclass(frozen=True)
class Epoch:
    """One epoch: ideas had, how many came to a score, and their scores; `so_far` is the best until then."""

    number: int
    ideas: int
    completed: int
    mean: float | None
    best: float | None
    so_far: float | None


@dataclass(frozen=True)
class Difference:
    """Of two means over the same seeds, with a t interval of the differences; None with a single seed."""

    first: float
    second: float
    value: float
    low: float | None
    high: float | None
    seeds: int


def epochs(attempts: Sequence[Attempt], metric: Metric) -> list[Epoch]:
    """Progress of a search; attempts without an end are left out."""
    found: list[Epoch] = []
    so_far: float | None = None
    for number in sorted({one.epoch for one in attempts if one.tried}):
        ended = [one for one in attempts if one.epoch == number and one.status in ("done", "failed")]
        scores = [one.score for one in ended if one.score is not None]
        best = max(scores, key=metric.reward, default=None)
        if best is not None and (so_far is None or metric.better(best, so_far)):
            so_far = best
        mean = float(np.mean(scores)) if scores else None
        found.append(Epoch(number, len(ended), len(scores), mean, best, so_far))
    return found


def best_of(attempts: Sequence[Attempt], metric: Metric) -> Attempt | None:
    """The attempt with the best score of the search itself; of equals, the first."""
    scored = [one for one in attempts if one.score is not None and one.tried]
    return max(scored, key=lambda one: metric.reward(one.score), default=None)


def noise_floor(scores: Sequence[float]) -> float | None:
    """How far one more run of the baseline may lie from the mean of these, in 95 of 100 cases (t prediction interval).

    Args:
        scores: of the baseline, at least two; None with fewer.
    """
    if len(scores) < 2:
        return None
    from scipy.stats import t

    n = len(scores)
    return float(t.ppf((1 + LEVEL) / 2, n - 1) * np.std(scores, ddof=1) * math.sqrt(1 + 1 / n))


def paired(first: Sequence[float], second: Sequence[float]) -> Difference:
    """First minus second, seed by seed."""
    from scipy.stats import t

    apart = np.asarray(first) - np.asarray(second)
    half = None
    if len(apart) > 1:
        half = float(t.ppf((1 + LEVEL) / 2, len(apart) - 1) * apart.std(ddof=1) / math.sqrt(len(apart)))
    value = float(apart.mean())
    return Difference(
        float(np.mean(first)), float(np.mean(second)), value,
        None if half is None else value - half, None if half is None else value + half, len(apart),
    )  # fmt: skip


def kind_of_change(before: Code, after: Code) -> Change:
    """Whether a patch tunes what was there or changes what is computed."""
    if set(before) != set(after):
        return "algorithmic"
    changed = [path for path in before if before[path] != after[path]]
    return (
        "hyper-parameter" if all(_same_but_values(path, before, after) for path in changed) else "algorithmic"
    )


def _same_but_values(path: str, before: Code, after: Code) -> bool:
    if path.endswith(".py"):
        try:
            return _shape(before[path]) == _shape(after[path])
        except SyntaxError:
            return False
    if path.endswith((".yaml", ".yml", ".json")):
        try:
            first, second = (yaml.safe_load(text[path]) for text in (before, after))
        except yaml.YAMLError:
            return False
        return _keys(first) == _keys(second)
    return False


def _shape(text: str) -> str:
    """A Python file without the values of its literals; lists of literals of any length are one value."""

    class Blank(ast.NodeTransformer):
        def visit_Constant(self, node: ast.Constant) -> ast.AST:
            return ast.copy_location(ast.Constant(value=0), node)

        def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
            inner = self.visit(node.operand)
            return inner if isinstance(node.op, ast.USub) and isinstance(inner, ast.Constant) else node

        def visit_Tuple(self, node: ast.Tuple) -> ast.AST:
            return self._literal(node)

        def visit_List(self, node: ast.List) -> ast.AST:
            return self._literal(node)

        def _literal(self, node: ast.Tuple | ast.List) -> ast.AST:
            self.generic_visit(node)
            plain = all(isinstance(one, ast.Constant) for one in node.elts)
            return ast.copy_location(ast.Constant(value=0), node) if plain else node

    return ast.dump(Blank().visit(ast.parse(text)))


def _keys(value: Any) -> Any:
    return {name: _keys(one) for name, one in value.items()} if isinstance(value, dict) else None


async def confirm(
    environment: Environment,
    archive: Archive,
    attempt: Attempt,
    workers: Workers,
    seeds: int = CONFIRM_SEEDS,
    setting: str = "",
    tell: Callable[[str, int, int | None], None] = lambda *_: None,
) -> Difference:
    """The winner against the baseline on seeds that no search has used; kept in the archive.

    Args:
        environment: in the setting wanted.
        setting: its name, under which the runs are kept.

    Raises:
        UsageError: a run fails.
    """
    code = apply(attempt.patch, environment.code, environment.rules)
    wanted = [
        (part, seed)
        for part in (attempt.number, 0)
        for seed in range(FIRST_FRESH_SEED, FIRST_FRESH_SEED + seeds)
    ]
    have = {(*one.parents, one.seed): one.score for one in _confirmations(archive, setting)}
    done = 0

    async def one(part: int, seed: int) -> None:
        nonlocal done
        if (part, seed) not in have:
            outcome = await workers.value(environment, code if part else environment.code, seed)
            if outcome.score is None:
                raise UsageError(
                    f"{'attempt ' + str(part) if part else 'the baseline'} fails with seed {seed}"
                    f"{' in setting ' + setting if setting else ''}: {outcome.reason}"
                )
            (number,) = archive.add([Idea(f"confirmation {setting}".strip(), "confirm", (part,))], -2, [seed])
            archive.ended(number, outcome)
            have[part, seed] = outcome.score
        done += 1
        tell("confirming", done, len(wanted))

    await asyncio.gather(*(one(*which) for which in wanted))
    scores = [[have[part, seed] for part_, seed in wanted if part_ == part] for part in (attempt.number, 0)]
    return paired(*scores)  # type: ignore[arg-type]


def confirmed(archive: Archive, attempt: Attempt, setting: str = "") -> Difference | None:
    """What `confirm` has found, as far as both sides are there."""
    have = {(*one.parents, one.seed): one.score for one in _confirmations(archive, setting)}
    seeds = sorted(seed for part, seed in have if part == attempt.number and (0, seed) in have)
    if not seeds:
        return None
    return paired([have[attempt.number, seed] for seed in seeds], [have[0, seed] for seed in seeds])  # type: ignore[misc]


def _confirmations(archive: Archive, setting: str) -> list[Attempt]:
    name = f"confirmation {setting}".strip()
    return [one for one in archive.attempts("confirm") if one.idea == name and one.score is not None]


def settings_confirmed(archive: Archive) -> list[str]:
    """Names of the settings in which something was confirmed; the plain one is empty."""
    found = {one.idea.removeprefix("confirmation").strip() for one in archive.attempts("confirm")}
    return sorted(found)


def picture(curves: dict[str, Sequence[Epoch]], metric: str, baseline: float, path: Path) -> None:
    """Best score so far, epoch by epoch, of one or several searches; the baseline as a dashed line.

    Args:
        path: ending in ``.svg`` or ``.png``; needs the extra `plot`.
    """
    import altair as alt

    points = [
        {"search": name, "epoch": one.number, "best so far": one.so_far}
        for name, curve in curves.items()
        for one in curve
        if one.so_far is not None
    ]
    most = max((one.number for curve in curves.values() for one in curve), default=0)
    axes = {
        "x": alt.X("epoch:Q", axis=alt.Axis(format="d", values=list(range(most + 1)))),
        "y": alt.Y("best so far:Q", title=metric, scale=alt.Scale(zero=False)),
    }
    lines = (
        alt.Chart(alt.Data(values=points))
        .mark_line(point=True)
        .encode(**axes, color=alt.Color("search:N", title=None))
    )
    rule = (
        alt.Chart(alt.Data(values=[{"best so far": baseline}]))
        .mark_rule(strokeDash=[4, 4])
        .encode(y="best so far:Q")
    )
    (lines + rule).properties(width=420, height=260).save(path)
