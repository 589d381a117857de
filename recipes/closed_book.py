"""Closed book: which text about eight documents teaches a small model most about them?

    other stories --pretrain--> base
    8 openings --recorded rephrasings, MGA, EntiGraph--> five corpora
    base --continue on each corpus, equal tokens, some replay of the other stories--> arms, several seeds
    arms --> loss of answers about the documents that no arm has seen, and what they gain over raw repetition

The design is that of EntiGraph's main experiment (paper "Synthetic continued pretraining", chapter 2 of seed 003,
figure 2.2), some thousand times smaller: raw repetition, rephrasing and EntiGraph on the same number of tokens, and
how each arm goes on with more of them. Three things are measured, none of which any arm was trained on: the loss of
96 recorded answers about the documents, the loss of 160 answers that people wrote about the complete stories (four
to a question, SQuALITY), and 64 four-choice questions. At this size the losses tell arms apart; the questions hardly
do, and the table says so.

    python recipes/closed_book.py                    # three seeds, about a quarter of an hour on two cores
    python recipes/closed_book.py --tokens 50000 100000 200000 400000 --seeds 0    # the scaling curve of each arm

Everything is a run folder under --out: stop it at any time and start it again, or change one thing and only what
depends on it is done anew. A larger --others (stories of the same kind, JSONL) makes a better base model.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from leaven.errors import UsageError
from leaven.evaluate import Result, read_results
from leaven.evaluate.scaling import fit
from leaven.plan import resolve
from leaven.run import run

STORIES = Path(__file__).resolve().parent.parent / "examples" / "stories"
ARMS = ("raw", "rephrased", "mga", "entigraph", "all")


def parser() -> argparse.ArgumentParser:
    """The options; all defaults together are the setting whose figures LOG.md holds."""
    found = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = found.add_argument
    add("--out", type=Path, default=Path("runs/closed_book"), help="folder of all runs")
    add("--others", type=Path, default=STORIES / "others.jsonl.gz", help="stories to pretrain the base on")
    add("--shape", default="3m", help="of the model")
    add("--vocabulary", type=int, default=4096, help="of the tokenizer, trained on the other stories")
    add("--base-tokens", type=int, default=720_000, help="to pretrain the base on")
    add("--tokens", type=int, nargs="+", default=[400_000], help="budgets of every arm")
    add("--learning-rate", type=float, default=2e-3, help="of the arms; the base has 3e-3")
    add("--replay", type=float, default=0.1, help="share of blocks taken from the other stories; 0 is none")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    add("--batch-size", type=int, default=16)
    add("--no-compile", action="store_true", help="quicker to start, slower to train")
    return found


def base_plan(options: argparse.Namespace) -> dict[str, Any]:
    """A model that knows stories, but not these eight."""
    return {
        "name": "base",
        "out": options.out / "base",
        "documents": {"path": str(options.others)},
        "tokenizer": options.vocabulary,
        "mix": {
            "tokens": options.base_tokens, "context": 256, "sources": {"others": {"stage": "corpus"}},
            "arms": {"base": {"sources": {"others": 1}}},
        },
        "train": {
            "shape": options.shape, "batch_size": 16, "learning_rate": 3e-3, "compile": not options.no_compile,
        },
    }  # fmt: skip


def texts_plan(options: argparse.Namespace) -> dict[str, Any]:
    """The synthetic corpora, from the recording, cleaned."""
    return {
        "name": "texts",
        "out": options.out / "texts",
        "answers": options.out / "answers",
        "documents": {"path": str(STORIES / "documents.jsonl")},
        "tokenizer": str(options.out / "base" / "mix" / "tokenizer.json"),
        "model": {
            "backend": "replay", "path": STORIES / "answers.jsonl", "name": "recorded large language model",
        },
        "generate": [
            {"rephrase": {"styles": ["easy", "medium", "hard"]}},
            "mga",
            {"entigraph": {"groups": STORIES / "groups.jsonl"}},
        ],
        "clean": ["boilerplate", {"length": {"min_words": 30}}, "repetition", "copying", "coverage", "near_duplicates"],
    }  # fmt: skip


def arms_plan(options: argparse.Namespace, tokens: int) -> dict[str, Any]:
    """Five arms of one budget, continued from the base and asked the same."""
    clean = str(options.out / "texts" / "clean")
    once: dict[str, dict[str, Any]] = {
        "raw": {"raw": 1},
        "rephrased": {"rephrased": {"weight": 1, "repeat": True}},
        "mga": {"mga": {"weight": 1, "repeat": True}},
        "entigraph": {"entigraph": {"weight": 1, "repeat": True}},
        "all": {"all": {"weight": 1, "repeat": True}},
    }
    return {
        "name": f"arms-{tokens}",
        "out": options.out / f"arms-{tokens}",
        "documents": {"path": str(STORIES / "documents.jsonl")},
        "tokenizer": str(options.out / "base" / "mix" / "tokenizer.json"),
        "mix": {
            "tokens": tokens,
            "context": 256,
            "sources": {
                "raw": {"stage": "corpus"},
                "rephrased": {"path": clean, "only": {"method": "rephrase"}},
                "mga": {"path": clean, "only": {"method": "mga"}},
                "entigraph": {"path": clean, "only": {"method": "entigraph"}},
                "all": {"path": clean},
                "others": {"path": str(options.out / "base" / "corpus")},
            },
            "arms": {name: {"sources": once[name]} for name in options.arms},
            "replay": {"source": "others", "rate": options.replay} if options.replay else None,
        },
        "train": {
            "checkpoint": options.out / "base" / "train" / "base-0" / "model",
            "batch_size": options.batch_size, "learning_rate": options.learning_rate,
            "compile": not options.no_compile, "seeds": options.seeds,
        },
        "evaluate": {
            "baseline": options.arms[0],
            "checkpoints": {"base": options.out / "base" / "train" / "base-0" / "model"},
            "sets": {
                "questions": {"kind": "answers", "path": STORIES / "questions.jsonl"},
                "people": {"kind": "answers", "path": STORIES / "people.jsonl"},
                "choices": {"kind": "choices", "path": STORIES / "choices.jsonl"},
            },
        },
    }  # fmt: skip


def curves(results: dict[int, list[Result]], console: Console) -> dict[str, dict[str, Any]]:
    """Loss by budget of every arm, and the exponential that fits it; by ``set/arm``.

    With so few budgets one term is all that can be fitted (paper 003, A.5.1 fits three to more points).
    """
    budgets = sorted(results)
    found: dict[str, dict[str, Any]] = {}
    table = Table(title="loss by tokens per arm; in brackets minus the first arm's", title_justify="left")
    for column in ("set", "arm", *(f"{tokens:,}" for tokens in budgets)):
        table.add_column(column, justify="left" if column in ("set", "arm") else "right")
    for one in results[budgets[0]]:
        if one.figure != "loss" or one.arm == "base":
            continue
        same = [
            other
            for tokens in budgets
            for other in results[tokens]
            if (other.set, other.figure, other.arm) == (one.set, one.figure, one.arm)
        ]
        losses = [other.value for other in same]
        apart = ["" if other.difference is None else f" ({other.difference:+.3f})" for other in same]
        table.add_row(
            one.set, one.arm, *(f"{loss:.3f}{gap}" for loss, gap in zip(losses, apart, strict=True))
        )
        entry: dict[str, Any] = {"tokens": budgets, "loss": losses}
        if len(budgets) >= 3:
            entry["curve"] = fit(budgets, losses, terms=1).to_json()
        found[f"{one.set}/{one.arm}"] = entry
    console.print(table)
    return found


def main() -> None:
    options = parser().parse_args()
    options.out = options.out.resolve()
    console = Console()
    try:
        for plan in (base_plan(options), texts_plan(options)):
            run(resolve(plan, Path()), console=console)
        results: dict[int, list[Result]] = {}
        for tokens in sorted(options.tokens):
            plan = arms_plan(options, tokens)
            run(resolve(plan, Path()), console=console)
            results[tokens] = read_results(options.out / f"arms-{tokens}" / "evaluate")
            console.print((options.out / f"arms-{tokens}" / "evaluate" / "results.md").read_text())
    except UsageError as error:
        raise SystemExit(f"closed_book: {error}") from error
    if len(results) > 1:
        found = curves(results, console)
        (options.out / "curves.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
