"""Is the student as good a writer as its teacher? Scores of both by the same judge, side by side (paper 000, table 1).

A row of the table counts every reformulation that was asked for, also those that were never written (no usable
pairs, cut off, refused) or that the judge could not score; the paper's rates, too, divide by all 15,355. The
difference is taken over the documents that both runs have, and its interval draws documents, not texts.

Scores are those of the run's own judge (`judge: true`: the model judges itself, right for a teacher), or, for a
run that was written with `judge: false`, those of the `consistency` judge of its measure stage, which asks the same
question: name the teacher there as `measure: {model: ...}`. Two different judges are never compared.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leaven.errors import UsageError
from leaven.measure.statistics import Interval, paired_difference
from leaven.stage import read_manifest, read_stage
from leaven.train.tool import REFORMULATE, Teacher

SCORES = (5, 4, 3, 2, 1)
UNWRITTEN, UNJUDGED = 0, -1


@dataclass(frozen=True)
class Scores:
    """What became of every reformulation that a run was to write.

    Args:
        model: who wrote.
        judge: identity of who judged; empty if nobody did.
        outcomes: by document, a score from 1 to 5, `UNWRITTEN` or `UNJUDGED`.
    """

    model: str
    judge: str
    outcomes: Mapping[str, Sequence[int]]

    def only(self, documents: set[str]) -> Scores:
        """The same for some documents."""
        return Scores(self.model, self.judge, {d: one for d, one in self.outcomes.items() if d in documents})

    @property
    def counts(self) -> Counter[int]:
        """Number of texts by outcome."""
        return Counter(outcome for one in self.outcomes.values() for outcome in one)

    def rate(self, least: int) -> float:
        """Share of all that was asked for that was scored `least` or more.

        nan where there are texts that nobody judged at all; 0 where there are no texts.
        """
        counts = self.counts
        if not counts or (not self.judge and counts[UNJUDGED]):
            return math.nan
        return sum(counts[score] for score in SCORES if score >= least) / counts.total()


@dataclass(frozen=True)
class Comparison:
    """Teacher and student over the same documents.

    Args:
        difference: student's rate minus the teacher's; nan where one could not be judged.
        interval: 95%, documents drawn; None where there is no spread to tell it from.
    """

    teacher: Scores
    student: Scores
    least: int
    difference: float
    interval: Interval | None

    def to_json(self) -> dict[str, Any]:
        """Counts, rates and the difference; None for what could not be told."""
        found: dict[str, Any] = {"documents": len(self.teacher.outcomes), "least": self.least}
        for name, one in (("teacher", self.teacher), ("student", self.student)):
            counts, rate = one.counts, one.rate(self.least)
            found[name] = {
                "model": one.model, "judge": one.judge or None, "examples": counts.total(),
                "scores": {str(score): counts[score] for score in SCORES}, "not_judged": counts[UNJUDGED],
                "not_written": counts[UNWRITTEN], "rate": None if math.isnan(rate) else rate,
            }  # fmt: skip
        found["difference"] = None if math.isnan(self.difference) else self.difference
        found["interval"] = None if self.interval is None else [self.interval.low, self.interval.high]
        return found

    def markdown(self) -> str:
        """The table, with a line on what it rests on."""
        names = [
            "model",
            "asked for",
            *map(str, SCORES),
            "not judged",
            "not written",
            f"rate >= {self.least}",
        ]
        lines = ["| " + " | ".join([*names, "difference"]) + " |", "|---|" + "---:|" * len(names)]
        for one in (self.teacher, self.student):
            counts = one.counts
            cells = [one.model, f"{counts.total():,}"]
            for outcome in (*SCORES, UNJUDGED, UNWRITTEN):
                cells.append(f"{counts[outcome]:,} ({counts[outcome] / max(1, counts.total()):.1%})")
            rate = one.rate(self.least)
            cells.append("-" if math.isnan(rate) else f"{rate:.2%}")
            cells.append("-" if one is self.teacher or math.isnan(self.difference) else self._shown())
            lines.append("| " + " | ".join(cells) + " |")
        documents = len(self.teacher.outcomes)
        lines += [
            "",
            f"{documents:,} documents that both runs have; difference in points, 95% interval by document",
        ]
        if not self.student.judge and self.student.counts[UNJUDGED]:
            lines.append("the student's texts were not judged, so it has no rate")
        elif self.student.counts[UNWRITTEN] == self.student.counts.total():
            lines.append("the student wrote nothing that could be used, so there was nothing to judge")
        return "\n".join(lines) + "\n"

    def _shown(self) -> str:
        value = f"{100 * self.difference:+.2f}"
        if self.interval is None:
            return value
        return f"{value} ({100 * self.interval.low:+.2f} to {100 * self.interval.high:+.2f})"


def compare(
    teacher_run: Path, student_run: Path, stage: str = "mga", *, least: int = 3, seed: int = 0
) -> Comparison:
    """Hold a student's run against its teacher's.

    Args:
        stage: name of the `mga` stage under ``generate/`` of both.
        least: score that counts as good.
        seed: of the interval.

    Raises:
        UsageError: no such stage, no document in common, or two different judges.
    """
    teacher, student = scores_of(teacher_run, stage), scores_of(student_run, stage)
    common = set(teacher.outcomes) & set(student.outcomes)
    if not common:
        raise UsageError(f"{teacher_run} and {student_run} have no document in common")
    if teacher.judge and student.judge and teacher.judge != student.judge:
        raise UsageError(
            f"{teacher_run} was judged by {teacher.judge!r}, {student_run} by {student.judge!r}; write the student's "
            "run with mga: {judge: false} and judge it by the teacher (measure: {figures: [judges], model: ...})"
        )
    return compared(teacher.only(common), student.only(common), least=least, seed=seed)


def compared(teacher: Scores, student: Scores, *, least: int = 3, seed: int = 0) -> Comparison:
    """The comparison of two sets of scores over the same documents."""
    difference, interval = student.rate(least) - teacher.rate(least), None
    if not math.isnan(difference):
        sides = []
        for one in (student, teacher):
            rows = [(float(outcome >= least), d) for d, found in one.outcomes.items() for outcome in found]
            sides.append(([good for good, _ in rows], None, [document for _, document in rows]))
        _, interval = paired_difference(sides[0], sides[1], seed=seed)
        if interval is not None and interval.low == interval.high:
            interval = None  # the same on every document: drawing them anew tells nothing
    return Comparison(teacher, student, least, difference, interval)


def scores_of(run: Path, stage: str = "mga") -> Scores:
    """Scores of everything that a run was to reformulate, kept or rejected.

    Raises:
        UsageError: no such stage, or one of which only a sample was judged.
    """
    writer = Teacher(run, stage)
    judge, verdicts = (writer.identity, None) if writer.config.judge else _verdicts(run, writer)
    outcomes: dict[str, list[int]] = {}
    for kind in ("data", "rejected"):
        for row in read_stage(writer.folder, kind):
            found = outcomes.setdefault(row.metadata["sources"][0], [])
            score = verdicts.get(row.id) if verdicts is not None else row.metadata.get("score")
            if score is not None:
                found.append(int(score))
            elif row.metadata["step"] in REFORMULATE:
                written = kind == "data" or row.metadata["reason"].startswith("judge:")
                found.append(UNJUDGED if written else UNWRITTEN)
            else:  # the whole document: it has no usable pairs
                found += [UNWRITTEN] * writer.per_piece
    return Scores(writer.name, judge, outcomes)


def _verdicts(run: Path, writer: Teacher) -> tuple[str, dict[str, int]]:
    """(who judged, score by row) of the measure stage; nobody and nothing where it has none."""
    import pyarrow.parquet as pq

    manifest = read_manifest(run / "measure")
    path = run / "measure" / "verdicts.parquet"
    if manifest is None or not path.exists() or "judges" not in manifest["config"]["measures"]:
        return "", {}
    if "consistency" not in manifest["config"]["measures"]["judges"]["ask"]:
        return "", {}
    rows = writer.manifest["counts"]["kept"]
    most = min(manifest["config"]["measures"]["judges"]["sample"], manifest["config"]["sample"])
    if rows > most:
        raise UsageError(
            f"{run}/measure judged a sample of {most:,}, the run has {rows:,} texts; "
            f"set judges: {{sample: {rows}}} and run the plan again"
        )
    table = pq.read_table(path, columns=["judge", "id", "label"]).to_pylist()
    scores = {row["id"]: int(row["label"]) for row in table if row["judge"] == "consistency"}
    return ", ".join(sorted(set(manifest["config"]["models"]))), scores
