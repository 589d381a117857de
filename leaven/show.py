"""Tell what happened in a run from what it left on disk, with counts that add up."""

from __future__ import annotations

import itertools
import json
import random
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table

from leaven.document import Document
from leaven.errors import UsageError
from leaven.evaluate.results import Result, arrow, doubts, read_results, results_against
from leaven.measure.agreement import Compared
from leaven.measure.report import Report, demand_lines, footnotes, number, read_report
from leaven.measure.report import table as figures_table
from leaven.mix import shares_of
from leaven.mix.recipe import Share
from leaven.search.folder import print_search
from leaven.stage import read_manifest, read_stage

EXCERPT = 600  # characters of a source or child that are printed


def stage_folders(run: Path) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """(name, folder, manifest) of every finished stage of a run, in the order of the flow."""
    stages = (run / "generate").glob("*/manifest.json")
    written = sorted(
        (path.parent for path in stages), key=lambda folder: (folder / "manifest.json").stat().st_mtime
    )
    for folder in (run / "corpus", *written, run / "clean", run / "measure", run / "mix"):
        manifest = read_manifest(folder)
        if manifest is not None:
            yield str(folder.relative_to(run)), folder, manifest


def show(run: Path, console: Console, *, pairs: int = 0, baseline: str | None = None) -> None:
    """Print the counts, reasons, tokens and money of a run, or what a search has found.

    Args:
        pairs: print this many sources, each beside one kept child.
        baseline: the arm that others are compared with; None is the plan's.

    Raises:
        UsageError: `run` holds no finished stage, or no such arm.
    """
    if (run / "search.sqlite").exists():
        print_search(run, console)
        return
    stages = list(stage_folders(run))
    if not stages:
        raise UsageError(f"{run} holds no finished stage; `leaven run PLAN` makes one")
    console.print(_table(run, stages))
    manifests = {name: manifest for name, _, manifest in stages}
    for line in _summary(run, manifests):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if (run / "writer").is_dir():
        console.print(cost_table(run))
    if "measure" in manifests:
        print_figures(read_report(run / "measure"), run / "measure", console)
    trained = sorted((run / "train").glob("*/manifest.json")) + sorted(
        (run / "finetune").glob("*/manifest.json")
    )
    if "mix" in manifests:
        console.print(recipe_table(shares_of(manifests["mix"])))
    for path in trained:
        one = read_manifest(path.parent)
        assert one is not None
        how = "" if path.parent.parent.name == "train" else ", finetuned"
        line = (
            f"{path.parent.name}{how}: {one['parameters']:,} parameters, {one['counts']['tokens']:,} tokens"
        )
        console.print(
            f"{line} in {one['counts']['steps']:,} steps, last loss {one['loss']:.3f}", highlight=False
        )
    evaluated = read_manifest(run / "evaluate")
    if evaluated is not None:
        folder, planned = run / "evaluate", evaluated["baseline"]
        results = read_results(folder) if baseline is None else results_against(folder, baseline)
        print_results(results, baseline or planned, console)
    if pairs:
        _print_pairs(run, manifests, console, pairs)


def _table(run: Path, stages: list[tuple[str, Path, dict[str, Any]]]) -> Table:
    table = Table(title=str(run), title_justify="left")
    for column in ("stage", "read", "kept", "rejected", "tokens kept", "why not"):
        textual = column in ("stage", "why not")
        table.add_column(column, justify="left" if textual else "right", no_wrap=column != "why not")
    for name, _, manifest in stages:
        if name in ("measure", "mix"):
            continue  # they keep and reject nothing, and have tables of their own
        counts = manifest["counts"]
        if name == "corpus":  # its rows are chunks; what adds up is documents
            renamed = {column: counts[f"documents_{column}"] for column in ("read", "kept", "rejected")}
            counts = counts | renamed
        reasons = "\n".join(f"{reason} {number:,}" for reason, number in manifest["reasons"].items())
        cells = [f"{counts[column]:,}" for column in ("read", "kept", "rejected", "tokens")]
        table.add_row(name, *cells, reasons)
    return table


def cost_table(run: Path) -> Table:
    """What every step took that trained a model or wrote with one: tokens, and seconds of its last session."""
    table = Table(title="what it took", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("step", "tokens", "seconds", "tokens/s"):
        table.add_column(column, justify="left" if column == "step" else "right")
    places = [*(run / "writer").rglob("manifest.json"), *(run / "generate").glob("*/manifest.json")]
    places += [*(run / "train").glob("*/manifest.json")]
    for path in sorted(places, key=lambda path: path.stat().st_mtime):
        manifest = read_manifest(path.parent)
        assert manifest is not None
        counts = manifest["counts"]
        tokens, seconds = counts.get("tokens", 0), counts.get("seconds", manifest["seconds"])
        speed = f"{tokens / seconds:,.0f}" if tokens and seconds else ""
        cells = [f"{tokens:,}" if tokens else "", f"{seconds:,.1f}", speed]
        table.add_row(str(path.parent.relative_to(run)), *cells)
    return table


def print_figures(report: Report, folder: Path, console: Console) -> None:
    """Print the figures of a measure stage."""
    console.print(figures_table(report))
    for line in (*footnotes(report), *demand_lines(report)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(f"all of it: {folder}/figures.md, figures.json", highlight=False, soft_wrap=True)


def recipe_table(arms: Mapping[str, Sequence[Share]]) -> Table:
    """What every arm takes of every source; each arm's rows add up to the budget."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("arm", "source", "unique tokens", "epochs", "tokens", "share"):
        table.add_column(column, justify="left" if column in ("arm", "source") else "right")
    for arm, shares in arms.items():
        total = sum(share.tokens for share in shares)
        for row, share in enumerate(shares):
            table.add_row(
                arm if row == 0 else "", share.source, f"{share.unique_tokens:,}", f"{share.epochs:.2f}",
                f"{share.tokens:,}", f"{share.tokens / total:.1%}",
            )  # fmt: skip
        table.add_row("", "[dim]together[/dim]", "", "", f"{total:,}", "")
    return table


def print_results(results: Sequence[Result], baseline: str, console: Console) -> None:
    """Print what the models know, and what to doubt of it."""
    console.print(results_table(results, baseline))
    for line in doubts(results, baseline):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def results_table(results: Sequence[Result], baseline: str) -> Table:
    """What the models know, arm by arm, and by how much each differs from the baseline."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))  # it should fit 80 columns
    for column in ("set", "figure", "arm", "value", f"minus {baseline}", "95% interval", "seeds"):
        justify: Literal["left", "right"] = "left" if column in ("set", "figure", "arm") else "right"
        table.add_column(column, justify=justify, no_wrap=True, min_width=len(column))
    for one in results:
        table.add_row(
            one.set, f"{one.figure} {arrow(one.figure)}", one.arm, number(one.value),
            "" if one.difference is None else f"{one.difference:+.3f}",
            f"{one.apart.low:+.3f}, {one.apart.high:+.3f}" if one.apart else "", str(len(one.seeds)),
        )  # fmt: skip
    return table


def agreement_table(found: Sequence[Compared]) -> Table:
    """Agreement of judges and people."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("judge", "raters", "texts", "agree", "kappa", "95% interval", "weighted"):
        table.add_column(column, justify="left" if column in ("judge", "raters") else "right")
    for one in found:
        seen = one.agreement
        interval = f"{number(seen.interval.low)} to {number(seen.interval.high)}" if seen.interval else "-"
        table.add_row(
            one.judge, f"{one.first}, {one.second}", f"{seen.items:,}", f"{seen.observed:.0%}",
            number(seen.kappa), interval, number(seen.weighted),
        )  # fmt: skip
    return table


def _summary(run: Path, manifests: dict[str, dict[str, Any]]) -> Iterator[str]:
    models = sorted({m["model"] for name, m in manifests.items() if name.startswith("generate/")})
    if models:
        yield f"written by: {', '.join(models)}"
    corpus, final = manifests.get("corpus"), manifests.get("clean")
    if corpus and final:
        before, after = corpus["counts"]["tokens"], final["counts"]["tokens"]
        times = after / max(1, before)
        yield f"expansion: {before:,} tokens of source became {after:,} kept tokens, {times:.1f} times"
    ledger = run / "ledger.json"
    if ledger.exists():
        for model, entry in json.loads(ledger.read_text())["models"].items():
            yield f"asked of {model} by this run, all sessions: {_spending(entry)}"


def _spending(entry: dict[str, Any]) -> str:
    """One model's entry of the ledger in words."""
    parts = [
        f"{entry['prompt_tokens']:,} prompt tokens ({entry['cached_share']:.0%} from the server's cache)",
        f"{entry['completion_tokens']:,} completion tokens",
    ]
    if entry["estimated"]:
        parts.append("counts estimated, for the model reports no usage")
    if "money" in entry:
        parts.append(f"{entry['money']:,.4f} {entry['currency']} at the prices of {entry['prices_as_of']}")
    return ", ".join(parts)


def _print_pairs(run: Path, manifests: dict[str, dict[str, Any]], console: Console, number: int) -> None:
    folder = run / "clean"
    if "clean" not in manifests:
        raise UsageError(f"{run} has no finished clean stage to take pairs from")
    sources = {document.id: document for document in read_stage(run / "corpus")}
    for written in _spread(read_stage(folder), number):
        source = sources[written.metadata["sources"][0]]
        lineage = written.metadata
        console.rule(f"{source.metadata.get('title') or source.id}")
        console.print(f"SOURCE {source.id}\n{_excerpt(source.text)}\n", markup=False, highlight=False)
        shown = {k: v for k, v in lineage["variables"].items() if k not in ("genre", "audience")}
        origin = f"{lineage['method']}/{lineage['step']} {', '.join(f'{k}={v}' for k, v in shown.items())}"
        written_by = f"WRITTEN by {lineage['model']}: {origin}\n{_excerpt(written.text)}\n"
        console.print(written_by, markup=False, highlight=False)


def _spread(documents: Iterator[Document], number: int) -> list[Document]:
    """`number` documents, of as many methods as there are; the same every time.

    Holds at most `number` documents of each method (reservoir sampling).
    """
    draw = random.Random(0)
    kept: dict[str, list[Document]] = {}
    seen: Counter[str] = Counter()
    for document in documents:
        method = document.metadata["method"]
        rows = kept.setdefault(method, [])
        seen[method] += 1
        if len(rows) < number:
            rows.append(document)
        elif (place := draw.randrange(seen[method])) < number:
            rows[place] = document
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*kept.values()))
    return [document for document in in_turn if document is not None][:number]


def _excerpt(text: str) -> str:
    return textwrap.shorten(text, EXCERPT, placeholder=" ...")
