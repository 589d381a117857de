"""EntiGraph: texts about how the entities of a document relate.

Paper: "Synthetic continued pretraining" in the thesis (seed 003), section 2.2.2 and appendix A.6.1.

    document --entities--> summary, E1..En --pair--> a text for every pair --triple--> a text for many triples

Step 1 extracts a summary and all salient entities (JSON). Step 2 asks, for a subset of the entities, to
retell the document once with emphasis on each of them and then to discuss how they interact. All pairs
come first, then triples in a seeded random order until their number or a token budget is reached; larger
subsets likewise. The summary is part of the corpus, the document itself is not (it joins when mixing).
Temperature 1.0, JSON only in step 1, the document sent with title and author.

In the paper 1.3M tokens of articles become 455M tokens this way, and closed-book accuracy on them grows
log-linearly with the number of synthetic tokens (2.4).

Deviations: the prompts are our own words; entity names are cleaned and deduplicated before they are paired;
the order of triples is seeded per document, so that any budget takes a prefix of the same sequence and a
larger budget asks only for what is new.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import re
import unicodedata
from collections.abc import AsyncIterator, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from leaven.config import PlanPath
from leaven.document import Document
from leaven.errors import Rejected, UsageError
from leaven.lm.ask import Ask, Step, in_order

ENTITIES = """Study the text above and take it apart.
1. Summarise it briefly, but so that all main points are covered.
2. List every entity that matters in it, as completely as you can: people, places, organisations, objects, \
events, and the abstract ideas or themes it turns on. Name each as the text does, once.

Answer with one JSON object with the keys "summary" (a string) and "entities" (a list of strings)."""

_SECTIONS = """Give each part its own heading, exactly in these forms:
### Discussion of {title} in relation to <entity>
### Discussion of Interaction between <entities> in context of {title}
Every part must be understandable by itself: name the text and say who or what is meant."""

PAIR = f"""Write about the text above with two of its entities in view, in three parts. First retell the \
text with the emphasis on the first entity, then retell it with the emphasis on the second, and last \
analyse how the two bear on each other within the text. Stay with what the text says or implies.
{_SECTIONS}

The entities:
{{entities}}"""

TRIPLE = f"""Write about the text above with three of its entities in view, in four parts. Retell the text \
three times, with the emphasis on each entity in turn, and last analyse how the three bear on one another \
within the text. Stay with what the text says or implies.
{_SECTIONS}

The entities:
{{entities}}"""

LARGER = f"""Write about the text above with all the entities listed below in view. Retell the text once \
for each of them, with the emphasis on it, and last analyse how all of them bear on one another within the \
text. Stay with what the text says or implies.
{_SECTIONS}

The entities:
{{entities}}"""

STEPS = {
    "entities": Step(prompt=ENTITIES, max_tokens=4096, typical_tokens=250),
    "pair": Step(prompt=PAIR, max_tokens=4096, typical_tokens=480),
    "triple": Step(prompt=TRIPLE, max_tokens=4096, typical_tokens=570),
    "larger": Step(prompt=LARGER, max_tokens=4096, typical_tokens=700),
}


class Config(BaseModel):
    """Options of `entigraph`.

    Args:
        pairs: how many pairs per document, ``all`` as in the paper.
        triples: how many triples per document; the paper goes on until its budget is spent.
        larger: subsets of more than three entities: size -> how many per document.
        max_entities: entities used per document, in the order they were named; pairs grow with its square.
        tokens_per_document: stop writing about a document when its texts hold this many tokens.
        tokens: the same for the corpus, shared out among documents by their length.
        seed: of the order in which triples and larger subsets are taken.
        groups: instead of all that, ask for exactly the subsets in this JSONL file
            (``{"document": id, "entities": [...]}`` a line).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    pairs: int | Literal["all"] = "all"
    triples: int | Literal["all"] = 0
    larger: dict[int, int] = Field(default_factory=dict)
    max_entities: int | None = Field(None, ge=2)
    tokens_per_document: int | None = Field(None, ge=1)
    tokens: int | None = Field(None, ge=1)
    seed: int = 42
    groups: PlanPath | None = None


class Extraction(BaseModel):
    """Answer of step 1."""

    summary: str = Field(min_length=1)
    entities: list[str] = Field(min_length=1)


Group = tuple[str, ...]

_SURROUNDING = re.compile(r"^[\s\-*•·.,;:]+|[\s,;:]+$")
_ARTICLE = re.compile(r"^(the|a|an)\s+", re.IGNORECASE)


def clean_entities(names: list[str]) -> list[str]:
    """Entity names without bullets, outer quotes, doubled spaces, empties and repetitions.

    Names that differ only in case, Unicode form or a leading article are one; the first spelling stays.
    Names of more than 100 characters are sentences, not entities, and are dropped.
    """
    kept: dict[str, str] = {}
    for name in names:
        name = _SURROUNDING.sub("", " ".join(unicodedata.normalize("NFKC", name).split()))
        if len(name) > 2 and name[0] == name[-1] and name[0] in "\"'":
            name = name[1:-1].strip()
        key = _ARTICLE.sub("", name).casefold()
        if key and len(name) <= 100:
            kept.setdefault(key, name)
    return list(kept.values())


def subsets(entities: list[str], size: int, number: int | Literal["all"], seed: str) -> Iterator[Group]:
    """Different subsets of `size` entities; all in listed order, or a seeded random sequence.

    A smaller `number` with the same seed gives a prefix of a larger one's.
    """
    if number == "all":
        yield from itertools.combinations(entities, size)
        return
    draw = random.Random(seed)
    total = math.comb(len(entities), size)
    if total <= 100_000:
        everything = list(itertools.combinations(entities, size))
        draw.shuffle(everything)
        yield from everything[:number]
        return
    seen: set[tuple[int, ...]] = set()
    while len(seen) < min(number, total):
        chosen = tuple(sorted(draw.sample(range(len(entities)), size)))
        if chosen not in seen:
            seen.add(chosen)
            yield tuple(entities[i] for i in chosen)


def groups_of(entities: list[str], document: Document, config: Config) -> list[Group]:
    """The subsets to ask for, in order: pairs, triples, larger ones; or the user's own list."""
    if config.groups is not None:
        return _listed(config.groups, _version(config.groups)).get(document.id, [])
    chosen = list(subsets(entities, 2, config.pairs, f"{config.seed} {document.id} 2"))
    for size, number in ((3, config.triples), *sorted(config.larger.items())):
        chosen += subsets(entities, size, number, f"{config.seed} {document.id} {size}")
    return chosen


def _version(path: Path) -> int:
    """Changes with the file."""
    try:
        return path.stat().st_mtime_ns
    except OSError as error:
        raise UsageError(f"entigraph groups {path}: {error.strerror}") from error


@lru_cache(maxsize=4)
def _listed(path: Path, version: int) -> dict[str, list[Group]]:
    found: dict[str, list[Group]] = {}
    lines = path.read_bytes().strip().split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            found.setdefault(row["document"], []).append(tuple(row["entities"]))
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f'entigraph groups {path}:{number}: each line must be {{"document": id, "entities": [...]}}'
            ) from error
    return found


def budget_of(ask: Ask, config: Config) -> int | None:
    """Tokens this document's texts may hold: its own cap, and its share of the corpus's."""
    caps = [config.tokens_per_document, None if config.tokens is None else round(config.tokens * ask.share)]
    return min((cap for cap in caps if cap is not None), default=None)


async def relate(ask: Ask, group: Group) -> Document | None:
    """Step 2 for one subset."""
    step = {2: "pair", 3: "triple"}.get(len(group), "larger")
    return await ask.write(step, {"entities": list(group)})


async def expand(document: Document, ask: Ask, config: Config) -> AsyncIterator[Document]:
    """The summary, then one text per subset, in order, until the budget is reached."""
    extraction = await ask("entities", {}, Extraction)
    entities = clean_entities(extraction.value.entities)[: config.max_entities]
    if len(entities) < 2 and config.groups is None:
        named = ", ".join(entities)
        raise Rejected(
            "too few entities", f"only {len(entities)}: {named}", extraction.text, extraction.request
        )
    yield ask.make(extraction, "summary", {}, text=extraction.value.summary)

    groups, budget = groups_of(entities, document, config), budget_of(ask, config)
    written = asked = 0
    while asked < len(groups) and (budget is None or written < budget):
        wave = len(groups)
        if budget is not None:
            # As many as fill the rest of the budget, judged by those so far; at first as if each were as long
            # as may be. So what is asked for depends on earlier answers only, never on timing, and a
            # resumed run asks for the same.
            expected = written / asked if written else ask.steps["pair"].max_tokens
            wave = max(1, int((budget - written) / expected))
        batch = groups[asked : asked + wave]
        asked += len(batch)
        async for text in in_order(relate(ask, group) for group in batch):
            if budget is not None:
                written += ask.tokens(text.text)
            yield text
