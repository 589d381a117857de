"""Figures of a set by arm, and how far apart arms are: what every kind of set comes to.

    rows (model x item x figure: over / under) --means over seeds, paired bootstrap--> Result --> JSON, a table

A figure of an arm is the sum of `over` through the sum of `under` over all items, an item's value the mean over
the arm's seeds. Differences to the baseline are paired item by item, and what the bootstrap draws are units: the
documents that items are about. An item that some model could not be scored on is left out for all, and counted.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from leaven.errors import UsageError, nearest
from leaven.measure.report import number
from leaven.measure.statistics import Interval, bootstrap_ratio, paired_difference

# Which way is better; figures that are not here are facts.
BETTER = {
    "loss": "lower", "perplexity": "lower", "accuracy": "higher", "margin": "higher", "parsed": "higher",
    "salient_claims": "higher", "false_claims": "lower", "acc": "higher", "acc_norm": "higher",
    "exact_match": "higher", "bits_per_byte": "lower", "word_perplexity": "lower", "byte_perplexity": "lower",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One figure of one item under one model; see the top of this file.

    Args:
        group: the figure is also one of this part of the set; "" is the whole.
    """

    item: str
    unit: str
    figure: str
    over: float
    under: float
    group: str = ""


@dataclass(frozen=True)
class Result:
    """One figure of one arm.

    Args:
        difference: to the baseline, with its interval; None for the baseline itself, and for perplexity
            (whose differences are those of the loss).
        items: scored by all models.
        seeds: value of each seed's model.
        missing: items left out because some model could not be scored on them.
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
    missing: int = 0


def summarise(
    rows: Sequence[Mapping[str, Any]], arms: Sequence[str], baseline: str, seed: int
) -> list[Result]:
    """Figures by set and arm, and their differences to the baseline.

    Args:
        rows: `Row`s as mappings, with ``set``, ``arm`` and ``seed`` of the model.
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[(row["set"] + (f"/{row['group']}" if row.get("group") else ""), row["figure"])].append(row)
    found: list[Result] = []
    for (set_, figure), inside in groups.items():
        kept, missing = _scored_by_all(inside)
        sides = {arm: _side([row for row in kept if row["arm"] == arm]) for arm in arms}
        for arm in arms:
            over, under, units = sides[arm]
            if not units or not under.sum():
                continue
            value, interval = bootstrap_ratio(over, under, units, seed=seed)
            difference = apart = None
            if arm != baseline:
                difference, apart = paired_difference(sides[arm], sides[baseline], seed=seed)
            seeds = sorted({row["seed"] for row in kept if row["arm"] == arm})
            each = (_side([r for r in kept if r["arm"] == arm and r["seed"] == one]) for one in seeds)
            values = tuple(float(one[0].sum() / one[1].sum()) for one in each)
            one = Result(set_, figure, arm, value, interval, difference, apart, len(units), values, missing)
            found.append(_exponential(one) if figure.endswith("perplexity") else one)
    return found


def _scored_by_all(rows: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], int]:
    """(rows of items that every model has, how many items were left out)."""
    models = {(row["arm"], row["seed"]) for row in rows}
    having: dict[str, set[tuple[str, int]]] = defaultdict(set)
    for row in rows:
        having[row["item"]].add((row["arm"], row["seed"]))
    whole = {item for item, found in having.items() if found == models}
    return [row for row in rows if row["item"] in whole], len(having) - len(whole)


def _exponential(one: Result) -> Result:
    """Perplexity from the loss that the rows hold."""

    def up(interval: Interval | None) -> Interval | None:
        return interval and replace(interval, low=math.exp(interval.low), high=math.exp(interval.high))

    return replace(
        one, value=math.exp(one.value), interval=up(one.interval), difference=None, apart=None,
        seeds=tuple(map(math.exp, one.seeds)),
    )  # fmt: skip


def _side(rows: Sequence[Mapping[str, Any]]) -> tuple[Any, Any, list[str]]:
    """(over, under, unit) of every item, means over seeds, in the order of their ids."""
    over: dict[str, list[float]] = defaultdict(list)
    under: dict[str, list[float]] = defaultdict(list)
    units: dict[str, str] = {}
    for row in sorted(rows, key=lambda row: str(row["item"])):
        over[row["item"]].append(row["over"])
        under[row["item"]].append(row["under"])
        units[row["item"]] = row["unit"]
    first, second = (np.array([float(np.mean(one)) for one in side.values()]) for side in (over, under))
    return first, second, list(units.values())


def doubts(results: Sequence[Result], baseline: str) -> list[str]:
    """Differences that look certain over the documents but not over the seeds, one line each.

    Intervals draw documents; where seeds of two arms overlap, another seed might turn the difference round.
    """
    base = {(one.set, one.figure): one.seeds for one in results if one.arm == baseline}
    lines = []
    for one in results:
        other = base.get((one.set, one.figure), ())
        if one.apart is None or one.apart.low * one.apart.high <= 0 or len(one.seeds) < 2 or not other:
            continue
        if max(min(one.seeds), min(other)) <= min(max(one.seeds), max(other)):
            lines.append(
                f"{one.set}, {one.figure}, {one.arm}: intervals draw documents, and the seeds of the two arms overlap; "
                "more seeds are needed before this difference counts"
            )
    return lines


def results_markdown(results: Sequence[Result], baseline: str, notes: Iterable[str] = ()) -> str:
    """A table, one line per set, figure and arm; below it what a reader must know."""
    head = f"| set | figure | arm | value | minus {baseline} [95%] | seeds |"
    lines = ["# Results", "", head, "|---|---|---|---:|---:|---|"]
    for one in results:
        apart = f" [{number(one.apart.low)}, {number(one.apart.high)}]" if one.apart else ""
        difference = "-" if one.difference is None else f"{one.difference:+.3f}{apart}"
        seeds = " ".join(number(value) for value in one.seeds)
        cells = [
            one.set,
            f"{one.figure} {arrow(one.figure)}".strip(),
            one.arm,
            number(one.value),
            difference,
            seeds,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    missing = {(one.set, one.items, one.missing) for one in results if one.missing}
    left_out = [
        f"{name}: {gone} items that some model could not be scored on are left out for all, {items} are in"
        for name, items, gone in sorted(missing)
    ]
    below = [f"- {note}" for note in (*notes, *left_out, *doubts(results, baseline))]
    return "\n".join([*lines, *([""] if below else []), *below]) + "\n"


def arrow(figure: str) -> str:
    """Which way is better."""
    return {"lower": "↓", "higher": "↑"}.get(BETTER.get(figure.split(",")[0], ""), "")


def results_json(results: Sequence[Result]) -> list[dict[str, Any]]:
    """As ``results.json`` has them."""
    return [asdict(one) for one in results]


def results_against(folder: Path, baseline: str) -> list[Result]:
    """The results in a finished evaluate stage's folder, with differences to any of its arms.

    Raises:
        UsageError: no such arm.
    """
    import pyarrow.parquet as pq

    rows = pq.read_table(folder / "items.parquet").to_pylist()
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    if baseline not in arms:
        raise UsageError(f"{folder}: {baseline!r} is no arm; {nearest(baseline, arms)}")
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return summarise(rows, arms, baseline, manifest["config"]["seed"])


def read_results(folder: Path) -> list[Result]:
    """The results in a finished evaluate stage's folder."""
    found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    for one in found:
        for name in ("interval", "apart"):
            one[name] = one[name] and Interval(**one[name])
        one["seeds"] = tuple(one["seeds"])
    return [Result(**one) for one in found]
