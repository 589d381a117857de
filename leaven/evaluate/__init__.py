"""The evaluate stage: every model on the same items, and differences with intervals.

    models x sets --score or ask--> items.parquet --paired bootstrap--> results.json, results.md
    sets scored by likelihood, as lm-evaluation-harness tasks --> tasks/
    arms beside the baseline, token by token --> patterns/ARM/

    sets.py         files of questions, choices and texts, scored by likelihood
    likelihood.py   log-probabilities of continuations under a checkpoint
    sampled.py      multiple choice by sampled chain of thought
    retrieve.py     the open book: passages that belong to a question
    claims.py       closed-book summaries, claim by claim
    patterns.py     where in a text two models' losses part
    harness.py      sets as lm-evaluation-harness tasks, and a run of its tasks
    scaling.py      a curve through losses or accuracies at several budgets
    candidate.py    a model under evaluation
    results.py      figures by arm, and how far apart arms are

By likelihood, for models too small to answer in words:

    loss       natural log per token of answers or texts; lower is better
    accuracy   share of questions whose right option has the greatest log-probability per token
    margin     that of the right option minus that of the best wrong one, per token

An arm's value of an item is the mean over its seeds; differences to the baseline arm are paired item by item,
and what the bootstrap draws are the documents that items are about.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from leaven.config import PlanPath
from leaven.errors import UsageError, nearest
from leaven.evaluate import claims, sampled, sets
from leaven.evaluate.candidate import Candidate
from leaven.evaluate.claims import ClaimsSet
from leaven.evaluate.harness import Harness, Tasks, export, load_tasks
from leaven.evaluate.harness import run as run_tasks
from leaven.evaluate.patterns import Texts, patterns
from leaven.evaluate.results import Result, Row, read_results, results_json, results_markdown, summarise
from leaven.evaluate.retrieve import Library, recall
from leaven.evaluate.sampled import SampledSet
from leaven.evaluate.sets import LikelihoodSet
from leaven.lm import ModelConfig
from leaven.measure.base import Context
from leaven.stage import Stage, fingerprint, write_json

__all__ = ["Candidate", "Evaluate", "Result", "evaluate", "read_results", "read_sets"]

AnySet = Annotated[LikelihoodSet | SampledSet | ClaimsSet, Field(discriminator="kind")]


class Evaluate(BaseModel):
    """Options of the evaluate stage.

    Args:
        sets: by name.
        baseline: the arm that others are compared with; None is the first.
        harness: tasks of lm-evaluation-harness, run on every model; each becomes a set named ``lm-eval/TASK``.
        patterns: texts on which each arm is held against the baseline, token by token.
        checkpoints: other models to hold beside the arms, by name: the one they were continued from, an oracle.
        seed: of the intervals.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    sets: dict[Annotated[str, Field(pattern=r"^[\w.-]+$")], AnySet] = Field(default_factory=dict)
    harness: Harness | None = None
    patterns: Texts | None = None
    baseline: str | None = None
    checkpoints: dict[str, PlanPath] = Field(default_factory=dict)
    seed: int = 0

    @model_validator(mode="after")
    def _something(self) -> Evaluate:
        if not self.sets and self.harness is None:
            raise ValueError("give at least one of sets and harness")
        return self

    @property
    def judges(self) -> tuple[ModelConfig | None, ...]:
        """The models asked beside those under evaluation; None is the plan's."""
        return tuple(one.judge for one in self.sets.values() if isinstance(one, ClaimsSet))


def read_sets(options: Evaluate, folder: Path | None = None) -> dict[str, Sequence[Any]]:
    """The items of every set.

    Args:
        folder: of the run, for sets that are a stage of it; None leaves those empty.

    Raises:
        UsageError: an unreadable set; file and line are named.
    """
    found: dict[str, Sequence[Any]] = {}
    for name, one in options.sets.items():
        if isinstance(one, LikelihoodSet) and one.stage is not None:
            found[name] = [] if folder is None else sets.of_stage(folder / one.stage, one)
        elif isinstance(one, LikelihoodSet):
            found[name] = sets.read(name, one)
        elif isinstance(one, SampledSet):
            found[name] = sampled.read(name, one)
        else:
            found[name] = claims.read(name, one)
    if options.patterns is not None:
        options.patterns.read()
    return found


async def evaluate(
    candidates: Sequence[Candidate], options: Evaluate, out: Path, context: Context
) -> dict[str, Any]:
    """Score every model on every set; returns the manifest. Skipped when it was done before.

    Args:
        candidates: arms in order, each with all its seeds.
        out: the stage's folder, in that of the run.

    Raises:
        UsageError: an unreadable set, a baseline that is no arm, or a model at a server where weights are needed;
            before anything is scored.
    """
    _check_weights(candidates, options)
    arms = list(dict.fromkeys(one.arm for one in candidates))
    baseline = options.baseline or arms[0]
    if baseline not in arms:
        raise UsageError(f"evaluate: baseline {baseline!r} is no arm; {nearest(baseline, arms)}")
    items = read_sets(options, out.parent)
    patterned = [] if options.patterns is None else options.patterns.read()
    config = options.model_dump(mode="json") | {
        "texts": fingerprint(patterned),
        "items": fingerprint({name: [asdict(item) for item in found] for name, found in items.items()}),
        "books": [_sources(one) for one in options.sets.values()],
    }
    stage = Stage(out, config, {one.name: one.fingerprint for one in candidates})
    if stage.manifest is not None:
        return stage.manifest
    bench = _Bench(options, items, context)
    stage.prepare(rows=False)
    _export(options, items, out / "tasks")
    rows: list[dict[str, Any]] = []
    for place, candidate in enumerate(candidates):
        context.progress(f"evaluating {candidate.name}", place, len(candidates))
        about = {"arm": candidate.arm, "seed": candidate.seed}
        rows += [row | about for row in await bench.rows(candidate)]
        await candidate.close()
    if patterned:
        _patterns(candidates, baseline, options, patterned, out / "patterns", context)
    results = summarise(rows, arms, baseline, options.seed)
    _write_items(out / "items.parquet", rows)
    write_json(out / "results.json", results_json(results))
    if bench.figures:
        write_json(out / "lm-eval.json", bench.figures)
    (out / "results.md").write_text(results_markdown(results, baseline, bench.notes()), encoding="utf-8")
    counts = {"models": len(candidates), "items": sum(map(len, items.values()))}
    return stage.finish(
        counts=counts,
        reasons=dict(sum(bench.failed.values(), Counter())),
        baseline=baseline,
        recall=bench.recall,
    )


def _check_weights(candidates: Sequence[Candidate], options: Evaluate) -> None:
    """What is scored rather than asked needs a model's weights."""
    scored = [name for name, one in options.sets.items() if isinstance(one, LikelihoodSet)]
    scored += [name for name in ("harness", "patterns") if getattr(options, name) is not None]
    served = [one.arm for one in candidates if one.checkpoint is None]
    if scored and served:
        raise UsageError(
            f"evaluate: {served[0]} is at a server; {scored[0]} is scored by likelihood and needs a checkpoint"
        )


class _Bench:
    """What all models share: the items, the books looked up once, the judges."""

    def __init__(self, options: Evaluate, items: Mapping[str, Sequence[Any]], context: Context) -> None:
        self._options, self._items, self._context = options, items, context
        self._tasks = None if options.harness is None else _tasks(options.harness, options, items)
        self.failed: dict[str, Counter[str]] = {name: Counter() for name in items}
        self.figures: dict[str, list[dict[str, Any]]] = {}  # lm-eval's own aggregates by model
        self.recall: dict[str, dict[int, float]] = {}
        self._passages: dict[str, dict[str, list[str]]] = {}
        self._judging: dict[str, claims.Judging] = {}
        for name, one in options.sets.items():
            if isinstance(one, SampledSet) and one.book is not None:
                library = Library(one.book, context.cache, context.progress)
                found = library.look_up(items[name], context.progress)
                if shares := recall(items[name], found, library.owners):
                    self.recall[name] = shares
                self._passages[name] = {
                    question.id: library.passages(rows)
                    for question, rows in zip(items[name], found, strict=True)
                }
            elif isinstance(one, ClaimsSet):
                self._judging[name] = claims.Judging(name, items[name], one, context)

    async def rows(self, candidate: Candidate) -> list[dict[str, Any]]:
        """Every figure of one model on every set."""
        found: list[dict[str, Any]] = []
        for name, one in self._options.sets.items():
            items, failed = self._items[name], self.failed[name]
            rows: list[Row]
            if isinstance(one, LikelihoodSet):
                rows = _likelihood(candidate, items, one)
            elif isinstance(one, SampledSet):
                passages = self._passages.get(name, {})
                rows = await sampled.rows(name, candidate, items, one, self._context, passages, failed)
            else:
                judging = self._judging[name]
                rows = await claims.rows(name, candidate, items, one, self._context, judging, failed)
            found += [asdict(row) | {"set": name} for row in rows]
        harness = self._options.harness
        if harness is not None and self._tasks is not None:
            assert candidate.checkpoint is not None
            run = run_tasks(
                candidate.checkpoint, self._tasks, limit=harness.limit, batch_size=harness.batch_size
            )
            self.figures[candidate.name] = [asdict(one) for one in run.figures]
            for task, rows in run.rows.items():
                found += [asdict(row) | {"set": f"lm-eval/{task}"} for row in rows]
        return found

    def notes(self) -> list[str]:
        """What a reader of the table must know."""
        lines = []
        for name, found in self.recall.items():
            shares = ", ".join(f"@{k} {share:.3f}" for k, share in found.items())
            lines.append(f"{name}: the right document is among the first k passages (recall): {shares}")
        for name, failed in self.failed.items():
            if failed:
                reasons = ", ".join(f"{reason} {number}" for reason, number in failed.most_common())
                lines.append(f"{name}: answers that could not be had or judged: {reasons}")
        return lines


def _export(options: Evaluate, items: Mapping[str, Sequence[Any]], folder: Path) -> None:
    """The sets that are scored by likelihood, for anyone who has lm-evaluation-harness."""
    for name, one in options.sets.items():
        if isinstance(one, LikelihoodSet):
            export(name, one.kind, items[name], folder)


def _tasks(harness: Harness, options: Evaluate, items: Mapping[str, Sequence[Any]]) -> Tasks:
    """The harness's tasks, found and loaded before anything is written."""
    with TemporaryDirectory(prefix="leaven-tasks-") as folder:
        own = Path(folder)
        _export(options, items, own)
        include = [own] if harness.include is None else [own, harness.include]
        return load_tasks(harness.tasks, include, harness.num_fewshot)


def _patterns(
    candidates: Sequence[Candidate], baseline: str, options: Evaluate, texts: list[tuple[str, str]], out: Path,
    context: Context,
) -> None:  # fmt: skip
    """Every arm beside the baseline, by the first seed of each."""
    assert options.patterns is not None
    first = {one.arm: one.checkpoint for one in reversed(candidates)}
    base = first.pop(baseline)
    for arm, checkpoint in first.items():
        assert base is not None and checkpoint is not None
        found = patterns(
            base, checkpoint, texts, k=options.patterns.k, bins=options.patterns.bins, seed=options.seed,
            progress=context.progress,
        )  # fmt: skip
        found.write(out / arm)


def _likelihood(candidate: Candidate, items: Sequence[sets.Item], options: LikelihoodSet) -> list[Row]:
    pairs = [(item.prefix, text) for item in items for text in item.continuations]
    scores = iter(candidate.scorer.score(pairs))
    found: list[Row] = []
    for item in items:
        found += sets.rows(item, [next(scores) for _ in item.continuations], options)
    return found


def _sources(one: LikelihoodSet | SampledSet | ClaimsSet) -> str:
    """Fingerprint of the documents that a set is answered or judged by."""
    if isinstance(one, SampledSet) and one.book is not None:
        return one.book.corpus.fingerprint()
    return one.corpus.fingerprint() if isinstance(one, ClaimsSet) else ""


def _write_items(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(list(rows)), path)
