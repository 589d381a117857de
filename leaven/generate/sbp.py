"""Synthetic Bootstrapped Pretraining: a model tuned on pairs of related documents writes the next one of a pair.

Paper: "Synthetic Bootstrapped Pretraining" (thesis, seed 003), sections 3.3 and B.1.

    corpus --embed, corpus/pairs.py--> pairs (d1, d2) ---.
    corpus --pretrain--> base --tune on `examples`-------+--> synthesizer p(d2 | d1)
    a sample of documents as d1 --`mideval`--> does it follow its seeds, without copying or looping?
    every document as d1 --`expand`, any number of samples--> new documents

No teacher: the writer knows nothing but the corpus. There is no instruction either: what the synthesizer is tuned on
is the document as every prompt of Leaven shows it (title and author if they are known, text, a line of dashes) and
then the other document, so `examples` and `expand` must be used together. Loss is on d2 only.

Where this leaves the paper:

    threshold   0.75 suits its web documents and embeddings; a small corpus may have hardly a pair above it. Left open,
                the threshold is 0.75 or, where that gives fewer than `per_document` pairs a document, there is none
                and every document is paired with its `per_document` nearest: a lower threshold would give all the
                pairs to a few documents that are like many (half of the documents in none of them, on stories)
    seeds       the paper draws d1 uniformly; here every document is d1 equally often
    judges      the paper asks a language model about relevance, novelty and repetition, which would be a teacher;
                `mideval` tells them by embeddings and shared runs of words, and says how

Sampling is the paper's: temperature 1.0, top_p 0.9. A text that repeats a run of 13 words is rejected (B.1.1:
repetition failures), and so is one that was cut off at `max_tokens`, unless `keep_cut` says otherwise: small models
seldom end by themselves. Copies of d1 and near-duplicates are the filters' business (`copying`, `near_duplicates`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from leaven.corpus.embed import Vectors
from leaven.corpus.neighbours import Rows
from leaven.corpus.pairs import (
    Bin,
    Pairing,
    check_corpus,
    find_pairs,
    guide,
    nearest_pairs,
    random_pairs,
    share_runs,
    without_runs,
)  # fmt: skip
from leaven.corpus.shingles import repeats_shingle
from leaven.document import Document
from leaven.errors import UsageError
from leaven.generate._training import Task, Trainer, Work
from leaven.lm.ask import Ask, Step, head, in_order
from leaven.stage import Stage, read_stage, write_json

STEPS = {
    "document": Step(
        prompt="", temperature=1.0, top_p=0.9, max_tokens=4096, on_length="keep", typical_ratio=1.0
    )
}
SHINGLE = 13
THRESHOLD = 0.75
GUIDE = 1000  # documents whose neighbours show what a threshold would let in


class Mideval(BaseModel):
    """What a sample of the synthesizer's texts must reach before many are written.

    Args:
        sample: documents it is asked about, once each.
        relevance: least probability that a text is more similar to its own seed than to another document of the
            sample. 0.5 is chance, and stops only what ignores its seeds: models of 1M parameters come to 0.55 on
            stories, and whether that helps training must tell. 256 texts tell it to about 0.02.
        novelty: least share of texts that share no run of 13 words with their seed.
        non_repetition: least share that repeat no run of 13 words.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    sample: int = Field(256, ge=2)
    relevance: float = Field(0.5, ge=0, le=1)
    novelty: float = Field(0.9, ge=0, le=1)
    non_repetition: float = Field(0.5, ge=0, le=1)


# What to change where a figure is below its bar.
LIMITS = {
    "relevance": "tune longer (writer: tune: epochs) or on more pairs (per_document)",
    "novelty": "tune on less similar pairs, or for fewer epochs",
    "non_repetition": "pretrain longer (writer: epochs) or a larger model",
}


class Config(BaseModel):
    """Options of `sbp`; those from `threshold` on are of the synthesizer's making.

    Args:
        samples: documents written from every one.
        keep_cut: keep a text that was cut off at `max_tokens`; it is marked.
        threshold: similarity that a pair must be above; None chooses, see the header.
        per_document: pairs wanted for every document where the threshold is left open.
        neighbours: nearest documents looked at for every document.
        pairs: most pairs tuned on, drawn at random; None takes all.
        random: tune on random pairs, as many as there are related ones: the paper's control (B.1.3).
        mideval: None goes on whatever the synthesizer writes.
        seed: of the pairs drawn.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    samples: int = Field(1, ge=1)
    keep_cut: bool = False
    threshold: float | None = Field(None, ge=-1, lt=1)
    per_document: int = Field(2, ge=1)
    neighbours: int = Field(200, ge=1)
    pairs: int | None = Field(None, ge=1)
    random: bool = False
    mideval: Mideval | None = Mideval()
    seed: int = 0


def examples(
    documents: Sequence[Document], first: NDArray[np.int64], second: NDArray[np.int64]
) -> Iterator[Mapping[str, str]]:
    """What a synthesizer is tuned on: rows of `prompt` and `completion`, as `leaven.train.finetune` reads them.

    Args:
        first, second: numbers of the documents of each pair, shape (pairs,).
    """
    for one, other in zip(first.tolist(), second.tolist(), strict=True):
        yield {"prompt": head(documents[one]), "completion": documents[other].text}


async def expand(document: Document, ask: Ask, config: Config) -> AsyncIterator[Document]:
    """As many related documents as `samples` asks for."""
    writing = (ask.write("document", {}, sample) for sample in range(config.samples))
    async for written in in_order(writing):
        if written.metadata.get("finish") == "length" and not config.keep_cut:
            ask.discard(written, "truncated", "cut off at max_tokens")
        elif repeats_shingle(written.text, SHINGLE):
            ask.discard(written, "repetition", f"a run of {SHINGLE} words occurs more than once")
        else:
            yield written


def bootstrap(task: Task, config: Config, trainer: Trainer) -> dict[str, Any]:
    """The whole method over a corpus: pair, pretrain, tune, look at a sample, write.

    Raises:
        UsageError: documents that cannot be paired, or a synthesizer that misses `mideval`; before what would then
            be in vain.
    """
    documents = task.documents()
    first, second = _pairs(task, documents, config, trainer)
    base = trainer.pretrained()
    rows = list(examples(documents, first, second))
    synthesizer = trainer.tune(base, rows, task.work / "tune")
    if config.mideval is not None:
        mideval(task, documents, config.mideval, synthesizer, trainer, config.seed)
    return task.write(trainer, synthesizer)


def work(config: Config, documents: int, tokens: int) -> Work:
    """Told beforehand: texts are taken to be as long as the documents."""
    pairs = round(config.per_document * documents)
    tuned = 2 * tokens // max(1, documents) * min(pairs, config.pairs or pairs)
    return Work(embedded=documents, tuned=tuned, drawn=config.samples * tokens)


def choose_pairing(texts: Sequence[str], vectors: Vectors, config: Config) -> tuple[Pairing, list[Bin]]:
    """(which documents make a pair, what each range of similarity would let in).

    Both are told from the neighbours of up to `GUIDE` documents, drawn by the seed.

    Args:
        vectors: shape (texts, d), of unit length.
    """
    drawn = np.random.default_rng(config.seed).permutation(len(texts))[:GUIDE]
    loose = Pairing(threshold=-1, neighbours=config.neighbours, shingle=SHINGLE)
    found = without_runs(texts, nearest_pairs(vectors, np.sort(drawn), loose), loose)
    threshold = THRESHOLD if config.threshold is None else config.threshold
    chosen = Pairing(threshold=threshold, neighbours=config.neighbours, shingle=SHINGLE)
    above = int((found.kept().similarity > THRESHOLD).sum())
    if config.threshold is None and above < config.per_document * len(drawn):
        chosen = Pairing(threshold=-1, neighbours=config.per_document, shingle=SHINGLE)
    return chosen, guide(found)


def _pairs(task: Task, documents: Sequence[Document], config: Config, trainer: Trainer) -> tuple[Rows, Rows]:
    """Numbers of the documents of each pair to tune on, from ``pairs.parquet`` if they were found before."""
    import pyarrow.parquet as pq

    options = config.model_dump(mode="json", include=_PAIRING) | {"embedding": trainer.embedding}
    stage = Stage(task.work / "pairs", {"pairing": options}, {"corpus": task.fingerprint})
    path = stage.folder / "pairs.parquet"
    if stage.manifest is None:
        _find_pairs(task, stage, path, documents, config, trainer)
    table = pq.read_table(path)
    return table["first_row"].to_numpy(), table["second_row"].to_numpy()


_PAIRING = {
    "threshold",
    "per_document",
    "neighbours",
    "pairs",
    "random",
    "seed",
}  # options that decide the pairs


def _find_pairs(
    task: Task, stage: Stage, path: Path, documents: Sequence[Document], config: Config, trainer: Trainer
) -> None:
    """Find the pairs and write them, with the guide to the threshold in the manifest."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = [one.text for one in documents]
    check_corpus(texts)
    vectors = trainer.embed(texts)
    pairing, bins = choose_pairing(texts, vectors, config)
    found = find_pairs(texts, vectors, pairing, partial(trainer.progress, "documents paired"))
    how = (
        f"above {pairing.threshold:g}"
        if pairing.threshold > -1
        else f"the {pairing.neighbours} nearest of each"
    )
    if config.random:
        found, how = random_pairs(texts, vectors, len(found.kept().first), pairing, config.seed), "random"
    counts, kept = found.counts(), found.kept()
    if config.pairs is not None and config.pairs < len(kept.first):
        rng = np.random.default_rng([config.seed, 1])
        kept = kept.take(np.sort(rng.choice(len(kept.first), config.pairs, replace=False)))
    stage.prepare(rows=False)
    columns: dict[str, Any] = {"similarity": kept.similarity}
    for name, rows in (("first", kept.first), ("second", kept.second)):
        columns |= {name: [documents[i].id for i in rows.tolist()], f"{name}_row": rows}
    pq.write_table(pa.table(columns), path)
    similarity = float(kept.similarity.mean())
    stage.finish(
        counts={name: counts[name] for name in ("read", "kept", "rejected")}, reasons=counts["reasons"],
        pairing=pairing.model_dump(), tuned_on=len(kept.first), guide=[_plain(one) for one in bins],
        similarity=similarity,
    )  # fmt: skip
    task.about(f"{task.name}: {len(kept.first):,} pairs to tune on ({how}), mean similarity {similarity:.2f}")


def _plain(one: Bin) -> dict[str, Any]:
    """For JSON, which has no nan."""
    return {name: None if value != value else value for name, value in asdict(one).items()}


def mideval(
    task: Task,
    documents: Sequence[Document],
    options: Mideval,
    synthesizer: Path,
    trainer: Trainer,
    seed: int = 0,
) -> dict[str, Any]:
    """Ask the synthesizer about a sample and hold its texts against the thresholds; returns the figures.

    The answers are stored, so that the large run does not ask for them again.

    Raises:
        UsageError: a threshold is missed; the line says which and what to change.
    """
    rng = np.random.default_rng([seed, 2])
    chosen = [documents[i] for i in sorted(rng.permutation(len(documents))[: options.sample].tolist())]
    folder = task.work / "mideval"
    task.write(trainer, synthesizer, folder, {one.id for one in chosen})
    places = {one.id: i for i, one in enumerate(chosen)}
    written = [
        row
        for kind in ("data", "rejected")
        for row in read_stage(folder, kind)
        if row.metadata["sample"] == 0 and row.text.strip()
    ]
    if not written:
        raise UsageError(
            f"{task.name}: the synthesizer wrote nothing at all; tune it longer or on more pairs"
        )
    owners = np.array([places[row.metadata["sources"][0]] for row in written])
    figures = relevance(
        trainer.embed([one.text for one in chosen]), trainer.embed([row.text for row in written]), owners
    )
    texts = [one.text for one in chosen] + [row.text for row in written]
    shared = share_runs(texts, owners, np.arange(len(chosen), len(texts)), SHINGLE)
    figures |= {
        "novelty": float(1 - shared.mean()),
        "non_repetition": float(np.mean([not repeats_shingle(row.text, SHINGLE) for row in written])),
        "ended": float(np.mean([row.metadata.get("finish") != "length" for row in written])),
        "texts": len(written),
    }
    write_json(folder / "figures.json", figures)
    shown = ", ".join(f"{name} {figures[name]:.2f}" for name in (*LIMITS, "ended"))
    task.about(f"{task.name}: a sample of {len(written)} texts: {shown}")
    for name, mend in LIMITS.items():
        if figures[name] < getattr(options, name):
            raise UsageError(
                f"{task.name}: mideval: {name} of the sample is {figures[name]:.2f}, below "
                f"{getattr(options, name):g}; {mend}, or lower mideval: {name} to go on; the texts are in {folder}"
            )
    return figures


def relevance(seeds: Vectors, texts: Vectors, owners: NDArray[np.int64]) -> dict[str, float]:
    """How closely texts keep to what they were written from, beside chance (paper 003, table B.1).

    Args:
        seeds: vectors of the sampled documents, shape (seeds, d); `texts`: of what was written, shape (texts, d).
        owners: row of every text's own seed, shape (texts,).

    Returns:
        `similarity` to the own seed and `random` to the others, both means, and `relevance`: the probability that a
        text is more similar to its own seed than to another, ties counted half.
    """
    cosines = texts @ seeds.T
    own = cosines[np.arange(len(texts)), owners]
    other = np.ones_like(cosines, dtype=bool)
    other[np.arange(len(texts)), owners] = False
    wins = (own[:, None] > cosines) + 0.5 * (own[:, None] == cosines)
    return {
        "similarity": float(own.mean()),
        "random": float(cosines[other].mean()),
        "relevance": float(wins[other].mean()),
    }
