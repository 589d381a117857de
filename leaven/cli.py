"""The command line: every command is a thin layer over the Python function of the same name.

Exit codes: 0 done; 1 done, but more documents failed or a figure lies elsewhere than the plan allows; 2
something to mend, said in one line; 3 stopped for now (server gone, budget spent, disk full), run again to go
on; 130 Ctrl+C.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

import leaven
from leaven.errors import Stopped, UsageError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from leaven.estimate import Estimate
    from leaven.lm.base import Usage
    from leaven.run import Result

app = typer.Typer(
    help="Raise a small corpus into a large one, and show that it helped.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

PlanArgument = Annotated[Path, typer.Argument(help="the plan file (YAML)")]


class _Interrupted(Exception):
    """Ctrl+C, in a form that the command-line library does not answer by itself."""


def main() -> None:
    """Entry point: turns the package's two kinds of failure into one line and an exit code."""
    try:
        app()
    except UsageError as error:
        _fail(str(error), 2)
    except Stopped as error:
        _fail(f"stopped: {error}", 3)
    except _Interrupted:
        _fail("interrupted; everything received is kept, run the same command again to go on", 130)


@contextmanager
def _interruptible() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as error:
        raise _Interrupted from error


def _fail(line: str, code: int) -> None:
    print(f"leaven: {line}", file=sys.stderr)
    sys.exit(code)


def _version(value: bool) -> None:
    if value:
        print(leaven.__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="show the version")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    plan: PlanArgument,
    to: Annotated[str, typer.Option(help=f"last stage to run: {', '.join(leaven.STAGES)}")] = leaven.STAGES[
        -1
    ],
    pairs: Annotated[int, typer.Option(help="print this many sources, each beside one kept child")] = 0,
) -> None:
    """Run a plan, or go on with it: everything done is skipped, every stored answer reused."""
    from rich.console import Console

    from leaven.plan import load_plan
    from leaven.run import run as run_plan

    with _interruptible():
        result = run_plan(load_plan(plan), to=to, console=Console())
    _finish(result, pairs)


@app.command("plan")
def plan_(
    plan: PlanArgument,
    probe: Annotated[
        int, typer.Option(help="really expand this many documents first (their answers are kept)")
    ] = 0,
) -> None:
    """Say what a run will ask for and cost. Sends nothing, unless a probe is asked for."""
    from rich.console import Console

    from leaven.estimate import estimate
    from leaven.plan import load_plan

    console = Console()
    with _interruptible():
        found = estimate(load_plan(plan), probe=probe, console=console)
    _print_estimate(found, console)


@app.command()
def generate(
    method: Annotated[str, typer.Argument(help="a method; see `leaven methods`")],
    corpus: Annotated[str, typer.Argument(help="documents: file, folder, glob or URL")],
    out: Annotated[Path, typer.Option(help="run folder to write")],
    model: Annotated[
        str | None,
        typer.Option(
            help="NAME@URL of an OpenAI-compatible server, a checkpoint folder, or a recording (.jsonl); sbp and "
            "self_train train their own"
        ),
    ] = None,
    chunk_tokens: Annotated[int | None, typer.Option(help="cut longer documents into chunks")] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="option of the method as YAML, e.g. 'triples: 20'")
    ] = None,
) -> None:
    """Apply one method to documents without writing a plan."""
    from rich.console import Console

    from leaven.plan import resolve
    from leaven.run import run as run_plan

    value = {
        "name": out.name, "documents": {"path": corpus}, "out": out, "answers": out.parent / "answers",
        "embeddings": out.parent / "embeddings", "chunk_tokens": chunk_tokens,
        "generate": [{method: _options(option) | ({"model": _model(model)} if model else {})}],
    }  # fmt: skip
    with _interruptible():
        result = run_plan(resolve(value, Path(), "command line"), to="generate", console=Console())
    _finish(result)


@app.command()
def clean(
    written: Annotated[list[Path], typer.Argument(help="folders that `leaven generate` or `run` wrote")],
    sources: Annotated[Path, typer.Option(help="the corpus folder they were written from")],
    out: Annotated[Path, typer.Option(help="folder to write")],
    filter: Annotated[
        list[str], typer.Option(help="a filter as YAML, in order, e.g. 'copying: {max_share: 0.3}'")
    ],
) -> None:
    """Filter written documents; rejects are kept with their reason."""
    from leaven.clean import clean as clean_stage
    from leaven.clean import parse_filters
    from leaven.corpus.tokens import load_tokenizer

    filters = parse_filters([_yaml(item, "--filter") for item in filter], Path(), "command line")
    count = load_tokenizer(str(sources / "tokenizer.json")).count
    manifest = clean_stage(written, sources, out, filters, count_tokens=count)
    counts = manifest["counts"]
    print(f"read {counts['read']:,} = kept {counts['kept']:,} + rejected {counts['rejected']:,}")
    for reason, number in manifest["reasons"].items():
        print(f"  {number:>8,}  {reason}")


@app.command()
def measure(
    corpus: Annotated[str, typer.Argument(help="a run, a stage's folder, or documents")],
    source: Annotated[str | None, typer.Option(help="the documents it was written from")] = None,
    against: Annotated[str | None, typer.Option(help="another corpus to hold it against")] = None,
    figure: Annotated[
        list[str] | None,
        typer.Option(help="a measure as YAML, e.g. 'judges: {ask: [novelty]}'; default: lexical, embedding"),
    ] = None,
    by: Annotated[
        str | None, typer.Option(help="a column for each method, step, model or variables.NAME; '' for none")
    ] = "method",
    sample: Annotated[int, typer.Option(help="most documents looked at")] = 20_000,
    seed: Annotated[int, typer.Option(help="of samples and intervals")] = 0,
    model: Annotated[str | None, typer.Option(help="the judging model, as for `leaven generate`")] = None,
    require: Annotated[
        list[str] | None, typer.Option(help="a bound as YAML, e.g. 'duplicate_rate: {max: 0.05}'")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="folder to write; default: beside the corpus")] = None,
) -> None:
    """Say how good and how varied a corpus is, with an interval around every figure."""
    from rich.console import Console

    from leaven.run import measure as measure_corpus
    from leaven.show import print_figures

    section: dict[str, Any] = {
        "by": by or None, "sample": sample, "seed": seed, "against": against,
        "require": _options(require, "--require"),
    }  # fmt: skip
    if figure:
        section["figures"] = [_yaml(item, "--figure") for item in figure]
    chosen = _model(model) if model else None
    console = Console()
    with _interruptible():
        folder, report = measure_corpus(corpus, out, sources=source, model=chosen, console=console, **section)
    print_figures(report, folder, console)
    if not all(one.met for one in report.demands):
        raise typer.Exit(1)


@app.command()
def mix(
    plan: PlanArgument,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only print the recipe table")] = False,
) -> None:
    """Build what every arm of a plan trains on, and print how many tokens of what that is."""
    from rich.console import Console

    from leaven.plan import load_plan
    from leaven.run import recipes
    from leaven.run import run as run_plan
    from leaven.show import recipe_table

    console = Console()
    loaded = load_plan(plan)
    with _interruptible():
        if dry_run:
            arms = {name: one.shares for name, one in recipes(loaded, console).items()}
            console.print(recipe_table(arms))
        else:
            _finish(run_plan(loaded, to="mix", console=console))


@app.command()
def train(
    mix: Annotated[Path, typer.Argument(help="the mix folder of a run")],
    arm: Annotated[str, typer.Argument(help="an arm of it")],
    out: Annotated[Path, typer.Option(help="folder to write; model/ in it will be the checkpoint")],
    option: Annotated[
        list[str] | None, typer.Option(help="option of training as YAML, e.g. 'shape: 3m'")
    ] = None,
) -> None:
    """Train one model on one arm; the same command goes on after an interruption, also under accelerate launch."""
    from rich.console import Console

    from leaven.config import validated
    from leaven.progress import Reporter
    from leaven.stage import read_manifest
    from leaven.train import Train
    from leaven.train import train as train_arm
    from leaven.train.fit import processes

    options = validated(Train, _options(option), "--option", Path())
    if read_manifest(mix) is None:
        raise UsageError(f"{mix} is no finished mix; give RUN/mix of a run whose plan has a mix section")
    console = Console(quiet=processes()[0] > 0)
    with _interruptible(), Reporter(out.parent / "events.jsonl", console).stage(f"train {arm}") as progress:
        manifest = train_arm(mix, arm, options, out, progress.named)
    line = f"{out / 'model'}: {manifest['parameters']:,} parameters, {manifest['counts']['tokens']:,} tokens"
    console.print(f"{line}", highlight=False, soft_wrap=True)


@app.command()
def finetune(
    checkpoint: Annotated[Path, typer.Argument(help="the checkpoint to start from; it is not changed")],
    rows: Annotated[Path, typer.Argument(help="JSONL of prompt and completion, or of messages")],
    out: Annotated[Path, typer.Option(help="folder to write; model/ in it will be the checkpoint")],
    option: Annotated[
        list[str] | None, typer.Option(help="option of finetuning as YAML, e.g. 'epochs: 3'")
    ] = None,
) -> None:
    """Teach a checkpoint to answer; the loss is on the answers only."""
    from rich.console import Console

    from leaven.config import validated
    from leaven.progress import Reporter
    from leaven.train import Finetune
    from leaven.train import finetune as finetune_checkpoint
    from leaven.train.fit import processes

    options = validated(Finetune, _options(option) | {"path": rows}, "--option", Path())
    console = Console(quiet=processes()[0] > 0)
    events = out.parent / "events.jsonl"
    with _interruptible(), Reporter(events, console).stage(f"finetune {out.name}") as progress:
        manifest = finetune_checkpoint(checkpoint, options, out, progress=progress.named)
    counts = manifest["counts"]
    line = f"read {counts['read']:,} = kept {counts['kept']:,} + rejected {counts['rejected']:,} rows"
    console.print(f"{out / 'model'}: {line}", highlight=False, soft_wrap=True)


@app.command()
def evaluate(
    models: Annotated[
        list[str], typer.Argument(help="[NAME=]CHECKPOINT or NAME=MODEL@URL; the first is the baseline")
    ],
    set: Annotated[
        list[str], typer.Option(help="a set as YAML, e.g. 'questions: {kind: answers, path: q.jsonl}'")
    ],
    out: Annotated[Path, typer.Option(help="folder to write")],
    model: Annotated[str | None, typer.Option(help="the judging model, as for `leaven generate`")] = None,
    seed: Annotated[int, typer.Option(help="of the intervals")] = 0,
) -> None:
    """Ask models the same things and say how far apart they are, with intervals."""
    from rich.console import Console

    from leaven.run import evaluate as evaluate_models
    from leaven.show import print_results

    named = {}
    for one in models:
        name, _, place = one.rpartition("=")
        named[name or Path(place).name] = place
    if len(named) < len(models):
        raise UsageError("evaluate: two models of one name; give them names: first=DIR second=DIR")
    sets = _options(set, "--set")
    console = Console()
    with _interruptible():
        results = evaluate_models(
            named, out, model=_model(model) if model else None, console=console, sets=sets, seed=seed
        )
    print_results(results, next(iter(named)), console)
    console.print(f"also in {out / 'results.md'}", highlight=False, soft_wrap=True)


@app.command()
def agree(
    folder: Annotated[Path, typer.Argument(help="a measure folder that judges have filled")],
    labels: Annotated[Path, typer.Argument(help="JSONL: judge, id, label (and item, annotator)")],
    template: Annotated[
        int, typer.Option(help="write LABELS instead: so many judged texts of each judge, to be labelled")
    ] = 0,
    corpus: Annotated[str | None, typer.Option(help="with --template: the corpus, for its texts")] = None,
    seed: Annotated[int, typer.Option(help="of the texts drawn and of the intervals")] = 0,
) -> None:
    """Compare what judges said with people's labels: Cohen's kappa."""
    from rich.console import Console

    from leaven.corpus.locate import corpus_at
    from leaven.measure import agreement
    from leaven.show import agreement_table

    if template:
        if labels.exists():
            raise UsageError(f"{labels} exists already; nobody's labels are overwritten")
        texts = {} if corpus is None else {one.id: one for one in corpus_at(corpus, "all")[0].read()}
        lines = agreement.template(folder, texts, labels, number=template, seed=seed)
        print(f"{lines} lines to label in {labels}")
        return
    Console().print(agreement_table(agreement.agree(folder, labels, seed=seed)))


@app.command()
def show(
    run: Annotated[Path, typer.Argument(help="a run folder")],
    pairs: Annotated[int, typer.Option(help="print this many sources, each beside one child")] = 0,
    baseline: Annotated[str | None, typer.Option(help="the arm to compare the others with")] = None,
) -> None:
    """Say what happened in a run: counts that add up, reasons, tokens, money, results."""
    from rich.console import Console

    from leaven.show import show as show_run

    show_run(run, Console(), pairs=pairs, baseline=baseline)


@app.command()
def methods() -> None:
    """List the methods with their papers' titles, the filters and the measures, and the options of each."""
    from rich.console import Console

    from leaven.clean import FILTERS, load_filter
    from leaven.generate import load_method, method_names
    from leaven.measure import MEASURES, parse_measures

    console = Console()

    def show_options(config: type[BaseModel]) -> None:
        for option, field in config.model_fields.items():
            default = field.get_default(call_default_factory=True)
            console.print(f"    {option}: {default!r}", markup=False, highlight=False, soft_wrap=True)

    for name in method_names():
        method = load_method(name)
        console.print(f"[bold]{name}[/bold]  {method.title}", highlight=False)
        show_options(method.Config)
        console.print(f"    steps: {', '.join(method.steps)}", markup=False, highlight=False)
    for name in FILTERS:
        console.print(f"[bold]{name}[/bold]  filter", highlight=False)
        show_options(load_filter(name).Config)
    for measure in parse_measures(MEASURES):
        title = (measure.module.__doc__ or "").splitlines()[0]
        console.print(f"[bold]{measure.name}[/bold]  measure: {title}", highlight=False)
        show_options(type(measure.config))


class _Search(TyperGroup):
    """`leaven search ENV` is `leaven search run ENV`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        known = args and (args[0] in self.commands or args[0].startswith("-"))
        return super().resolve_command(ctx, args if known else ["run", *args])


search_app = typer.Typer(
    cls=_Search, no_args_is_help=True, help="Search for better code or recipes by executing ideas."
)
app.add_typer(search_app, name="search")

OutArgument = Annotated[Path, typer.Argument(help="the folder of a search")]
UnsafeOption = Annotated[
    bool, typer.Option("--unsafe-local", help="without a sandbox: patches may do all that you may do")
]
WorkersOption = Annotated[
    int | None, typer.Option(help="attempts at a time; by default as many as the machine has room for")
]


@search_app.command("run")
def search_run(
    env: Annotated[Path, typer.Argument(help="folder of an environment")],
    out: Annotated[Path | None, typer.Option(help="folder to write; default runs/NAME-STRATEGY-SEED")] = None,
    strategy: Annotated[str, typer.Option(help="evolve, best-of-n or random")] = "evolve",
    ideator: Annotated[
        str,
        typer.Option(help="who has ideas: mutate, or a model as NAME@URL, checkpoint folder or recording"),
    ] = "mutate",
    coder: Annotated[
        str | None, typer.Option(help="who turns ideas into patches; by default the model that has them")
    ] = None,
    budget: Annotated[int, typer.Option(help="executions, without the baseline's")] = 40,
    batch: Annotated[int, typer.Option(help="ideas of an epoch")] = 8,
    baselines: Annotated[int, typer.Option(help="runs of the baseline, for its noise")] = 3,
    setting: Annotated[str | None, typer.Option(help="of the environment, e.g. gpu")] = None,
    workers: WorkersOption = None,
    ray: Annotated[
        str | None, typer.Option(help="run attempts on this Ray cluster: auto, local or an address")
    ] = None,
    seed: Annotated[int, typer.Option(help="of everything the search draws")] = 0,
    unsafe: UnsafeOption = False,
) -> None:
    """Search: ideas, patches, runs in a sandbox, scores; goes on where it was if OUT is there."""
    from rich.console import Console

    from leaven.search.folder import print_search, search
    from leaven.search.loop import Options

    place = out or Path("runs") / f"{env.resolve().name}-{strategy}-{seed}"
    options = Options(strategy, budget, batch, seed, baselines)  # type: ignore[arg-type]
    console = Console()
    with _interruptible():
        search(
            env, place, options, setting=setting, model=None if ideator == "mutate" else _model(ideator),
            coder=_model(coder) if coder else None, most=workers, ray=ray, unsafe=unsafe, console=console,
        ).close()  # fmt: skip
    print_search(place, console)
    console.print(
        f"all of it: {place}/results.md, search.sqlite, best.patch", highlight=False, soft_wrap=True
    )


@search_app.command("new-env")
def search_new_env(folder: Annotated[Path, typer.Argument(help="folder to make")]) -> None:
    """Make an environment that runs, to be changed into one's own."""
    from leaven.search.folder import new_env

    new_env(folder)
    print(f"{folder}: env.yaml, code/train.py, eval/evaluate.py; try: leaven search {folder}")


@search_app.command("reinforce")
def search_reinforce(
    env: Annotated[Path, typer.Argument(help="folder of an environment")],
    checkpoint: Annotated[Path, typer.Option(help="the ideator, a local checkpoint; it is not changed")],
    out: Annotated[Path, typer.Option(help="folder to write")],
    coder: Annotated[
        str | None,
        typer.Option(help="who turns ideas into patches, as NAME@URL; by default the ideator itself"),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(help="'name: value', e.g. 'epochs: 40', 'group: 64', 'learning_rate: 1e-6'"),
    ] = None,
    setting: Annotated[str | None, typer.Option(help="of the environment, e.g. gpu")] = None,
    workers: WorkersOption = None,
    unsafe: UnsafeOption = False,
) -> None:
    """Finetune an ideator with GRPO; the reward of an idea is its score when executed."""
    from rich.console import Console

    from leaven.search.folder import reinforce_ideator

    config = {"checkpoint": checkpoint.resolve(), **_options(option)}
    console = Console()
    with _interruptible():
        made = reinforce_ideator(
            env, out, config, setting=setting, coder=_model(coder) if coder else None, most=workers, unsafe=unsafe,
            console=console,
        )  # fmt: skip
    console.print(
        f"finetuned: {made}; rewards by epoch: {made.parent}/rewards.jsonl", highlight=False, soft_wrap=True
    )


@search_app.command("confirm")
def search_confirm(
    out: OutArgument,
    seeds: Annotated[int, typer.Option(help="fresh seeds, of the winner and of the baseline")] = 5,
    setting: Annotated[
        str | None, typer.Option(help="another setting of the environment, e.g. larger")
    ] = None,
    workers: WorkersOption = None,
    unsafe: UnsafeOption = False,
) -> None:
    """Run the winner and the baseline on seeds no search has used."""
    from rich.console import Console

    from leaven.search.folder import confirm_best, print_search

    console = Console()
    with _interruptible():
        confirm_best(out, seeds=seeds, setting=setting, most=workers, unsafe=unsafe, console=console)
    print_search(out, console)


def _finish(result: Result, pairs: int = 0) -> None:
    from rich.console import Console

    from leaven.show import show as show_run

    show_run(result.folder, Console(), pairs=pairs)
    for line in result.missed:
        print(f"leaven: {line}", file=sys.stderr)
    if result.missed:
        raise typer.Exit(1)


def _model(text: str) -> dict[str, Any]:
    """The `model` section that a short form on the command line stands for."""
    if "@http" in text:
        name, _, url = text.partition("@")
        return {"backend": "openai", "name": name, "url": url}
    path = Path(text)
    if path.is_dir():
        return {"backend": "transformers", "path": path}
    if path.suffix == ".jsonl":
        return {"backend": "replay", "path": path}
    raise UsageError(f"--model {text!r}: give NAME@URL, a checkpoint folder, or a recording ending in .jsonl")


def _options(items: list[str] | None, where: str = "--option") -> dict[str, Any]:
    options: dict[str, Any] = {}
    for item in items or []:
        value = _yaml(item, where)
        if not isinstance(value, dict):
            raise UsageError(f"{where} {item!r}: must be 'name: value'")
        options |= value
    return options


def _yaml(item: str, where: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(item)
    except yaml.YAMLError as error:
        raise UsageError(f"{where} {item!r}: not YAML: {' '.join(str(error).split())}") from error


def _print_estimate(found: Estimate, console: Any) -> None:
    from rich import box
    from rich.table import Table

    from leaven.lm.base import Usage

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("step", "stored", "to ask", "prompt", "cached", "answers", "seen"):
        justify: Literal["left", "right"] = "left" if column == "step" else "right"
        table.add_column(column, justify=justify, no_wrap=True, min_width=len(column))
    requests, total = 0, Usage()
    for (method, step), one in found.steps.items():
        requests, total = requests + one.requests, total + one.usage
        numbers = (one.requests, one.usage.prompt, _share(one.usage), one.usage.completion, one.observed)
        cells = [number if isinstance(number, str) else f"{number:,}" for number in numbers]
        table.add_row(f"{method}/{step}", f"{one.stored:,}", *cells)
    console.print(f"{found.documents:,} documents, {found.corpus_tokens:,} tokens", highlight=False)
    for line in found.training:
        console.print(line, highlight=False, soft_wrap=True)
    if not found.steps:
        return
    console.print(table)
    prompt = f"{total.prompt:,} prompt tokens ({_share(total) or '0%'} cacheable)"
    line = f"to be sent: {requests:,} requests, {prompt}, {total.completion:,} completion tokens"
    console.print(line, highlight=False, soft_wrap=True)
    if requests and not all(one.observed for one in found.steps.values() if one.requests):
        console.print("lengths are guesses for steps of which no answer was seen yet (column seen)")
    completion = total.completion
    if found.money is not None:
        console.print(
            f"money: {found.money:,.2f} {found.currency} at the prices of {found.prices_as_of}",
            highlight=False,
        )
    else:
        console.print("money: unknown; name your price file under 'prices' in the plan", highlight=False)
    if found.tokens_per_second:
        hours = completion / found.tokens_per_second / 3600
        rate = f"{found.tokens_per_second:,.0f} completion tokens/s, as in the probe"
        console.print(f"time: {hours:,.2f} hours at {rate}", highlight=False)
    else:
        console.print(
            "time: unknown; --probe 5 asks for five documents and measures the rate", highlight=False
        )


def _share(usage: Usage) -> str:
    """Share of the prompt that repeats an earlier one about the same document."""
    return f"{usage.cached / usage.prompt:.0%}" if usage.prompt else ""


if __name__ == "__main__":
    main()
