"""The folder of a search, and what one does with it: search, confirm, reinforce, look.

    OUT/search.sqlite    every attempt
    OUT/events.jsonl     what happened when
    OUT/answers/         answers of language models, never paid for twice
    OUT/best.patch       the best patch so far; `patch -p1` applies it to the environment's code
    OUT/results.md       what was found, and whether to believe it
    OUT/progress.png     the best score so far, epoch by epoch (with the extra `plot`)

Each command of `leaven search` is a function here.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from rich import box
from rich.console import Console
from rich.table import Table

from leaven.config import validated
from leaven.errors import UsageError
from leaven.lm import ModelConfig, loop
from leaven.lm.client import LanguageModel
from leaven.lm.store import ResponseStore
from leaven.progress import Reporter
from leaven.search.analyse import (
    CONFIRM_SEEDS,
    Difference,
    best_of,
    confirm,
    confirmed,
    epochs,
    kind_of_change,
    noise_floor,
    picture,
    settings_confirmed,
)
from leaven.search.archive import Archive, Attempt
from leaven.search.environment import Environment, Metric, load
from leaven.search.implement import Implementer
from leaven.search.loop import Ideator, Options, Search
from leaven.search.mutate import Mutations
from leaven.search.patch import PatchError, apply
from leaven.search.sandbox import Sandbox
from leaven.search.workers import SEED, workers
from leaven.stage import locked

TEMPLATE = Path(__file__).with_name("template")
LISTED = 10  # attempts in a table


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    model: ModelConfig


def new_env(folder: Path) -> None:
    """Make an environment that runs, to be changed into one's own.

    Raises:
        UsageError: there is something already.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty; give the new environment a folder of its own")
    shutil.copytree(TEMPLATE, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))


def search(
    folder: Path,
    out: Path,
    options: Options = Options(),  # noqa: B008 (frozen)
    *,
    setting: str | None = None,
    model: dict[str, Any] | None = None,
    coder: dict[str, Any] | None = None,
    most: int | None = None,
    ray: str | None = None,
    unsafe: bool = False,
    console: Console | None = None,
) -> Archive:
    """Search an environment; goes on where an earlier search in `out` was.

    Args:
        setting: of the environment.
        model: has the ideas, and writes the patches unless `coder` does; as a plan's `model`. None mutates parameters.
        most: attempts at a time; None is as many as fit.
        ray: address of a Ray cluster that runs the attempts.
        unsafe: without a sandbox.

    Returns:
        The archive, open.

    Raises:
        UsageError: the environment, an option, the baseline, or the machine will not do; one line.
        Stopped: the model cannot go on for now.
    """
    environment = load(folder, setting)
    options.check()
    sandbox = Sandbox.find(unsafe)
    ideator: Ideator | None = None if model else Mutations(environment, options.seed)
    with locked(out):
        archive = Archive(out / "search.sqlite")
        _remember(archive, folder, setting)
        with closing(ResponseStore(out / "answers", out.name)) as store:
            thinker = _open(model, store, "model") if model else None
            writer = _open(coder, store, "coder") if coder else thinker
            reporter = Reporter(out / "events.jsonl", console or Console(quiet=True))
            with reporter.stage(f"search {environment.file.name}", thinker) as progress:

                async def run() -> None:
                    try:
                        with workers(out / "work", environment, sandbox, most, ray) as running:
                            await Search(
                                environment, archive, ideator or _thinker(environment, thinker, options, out),
                                running, options, implementer=_implementer(environment, writer),
                                tell=progress.named, say=reporter.say,
                            ).run()  # fmt: skip
                    finally:
                        for one in {thinker, writer} - {None}:
                            await one.close()  # type: ignore[union-attr]

                try:
                    loop.run(run())
                finally:
                    write_results(out, archive, environment)
    return archive


def reinforce_ideator(
    folder: Path,
    out: Path,
    config: dict[str, Any],
    *,
    setting: str | None = None,
    coder: dict[str, Any] | None = None,
    most: int | None = None,
    unsafe: bool = False,
    console: Console | None = None,
) -> Path:
    """Finetune an ideator by what its ideas are worth when executed; returns the folder of the new checkpoint.

    Args:
        config: as `leaven.search.reinforce.Config`.
        coder: turns ideas into patches; None where the ideator writes patches or parameters itself.

    Raises:
        UsageError: the environment, an option, the checkpoint or the machine will not do; one line.
        Stopped: the coder cannot go on for now.
    """
    from leaven.search.reinforce import Config, reinforce

    options = validated(Config, config, "reinforce")
    environment = load(folder, setting)
    sandbox = Sandbox.find(unsafe)
    with locked(out), closing(Archive(out / "search.sqlite")) as archive:
        _remember(archive, folder, setting)
        with closing(ResponseStore(out / "answers", out.name)) as store:
            writer = _open(coder, store, "coder") if coder else None
            reporter = Reporter(out / "events.jsonl", console or Console(quiet=True))
            with (
                reporter.stage(f"reinforce {environment.file.name}", writer) as progress,
                workers(out / "work", environment, sandbox, most) as running,
            ):
                return reinforce(
                    environment, options, out / "reinforce", running, archive, _implementer(environment, writer),
                    progress.named, reporter.say,
                )  # fmt: skip


def _remember(archive: Archive, folder: Path, setting: str | None) -> None:
    """Where the environment lies and which setting was chosen, for `confirm_best`."""
    if archive.fact("folder") is None:
        archive.note("folder", str(folder.resolve()))
        archive.note("setting", setting)


def confirm_best(
    out: Path,
    *,
    seeds: int = CONFIRM_SEEDS,
    setting: str | None = None,
    most: int | None = None,
    unsafe: bool = False,
    console: Console | None = None,
) -> Difference:
    """Run the winner of a search and the baseline on fresh seeds, maybe in another setting.

    Args:
        setting: of the environment; None is the search's own, the empty name is none.

    Raises:
        UsageError: nothing was found yet, or a run fails.
    """
    sandbox = Sandbox.find(unsafe)
    with opened(out) as archive, locked(out):
        folder = Path(archive.fact("folder"))
        searched = load(folder, archive.fact("setting"))
        if archive.fact("fingerprint") != searched.fingerprint:
            raise UsageError(f"{out} holds a search of what {folder} was; its files were changed since")
        where = archive.fact("setting") or "" if setting is None else setting
        environment = load(folder, where or None)
        best = best_of(archive.attempts(), environment.file.metric)
        if best is None:
            raise UsageError(f"{out}: no attempt has a score, there is nothing to confirm")
        reporter = Reporter(out / "events.jsonl", console or Console(quiet=True))
        with reporter.stage("confirm") as progress:

            async def run() -> Difference:
                with workers(out / "work", environment, sandbox, most) as running:
                    return await confirm(environment, archive, best, running, seeds, where, progress.named)

            found = loop.run(run())
        write_results(out, archive, searched)
    return found


@contextmanager
def opened(out: Path) -> Iterator[Archive]:
    """The archive of a search's folder.

    Raises:
        UsageError: there is none.
    """
    path = out / "search.sqlite"
    if not path.exists():
        raise UsageError(f"{out} holds no search: there is no search.sqlite in it")
    archive = Archive(path)
    try:
        yield archive
    finally:
        archive.close()


def _open(config: dict[str, Any], store: ResponseStore, where: str) -> LanguageModel:
    chosen: Any = validated(_Model, {"model": config}, where).model
    return LanguageModel(chosen.open(), store)


def _thinker(environment: Environment, model: LanguageModel | None, options: Options, out: Path) -> Ideator:
    from leaven.corpus.embed import Config, Embedder
    from leaven.search.ideas import Thinker

    assert model is not None
    return Thinker(environment, model, Embedder(Config(), out / "embeddings").embed, seed=options.seed)


def _implementer(environment: Environment, model: LanguageModel | None) -> Implementer | None:
    if model is None:
        return None
    return Implementer(model, environment.context(), environment.code, environment.rules)


@dataclass(frozen=True)
class Summary:
    """What a search has found so far."""

    metric: Metric
    attempts: list[Attempt]
    baselines: list[float]
    best: Attempt | None
    floor: float | None
    confirmations: dict[str, Difference]

    @property
    def baseline(self) -> float | None:
        """Score of the baseline with the seed of the attempts."""
        scores = [one.score for one in self.attempts if one.kind == "baseline" and one.seed == SEED]
        return scores[0] if scores else None

    @property
    def verdict(self) -> str:
        """In a sentence, what may be believed."""
        name = self.metric.name
        if self.baseline is None:
            return "the baseline has not been run"
        if self.best is None or self.best.score is None:
            return "no attempt has a score yet"
        gain = self.best.score - self.baseline
        scores = f"{name} {self.best.score:.6g}, baseline {self.baseline:.6g} ({gain:+.4g})"
        line = f"best attempt {self.best.number}: {scores}"
        if not self.metric.better(self.best.score, self.baseline):
            return f"{line}: no attempt beats the baseline"
        if self.confirmations:  # which say more than the noise of single runs
            return line
        if self.floor is None:
            return f"{line}; one run of the baseline says nothing of its noise: --baselines 3 or more"
        if abs(gain) <= self.floor:
            return f"{line}: within the noise of the baseline (one run may be {self.floor:.4g} off): no gain is shown"
        return (
            f"{line}: beyond the noise of the baseline ({self.floor:.4g}), but not confirmed on fresh seeds"
        )


def summary(archive: Archive) -> Summary:
    """Look at a search."""
    metric = Metric(**archive.fact("metric"))
    attempts = archive.attempts()
    baselines = [one.score for one in attempts if one.kind == "baseline" and one.score is not None]
    best = best_of(attempts, metric)
    confirmations = {}
    for setting in settings_confirmed(archive):
        found = confirmed(archive, best, setting) if best else None
        if found:
            confirmations[setting] = found
    return Summary(metric, attempts, baselines, best, noise_floor(baselines), confirmations)


def confirmation_line(metric: Metric, setting: str, found: Difference) -> str:
    """One line about a confirmation."""
    where = f", setting {setting}" if setting else ""
    if found.low is None or found.high is None:
        return f"confirmed on one fresh seed{where}: {found.value:+.4g} ({found.first:.6g} against {found.second:.6g})"
    certain = found.low * found.high > 0
    better = metric.better(found.first, found.second)
    word = ("a gain" if better else "a loss") if certain else "no difference shown"
    return (
        f"on {found.seeds} fresh seeds{where}: {found.first:.6g} against {found.second:.6g}, {found.value:+.4g} "
        f"[{found.low:+.4g}, {found.high:+.4g}]: {word}"
    )


def tables(found: Summary) -> list[Table]:
    """Epoch by epoch, and the best attempts."""
    progress = Table(title="epochs", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("epoch", "ideas", "completed", "mean", "best", "best so far"):
        progress.add_column(column, justify="right")
    for one in epochs(found.attempts, found.metric):
        numbers = ["" if x is None else f"{x:.6g}" for x in (one.mean, one.best, one.so_far)]
        progress.add_row(str(one.number), str(one.ideas), f"{one.completed}", *numbers)
    top = Table(title="best attempts", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("attempt", "epoch", "kind", "score", "seconds", "idea"):
        top.add_column(column, justify="left" if column in ("kind", "idea") else "right")
    scored = [one for one in found.attempts if one.score is not None and one.tried]
    for attempt in sorted(scored, key=lambda one: -found.metric.reward(one.score))[:LISTED]:
        top.add_row(
            str(attempt.number), str(attempt.epoch), attempt.kind, f"{attempt.score:.6g}", f"{attempt.seconds:.1f}",
            " ".join(attempt.idea.split())[:200],
        )  # fmt: skip
    return [progress, top]


def failures(found: Summary) -> list[tuple[str, int]]:
    """Why attempts failed, the most frequent reason first."""
    counts: dict[str, int] = {}
    for one in found.attempts:
        if one.tried and one.status == "failed":
            counts[one.reason[:120]] = counts.get(one.reason[:120], 0) + 1
    return sorted(counts.items(), key=lambda item: -item[1])


def print_search(out: Path, console: Console) -> None:
    """Print what a search has found.

    Raises:
        UsageError: there is none.
    """
    with opened(out) as archive:
        if archive.fact("metric") is None:
            raise UsageError(f"{out}: the search has not begun")
        found = summary(archive)
    for table in tables(found):
        console.print(table)
    for reason, count in failures(found)[:LISTED]:
        console.print(f"failed {count} times: {reason}", highlight=False, markup=False, soft_wrap=True)
    console.print(found.verdict, highlight=False, markup=False, soft_wrap=True)
    for setting, one in found.confirmations.items():
        console.print(
            confirmation_line(found.metric, setting, one), highlight=False, markup=False, soft_wrap=True
        )


def write_results(out: Path, archive: Archive, environment: Environment) -> None:
    """Write best.patch and results.md."""
    if archive.fact("metric") is None:
        return
    found = summary(archive)
    if found.best is not None:
        (out / "best.patch").write_text(found.best.patch, encoding="utf-8")
    lines = [f"# Search of {environment.file.name}", "", found.verdict + ".", ""]
    lines += [f"- {confirmation_line(found.metric, name, one)}" for name, one in found.confirmations.items()]
    lines += [
        "",
        "| epoch | ideas | completed | mean | best | best so far |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for one in epochs(found.attempts, found.metric):
        numbers = ["" if x is None else f"{x:.6g}" for x in (one.mean, one.best, one.so_far)]
        lines.append(f"| {one.number} | {one.ideas} | {one.completed} | {' | '.join(numbers)} |")
    lines += ["", "| kind of idea | ideas | completed | mean | best |", "| --- | --- | --- | --- | --- |"]
    for name, some in by_change(found.attempts, environment).items():
        scores = [one.score for one in some if one.score is not None]
        best = max(scores, key=found.metric.reward, default=None)
        numbers = [
            "" if x is None else f"{x:.6g}" for x in (sum(scores) / len(scores) if scores else None, best)
        ]
        lines.append(f"| {name} | {len(some)} | {len(scores)} | {' | '.join(numbers)} |")
    lines += ["", *(f"- failed {count} times: {reason}" for reason, count in failures(found))]
    (out / "results.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    if found.best is not None and found.baseline is not None and find_spec("vl_convert") is not None:
        curve = epochs(found.attempts, found.metric)
        picture({archive.fact("strategy"): curve}, found.metric.name, found.baseline, out / "progress.png")


def by_change(attempts: list[Attempt], environment: Environment) -> dict[str, list[Attempt]]:
    """Attempts with a patch, by what the patch changes: values or what is computed (table 4.2 of paper 003)."""
    found: dict[str, list[Attempt]] = {}
    for one in attempts:
        if not one.tried or not one.patch or one.status not in ("done", "failed"):
            continue
        try:
            after = apply(one.patch, environment.code, environment.rules)
        except PatchError:
            continue
        found.setdefault(kind_of_change(environment.code, after), []).append(one)
    return dict(sorted(found.items()))
