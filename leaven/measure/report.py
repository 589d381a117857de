"""Figures as JSON, as a Markdown table and as a table in the terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from leaven.errors import UsageError, nearest
from leaven.measure.base import Columns, Figure, finite
from leaven.measure.statistics import LEVEL, Interval, paired_difference

if TYPE_CHECKING:
    from rich.table import Table

# What each figure says, for someone who has never met it.
MEANINGS: Mapping[str, str] = {
    "context_length": "length of a text",
    "ngram_diversity": "how seldom 1 to 4 words recur",
    "self_repetition": "how often 4 words recur in others",
    "self_repetition_001": "the same, as paper 001 prints it",
    "compression_ratio": "times that gzip makes it smaller",
    "type_token_ratio": "share of words that are new",
    "tfidf_dissimilarity": "how little texts share rare words",
    "duplicate_rate": "share of near-duplicates",
    "ngram_overlap_2": "% of 2-word runs from the source",
    "ngram_overlap_4": "% of 4-word runs from the source",
    "ngram_overlap_8": "% of 8-word runs from the source",
    "ngram_overlap_16": "% of 16-word runs from the source",
    "unique_genres": "different genres",
    "unique_audiences": "different audiences",
    "unique_pairs": "different genre-audience pairs",
    "heterogeneity": "how far meanings lie apart",
    "pair_similarity": "median likeness of two texts",
    "vendi_score": "as many different texts as this",
    "k_means_clusters": "as many kinds of text as this",
    "reference_similarity": "likeness to the own source",
    "random_similarity": "likeness to other sources",
    "nearest_is_own_source": "share nearest to the own source",
    "perplexity": "how surprised a model is per token",
    "bits_per_byte": "how surprised a model is per byte",
    "perplexity_gap": "small model's surprise minus large one's",
    "llm_cluster_score": "kinds of text per text, as a model sees it",
    "consistency_score": "rests on its source, 1 to 5",
    "consistency_at_least_3": "share scored 3 or more",
    "consistency_at_least_4": "share scored 4 or more",
    "consistency_at_most_2": "share scored 2 or less",
    "pairwise_win": "share judged better than the source",
    "pairwise_tie": "share judged as good as the source",
    "pairwise_loss": "share judged worse than the source",
    "pairwise_position_bias": "judge's liking for the first place",
    "repetition": "share that repeats itself",
    "pair_irrelevance": "share off the source's topic",
    "pair_novelty": "share that adds something",
    "pair_copying": "share that copies the source",
    "factuality_undefined": "share that cannot be checked",
    "no_factual_error": "share without a false statement",
    "factual_error": "share with a false statement",
    "sentences_subjective": "share of sentences of opinion",
    "sentences_supported": "share of other sentences in the source",
}


class Bounds(BaseModel):
    """What a figure must be before more is spent."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    min: float | None = None
    max: float | None = None


def check_figures(names: Iterable[str], where: str) -> None:
    """Raises UsageError for a figure that no measure gives, before anything is measured."""
    for name in names:
        if name not in MEANINGS and not name.startswith(("ngram_overlap_", "relation_")):
            raise UsageError(f"{where}: no figure {name!r}; {nearest(name, MEANINGS)}")


@dataclass(frozen=True)
class Demand:
    """A bound and whether the corpus meets it.

    Args:
        sure: the whole interval lies on one side of the bound.
    """

    figure: str
    value: float
    bound: str
    met: bool
    sure: bool


@dataclass(frozen=True)
class Difference:
    """One figure of the corpus minus the same of the corpus it is held against."""

    name: str
    value: float
    interval: Interval | None
    paired: bool


def _interval(value: Mapping[str, Any], kind: Any, units: int) -> Interval | None:
    return None if value["low"] is None else Interval(value["low"], value["high"], kind, units)


@dataclass
class Report:
    """All that was measured.

    Args:
        columns: name -> (documents measured, documents there are, the column it is part of).
        notes: what a reader must know about the whole.
    """

    seed: int
    columns: dict[str, tuple[int, int, str | None]]
    figures: list[Figure]
    differences: list[Difference] = field(default_factory=list)
    demands: list[Demand] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for ``figures.json``."""
        return {
            "level": LEVEL,
            "seed": self.seed,
            "columns": [
                {"name": name, "documents": measured, "population": there, "part_of": part_of}
                for name, (measured, there, part_of) in self.columns.items()
            ],
            "figures": [figure.to_json() for figure in self.figures],
            "differences": [
                {
                    "name": one.name, "value": one.value, "paired": one.paired,
                    "low": one.interval.low if one.interval else None,
                    "high": one.interval.high if one.interval else None,
                }
                for one in self.differences
            ],
            "require": [vars(one) | {"value": finite(one.value)} for one in self.demands],
            "notes": self.notes,
        }  # fmt: skip

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Report:
        """What `to_json` wrote."""
        columns = {
            one["name"]: (one["documents"], one["population"], one["part_of"]) for one in value["columns"]
        }
        figures = [Figure.from_json(one) for one in value["figures"]]
        apart = [
            Difference(one["name"], one["value"], _interval(one, "bootstrap", 0), one["paired"])
            for one in value["differences"]
        ]
        needed = [
            Demand(**{**one, "value": math.nan if one["value"] is None else one["value"]})
            for one in value["require"]
        ]
        return cls(value["seed"], columns, figures, apart, needed, list(value["notes"]))


def read_report(folder: Path) -> Report:
    """The report in a finished measure stage's folder."""
    return Report.from_json(json.loads((folder / "figures.json").read_text(encoding="utf-8")))


def differences(
    columns: Columns, figures: Sequence[Figure], first: str, second: str, seed: int
) -> list[Difference]:
    """Every figure of the column `first` minus that of `second`.

    Paired by source where the figure is a ratio over rows and both have rows of at least two common sources;
    else the two intervals are taken as independent and put together (MOVER: Zou & Donner 2008; for shares it
    is Newcombe's interval).
    """
    by = {(figure.column, figure.name): figure for figure in figures}
    found: list[Difference] = []
    for name in dict.fromkeys(figure.name for figure in figures):
        ours, theirs = by.get((first, name)), by.get((second, name))
        if ours is None or theirs is None or not math.isfinite(ours.value - theirs.value):
            continue
        known = [one.interval for one in (ours, theirs) if one.interval is not None]
        certain = all(one.kind == "wilson" for one in known)  # all or none in both: nothing to draw from
        if ours.rows and theirs.rows and not certain and len(set(ours.rows[2]) & set(theirs.rows[2])) > 1:
            value, interval = paired_difference(ours.rows, theirs.rows, seed=seed)
            found.append(Difference(name, value, interval, True))
        else:
            both = _apart(ours.value, theirs.value, *known) if len(known) == 2 else None
            found.append(Difference(name, ours.value - theirs.value, both, False))
    return found


def _apart(ours: float, theirs: float, first: Interval, second: Interval) -> Interval:
    difference = ours - theirs
    below = math.hypot(ours - first.low, second.high - theirs)
    above = math.hypot(first.high - ours, theirs - second.low)
    return Interval(difference - below, difference + above, first.kind, min(first.units, second.units))


def demands(figures: Sequence[Figure], column: str, bounds: Mapping[str, Bounds]) -> list[Demand]:
    """Whether the column meets the bounds; a figure that was not measured does not."""
    by = {figure.name: figure for figure in figures if figure.column == column}
    found: list[Demand] = []
    for name, wanted in bounds.items():
        for word, bound, sign in (("at least", wanted.min, 1), ("at most", wanted.max, -1)):
            if bound is None:
                continue
            figure = by.get(name)
            value = math.nan if figure is None else figure.value
            interval = figure.interval if figure else None
            sure = interval is None or not interval.low <= bound <= interval.high
            met = math.isfinite(value) and sign * value >= sign * bound
            found.append(Demand(name, value, f"{word} {bound:g}", met, sure))
    return found


def number(value: float | None) -> str:
    """Three or four digits that count."""
    if value is None or not math.isfinite(value):
        return "-"
    if value == round(value) and abs(value) > 5:
        return f"{value:,.0f}"
    size = abs(value)
    digits = 0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 10 else 3
    return f"{value:,.{digits}f}"


def _reach(interval: Interval | None) -> str:
    if interval is None:
        return ""
    if interval.kind == "wilson":  # of a share of 0 or 1: it lies on one side only
        return f"<{interval.high:.3f}" if interval.low < 1 - interval.high else f">{interval.low:.3f}"
    return f"±{number((interval.high - interval.low) / 2)}"


def _rows(report: Report) -> Iterator[tuple[Figure, list[Figure | None]]]:
    """(any figure of the row, the row's figure in each column)."""
    by = {(figure.name, figure.column): figure for figure in report.figures}
    for name in dict.fromkeys(figure.name for figure in report.figures):
        cells = [by.get((name, column)) for column in report.columns]
        yield next(cell for cell in cells if cell is not None), cells


def _arrow(figure: Figure) -> str:
    return {"higher": " ↑", "lower": " ↓", None: ""}[figure.better]


def _common_note(cells: Sequence[Figure | None]) -> str:
    """The note that all columns share, if they do."""
    notes = {cell.note for cell in cells if cell is not None and cell.note}
    return notes.pop() if len(notes) == 1 else ""


def footnotes(report: Report) -> list[str]:
    """What a reader needs to read the table."""
    lines = [
        "±: half of the 95% interval (< or >: its end); ↑ ↓: the way to more variety or quality; "
        "-: not measured, or too little text"
    ]
    sizes = ", ".join(
        f"{name} {measured:,}" + (f" of {there:,}" if there > measured else "")
        for name, (measured, there, _) in report.columns.items()
    )
    lines.append(f"texts: {sizes}; seed {report.seed}")
    amounts = sorted(
        {figure.note for figure in report.figures if figure.matched and figure.note.startswith("on ")}
    )
    if amounts:
        lines.append(f"= : on as much text in every column ({', '.join(amounts)})")
    return lines + report.notes


def table(report: Report) -> Table:
    """For the terminal, within 80 columns for up to five columns of figures."""
    from rich import box
    from rich.table import Table

    found = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    found.add_column("figure", min_width=24, overflow="fold")
    for column in report.columns:
        found.add_column(column, justify="right", no_wrap=True)
    for figure, cells in _rows(report):
        meaning = MEANINGS.get(figure.name, "")
        title = f"{figure.name}{_arrow(figure)}{' =' if figure.matched else ''}"
        values = ["-" if cell is None else f"{number(cell.value)}\n{_reach(cell.interval)}" for cell in cells]
        found.add_row(f"{title}\n[dim]{meaning}[/dim]" if meaning else title, *values)
    return found


def markdown(report: Report) -> str:
    """For ``figures.md``: the table, the differences and the demands."""
    head = ["figure", *report.columns, "what it says"]
    lines = ["# Figures", "", _line(head), _line(["---", *["---:"] * len(report.columns), "---"])]
    for figure, cells in _rows(report):
        title = f"{figure.name}{_arrow(figure)}{' =' if figure.matched else ''}"
        values = [
            "-" if one is None else f"{number(one.value)} {_reach(one.interval)}".strip() for one in cells
        ]
        meaning = "; ".join(filter(None, (MEANINGS.get(figure.name, ""), _common_note(cells))))
        lines.append(_line([title, *values, meaning]))
    lines += ["", *footnotes(report)]
    if report.differences:
        lines += ["", "## Differences", "", _line(["figure", "difference", "95% interval", ""])]
        lines.append(_line(["---", "---:", "---:", "---"]))
        for one in report.differences:
            interval = f"{number(one.interval.low)} to {number(one.interval.high)}" if one.interval else "-"
            how = "paired by source" if one.paired else "unpaired"
            lines.append(_line([one.name, number(one.value), interval, how]))
    if report.demands:
        lines += ["", "## Required", "", *demand_lines(report)]
    return "\n".join(lines) + "\n"


def demand_lines(report: Report) -> list[str]:
    """One line for each demand."""
    return [
        f"{'pass' if one.met else 'FAIL'}  {one.figure} is {number(one.value)}, must be {one.bound}"
        + ("" if one.sure else " (its interval reaches over the bound)")
        for one in report.demands
    ]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
