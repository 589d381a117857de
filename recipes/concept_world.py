"""A world of known concepts: when does Synthetic Bootstrapped Pretraining beat repetition?

    concepts c ~ P(c)  -->  documents d ~ P(d | c), few of each concept  -->  pairs, synthesizer, new documents
    the same tokens:  real documents repeated | real and SBP's | real and the control's | new real documents

Paper: "Synthetic Bootstrapped Pretraining" (thesis, seed 003), whose section 3.6.1 explains the method by this very
model: documents that come from one concept are related through it alone. Here a concept is a made-up place with a
value of each of eleven attributes; a document states the kind of place and some other attributes in any order and
through varied sentences; and with probability 1 - rho a value it states is not the place's own but drawn at random.
So the correlation between documents is known, can be turned down, and every statement can be checked.

What all arms are asked is what the corpus says only across documents: new documents about the same places, and which
of four values a place has. The control is the paper's (B.1.3): a synthesizer tuned on random pairs. It tells apart what
pairs teach from what any text teaches that a model writes from its memory of the corpus.

    python recipes/concept_world.py                        # one world, four arms, three seeds
    python recipes/concept_world.py --rho 1 0.7 0.4        # the correlation turned down
    python recipes/concept_world.py --per-concept 2 4 8    # fewer and more documents of each concept

The budget must be large enough that every seed has learnt the values: with half of it repetition ended anywhere between
0.73 and 0.89 and the oracle between 0.57 and 1.12, which is more than arms differ (LOG.md). Intervals draw places, not
seeds: look at the seeds beside them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator, default_rng
from rich.console import Console
from rich.table import Table

from leaven.corpus.embed import Config as EmbedConfig
from leaven.corpus.embed import Embedder
from leaven.corpus.tokens import train_tokenizer
from leaven.document import Document
from leaven.errors import UsageError
from leaven.evaluate import Result, read_results
from leaven.plan import resolve
from leaven.run import run
from leaven.stage import read_manifest, read_stage

ARMS = ("repeat", "sbp", "random", "oracle")
KIND = "kind"
# By attribute: ways to state it ({x} is the place, {v} the value, which comes last) and the values.
ATTRIBUTES: Mapping[str, tuple[tuple[str, ...], str]] = {
    KIND: (
        ("The place called {x} is a {v}.", "This is an account of {x}, a {v}.", "Travellers know {x} as a {v}."),
        "village town castle harbour monastery valley fortress market mine lighthouse vineyard forest",
    ),
    "trade": (
        ("The people of {x} trade in {v}.", "Merchants come to {x} for {v}.", "The barns of {x} are full of {v}."),
        "salt copper wool amber timber wine honey silk grain iron pepper glass",
    ),
    "emblem": (
        ("The banner of {x} shows a {v}.", "Over the gate of {x} stands a stone {v}.", "The seal of {x} bears a {v}."),
        "wolf heron stag bear falcon lynx lion swan boar raven horse dolphin",
    ),
    "founder": (
        ("{x} was founded by a {v}.", "The first house in {x} belonged to a {v}.", "The founder of {x} was a {v}."),
        "sailor monk widow blacksmith queen shepherd poet soldier physician thief teacher fisherman",
    ),
    "feast": (
        ("{x} holds its great feast in {v}.", "Guests fill {x} every {v}.", "The bells of {x} ring all through {v}."),
        "january february march april may june july august september october november december",
    ),
    "dish": (
        ("The cooks of {x} are proud of their {v}.", "At table {x} serves {v}.", "The kitchens of {x} smell of {v}."),
        "cheese soup bread sausage pancakes eel dumplings cabbage trout porridge mushrooms plums",
    ),
    "roofs": (
        ("The roofs of {x} are {v}.", "From afar {x} looks {v}.", "The doors of {x} are painted {v}."),
        "red blue green yellow white black grey purple orange brown silver golden",
    ),
    "music": (
        ("In the streets of {x} one hears the {v}.", "Children in {x} learn the {v}.", "The songs of {x} need a {v}."),
        "fiddle flute drum harp trumpet organ lute bagpipe horn zither cello whistle",
    ),
    "danger": (
        ("What {x} fears most is {v}.", "In old times {x} suffered from {v}.", "The walls of {x} keep out {v}."),
        "fire flood plague pirates frost drought storms locusts rats giants avalanches bandits",
    ),
    "ruler": (
        ("{x} is ruled by a {v}.", "The laws of {x} are made by a {v}.", "The taxes of {x} go to a {v}."),
        "duke bishop council princess judge captain mayor baron guild sheriff regent countess",
    ),
    "craft": (
        ("The workshops of {x} make {v}.", "Every family in {x} makes {v}.", "The artisans of {x} sell {v}."),
        "clocks candles baskets knives carpets paper boots barrels lace pottery mirrors ropes",
    ),
}  # fmt: skip
VALUES = {name: tuple(words.split()) for name, (_, words) in ATTRIBUTES.items()}
_STATED = [
    (name, re.compile(re.escape(one).replace(r"\{x\}", "(?P<x>[A-Z][a-z]+)").replace(r"\{v\}", "(?P<v>[a-z]+)")))
    for name, (templates, _) in ATTRIBUTES.items()
    for one in templates
]  # fmt: skip
_SYLLABLES = tuple(
    part.split()
    for part in (
        "b br d dr f g gr h k kr l m n p r s st t th v", "a e i o u ai ea", "b d f g k l m n r s t v z",
        "a e i o u", "l m n r s th rn nd",
    )
)  # fmt: skip
CONTEXT = 128  # tokens: two documents and the line between them
_SAMPLE = 1000  # written documents whose similarity to their seed is taken


@dataclass(frozen=True)
class Concept:
    """A made-up place, c of the model, with its own value of every attribute."""

    name: str
    values: Mapping[str, str]


@dataclass(frozen=True)
class Written:
    """A document, d of the model, or what could be read of one.

    Args:
        concept: name of the place it is about; "" if none is named.
        facts: attribute and value in the order stated.
        sentences: how many there are, understood or not.
    """

    concept: str
    facts: tuple[tuple[str, str], ...]
    sentences: int
    text: str


def draw_concepts(count: int, seed: int) -> list[Concept]:
    """So many places; a longer list begins with the shorter one.

    Values are drawn evenly and apart from one another: nothing but its name tells what a place is like.
    """
    rng = default_rng([seed, 0])
    found: dict[str, Concept] = {}
    while len(found) < count:
        name = "".join(str(rng.choice(part)) for part in _SYLLABLES).capitalize()
        values = {attribute: str(rng.choice(words)) for attribute, words in VALUES.items()}
        found.setdefault(name, Concept(name, values))
    return list(found.values())


def draw_document(concept: Concept, facts: int, rho: float, rng: Generator) -> Written:
    """One from P(d | c): what kind of place it is, then some of its other attributes.

    Args:
        facts: how many others.
        rho: probability that a value is the place's own; else it is drawn evenly from all.
    """
    others = [name for name in ATTRIBUTES if name != KIND]
    stated: list[tuple[str, str]] = []
    sentences: list[str] = []
    for name in (KIND, *(others[i] for i in rng.permutation(len(others))[:facts])):
        value = concept.values[name] if rng.random() < rho else str(rng.choice(VALUES[name]))
        templates = ATTRIBUTES[name][0]
        stated.append((name, value))
        sentences.append(templates[int(rng.integers(len(templates)))].format(x=concept.name, v=value))
    return Written(concept.name, tuple(stated), len(sentences), " ".join(sentences))


@dataclass(frozen=True)
class World:
    """Concepts, and documents about them that are all different.

    Args:
        held: what everyone is evaluated on; always of rho 1: the question is what a place is like.
        corpus: what there is to train on.
    """

    concepts: list[Concept]
    held: list[Written]
    corpus: list[Written]
    more: list[Written]


def draw_world(concepts: int, per_concept: int, more: int, facts: int, rho: float, seed: int) -> World:
    """A world; neither its concepts nor what is held out depend on `per_concept`, `more` and `rho`.

    Args:
        per_concept: documents of each concept in the corpus; fewer are the first of more.
        more: of each concept, beside those, for the oracle.
    """
    places = draw_concepts(concepts, seed)
    seen: set[str] = set()

    def drawn(part: int, number: int, rho: float) -> list[Written]:
        found: list[Written] = []
        for i, place in enumerate(places):
            rng = default_rng([seed, part, i])
            until = len(found) + number
            while len(found) < until:
                one = draw_document(place, facts, rho, rng)
                if one.text not in seen:
                    seen.add(one.text)
                    found.append(one)
        return found

    return World(places, held=drawn(1, 2, 1.0), corpus=drawn(2, per_concept, rho), more=drawn(3, more, rho))


def understood(text: str) -> Written:
    """What a text states, by the sentences that documents of this world have; others state nothing.

    A place is named by the first sentence that names one; a sentence that names another place states nothing
    of this one.
    """
    sentences = [f"{one.strip()}." for one in text.split(".") if one.strip()]
    concept, facts = "", []
    for sentence in sentences:
        for name, pattern in _STATED:
            if (match := pattern.fullmatch(sentence)) and match["v"] in VALUES[name]:
                named = match.groupdict().get("x", concept)
                concept = concept or named
                if named == concept:
                    facts.append((name, match["v"]))
                break
    return Written(concept, tuple(facts), len(sentences), text)


def questions(concepts: Iterable[Concept], each: int, seed: int) -> Iterator[dict[str, Any]]:
    """Which of four values has the place? Each is the beginning of a document that ends in the value."""
    others = [name for name in ATTRIBUTES if name != KIND]
    for i, place in enumerate(concepts):
        rng = default_rng([seed, 4, i])
        for n in rng.permutation(len(others))[:each]:
            name = others[n]
            own = place.values[name]
            wrong = rng.permutation([value for value in VALUES[name] if value != own])[:3].tolist()
            options = rng.permutation([own, *wrong]).tolist()
            start = f"{ATTRIBUTES[KIND][0][0]} {ATTRIBUTES[name][0][0].removesuffix(' {v}.')}"
            yield {
                "id": f"{place.name}-{name}", "document": place.name, "options": options, "answer": options.index(own),
                "question": start.format(x=place.name, v=place.values[KIND]),
            }  # fmt: skip


@dataclass(frozen=True)
class Truth:
    """How written documents stand to the world; shares, nan where there is nothing to take them of.

    Args:
        clear: of all sentences those that are of this world.
        own: of all documents those about their seed's place; `known`: those about any place there is.
        copied: true ones of the facts whose attribute the seed states as well.
        recalled: true ones of the facts whose attribute it does not (one in twelve by chance).
    """

    clear: float
    own: float
    known: float
    copied: float
    recalled: float


def truth(written: Sequence[Written], seeds: Sequence[Written], concepts: Iterable[Concept]) -> Truth:
    """Check documents against the world; `seeds` are the documents they were written from, one each."""
    places = {one.name: one.values for one in concepts}
    right: dict[bool, list[bool]] = {True: [], False: []}
    for one, seed in zip(written, seeds, strict=True):
        if one.concept in places:
            stated = {name for name, _ in seed.facts} if seed.concept == one.concept else set()
            for name, value in one.facts:
                right[name in stated].append(places[one.concept][name] == value)

    def share(flags: Sequence[bool]) -> float:
        return sum(flags) / len(flags) if flags else math.nan

    return Truth(
        clear=sum(len(one.facts) for one in written) / max(1, sum(one.sentences for one in written)),
        own=share([one.concept == seed.concept for one, seed in zip(written, seeds, strict=True)]),
        known=share([one.concept in places for one in written]),
        copied=share(right[True]), recalled=share(right[False]),
    )  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """The options; all defaults together are the setting whose figures LOG.md holds."""
    found = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = found.add_argument
    add("--out", type=Path, default=Path("runs/concept_world"), help="folder of all runs")
    add("--concepts", type=int, default=60, help="places")
    add("--per-concept", type=int, nargs="+", default=[4], help="documents of each place in the corpus")
    add("--facts", type=int, default=5, help="attributes a document states beside the kind of place")
    add("--rho", type=float, nargs="+", default=[1.0], help="share of values that are the place's own")
    add("--tokens", type=int, default=800_000, help="that every arm trains on")
    add("--share", type=float, default=0.5, help="of them synthetic in sbp and random")
    add("--shape", default="1m", help="of every model, the synthesizer as well")
    add("--learning-rate", type=float, default=3e-3, help="of every arm and of the base")
    add("--batch-size", type=int, default=8, help="of them, in sequences")
    add("--base-tokens", type=int, default=400_000, help="of pretraining, before the synthesizer is tuned")
    add("--tune-rate", type=float, default=1e-3, help="of the synthesizer, constant")
    add("--tune-epochs", type=int, default=4)
    add("--threshold", type=float, help="similarity of a pair; default: the two nearest, or all above 0.75")
    add("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--world-seed", type=int, default=0)
    return found


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def document_rows(documents: Sequence[Written]) -> Iterator[dict[str, str]]:
    """Numbered within their place, which is the `document` they are about for intervals."""
    numbers: dict[str, int] = {}
    for one in documents:
        numbers[one.concept] = numbers.get(one.concept, -1) + 1
        yield {"id": f"{one.concept}-{numbers[one.concept]}", "document": one.concept, "text": one.text}


def plan_of(options: argparse.Namespace, out: Path, samples: int, base_epochs: float = 1) -> dict[str, Any]:
    """The whole comparison in one world, which lies in `out`.

    Args:
        samples: documents written from each real one.
        base_epochs: of the corpus, in pretraining the base.
    """
    synthesizers = [name for name in options.arms if name in ("sbp", "random")]
    arms: dict[str, dict[str, float]] = {
        name: {"real": 1 - options.share, name: options.share} for name in synthesizers
    } | {"repeat": {"real": 1}, "oracle": {"more": 1}}
    training = {
        "shape": options.shape, "batch_size": options.batch_size, "learning_rate": options.learning_rate,
    }  # fmt: skip
    return {
        "name": "concept_world",
        "out": out / "run",
        "answers": options.out / "answers",
        "embeddings": options.out / "embeddings",
        "documents": {"path": str(out / "corpus.jsonl")},
        "tokenizer": str(out / "tokenizer.json"),
        "max_failed": 1,
        "generate": [
            {"sbp": {
                "name": name, "random": name == "random", "samples": samples, "threshold": options.threshold,
                "mideval": None, "steps": {"document": {"max_tokens": 72}},
            }}
            for name in synthesizers
        ],
        "writer": {
            "epochs": base_epochs,
            "context": CONTEXT,
            "pretrain": training,
            "tune": {"learning_rate": options.tune_rate, "epochs": options.tune_epochs},
        },
        "mix": {
            "tokens": options.tokens,
            "context": CONTEXT,
            "sources": {
                "real": {"stage": "corpus"}, "more": {"path": str(out / "more.jsonl")},
                **{name: {"path": str(out / "run" / "generate" / name)} for name in synthesizers},
            },
            "arms": {name: {"sources": arms[name]} for name in options.arms},
        },
        "train": {
            **training, "seeds": options.seeds,
        },
        "evaluate": {
            "baseline": options.arms[0],
            "sets": {
                "held": {"kind": "text", "path": out / "held.jsonl"},
                "values": {"kind": "choices", "path": out / "values.jsonl", "prompt": "{question}"},
            },
        },
    }  # fmt: skip


def compare(options: argparse.Namespace, out: Path, per_concept: int, rho: float, console: Console) -> World:
    """One world and all of its arms; its figures lie in ``out/run``."""

    def drawn(more: int) -> World:
        return draw_world(options.concepts, per_concept, more, options.facts, rho, options.world_seed)

    world = drawn(0)
    write_rows(out / "corpus.jsonl", document_rows(world.corpus))
    write_rows(out / "held.jsonl", document_rows(world.held))
    write_rows(out / "values.jsonl", questions(world.concepts, 4, options.world_seed))
    # One for all corpora of a world, so that losses per token compare: nearly every word is one token.
    every = [
        draw_document(one, len(ATTRIBUTES) - 1, 1.0, default_rng(i)).text
        for i, one in enumerate(world.concepts)
    ]
    train_tokenizer(every, 2048, out / "tokenizer.json")
    corpus = run(resolve(plan_of(options, out, 1), Path()), to="corpus").manifests["corpus"]["counts"]
    unique = corpus["tokens"] + corpus["kept"]
    epochs = options.tokens / unique
    # A tenth more than is wanted, since documents differ in length; of the written ones some are rejected, too.
    write_rows(out / "more.jsonl", document_rows(drawn(math.ceil(1.1 * epochs * per_concept)).more))
    samples = math.ceil(1.25 * options.share * epochs)
    plan = plan_of(options, out, samples, options.base_tokens / unique)
    missed = run(resolve(plan, Path()), console=console).missed
    if missed:
        raise UsageError(missed[0])
    return world


def concept_of(identifier: str) -> str:
    return identifier.rpartition("-")[0]


def synthesizer(out: Path, name: str, world: World, embedder: Embedder) -> dict[str, float]:
    """What the synthesizer of that name was tuned on and what it wrote (the statistics of paper 003's table B.1, and
    how true it is)."""
    import pyarrow.parquet as pq

    pairs = pq.read_table(out / "run" / "writer" / name / "pairs" / "pairs.parquet")
    first, second = ([concept_of(one) for one in pairs[side].to_pylist()] for side in ("first", "second"))
    written: list[Document] = list(read_stage(out / "run" / "generate" / name))
    texts = {one.id: one.text for one in read_stage(out / "run" / "corpus")}
    seeds = [texts[one.metadata["sources"][0]] for one in written]
    checked = truth([understood(one.text) for one in written], list(map(understood, seeds)), world.concepts)
    chosen = default_rng(0).permutation(len(written))[:_SAMPLE].tolist()
    vectors = embedder.embed([written[i].text for i in chosen])
    similarity = (vectors * embedder.embed([seeds[i] for i in chosen])).sum(1)
    manifest = read_manifest(out / "run" / "generate" / name)
    assert manifest is not None
    return {
        "pairs": float(len(first)),
        "pairs of one place": float(np.mean([a == b for a, b in zip(first, second, strict=True)])),
        "similarity of a pair": float(np.mean(pairs["similarity"].to_numpy())),
        "similarity of a written document to its seed": float(similarity.mean()),
        "written documents": float(len(written)),
        "rejected": manifest["counts"]["rejected"] / max(1, manifest["counts"]["read"]),
        "sentences of this world": checked.clear,
        "about some place there is": checked.known,
        "about the seed's place": checked.own,
        "true, of what the seed states too": checked.copied,
        "true, of what it does not (chance 0.08)": checked.recalled,
    }  # fmt: skip


def show_synthesizers(found: Mapping[str, Mapping[str, float]], title: str, console: Console) -> None:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in found:
        table.add_column(name, justify="right")
    for figure in next(iter(found.values())):
        values = [one[figure] for one in found.values()]
        table.add_row(figure, *(f"{one:,.0f}" if one > 1 else f"{one:.2f}" for one in values))
    console.print(table)


def show_arms(points: Mapping[str, Sequence[Result]], console: Console) -> None:
    """Figures of every arm, and what it is apart from the first, world by world."""
    table = Table(title="minus the first arm [95%, drawing places]", title_justify="left")
    for column in ("world", "figure", "arm", "value", "apart", "seeds"):
        table.add_column(column, justify="right" if column in ("value", "apart") else "left")
    for point, results in points.items():
        for one in results:
            if one.figure == "perplexity":
                continue
            apart = (
                ""
                if one.apart is None
                else f"{one.difference:+.4f} [{one.apart.low:+.4f}, {one.apart.high:+.4f}]"
            )
            each = " ".join(f"{value:.3f}" for value in one.seeds)
            table.add_row(point, f"{one.set} {one.figure}", one.arm, f"{one.value:.4f}", apart, each)
    console.print(table)


def main() -> None:
    options = parser().parse_args()
    options.out = options.out.resolve()
    console = Console()
    embedder = Embedder(EmbedConfig(), options.out / "embeddings")
    points: dict[str, Sequence[Result]] = {}
    synthesizers: dict[str, dict[str, dict[str, float]]] = {}
    try:
        for per_concept, rho in itertools.product(options.per_concept, options.rho):
            name = f"{per_concept} of each, rho {rho:g}"
            out = options.out / name.replace(" ", "-").replace(",", "")
            world = compare(options, out, per_concept, rho, console)
            points[name] = read_results(out / "run" / "evaluate")
            made = [arm for arm in options.arms if arm in ("sbp", "random")]
            synthesizers[name] = {arm: synthesizer(out, arm, world, embedder) for arm in made}
            if made:
                show_synthesizers(synthesizers[name], f"synthesizers: {name}", console)
    except UsageError as error:
        raise SystemExit(f"concept_world: {error}") from error
    show_arms(points, console)
    write_rows(
        options.out / "synthesizers.jsonl", ({"world": name} | one for name, one in synthesizers.items())
    )


if __name__ == "__main__":
    main()
