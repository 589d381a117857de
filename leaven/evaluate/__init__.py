"""The evaluate stage: every model on the same items, and differences with intervals.

    models x sets --score--> EVALUATE/items.parquet --paired bootstrap--> results.json, results.md

    sets.py         questions, choices and texts from files
    likelihood.py   log-probabilities of continuations under a checkpoint

Figures of a set (all by likelihood, for models too small to answer):

    loss       natural log per token of answers or texts; lower is better
    accuracy   share of questions whose right option has the greatest log-probability per token
    margin     that of the right option minus that of the best wrong one, per token

An arm's value of an item is the mean over its seeds; differences to the baseline arm are paired item by item,
and what the bootstrap draws are the documents that items are about.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from leaven.errors import UsageError, nearest
from leaven.evaluate.sets import EvaluationSet, Item, read_set
from leaven.measure.report import number
from leaven.measure.statistics import Interval, bootstrap_ratio, paired_difference
from leaven.stage import Stage, write_json

__all__ = ["Evaluate", "Result", "evaluate", "read_results", "results_markdown"]

Progress = Callable[[str, int, int | None], None]
BETTER = {"loss": "lower", "accuracy": "higher", "margin": "higher"}


class Evaluate(BaseModel):
    """Options of the evaluate stage.

    Args:
        sets: by name.
        baseline: the arm that others are compared with; None is the first.
        seed: of the intervals.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    sets: dict[str, EvaluationSet] = Field(min_length=1)
    baseline: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class Result:
    """One figure of one arm.

    Args:
        difference: to the baseline, with its interval; None for the baseline itself.
        seeds: value of each seed's model.
    """

    set: str
    figure: str
    arm: str
    value: float
    interval: Interval | None
    difference: float | None
    apart: Interval | None
    items: int
    seeds: tuple[float, ...]


def evaluate(
    models: Mapping[tuple[str, int], tuple[str, Path]],
    options: Evaluate,
    out: Path,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """Score every model on every set; returns the manifest. Skipped when it was done before.

    Args:
        models: by (arm, seed): (fingerprint of its training, folder of the checkpoint).
        out: the stage's folder.

    Raises:
        UsageError: an unreadable set, or a baseline that is no arm; before anything is scored.
    """
    from leaven.evaluate.likelihood import Scorer

    arms = list(dict.fromkeys(arm for arm, _ in models))
    baseline = options.baseline or arms[0]
    if baseline not in arms:
        raise UsageError(f"evaluate: baseline {baseline!r} is no arm; {nearest(baseline, arms)}")
    sets = {name: read_set(name, one) for name, one in options.sets.items()}
    inputs = {f"{arm}-{seed}": found for (arm, seed), (found, _) in models.items()}
    items = {name: [vars(item) for item in found] for name, found in sets.items()}
    stage = Stage(out, options.model_dump(mode="json") | {"items": items}, inputs)
    if stage.manifest is not None:
        return stage.manifest
    stage.prepare(rows=False)
    rows: list[dict[str, Any]] = []
    for place, ((arm, seed), (_, checkpoint)) in enumerate(models.items()):
        scorer = Scorer(checkpoint)
        for name, found in sets.items():
            progress(f"evaluating {arm}-{seed} on {name}", place, len(models))
            pairs = [(item.prefix, text) for item in found for text in item.continuations]
            scores = iter(scorer.score(pairs))
            for item in found:
                own = [next(scores) for _ in item.continuations]
                rows += _rows(item, own, set=name, arm=arm, seed=seed)
    results = summarise(rows, arms, baseline, options.seed)
    _write_items(out / "items.parquet", rows)
    write_json(out / "results.json", [_to_json(one) for one in results])
    (out / "results.md").write_text(results_markdown(results, baseline), encoding="utf-8")
    counts = {"models": len(models), "items": sum(map(len, sets.values()))}
    return stage.finish(counts=counts, reasons={}, baseline=baseline)


def _rows(item: Item, scores: Sequence[tuple[float, int]], **about: Any) -> list[dict[str, Any]]:
    """The item's figures as (over, under): a figure is sum over / sum under."""
    common = {**about, "item": item.id, "unit": item.unit}
    if len(item.continuations) == 1:
        total, tokens = scores[0]
        return [{**common, "figure": "loss", "over": -total, "under": float(tokens)}]
    means = [total / max(1, tokens) for total, tokens in scores]
    wrong = max(mean for i, mean in enumerate(means) if i != item.right)
    margin = means[item.right] - wrong
    return [
        {**common, "figure": "accuracy", "over": float(margin > 0), "under": 1.0},
        {**common, "figure": "margin", "over": margin, "under": 1.0},
    ]


def summarise(
    rows: Sequence[Mapping[str, Any]], arms: Sequence[str], baseline: str, seed: int
) -> list[Result]:
    """Figures by set and arm, and their differences to the baseline.

    Args:
        rows: one per model, item and figure, with ``over`` and ``under``.
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[(row["set"], row["figure"])].append(row)
    found: list[Result] = []
    for (set_, figure), inside in groups.items():
        sides = {arm: _side([row for row in inside if row["arm"] == arm]) for arm in arms}
        for arm in arms:
            over, under, units = sides[arm]
            value, interval = bootstrap_ratio(over, under, units, seed=seed)
            difference = apart = None
            if arm != baseline:
                difference, apart = paired_difference(sides[arm], sides[baseline], seed=seed)
            seeds = sorted({row["seed"] for row in inside if row["arm"] == arm})
            each = (_side([r for r in inside if r["arm"] == arm and r["seed"] == one]) for one in seeds)
            values = tuple(float(one[0].sum() / one[1].sum()) for one in each)
            found.append(Result(set_, figure, arm, value, interval, difference, apart, len(units), values))
    return found


def _side(rows: Sequence[Mapping[str, Any]]) -> tuple[Any, Any, list[str]]:
    """(over, under, unit) of every item, means over seeds, in the items' order."""
    over: dict[str, list[float]] = defaultdict(list)
    under: dict[str, list[float]] = defaultdict(list)
    units: dict[str, str] = {}
    for row in rows:
        over[row["item"]].append(row["over"])
        under[row["item"]].append(row["under"])
        units[row["item"]] = row["unit"]
    first, second = (np.array([float(np.mean(one)) for one in side.values()]) for side in (over, under))
    return first, second, list(units.values())


def results_markdown(results: Sequence[Result], baseline: str) -> str:
    """A table: one line per set, figure and arm."""
    head = f"| set | figure | arm | value | minus {baseline} [95%] | seeds |"
    lines = ["# Results", "", head, "|---|---|---|---:|---:|---|"]
    for one in results:
        apart = f" [{number(one.apart.low)}, {number(one.apart.high)}]" if one.apart else ""
        difference = "-" if one.difference is None else f"{one.difference:+.3f}{apart}"
        seeds = " ".join(number(value) for value in one.seeds)
        arrow = "↓" if BETTER[one.figure] == "lower" else "↑"
        cells = [one.set, f"{one.figure} {arrow}", one.arm, number(one.value), difference, seeds]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def read_results(folder: Path) -> list[Result]:
    """The results in a finished evaluate stage's folder."""
    found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    for one in found:
        for name in ("interval", "apart"):
            one[name] = one[name] and Interval(**one[name])
        one["seeds"] = tuple(one["seeds"])
    return [Result(**one) for one in found]


def _to_json(one: Result) -> dict[str, Any]:
    def plain(interval: Interval | None) -> dict[str, Any] | None:
        if interval is None:
            return None
        return {
            "low": interval.low, "high": interval.high, "kind": interval.kind, "units": interval.units
        }  # fmt: skip

    value = {name: getattr(one, name) for name in one.__dataclass_fields__}
    return value | {"interval": plain(one.interval), "apart": plain(one.apart), "seeds": list(one.seeds)}


def _write_items(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(list(rows)), path)
