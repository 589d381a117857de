"""Does a model get better by training on what it wrote itself? Rounds of naive self-training on stories.

    base model --goes on with prefixes of K tokens--> N tokens --continued pretraining--> round 1 --> ... round R
    base model --N tokens of the stories themselves, again--> control

The comparison of "naive self-training" (seed 002, tables 1 to 3 and 6), some million times smaller: rows K x R with the
perplexity on the corpus and on stories nobody trains on, tiers of perplexity for one round at K = 0, the control, the
diversity of what was written in each round, and how it compares with real text. The paper lets a large model
judge pairs of texts; with `--judge` so does this. Without one, a classifier on embeddings is asked, cross-validated,
how often it takes a written text for a real one (as often as a real one: it cannot tell them apart).

Everything is trained here, from nothing: no teacher, no network. A picture of the rounds is written beside the table.

    python recipes/self_training.py               # some 20 minutes on two cores
    python recipes/self_training.py --judge MODEL@http://127.0.0.1:8000/v1
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from leaven.corpus.embed import Config as EmbeddingModel
from leaven.corpus.embed import Embedder, Vectors
from leaven.errors import UsageError
from leaven.evaluate import Result, read_results
from leaven.measure.pairs import mean_dissimilarity
from leaven.plan import resolve
from leaven.run import measure, run
from leaven.stage import read_stage

STORIES = Path(__file__).resolve().parent.parent / "examples" / "stories"
TIERS = ("low", "middle", "high")
TEXTS = 400  # of every round that are embedded
FOLDS = 5


def parser() -> argparse.ArgumentParser:
    """The options; all defaults together are the setting whose figures LOG.md holds."""
    found = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = found.add_argument
    add("--out", type=Path, default=Path("runs/self_training"), help="folder of the run")
    add("--documents", type=Path, default=STORIES / "others.jsonl.gz", help="the corpus")
    add("--prefixes", type=int, nargs="+", default=[0, 3, 64], help="K: tokens a text begins with")
    add("--rounds", type=int, default=3, help="R")
    add("--tokens", type=int, help="N: tokens written in a round; default: as many as the corpus has")
    add("--epochs", type=float, help="of the corpus, in pretraining the base")
    add("--shape", help="of the model; default by the size of the corpus")
    add("--learning-rate", type=float, help="of the rounds; default a tenth of the pretraining's")
    add(
        "--tiers",
        nargs="*",
        default=list(TIERS),
        choices=TIERS,
        help="perplexity tiers tried in one round at K = 0",
    )
    add("--judge", help="NAME@URL of a model that judges written texts beside real ones")
    add("--seed", type=int, default=0)
    return found


def plan_of(options: argparse.Namespace) -> dict[str, Any]:
    """The whole experiment."""
    common = {"seed": options.seed} | ({"tokens": options.tokens} if options.tokens else {})
    stages = [
        {"self_train": {"name": f"k{k}", "prefix": k, "rounds": options.rounds, **common}}
        for k in options.prefixes
    ]
    stages += [
        {"self_train": {"name": f"k0-{tier}", "prefix": 0, "rounds": 1, "tier": tier, **common}}
        for tier in options.tiers
    ]
    writer: dict[str, Any] = {"pretrain": {"seed": options.seed}, "go_on": {}}
    if options.shape:
        writer["pretrain"]["shape"] = options.shape
    if options.epochs:
        writer["epochs"] = options.epochs
    if options.learning_rate:
        writer["go_on"]["learning_rate"] = options.learning_rate
    return {
        "name": "self_training", "out": options.out / "run", "answers": options.out / "answers",
        "embeddings": options.out / "embeddings", "documents": {"path": str(options.documents)},
        "tokenizer": 4096, "chunk_tokens": 224, "hold_out": 0.15, "generate": stages, "writer": writer,
        "evaluate": {
            "baseline": "base",
            "sets": {
                "held": {"kind": "text", "stage": "held_out"},
                "corpus": {"kind": "text", "stage": "corpus", "sample": 500},
            },
        },
    }  # fmt: skip


def texts_of(run_folder: Path, stage: str, number: int) -> list[str]:
    """What was trained on in a round, at most `TEXTS` of it."""
    rows = (row for row in read_stage(run_folder / "generate" / stage))
    found = [row.text for row in rows if row.metadata["variables"]["round"] == number]
    chosen = np.random.default_rng(0).permutation(len(found))[:TEXTS]
    return [found[i] for i in sorted(chosen.tolist())]


def taken_for_real(written: Vectors, real: Vectors) -> float:
    """Share of written texts that a classifier takes for real, each by one that was not trained on it.

    Args:
        written, real: vectors, shapes (n, d) and (m, d).

    Returns:
        0.5 at best, where the two cannot be told apart (classes weigh alike); 0 where they always can.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict

    rows, labels = np.concatenate([written, real]), np.repeat([0, 1], [len(written), len(real)])
    guessed = cross_val_predict(
        LogisticRegression(class_weight="balanced", max_iter=1000), rows, labels, cv=FOLDS
    )
    return float(guessed[: len(written)].mean())


def diversity(vectors: Vectors) -> float:
    """1 - mean cosine of all pairs (seed 002, 4.2), of vectors of unit length, shape (n, d)."""
    return mean_dissimilarity(vectors, np.arange(len(vectors)))[0]


def rounds_of(options: argparse.Namespace) -> Iterator[tuple[str, str, int]]:
    """(name of the evaluated model, stage, round) of everything that was written."""
    for k in options.prefixes:
        for number in range(1, options.rounds + 1):
            yield f"k{k}-{number}", f"k{k}", number
    for tier in options.tiers:
        yield f"k0-{tier}-1", f"k0-{tier}", 1


def judged(options: argparse.Namespace, stage: str) -> dict[int, tuple[float, float, float]]:
    """By round: shares of written texts that a judge finds better than, as good as and worse than their source."""
    if not options.judge:
        return {}
    name, _, url = options.judge.partition("@")
    run_folder = options.out / "run"
    _, report = measure(
        str(run_folder / "generate" / stage), options.out / f"judged-{stage}", sources=str(run_folder / "corpus"),
        model={"backend": "openai", "name": name, "url": url}, by="variables.round",
        figures=[{"judges": {"ask": ["pairwise"]}}],
    )  # fmt: skip
    values = {(one.column, one.name): one.value for one in report.figures}
    names = ("pairwise_win", "pairwise_tie", "pairwise_loss")
    columns = {one.column for one in report.figures} - {"all"} or {
        "all"
    }  # a single round has no columns of its own
    return {
        1 if column == "all" else int(column): tuple(values[column, one] for one in names)  # type: ignore[misc]
        for column in columns
    }


def figures(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a model: perplexities with intervals, differences of the loss to the base, diversity, taken for real."""
    run_folder = options.out / "run"
    results = {(one.set, one.figure, one.arm): one for one in read_results(run_folder / "evaluate")}
    embedder = Embedder(EmbeddingModel(), options.out / "embeddings")
    corpus = [row.text for row in read_stage(run_folder / "corpus")]
    chosen = np.random.default_rng(1).permutation(len(corpus))
    real, other = (
        embedder.embed([corpus[i] for i in some]) for some in (chosen[:TEXTS], chosen[TEXTS : 2 * TEXTS])
    )
    found: list[dict[str, Any]] = []

    def row(arm: str, **more: Any) -> None:
        found.append({"model": arm, **_perplexities(results, arm), **more})

    row("base", diversity=diversity(real), taken_for_real=taken_for_real(other, real))
    verdicts = {stage: judged(options, stage) for _, stage, _ in rounds_of(options)}
    for arm, stage, number in rounds_of(options):
        vectors = embedder.embed(texts_of(run_folder, stage, number))
        row(
            arm, diversity=diversity(vectors), taken_for_real=taken_for_real(vectors, real),
            judged=verdicts[stage].get(number),
        )  # fmt: skip
    for number in range(1, options.rounds + 1):
        row(f"real-{number}")
    return found


def _perplexities(results: dict[tuple[str, str, str], Result], arm: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("held", "corpus"):
        value, loss = results[name, "perplexity", arm], results[name, "loss", arm]
        found[name] = value.value
        found[f"{name} difference"] = loss.difference
        found[f"{name} interval"] = None if loss.apart is None else [loss.apart.low, loss.apart.high]
    return found


def table_of(rows: list[dict[str, Any]]) -> Table:
    """As table 1 of the paper, with what else there is."""
    table = Table(
        title="perplexity, and loss minus the base's; diversity and likeness of what was written",
        title_justify="left",
    )
    for name in (
        "model",
        "held out",
        "loss minus base",
        "corpus",
        "loss minus base",
        "diversity",
        "taken for real",
        "judged",
    ):
        table.add_column(name, justify="left" if name == "model" else "right")
    for row in rows:
        cells = [row["model"]]
        for name in ("held", "corpus"):
            interval = row[f"{name} interval"]
            apart = (
                ""
                if interval is None
                else f"{row[f'{name} difference']:+.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"
            )
            cells += [f"{row[name]:.2f}", apart]
        cells += [
            "" if row.get(name) is None else f"{row[name]:.3f}" for name in ("diversity", "taken_for_real")
        ]
        cells.append(" / ".join(f"{one:.0%}" for one in row["judged"]) if row.get("judged") else "")
        table.add_row(*cells)
    return table


def picture(rows: list[dict[str, Any]], rounds: int, path: Path) -> None:
    """Perplexity, diversity and likeness over the rounds, one line for each K and the control."""
    import altair as alt

    base = rows[0]
    points = []
    for row in rows:
        line, _, number = row["model"].rpartition("-")
        if number.isdigit() and "-" not in line:
            points += [
                {"line": line, "round": int(number), "figure": figure, "value": row.get(key)}
                for figure, key in PANELS
            ]
    lines = sorted({one["line"] for one in points})
    points += [
        {"line": line, "round": 0, "figure": figure, "value": base[key]}
        for line in lines
        for figure, key in PANELS
    ]
    points = [one for one in points if one["value"] is not None]
    chart = (
        alt.Chart(alt.Data(values=points))
        .mark_line(point=True)
        .encode(
            x=alt.X("round:Q", axis=alt.Axis(values=list(range(rounds + 1)), format="d"), title="round"),
            y=alt.Y("value:Q", title=None, scale=alt.Scale(zero=False)),
            color=alt.Color("line:N", title=None),
        )
        .properties(width=230, height=200)
        .facet(alt.Facet("figure:N", title=None, sort=[figure for figure, _ in PANELS]), columns=2)
        .resolve_scale(y="independent")
    )
    chart.save(path)


PANELS = (
    ("perplexity of held-out stories", "held"),
    ("perplexity of the corpus", "corpus"),
    ("diversity of what was written (round 0: the corpus)", "diversity"),
    ("taken for real by a classifier", "taken_for_real"),
)


def main() -> None:
    options = parser().parse_args()
    options.out = options.out.resolve()
    console = Console()
    if find_spec("vl_convert") is None:  # before, not after, the work
        raise SystemExit("self_training: pictures need the extra 'plot': pip install 'leaven[plot]'")
    try:
        run(resolve(plan_of(options), Path()), console=console)
        rows = figures(options)
    except UsageError as error:
        raise SystemExit(f"self_training: {error}") from error
    console.print(table_of(rows))
    (options.out / "rounds.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    picture(rows, options.rounds, options.out / "rounds.png")
    console.print(f"{options.out}/rounds.json, rounds.png", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
