"""When good text is used up: repeat it, let a model reformulate it, or collect more?

    E epochs of the same text | E/5 epochs of it and as many of what MGA made of it | more text, seen less often

The "EntireSet" comparison of "MGA: massive genre-audience reformulation" (seed 000, table 8 and figure 5), some
billion times smaller. There 50B tokens are seen 10 times; 50B and 200B of MGA's are seen twice each; or 195B of the
real kind 2.56 times. Here the text is the opening of eight stories, MGA's is recorded and cleaned, and the larger
collection is the openings of 23 other stories beside the eight.

Three models are trained from nothing on the same number of tokens; meanwhile the loss on openings of nine stories
that nobody trains on is taken. Repetition shows as a loss that turns up while the training loss goes on down. In
the end all are asked the 96 recorded questions about the eight openings.

    python recipes/repetition.py                  # 40 epochs; some minutes on two cores
    python recipes/repetition.py --epochs 10      # as often as in the paper: at this size too few to hurt
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from leaven.errors import UsageError
from leaven.plan import resolve
from leaven.run import run

STORIES = Path(__file__).resolve().parent.parent / "examples" / "stories"
WORDS = 790  # of an opening, as the eight have on average
HELD = 9  # stories that nobody trains on
ARMS = ("repeat", "mga", "more")


def parser() -> argparse.ArgumentParser:
    """The options; all defaults together are the setting whose figures LOG.md holds."""
    found = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = found.add_argument
    add("--out", type=Path, default=Path("runs/repetition"), help="folder of all runs")
    add("--others", type=Path, default=STORIES / "others.jsonl.gz", help="more stories (JSONL, gz)")
    add("--epochs", type=int, default=40, help="of the eight openings in the arm that repeats them")
    add("--shape", default="1m", help="of the model")
    add("--learning-rate", type=float, default=3e-3)
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    return found


def openings(options: argparse.Namespace) -> tuple[Path, Path]:
    """Openings of other stories, as files: (to train on, held out).

    Raises:
        UsageError: too few stories.
    """
    raw = options.others.read_bytes()
    text = (gzip.decompress(raw) if options.others.suffix == ".gz" else raw).decode()
    stories = [json.loads(line) for line in text.split("\n") if line.strip()]
    if len(stories) <= HELD:
        raise UsageError(f"{options.others}: {len(stories)} stories; {HELD} are held out, give more")
    rows = [one | {"text": " ".join(one["text"].split()[:WORDS])} for one in stories]
    options.out.mkdir(parents=True, exist_ok=True)
    places = options.out / "more.jsonl", options.out / "held.jsonl"
    for place, chosen in zip(places, (rows[:-HELD], rows[-HELD:]), strict=True):
        place.write_text("".join(json.dumps(row) + "\n" for row in chosen), encoding="utf-8")
    return places


def plan_of(options: argparse.Namespace, tokens: int, more: Path, held: Path) -> dict[str, Any]:
    """The whole experiment.

    Args:
        tokens: the budget; see `main`.
    """
    return {
        "name": "repetition",
        "out": options.out / "run",
        "answers": options.out / "answers",
        "documents": {"path": str(STORIES / "documents.jsonl")},
        "tokenizer": 4096,
        "model": {
            "backend": "replay", "path": STORIES / "answers.jsonl", "name": "recorded large language model",
        },
        "generate": ["mga"],
        "clean": ["boilerplate", {"length": {"min_words": 30}}, "repetition", "copying", "coverage"],
        "mix": {
            "tokens": tokens,
            "context": 128,
            "sources": {
                "eight": {"stage": "corpus"}, "mga": {"stage": "clean"}, "more": {"path": str(more)},
                "held": {"path": str(held)},
            },
            "arms": {
                "repeat": {"sources": {"eight": 1}},
                "mga": {"sources": {"eight": 0.2, "mga": {"weight": 0.8, "repeat": True}}},
                "more": {"unique_tokens": ["eight", "more"]},
            },
            "validation": "held",
        },
        "train": {
            "shape": options.shape, "batch_size": 16, "learning_rate": options.learning_rate,
            "validate_every": max(1, tokens // (128 * 16) // 10), "seeds": options.seeds,
        },
        "evaluate": {
            "baseline": "repeat",
            "sets": {
                "held": {"kind": "text", "path": held},
                "questions": {"kind": "answers", "path": STORIES / "questions.jsonl"},
            },
        },
    }  # fmt: skip


def validation(run_folder: Path, arm: str, seeds: list[int]) -> dict[int, tuple[float, float]]:
    """By tokens seen: (loss in training since the last look, loss on the held-out openings), means over the seeds."""
    found: dict[int, list[tuple[float, float]]] = {}
    for seed in seeds:
        lines = (run_folder / "train" / f"{arm}-{seed}" / "log.jsonl").read_text().splitlines()
        training: list[float] = []
        for line in map(json.loads, lines):
            if "loss" in line:
                training.append(line["loss"])
            else:
                found.setdefault(line["tokens"], []).append((fmean(training), line["validation_loss"]))
                training = []
    return {
        tokens: (fmean(a for a, _ in pairs), fmean(b for _, b in pairs)) for tokens, pairs in found.items()
    }


def main() -> None:
    options = parser().parse_args()
    options.out = options.out.resolve()
    console = Console()
    try:
        more, held = openings(options)
        # The corpus first: the budget is so many epochs of it, in its own tokens and an end mark each.
        corpus = run(resolve(plan_of(options, 128, more, held), Path()), to="corpus").manifests["corpus"]
        unique = corpus["counts"]["tokens"] + corpus["counts"]["kept"]
        run(resolve(plan_of(options, options.epochs * unique, more, held), Path()), console=console)
    except UsageError as error:
        raise SystemExit(f"repetition: {error}") from error
    curves = {arm: validation(options.out / "run", arm, options.seeds) for arm in ARMS}
    table = Table(title="loss: in training / on openings of stories nobody trains on", title_justify="left")
    table.add_column("tokens seen", justify="right")
    for arm in ARMS:
        table.add_column(arm, justify="right")
    for tokens in curves[ARMS[0]]:
        pairs = [curves[arm][tokens] for arm in ARMS]
        table.add_row(f"{tokens:,}", *(f"{seen:.3f} / {loss:.3f}" for seen, loss in pairs))
    console.print(table)
    console.print((options.out / "run" / "evaluate" / "results.md").read_text())
    (options.out / "curves.json").write_text(json.dumps(curves, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
