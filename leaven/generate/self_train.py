"""Recursive self-training: a model goes on with text of the corpus, is trained on what it wrote, and again.

Paper: the study of naive self-training (seed 002), sections 2 to 4.

    round r:  prefixes of K tokens --model r-1 goes on with them--> N tokens (3 N, and one perplexity tier of them)
              --continued pretraining--> model r        control: the same tokens of the corpus --> model r'

The paper finds no gain in any round, for any K, with or without tiers, while real text in place of the synthetic does
help; the quality of the text is what is missing. This is here to see that on one's own documents, and as the
baseline that other ways of going on without a teacher must beat.

K is 0, 3 or 64 in the paper, R goes to 3, sampling is plain (temperature 1). A row is the prefix and what the model
made of it, since a text that begins in mid-sentence would teach just that; N counts the model's own tokens. What
the paper leaves open:

    prefixes    a document in proportion to its tokens, then a place in it at random, where K tokens remain
    length      to the end mark, or else the context
    tiers       whole texts in order of their perplexity under the model that wrote them; a tier is N tokens of
                that order from its beginning, middle or end
    control     is trained in as many rounds of as many tokens as the model, from the same checkpoint
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from leaven.document import Document, read_parquet, reject
from leaven.errors import Rejected, UsageError
from leaven.generate._training import Task, Trainer, Work, Writing
from leaven.lm import loop
from leaven.lm.ask import Ask, Step
from leaven.lm.transformers import weights_hash
from leaven.stage import Stage

STEPS = {
    "continue": Step(
        prompt="", temperature=1.0, top_p=1.0, max_tokens=4096, on_length="keep", typical_ratio=1.0, raw=True
    )
}
TRAINS_ONLY = True  # its rounds need the model they train
WAVE = 256  # texts asked for at once; a round stops at a text, so that its rows do not depend on this
TYPICAL = 100  # tokens of a text, before any was seen
Tier = Literal["low", "middle", "high"]
TIERS: tuple[Tier, ...] = ("low", "middle", "high")


class Config(BaseModel):
    """Options of `self_train`.

    Args:
        rounds: R.
        prefix: K, tokens of a document that a text begins with.
        tokens: N, tokens written in a round; None is as many as the corpus has.
        tier: perplexity tier that is trained on; three times N tokens are written then. None takes all.
        control: train on the corpus as well, in as many rounds of as many tokens.
        seed: of the prefixes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    rounds: int = Field(1, ge=1)
    prefix: int = Field(64, ge=0)
    tokens: int | None = Field(None, ge=1)
    tier: Tier | None = None
    control: bool = True
    seed: int = 0


def prefixes(
    documents: Sequence[Document],
    encoded: Sequence[Sequence[int]],
    decode: Callable[[list[int]], str],
    k: int,
    seed: Sequence[int],
) -> Iterator[Document]:
    """Prefixes without end, drawn by the seed; see the header.

    Args:
        encoded: token ids of every document; `decode`: ids back to text.

    Yields:
        documents of `k` tokens that know the one they are from (``row``) and their place in it (``start``).

    Raises:
        UsageError: no document has so many tokens.
    """
    places = [max(0, len(ids) - k + 1) if k else 1 for ids in encoded]
    ends = np.cumsum(places)
    if not ends[-1]:
        raise UsageError(f"self_train: no document has the {k} tokens of a prefix; lower 'prefix'")
    rng = np.random.default_rng(seed)
    while True:
        place = int(rng.integers(int(ends[-1])))
        number = int(np.searchsorted(ends, place, side="right"))
        start = place - int(ends[number]) + places[number]
        source = documents[number]
        text = decode(list(encoded[number][start : start + k])) if k else ""
        yield Document(text=text, id=f"{source.id}:{start}", metadata={"row": source.id, "start": start})


async def expand(document: Document, ask: Ask, config: Config) -> AsyncIterator[Document]:
    """One text: the prefix, and what the model makes of it."""
    variables = {
        "prefix": config.prefix,
        "start": document.metadata["start"],
        "round": document.metadata["round"],
    }
    number = document.metadata["number"]
    try:
        reply = await ask("continue", variables, sample=number)
    except Rejected as error:
        ask.note("continue", variables, error, number)
        return
    yield ask.make(
        reply, "continue", variables, number, text=document.text + reply.text, written=ask.tokens(reply.text)
    )


def bootstrap(task: Task, config: Config, trainer: Trainer) -> dict[str, Any]:
    """All rounds over a corpus; returns the manifest and, as `checkpoints`, the models to be evaluated by name.

    Raises:
        UsageError: documents too short for the prefix, or a model that writes nothing.
    """
    documents = task.documents()
    encoded = [task.tokenizer.encode(one.text) for one in documents]
    tokens = config.tokens or task.tokens
    next(prefixes(documents, encoded, task.tokenizer.decode, config.prefix, [0]))  # whether there are any
    checkpoint = real = trainer.pretrained()
    models = {"base": checkpoint}
    identity = weights_hash(checkpoint)
    stage = Stage(task.out, task.job.describe(f"self-trained from {identity}"), {"corpus": task.fingerprint})
    if stage.manifest is None:
        stage.prepare()
    for number in range(1, config.rounds + 1):
        if stage.manifest is None and stage.part(number - 1) is None:
            drawn = prefixes(documents, encoded, task.tokenizer.decode, config.prefix, [config.seed, number])
            started = time.monotonic()
            kept, rejected = loop.run(_write(task, config, trainer, checkpoint, number, drawn, tokens))
            stage.write(
                number - 1, kept, rejected, read=len(kept) + len(rejected),
                documents_read=len(documents) if number == 1 else 0, documents_rejected=0,
                seconds=round(time.monotonic() - started, 3),  # without the training between two rounds
            )  # fmt: skip
        written = list(read_parquet(stage.folder / "data" / f"{number - 1:05d}.parquet"))
        checkpoint = trainer.go_on(checkpoint, written, tokens, number, task.work / f"round-{number}")
        models[f"{task.name}-{number}"] = checkpoint
        if config.control:  # the same for every stage of as many tokens
            place = task.work.parent / f"real-{tokens}" / f"round-{number}"
            real = trainer.go_on(real, None, tokens, number, place)
            models[f"real-{number}"] = real
    manifest = stage.manifest or stage.finish(
        model=f"{task.name}, rounds 0 to {config.rounds - 1}", tokens_in=task.tokens,
        models={name: weights_hash(path) for name, path in models.items()},
    )  # fmt: skip
    return manifest | {"checkpoints": models}


def work(config: Config, documents: int, tokens: int) -> Work:
    """Told beforehand."""
    once = config.rounds * (config.tokens or tokens)
    drawn = once if config.tier is None else len(TIERS) * once
    return Work(continued=once * (2 if config.control else 1), drawn=drawn)


async def _write(
    task: Task, config: Config, trainer: Trainer, checkpoint: Path, number: int, drawn: Iterator[Document],
    tokens: int,
) -> tuple[list[Document], list[Document]]:  # fmt: skip
    """(what is trained on in this round, all the rest)."""
    model = trainer.open(checkpoint, f"{task.name} round {number - 1}")
    wanted = tokens * (1 if config.tier is None else len(TIERS))
    kept: list[Document] = []
    rejected: list[Document] = []
    have, asked = 0, itertools.count()
    try:
        while have < wanted:
            before = have
            trainer.progress(f"round {number}: tokens written", have, wanted)
            missing = math.ceil((wanted - have) / max(1.0, have / len(kept) if kept else TYPICAL))
            wave = itertools.islice(drawn, min(WAVE, missing))
            some = [_numbered(one, number, next(asked)) for one in wave]
            for written, refused in await asyncio.gather(*(_one(task, config, model, one) for one in some)):
                rejected += refused
                for row in written:
                    if have >= wanted:
                        rejected.append(
                            reject(row, "beyond the budget", f"{wanted:,} tokens were written before it")
                        )
                        continue
                    have += row.metadata["written"]
                    kept.append(row)
            if have == before:
                raise UsageError(
                    f"{task.name}: round {number}: the model wrote nothing to {len(some)} prefixes; pretrain it longer"
                )
        if config.tier is not None:
            scores = await asyncio.gather(*(model.score(row.text) for row in kept))
            kept, others = by_tier(kept, [perplexity(one) for one in scores], config.tier)
            rejected += others
    finally:
        await model.close()
    for row, count in zip(kept, task.tokenizer.count([row.text for row in kept]), strict=True):
        row.metadata["tokens"] = count
    return kept, rejected


def _numbered(prefix: Document, number: int, place: int) -> Document:
    prefix.metadata |= {"round": number, "number": place}
    return prefix


async def _one(
    task: Task, config: Config, model: Writing, prefix: Document
) -> tuple[list[Document], list[Document]]:
    ask = Ask(
        model,
        prefix,
        task.job.method.name,
        task.job.steps,
        priority=prefix.metadata["number"],
        count=task.tokenizer.count,
    )
    return [row async for row in expand(prefix, ask, config)], ask.rejected


def perplexity(scores: Sequence[float]) -> float:
    """Of a text, from the log-probabilities of its tokens; infinite for one of a single token."""
    return float(np.exp(-np.mean(scores))) if len(scores) else float("inf")


def by_tier(
    rows: Sequence[Document], perplexities: Sequence[float], tier: Tier
) -> tuple[list[Document], list[Document]]:
    """(rows of a tier, all others as rejects), both in the order given.

    In order of perplexity, a tier is every row with a token in the first, middle or last third of all tokens: never
    less than a third of them, so that all tiers can be trained on for as long.
    """
    order = np.argsort(perplexities, kind="stable")
    lengths = np.array([rows[i].metadata["written"] for i in order], dtype=np.float64)
    ends = np.cumsum(lengths)
    third, place = lengths.sum() / len(TIERS), TIERS.index(tier)
    inside = (ends - lengths < (place + 1) * third) & (ends > place * third)
    chosen = set(order[inside].tolist())
    kept: list[Document] = []
    others: list[Document] = []
    for i, row in enumerate(rows):
        row.metadata["perplexity"] = round(perplexities[i], 4)
        if i in chosen:
            kept.append(row)
        else:
            others.append(reject(row, "perplexity tier", f"{perplexities[i]:.1f} is not in the {tier} tier"))
    return kept, others
