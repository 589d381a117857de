"""The plan file: one YAML that says what goes in, which model writes, by which methods, what is kept.

    name: stories
    documents: {path: documents.jsonl}
    model: {backend: openai, name: my-model, url: http://127.0.0.1:8000/v1}
    generate:
      - rephrase: {styles: [easy, qa]}
      - mga
      - entigraph: {triples: 50, steps: {pair: {temperature: 0.7}}}
    clean: [boilerplate, copying, {length: {min_words: 30}}, near_duplicates]
    measure: {figures: [lexical, embedding], require: {duplicate_rate: {max: 0.05}}}

Paths are relative to the plan file, so that a plan means the same wherever it is started from. Every
mistake is reported as one line with the file, the field and the fix, before anything is written or sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field

from leaven.bootstrap import Writer, whole
from leaven.clean import Filter, parse_filters
from leaven.config import PlanLocation, PlanName, PlanPath, one_item, validated
from leaven.corpus import VOCABULARY
from leaven.corpus.read import Input
from leaven.corpus.tokens import load_tokenizer
from leaven.errors import UsageError, nearest
from leaven.evaluate import Evaluate, read_sets
from leaven.evaluate.sets import LikelihoodSet
from leaven.generate import bootstrapping, load_method
from leaven.generate._runner import Job
from leaven.lm import ModelConfig
from leaven.lm.ask import StepOverride, override
from leaven.measure import Measure, parse_measures
from leaven.measure.report import Bounds, check_figures
from leaven.mix import Mix
from leaven.train import Finetune, Training
from leaven.train.pretrain import same_tokenizer
from leaven.train.rows import read_rows
from leaven.train.shapes import shape

Item = str | dict[str, dict[str, Any] | None]


class Budget(BaseModel):
    """Hard caps on what the model may be asked for, over all sessions of the run.

    Args:
        tokens: prompt and completion tokens together.
        money: in the price file's currency; needs `prices`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    tokens: int | None = Field(None, ge=1)
    money: float | None = Field(None, gt=0)


class MeasureSection(BaseModel):
    """What is measured once the corpus is clean.

    Args:
        figures: measures in order; an item is a name or ``{name: options}``.
        by: lineage field whose values get a column each (``method``, ``step``, ``model``,
            ``variables.NAME``).
        sample: most documents of a corpus that are looked at.
        seed: of the samples and intervals.
        model: the judging model; None is the plan's `model`.
        against: another corpus to hold this one against: a run, a stage's folder, or documents.
        require: bounds by figure; a run whose corpus misses one ends with exit code 1, before more is spent.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    figures: tuple[Item, ...] = ("lexical", "embedding")
    by: str | None = "method"
    sample: int = Field(20_000, ge=2)
    seed: int = 0
    model: ModelConfig | None = None
    against: PlanLocation | None = None
    require: dict[str, Bounds] = Field(default_factory=dict)


class PlanFile(BaseModel):
    """The plan as written.

    Args:
        name: of the run; its folder is ``runs/<name>`` beside the plan unless `out` says otherwise.
        tokenizer: tokenizer.json, checkpoint folder or hub name to count tokens with; a number trains a BPE
            with at most so many entries on the corpus itself.
        chunk_tokens: split longer documents when the corpus is built.
        shards: Parquet files of the corpus; None decides by size.
        answers: folder of the response store; it belongs to the project and outlives runs.
        prices: the user's own dated price file.
        max_failed: highest share of documents from which nothing could be written before the run ends
            with a non-zero exit code.
        hold_out: share of the documents that is set aside in ``RUN/held_out``: nothing is written from them, and
            they can be validated on (``stage: held_out``).
        generate: methods in order; an item is a name or ``{name: options}``. Beside the method's own
            options: `steps` (overrides by step), `chunk_tokens` (for this method only), `name` (of the stage
            folder, when a method is used twice), `model` (another than the plan's; for sbp, a synthesizer at hand).
        method: ``sbp`` or ``self_train``: every section that the plan leaves out, `generate` among them, goes by the
            size of the corpus (`leaven.bootstrap.whole`).
        writer: the model that sbp and self_train train on the corpus to write with; the plan's `model` is never it.
        clean: filters in order; an item is a name or ``{name: options}``.
        measure: what to measure of the cleaned rows; left out, nothing is.
        mix: the arms to train, and what each takes of what; left out, none.
        train: how every arm is trained; needs `mix`.
        finetune: how every trained model is finetuned before it is evaluated; needs `train`, and a `path`.
        evaluate: what every trained model is asked; needs `train`.
        embeddings: folder of the embeddings' cache; it outlives runs as well.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = Field(pattern=r"^[\w.-]+$")
    documents: Input
    tokenizer: PlanName | Annotated[int, Field(ge=257)] = VOCABULARY
    chunk_tokens: int | None = Field(None, ge=16)
    shards: int | None = Field(None, ge=1)
    model: ModelConfig | None = None
    prices: PlanPath | None = None
    budget: Budget = Budget()
    out: PlanPath | None = None
    answers: PlanPath = Field(Path("answers"), validate_default=True)
    max_failed: float = Field(0.1, ge=0, le=1)
    hold_out: float = Field(0.0, ge=0, lt=1)
    method: whole.Method | None = None
    generate: tuple[Item, ...] = ()
    writer: Writer = Writer()
    clean: tuple[Item, ...] = ()
    measure: MeasureSection | None = None
    mix: Mix | None = None
    train: Training | None = None
    finetune: Finetune | None = None
    evaluate: Evaluate | None = None
    embeddings: PlanPath = Field(Path("embeddings"), validate_default=True)


class _Entry(BaseModel):
    """What every entry under `generate` may say beside the method's options."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str | None = Field(None, pattern=r"^[\w.-]+$")
    chunk_tokens: int | None = Field(None, ge=16)
    model: ModelConfig | None = None
    steps: dict[str, StepOverride] = Field(default_factory=dict)


@dataclass(frozen=True)
class GenerateStage:
    """One resolved entry under `generate`.

    Args:
        model: to write with; None trains one on the corpus.
    """

    name: str
    job: Job
    model: ModelConfig | None


@dataclass(frozen=True)
class Plan:
    """A plan, checked and resolved: every name found, every option validated, every path anchored."""

    file: PlanFile
    folder: Path
    generate: tuple[GenerateStage, ...]
    clean: tuple[Filter, ...]
    measure: tuple[Measure, ...] = ()

    def completed(self, sections: Mapping[str, Any]) -> Plan:
        """The plan with sections and options of sections that it left out; its own stand.

        Raises:
            UsageError: they do not go together with its own.
        """
        own = self.file.model_dump(mode="json", exclude_unset=True)
        own.pop("method", None)
        # Paths are anchored already, the defaults among them too.
        own |= {"out": self.folder, "answers": self.file.answers, "embeddings": self.file.embeddings}
        for name, section in sections.items():
            if isinstance(section, Mapping) and isinstance(own.get(name), Mapping):
                own[name] = {**section, **own[name]}
                if own[name].get("checkpoint"):  # in place of the shape that was chosen
                    own[name].pop("shape", None)
        return resolve({**sections, **own}, Path(), f"plan {self.file.name}, completed")


def load_plan(path: Path) -> Plan:
    """Read and check a plan file.

    Raises:
        UsageError: one line naming the file, the field and the fix.
    """
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"plan {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"plan {path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise UsageError(f"plan {path}: must be a mapping with at least 'name' and 'documents'")
    return resolve(value, path.parent, f"plan {path}")


def resolve(value: dict[str, Any], base: Path, where: str = "plan") -> Plan:
    """A plan from a mapping; relative paths in it start at `base`."""
    if value.get("method") in get_args(whole.Method):
        value = {**whole.FIRST, **value}
    file = validated(PlanFile, value, where, base)
    file.writer.check(where)
    generate = _generate_stages(file, base, where)
    clean = parse_filters(file.clean, base, f"{where}: clean")
    section = file.measure
    measures = parse_measures(section.figures, base, f"{where}: measure") if section else ()
    check_figures(section.require if section else (), f"{where}: measure: require")
    asking = [one.name for one in measures if None in one.models]
    if section and asking and section.model is None and file.model is None:
        raise UsageError(f"{where}: measure: {asking[0]} asks a language model; name one under 'model'")
    if section and not file.generate and not file.method:
        raise UsageError(
            f"{where}: 'measure' looks at what 'generate' wrote; use `leaven measure` for documents"
        )
    if file.train is not None and file.mix is None and not file.method:
        raise UsageError(f"{where}: 'train' needs 'mix', which says what each arm trains on")
    if file.finetune is not None:
        if file.train is None:
            raise UsageError(
                f"{where}: 'finetune' needs 'train'; use `leaven finetune` for a checkpoint at hand"
            )
        if file.finetune.path is None:
            raise UsageError(
                f"{where}: finetune: needs a 'path' to rows with prompt and completion, or messages"
            )
        read_rows(file.finetune.path)
    if file.train is not None and isinstance(file.train.shape, str):
        shape(file.train.shape)
    if file.train is not None and file.train.checkpoint is not None:
        _check_tokenizer(file, file.train.checkpoint, where)
    if file.evaluate is not None:
        made = file.method or [stage for stage in generate if stage.model is None]
        if (file.train is None or file.mix is None) and not made:
            raise UsageError(f"{where}: 'evaluate' needs 'train', which makes the models")
        arms = file.mix.every_arm if file.train and file.mix else {}
        baseline = file.evaluate.baseline
        if baseline is not None and baseline not in arms and not made:
            line = f"{where}: evaluate: baseline {baseline!r} is no arm"
            raise UsageError(f"{line}; {nearest(baseline, arms)}")
        for name, one in file.evaluate.sets.items():
            if isinstance(one, LikelihoodSet) and one.stage == "held_out" and not file.hold_out:
                raise UsageError(f"{where}: evaluate: set {name}: stage 'held_out': set hold_out in the plan")
        taken = [name for name in file.evaluate.checkpoints if name in arms]
        if taken:
            raise UsageError(f"{where}: evaluate: checkpoint {taken[0]!r} has the name of an arm")
        if None in file.evaluate.judges and file.model is None:
            raise UsageError(
                f"{where}: evaluate: a set of kind claims needs a 'judge', or the plan a 'model'"
            )
        read_sets(file.evaluate)
    if file.mix is not None:
        _check_mix(file.mix, file, where)
    folder = file.out or base / "runs" / file.name
    return Plan(file, folder, tuple(generate), tuple(clean), measures)


def _check_tokenizer(file: PlanFile, checkpoint: Path, where: str) -> None:
    """What the arms are tokenised with must be the checkpoint's own; better known before anything is paid for."""
    assert file.mix is not None
    name = file.mix.tokenizer or file.tokenizer
    if isinstance(name, int):
        raise UsageError(
            f"{where}: train goes on from {checkpoint}, so the mix must be in its tokens, not in those of a BPE "
            f"trained on the corpus; set tokenizer: {checkpoint}"
        )
    if Path(name).exists():
        same_tokenizer(checkpoint, load_tokenizer(name))


def _check_mix(mix: Mix, file: PlanFile, where: str) -> None:
    """Names in the mix section that can be checked before anything is read."""
    where = f"{where}: mix"
    for name, source in mix.sources.items():
        if source.stage in ("generate", "clean") and not file.generate and not file.method:
            raise UsageError(f"{where}: source {name!r} takes stage {source.stage!r}; nothing is generated")
        if source.stage == "held_out" and not file.hold_out:
            raise UsageError(f"{where}: source {name!r} takes stage 'held_out'; set hold_out in the plan")
        if source.stage == "clean" and not file.clean and not file.method:
            raise UsageError(f"{where}: source {name!r} takes stage 'clean', but the plan has no filters")
    if mix.validation is not None and mix.validation not in mix.sources:
        raise UsageError(
            f"{where}: validation: unknown source {mix.validation!r}; {nearest(mix.validation, mix.sources)}"
        )
    for arm, options in mix.every_arm.items():
        replayed = [mix.replay.source] if mix.replay else []
        for name in (*options.names, *replayed):
            if name not in mix.sources:
                raise UsageError(f"{where}: arm {arm}: unknown source {name!r}; {nearest(name, mix.sources)}")


def _generate_stages(file: PlanFile, base: Path, where: str) -> list[GenerateStage]:
    stages: list[GenerateStage] = []
    for item in file.generate:
        method_name, options = one_item(item, f"{where}: generate")
        place = f"{where}: generate: {method_name}"
        method = load_method(method_name)
        shared = {name: value for name, value in options.items() if name in _Entry.model_fields}
        own = {name: value for name, value in options.items() if name not in _Entry.model_fields}
        entry = validated(_Entry, shared, place, base)
        config = validated(method.Config, own, place, base)
        steps = override(method.steps, entry.steps, place)
        name = entry.name or method_name
        if any(stage.name == name for stage in stages):
            raise UsageError(f"{place}: used twice; give one of them another 'name'")
        model = entry.model
        if method.training is None:
            model = model or file.model
            if model is None:
                raise UsageError(
                    f"{place} needs a 'model' (backend openai, transformers or replay); without one there are "
                    f"{', '.join(bootstrapping())}, which train their own"
                )
        elif model is not None and method.training.only:
            raise UsageError(
                f"{place}: 'model': it writes with the model it trains; set writer: {{checkpoint: ...}}"
            )
        elif model is None and entry.chunk_tokens is not None:
            raise UsageError(
                f"{place}: 'chunk_tokens': set the plan's, so that the model is trained on such chunks"
            )
        stages.append(GenerateStage(name, Job(method, config, steps, entry.chunk_tokens), model))
    return stages
