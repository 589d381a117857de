"""Run a plan: a folder of stages, each done once, each resumable.

    RUN/corpus/              the documents, chunked, counted, sharded
    RUN/held_out/            those set aside to evaluate on
    RUN/writer/              models trained on the corpus to write with, where a method does that
    RUN/generate/METHOD/     what each method wrote
    RUN/clean/               what was kept of all that
    RUN/measure/             figures about it
    RUN/mix/                 what every arm trains on
    RUN/train/ARM-SEED/      one model per arm and seed
    RUN/finetune/ARM-SEED/   the same, finetuned
    RUN/evaluate/            what the models know, and how the arms differ
    RUN/plan.json            the plan as it was understood
    RUN/events.jsonl         what happened when

A stage whose manifest matches its config and inputs is skipped; deleting a stage's folder redoes it and
what follows. Answers live outside the run, in the project's response store.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from leaven import STAGES
from leaven import evaluate as evaluation
from leaven.bootstrap import Bootstrap, Progress, context_of, whole
from leaven.bootstrap.forecast import EMBEDDED, Arms, forecast, minutes
from leaven.clean import clean
from leaven.config import validated
from leaven.corpus import build_corpus
from leaven.corpus.locate import SOURCE, Corpus, corpus_at
from leaven.corpus.tokens import load_tokenizer
from leaven.document import Document
from leaven.errors import UsageError, nearest
from leaven.evaluate import Candidate, Evaluate
from leaven.generate._runner import generate
from leaven.generate._training import Task
from leaven.lm import ModelConfig, loop, openai, transformers
from leaven.lm.base import Usage
from leaven.lm.budget import Meter, Prices, load_prices
from leaven.lm.client import LanguageModel
from leaven.lm.store import ResponseStore
from leaven.measure import parse_measures
from leaven.measure._runner import run as run_measures
from leaven.measure.base import Context
from leaven.measure.report import Report, check_figures, read_report
from leaven.mix import Source, mix
from leaven.mix.recipe import Allocation
from leaven.plan import GenerateStage, MeasureSection, Plan, PlanFile
from leaven.progress import Reporter
from leaven.stage import fingerprint, locked, read_manifest, read_stage, write_json
from leaven.train import assert_matched, finetune, train
from leaven.train.fit import require_packages

WORTH_TELLING = 300_000  # tokens to train and to draw: below, telling how long it takes takes as long

# By arm and seed: (the checkpoint, the manifest of the stage that made it).
Models = Mapping[tuple[str, int], tuple[Path, dict[str, Any]]]


@dataclass
class Result:
    """What a run did.

    Args:
        manifests: by stage, in order.
        missed: one line per limit of the plan that was missed: a generate stage that failed on more
            documents than `max_failed`, a figure outside the bounds it must meet.
    """

    folder: Path
    manifests: dict[str, dict[str, Any]] = field(default_factory=dict)
    missed: list[str] = field(default_factory=list)


def run(plan: Plan, *, to: str = STAGES[-1], console: Console | None = None) -> Result:
    """Bring a run up to date with its plan.

    Args:
        to: the last stage to run.

    Raises:
        UsageError: something the user can mend; nothing was started.
        Stopped: the model or the disk cannot go on; everything received is kept.
    """
    if to not in STAGES:
        raise UsageError(f"unknown stage {to!r}; {nearest(to, STAGES)}")
    with locked(plan.folder):
        write_json(plan.folder / "plan.json", plan.file.model_dump(mode="json"))
        reporter = Reporter(plan.folder / "events.jsonl", console or Console(quiet=True))
        return Runner(plan, reporter).up_to(STAGES.index(to))


class Runner:
    """The stages of one run, each a method; see `run`."""

    def __init__(self, plan: Plan, reporter: Reporter) -> None:
        self.plan, self.reporter = plan, reporter
        self._asked = plan  # as the user wrote it: `plan` may have what it leaves to the size of the corpus
        self.result = Result(plan.folder)
        self.corpus, self.held_out = plan.folder / "corpus", plan.folder / "held_out"
        self._opened: list[LanguageModel] = []  # that wrote the present stage
        self.made: dict[str, Path] = {}  # models that methods trained, to be evaluated beside the arms

    def up_to(self, last: int) -> Result:
        self.build_corpus()
        self.complete()
        if last >= 1 and self.plan.generate:
            for line in self.forecast():
                self.reporter.say(line)
            self.generate()
        if last >= 2 and self.plan.clean and self.plan.generate:
            self.clean()
        if last >= 3 and self.plan.measure:
            self.measure()
        self.complete()
        if last >= 4 and self.plan.file.mix and not self.result.missed:
            self.mix()
        if last >= 5 and not self.result.missed:
            trained = self.finetune(self.train()) if self.plan.file.train else {}
            if last >= 6 and self.plan.file.evaluate:
                self.evaluate(trained)
        return self.result

    def complete(self) -> None:
        """Fill in what the plan leaves to the size of the corpus and, once it is known, of what was kept.

        The plan as it is carried out is written to ``completed.json``, to look at and to copy.
        """
        file, counts = self._asked.file, self.result.manifests["corpus"]["counts"]
        if file.method is None:
            return
        cleaned = self.result.manifests.get("clean")
        written = cleaned["counts"]["tokens"] if cleaned else 10**15  # as many as anybody could want
        context = context_of(file.writer, file.chunk_tokens)
        sections = whole.writing(file.method, counts["tokens"])
        sections |= whole.proving(file.method, counts["tokens"], counts["kept"], context, written)
        self.plan = self._asked.completed(sections)
        write_json(self.plan.folder / "completed.json", self.plan.file.model_dump(mode="json"))

    def forecast(self) -> list[str]:
        """How long what is not done yet will take, where methods train their own writer; empty if it is done."""
        done = {
            one.name for one in self.plan.generate if read_manifest(self.plan.folder / "generate" / one.name)
        }
        todo = [one.job for one in self.plan.generate if one.model is None and one.name not in done]
        counts = self.result.manifests["corpus"]["counts"]
        file, arms = self.plan.file, None
        if file.train and file.mix:
            models = len(file.mix.every_arm) * len(file.train.seeds)
            arms = Arms(file.train.of_seed(0), file.mix.context, file.mix.tokens, models)
        work = [
            one.method.training.work(one.config, counts["kept"], counts["tokens"])
            for one in todo
            if one.method.training  # all have it
        ]
        tokens = sum(one.tuned + one.continued + one.drawn for one in work)
        if not todo or tokens + (arms.models * arms.tokens if arms else 0) < WORTH_TELLING:
            return []
        require_packages()
        with open_store(self.plan) as store, self.reporter.stage("how long it will take") as progress:
            texts = [one.text for one in itertools.islice(read_stage(self.corpus), EMBEDDED)]
            lines = forecast(self.trainer(progress.named, store), work, arms, texts)
        total = minutes(sum(one.seconds for one in lines))
        return [f"this will take about {total} on this machine:", *(f"  {line}" for line in lines)]

    def build_corpus(self) -> None:
        file = self.plan.file
        with self.reporter.stage("corpus") as progress:
            options: dict[str, Any] = {
                "chunk_tokens": file.chunk_tokens, "shards": file.shards, "hold_out": file.hold_out,
                "progress": progress.named,
            }  # fmt: skip
            manifest = build_corpus(file.documents, self.corpus, tokenizer=file.tokenizer, **options)
            self._keep("corpus", manifest)
            own = str(self.corpus / "tokenizer.json")
            if file.hold_out:
                build_corpus(file.documents, self.held_out, tokenizer=own, held=True, **options)
        self.tokenizer = load_tokenizer(own)

    def generate(self) -> None:
        with open_store(self.plan) as store:
            for stage in self.plan.generate:
                self._opened.clear()
                folder = self.plan.folder / "generate" / stage.name
                if stage.model is None:
                    manifest = self._bootstrap(stage, folder, store)
                else:
                    manifest = loop.run(self._ask(stage, stage.model, folder, store))
                requests = sum(model.traffic.answered for model in self._opened)
                self._keep(f"generate/{stage.name}", manifest | {"requests": requests})
                self._check_failed(stage.name, manifest["counts"])
            write_json(self.plan.folder / "ledger.json", ledger(self.plan, store))

    async def _ask(
        self, stage: GenerateStage, config: ModelConfig, folder: Path, store: ResponseStore
    ) -> dict[str, Any]:
        """The method, asking a model at hand."""
        model = self._open(store, config)
        try:
            with self.reporter.stage(stage.name, model) as progress:
                return await generate(stage.job, self.corpus, folder, model, self.tokenizer.count, progress)
        finally:
            await model.close()

    def _bootstrap(self, stage: GenerateStage, folder: Path, store: ResponseStore) -> dict[str, Any]:
        """The method, with a model that it trains."""
        training = stage.job.method.training
        assert training is not None
        with self.reporter.stage(stage.name) as progress:
            trainer = self.trainer(progress.named, store)
            task = Task(
                stage.name, stage.job, self.corpus, folder, self.plan.folder / "writer" / stage.name,
                self.tokenizer, self.reporter.say,
            )  # fmt: skip
            manifest = training.bootstrap(task, stage.job.config, trainer)
        self.made |= manifest.pop("checkpoints", {})
        return manifest

    def trainer(self, progress: Progress, store: ResponseStore) -> Bootstrap:
        """What trains the models that methods write with."""
        return Bootstrap(
            self.plan.file.writer, self.corpus, self.held_out if self.plan.file.hold_out else None,
            self.plan.folder / "writer", self.plan.file.embeddings,
            partial(self._open, store), progress,
        )  # fmt: skip

    def _open(self, store: ResponseStore, config: ModelConfig) -> LanguageModel:
        self._opened.append(open_model(self.plan, store, config))
        return self._opened[-1]

    def clean(self) -> None:
        written = [self.plan.folder / "generate" / stage.name for stage in self.plan.generate]
        with self.reporter.stage("clean") as progress:
            self._keep("clean", clean(
                written, self.corpus, self.plan.folder / "clean", self.plan.clean,
                count_tokens=self.tokenizer.count, progress=progress,
            ))  # fmt: skip

    def measure(self) -> None:
        section, folder = self.plan.file.measure, self.plan.folder
        assert section is not None
        written = tuple(folder / "generate" / stage.name for stage in self.plan.generate)
        corpus = Corpus("all", (folder / "clean",) if self.plan.clean else written)
        sources = Corpus(SOURCE, (self.corpus,))
        manifest = loop.run(_measure(self.plan, section, corpus, sources, folder / "measure", self.reporter))
        self._keep("measure", manifest)
        self.result.missed += [
            f"measure: {name} is out of the bounds that the plan requires; see {folder}/measure/figures.md"
            for name in manifest["failed"]
        ]

    def mix(self, dry: bool = False) -> dict[str, Allocation]:
        options = self.plan.file.mix
        assert options is not None
        tokenizer = load_tokenizer(options.tokenizer) if options.tokenizer else self.tokenizer
        sources = {name: _source(self.plan, source) for name, source in options.sources.items()}
        with self.reporter.stage("mix") as progress:
            manifest, found = mix(
                options, sources, tokenizer, self.plan.folder / "mix", progress.named, dry=dry
            )
        if manifest is not None:
            self._keep("mix", manifest)
        return found

    def train(self) -> Models:
        options, mixed = self.plan.file.train, self.plan.file.mix
        assert options is not None and mixed is not None
        done: dict[tuple[str, int], tuple[Path, dict[str, Any]]] = {}
        for arm in mixed.every_arm:
            for seed in options.seeds:
                name = f"{arm}-{seed}"
                with self.reporter.stage(f"train {name}") as progress:
                    folder = self.plan.folder / "train" / name
                    mix = self.plan.folder / "mix"
                    manifest = train(mix, arm, options.of_seed(seed), folder, progress.named)
                done[arm, seed] = folder / "model", manifest
                self._keep(f"train/{name}", manifest)
        assert_matched({f"{arm}-{seed}": manifest for (arm, seed), (_, manifest) in done.items()})
        return done

    def finetune(self, trained: Models) -> Models:
        """The models as they are evaluated: finetuned where the plan says so."""
        options = self.plan.file.finetune
        if options is None:
            return trained
        done: dict[tuple[str, int], tuple[Path, dict[str, Any]]] = {}
        for (arm, seed), (checkpoint, _) in trained.items():
            name = f"{arm}-{seed}"
            with self.reporter.stage(f"finetune {name}") as progress:
                folder = self.plan.folder / "finetune" / name
                manifest = finetune(checkpoint, options, folder, progress=progress.named)
            done[arm, seed] = folder / "model", manifest
            self._keep(f"finetune/{name}", manifest)
        assert_matched({f"{arm}-{seed}": manifest for (arm, seed), (_, manifest) in done.items()})
        return done

    def evaluate(self, trained: Models) -> None:
        options = self.plan.file.evaluate
        assert options is not None
        candidates = [
            Candidate(arm, seed, manifest["fingerprint"], checkpoint)
            for (arm, seed), (checkpoint, manifest) in trained.items()
        ]
        others = self.made | options.checkpoints
        candidates += [candidate_at(name, str(path)) for name, path in others.items()]
        manifest = loop.run(
            _evaluate(self.plan, options, candidates, self.plan.folder / "evaluate", self.reporter)
        )
        self._keep("evaluate", manifest)

    def _keep(self, name: str, manifest: dict[str, Any]) -> None:
        self.result.manifests[name] = manifest
        self.reporter.event("stage done", stage=name, counts=manifest["counts"], reasons=manifest["reasons"])

    def _check_failed(self, name: str, counts: dict[str, int]) -> None:
        read, failed = counts["documents_read"], counts["documents_rejected"]
        if read and failed / read > self.plan.file.max_failed:
            self.result.missed.append(
                f"{name}: nothing could be written from {failed} of {read} documents (more than max_failed "
                f"{self.plan.file.max_failed:g}); see {self.plan.folder}/generate/{name}/rejected"
            )


@contextmanager
def open_store(plan: Plan) -> Iterator[ResponseStore]:
    """The project's response store, entered in the ledger under this run's name."""
    store = ResponseStore(plan.file.answers, plan.file.name)
    try:
        yield store
    finally:
        store.close()


def prices_of(plan: Plan) -> Prices | None:
    """The user's price file, if the plan names one."""
    return load_prices(plan.file.prices) if plan.file.prices else None


def _source(plan: Plan, source: Source) -> tuple[str, Callable[[], Sequence[Document]]]:
    """(fingerprint, function that reads the documents) of a mix's source."""
    if source.path is not None:
        corpus = corpus_at(source.path, "source")[0]
    elif source.stage == "generate":
        corpus = Corpus("source", tuple(plan.folder / "generate" / stage.name for stage in plan.generate))
    else:
        corpus = Corpus("source", (plan.folder / str(source.stage),))
    for folder in corpus.folders:
        if read_manifest(folder) is None:
            raise UsageError(f"mix: {folder} is not finished; run the plan up to it first (--to clean)")

    def read() -> Sequence[Document]:
        return [document for document in corpus.read() if source.takes(document)]

    return fingerprint([corpus.fingerprint(), source.only]), read


def recipes(plan: Plan, console: Console | None = None) -> dict[str, Allocation]:
    """What every arm of the plan's mix will take of every source; writes nothing.

    Raises:
        UsageError: no mix in the plan, a recipe that cannot be, or a stage that it needs is not finished.
    """
    if plan.file.mix is None:
        raise UsageError("the plan has no 'mix' section")
    if read_manifest(plan.folder / "corpus") is None:
        raise UsageError(f"mix: {plan.folder}/corpus is not finished; run the plan first (--to clean)")
    with locked(plan.folder):
        runner = Runner(plan, Reporter(plan.folder / "events.jsonl", console or Console(quiet=True)))
        runner.tokenizer = load_tokenizer(str(runner.corpus / "tokenizer.json"))
        return runner.mix(dry=True)


def measure(
    corpus: str,
    out: Path | None = None,
    *,
    sources: str | None = None,
    model: Mapping[str, Any] | None = None,
    console: Console | None = None,
    **section: Any,
) -> tuple[Path, Report]:
    """Measure any corpus, without a plan.

    Args:
        corpus: a run, a stage's folder, or documents in any form that Leaven reads.
        out: folder to write; by default ``measure/`` in a run, else ``NAME.measure/`` beside the corpus.
        sources: the documents it was written from; a run and a stage of a run know theirs.
        model: the judging model, as a plan's `model`; its answers are stored in ``answers/`` beside `out`.
        section: as `leaven.plan.MeasureSection`: figures, by, sample, seed, against, require.

    Returns:
        (folder, report).

    Raises:
        UsageError: nothing to measure, or nothing to measure it with; one line.
    """
    options = validated(MeasureSection, section, "measure")
    check_figures(options.require, "measure: require")
    found, known = corpus_at(corpus, "all")
    if sources is not None:
        known = corpus_at(sources, SOURCE)[0]
    place = Path(corpus)
    if out is None:
        is_run = read_manifest(place / "corpus") is not None
        out = place / "measure" if is_run else place.with_name(f"{place.name.split('.')[0]}.measure")
    project = {"answers": out.parent / "answers", "embeddings": out.parent / "embeddings"}
    if (place / "plan.json").exists():  # what the run's project has stored serves here too
        planned = json.loads((place / "plan.json").read_text(encoding="utf-8"))
        project = {name: planned[name] for name in project}
    value = {"name": "measure", "documents": {"path": corpus}, "model": model, **project}
    file = validated(PlanFile, value, "measure")
    plan = Plan(file, out, (), (), parse_measures(options.figures))
    with locked(out.parent):
        reporter = Reporter(out.parent / "events.jsonl", console or Console(quiet=True))
        loop.run(_measure(plan, options, found, known, out, reporter))
    return out, read_report(out)


async def _measure(
    plan: Plan, section: MeasureSection, corpus: Corpus, sources: Corpus | None, out: Path, reporter: Reporter
) -> dict[str, Any]:
    """The manifest of the measure stage in `out`."""
    against = corpus_at(section.against, "against")[0] if section.against else None
    asked = [model for one in plan.measure for model in one.models]
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(open_store(plan)) if asked else None
        progress = stack.enter_context(reporter.stage("measure"))
        async with _Models(plan, store, section.model) as models:
            manifest = await run_measures(
                corpus, out, plan.measure, sources=sources, against=against, by=section.by,
                sample=section.sample, bounds=section.require,
                context=Context(section.seed, plan.file.embeddings, models.open, progress.named),
                about={"models": [models.open(model).backend.identity for model in asked]},
            )  # fmt: skip
        if store is not None:
            write_json(out.parent / "ledger.json", ledger(plan, store))
    return manifest


def evaluate(
    models: Mapping[str, str],
    out: Path,
    *,
    model: Mapping[str, Any] | None = None,
    console: Console | None = None,
    **section: Any,
) -> list[evaluation.Result]:
    """Evaluate any models, without a plan.

    Args:
        models: by name: a checkpoint's folder, or NAME@URL of a server; the first is the baseline unless
            `baseline` names another.
        out: folder to write; answers are stored in ``answers/`` beside it.
        model: the judging model, as a plan's `model`.
        section: as `leaven.evaluate.Evaluate`: sets, baseline, seed.

    Raises:
        UsageError: no model there, or an unreadable set; one line.
    """
    options = validated(Evaluate, section, "evaluate")
    if None in options.judges and model is None:
        raise UsageError("evaluate: a set of kind claims needs a judge: name one with --model")
    project = {"answers": out.parent / "answers", "embeddings": out.parent / "embeddings"}
    value = {"name": "evaluate", "documents": {"path": str(out)}, "model": model, **project}
    plan = Plan(validated(PlanFile, value, "evaluate"), out, (), ())
    candidates = [candidate_at(name, place) for name, place in models.items()]
    with locked(out.parent):
        reporter = Reporter(out.parent / "events.jsonl", console or Console(quiet=True))
        loop.run(_evaluate(plan, options, candidates, out, reporter))
    return evaluation.read_results(out)


async def _evaluate(
    plan: Plan, options: Evaluate, candidates: Sequence[Candidate], out: Path, reporter: Reporter
) -> dict[str, Any]:
    """The manifest of the evaluate stage in `out`."""
    with open_store(plan) as store, reporter.stage("evaluate") as progress:
        async with _Models(plan, store, None) as models:
            context = Context(options.seed, plan.file.embeddings, models.open, progress.named)
            return await evaluation.evaluate(candidates, options, out, context)


def candidate_at(name: str, place: str) -> Candidate:
    """A model to evaluate: a checkpoint's folder, or NAME@URL of a server.

    Raises:
        UsageError: no checkpoint there.
    """
    if "@http" in place:
        model, _, url = place.partition("@")
        return Candidate(name, 0, place, served=openai.Config(name=model, url=url))
    return Candidate(name, 0, transformers.weights_hash(Path(place)), Path(place))


class _Models:
    """Language models of one stage, each opened once and closed together."""

    def __init__(self, plan: Plan, store: ResponseStore | None, default: ModelConfig | None) -> None:
        self._plan, self._store = plan, store
        self._default = default or plan.file.model
        self._open: dict[str, LanguageModel] = {}

    async def __aenter__(self) -> _Models:
        return self

    async def __aexit__(self, *_: object) -> None:
        for model in self._open.values():
            await model.close()

    def open(self, config: ModelConfig | None) -> LanguageModel:
        chosen = config or self._default
        if chosen is None or self._store is None:
            raise UsageError("this measure asks a language model: name one under 'model'")
        key = chosen.model_dump_json()
        if key not in self._open:
            self._open[key] = open_model(self._plan, self._store, chosen)
        return self._open[key]


def open_model(plan: Plan, store: ResponseStore, config: ModelConfig | None = None) -> LanguageModel:
    """A model (None: the plan's) with the plan's budget, counting what earlier sessions of the run spent."""
    chosen = config or plan.file.model
    assert chosen is not None
    backend = chosen.open()
    prices = prices_of(plan)
    price = prices.price(backend.model) if prices and backend.paid else None
    budget = plan.file.budget
    spent = store.spent().get(backend.model)
    meter = Meter(price=price, max_tokens=budget.tokens, max_money=budget.money)
    if spent is not None:
        meter.spent = spent
    return LanguageModel(backend, store, meter)


def ledger(plan: Plan, store: ResponseStore) -> dict[str, Any]:
    """What this run has used over all its sessions, by step, with money where prices are known."""
    prices = prices_of(plan)
    models: dict[str, dict[str, Any]] = {}
    for model, usage in store.spent().items():
        entry = models[model] = _tokens(usage)
        entry["cached_share"] = round(usage.cached / usage.prompt, 4) if usage.prompt else 0.0
        entry["estimated"] = usage.estimated
        if prices and model in prices.models:
            entry["money"] = round(prices.models[model].of(usage), 6)
            entry["currency"], entry["prices_as_of"] = prices.currency, str(prices.as_of)
    steps = {
        f"{method}/{step}": {"answers": answers, **_tokens(usage)}
        for (method, step), (answers, usage) in sorted(store.spent_by_step().items())
    }
    return {"models": models, "steps": steps}


def _tokens(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt,
        "cached_tokens": usage.cached,
        "completion_tokens": usage.completion,
    }
