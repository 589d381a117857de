"""What a run will ask for and cost, told before anything is paid.

Methods and measures are rehearsed over the real corpus with stand-in answers (`generate/_rehearse.py`), so
the estimate follows their own logic. A probe really expands a few documents first: real lengths, and a rate.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from leaven.corpus.locate import SOURCE, Corpus, corpus_at
from leaven.generate._rehearse import Rehearsal, StepEstimate
from leaven.generate._runner import generate
from leaven.lm import ModelConfig, loop
from leaven.lm.store import ResponseStore
from leaven.measure import clusters, judges
from leaven.measure._runner import draw
from leaven.measure.base import Context
from leaven.plan import Plan
from leaven.progress import Reporter
from leaven.run import Runner, open_model, open_store, prices_of
from leaven.stage import locked, read_manifest, read_stage


@dataclass
class Estimate:
    """What a run will ask for; see `estimate`.

    Args:
        steps: by (method, step).
        tokens_per_second: completion tokens per second seen in the probe, or None without one.
        money: for what is still to be sent, or None without prices.
        training: lines on how long it takes to train what methods write with, and the arms.
    """

    steps: dict[tuple[str, str], StepEstimate]
    documents: int
    corpus_tokens: int
    tokens_per_second: float | None = None
    money: float | None = None
    currency: str = ""
    prices_as_of: str = ""
    training: list[str] = field(default_factory=list)


def estimate(plan: Plan, *, probe: int = 0, console: Console | None = None) -> Estimate:
    """What `run` would ask for and use; sends nothing, unless a probe is asked for.

    The corpus stage is built (it costs nothing and the run needs it). Every method is then rehearsed.

    Args:
        probe: really expand this many documents first; their answers are stored as any others, make the
            estimate's lengths and numbers real ones, and give the rate for the expected hours.
    """
    with locked(plan.folder):
        runner = Runner(plan, Reporter(plan.folder / "events.jsonl", console or Console(quiet=True)))
        runner.build_corpus()
        runner.complete()
        found = loop.run(_estimate(runner.plan, runner, probe))
        found.training = runner.forecast()
        return found


async def _estimate(plan: Plan, runner: Runner, probe: int) -> Estimate:
    manifest = read_manifest(runner.corpus)
    assert manifest is not None
    counts = manifest["counts"]
    found = Estimate({}, counts["kept"], counts["tokens"])
    asking = [stage for stage in plan.generate if stage.model is not None]
    if not asking:
        return found
    with open_store(plan) as store, tempfile.TemporaryDirectory() as scratch:
        if probe:
            found.tokens_per_second = await _probe(plan, runner, store, probe, Path(scratch))
        steps = {stage.job.method.name: stage.job.steps for stage in asking}
        steps |= {"judges": judges.STEPS, "clusters": clusters.STEPS}
        scale = _tokens_per_character(runner.corpus)
        rehearsals: dict[str, Rehearsal] = {}

        def stand_in(config: ModelConfig | None) -> Rehearsal:
            chosen = config or (plan.file.measure and plan.file.measure.model) or plan.file.model
            assert chosen is not None
            if repr(chosen) not in rehearsals:
                other = Rehearsal(chosen.open(), store, steps, tokens_per_character=scale)
                rehearsals[repr(chosen)] = other
            return rehearsals[repr(chosen)]

        written: list[Path] = []
        for stage in asking:
            with runner.reporter.stage(f"plan {stage.name}") as progress:
                written.append(Path(scratch) / "rehearsal" / stage.name)
                count = runner.tokenizer.count
                await generate(stage.job, runner.corpus, written[-1], stand_in(stage.model), count, progress)
        await _rehearse_measures(plan, runner, written, stand_in)
        prices = prices_of(plan)
        for rehearsal in rehearsals.values():
            for name, one in rehearsal.estimates.items():
                found.steps[name] = one if name not in found.steps else found.steps[name] + one
            if prices is not None and rehearsal.backend.paid:
                price = prices.price(rehearsal.name)
                usages = (step.usage for step in rehearsal.estimates.values())
                found.money = (found.money or 0) + sum(map(price.of, usages))
                found.currency, found.prices_as_of = prices.currency, str(prices.as_of)
    return found


async def _rehearse_measures(
    plan: Plan, runner: Runner, written: list[Path], stand_in: Callable[[ModelConfig | None], Any]
) -> None:
    """Ask what the measures would ask, about the rows that the rehearsal wrote (before cleaning)."""
    section = plan.file.measure
    asking = [one for one in plan.measure if one.models]
    if section is None or not asking:
        return
    with runner.reporter.stage("plan measure") as progress:
        context = Context(section.seed, None, stand_in, progress.named)
        sources = Corpus(SOURCE, (runner.corpus,))
        against = corpus_at(section.against, "against")[0] if section.against else None
        columns = draw(Corpus("all", tuple(written)), sources, against, section.by, section.sample, context)
        for one in asking:
            await one.module.measure(columns, one.config, context)


async def _probe(plan: Plan, runner: Runner, store: ResponseStore, number: int, scratch: Path) -> float:
    """Expand some documents for real; returns completion tokens per second."""
    # Evenly spread over the lengths, so that the sample is as long as the corpus is on average; the same
    # choice every time, so that a second probe costs nothing.
    by_length = sorted((document.metadata["tokens"], document.id) for document in read_stage(runner.corpus))
    number = min(number, len(by_length))
    chosen = {by_length[(2 * i + 1) * len(by_length) // (2 * number)][1] for i in range(number)}
    started, completion = time.monotonic(), 0
    for stage in plan.generate:
        if stage.model is None:
            continue
        model = open_model(plan, store, stage.model)
        try:
            with runner.reporter.stage(f"probe {stage.name}", model) as progress:
                folder = scratch / "probe" / stage.name
                count = runner.tokenizer.count
                await generate(stage.job, runner.corpus, folder, model, count, progress, only=chosen)
        finally:
            await model.close()
        completion += model.traffic.usage.completion
    return completion / (time.monotonic() - started)


def _tokens_per_character(corpus: Path) -> float:
    """Of the corpus in its own tokenizer: the first guess for prompts nobody has counted yet."""
    manifest = read_manifest(corpus)
    assert manifest is not None
    characters = sum(len(document.text) for document in read_stage(corpus))
    return float(manifest["counts"]["tokens"] / max(1, characters))
