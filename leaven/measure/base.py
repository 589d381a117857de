"""What is measured (samples, side by side) and what comes out (figures with their intervals)."""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict

from leaven.corpus.locate import SOURCE
from leaven.corpus.shingles import word_hashes_all
from leaven.document import Document
from leaven.errors import UsageError
from leaven.lm import ModelConfig
from leaven.lm.client import LanguageModel
from leaven.measure.statistics import Interval, Side, bootstrap_ratio

AT_ONCE = 256  # pieces of work begun; the model's gate decides how many requests are in flight


class Options(BaseModel):
    """Base of every measure's options: frozen, and unknown ones are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class Figure:
    """One number about one sample.

    Args:
        name: as the papers have it.
        column: the sample it is about.
        value: nan where it could not be measured; `note` says why.
        interval: 95%, or None where there is too little to tell.
        n: rows it was measured on.
        unit: what the interval draws: ``source``, ``document``, ``round``.
        better: which way is more diverse or of higher quality; None where it depends.
        matched: measured on the same amount of text in every column, because it depends on the amount.
        note: what a reader must know, in a few words.
        details: more, for the JSON only (quantiles, histograms, tables).
        rows: (numerators, denominators, units) of a ratio of sums, so that differences can be paired.
    """

    name: str
    column: str
    value: float
    interval: Interval | None = None
    n: int = 0
    unit: str = "document"
    better: Literal["higher", "lower"] | None = None
    matched: bool = False
    note: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    rows: Side | None = field(default=None, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is empty is left out."""
        found: dict[str, Any] = {"name": self.name, "column": self.column, "value": finite(self.value)}
        if self.interval is not None:
            one = self.interval
            found |= {"low": one.low, "high": one.high, "interval": one.kind, "units": one.units}
        found |= {"n": self.n, "unit": self.unit}
        found |= {name: getattr(self, name) for name in ("better", "matched", "note") if getattr(self, name)}
        return found | ({"details": dict(self.details)} if self.details else {})

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Figure:
        """What `to_json` wrote."""
        fields = dict(value)
        kind, units = fields.pop("interval", None), fields.pop("units", 0)
        low, high = fields.pop("low", None), fields.pop("high", None)
        if fields["value"] is None:
            fields["value"] = math.nan
        return cls(**fields, interval=None if kind is None else Interval(low, high, kind, units))


def ratio(
    name: str,
    sample: Sample,
    numerators: ArrayLike,
    denominators: ArrayLike | None = None,
    units: Sequence[str] | None = None,
    *,
    seed: int,
    **more: Any,
) -> Figure:
    """The figure that is a ratio of sums over rows (a mean where `denominators` is None), by the bootstrap.

    Args:
        units: of the rows; None takes the sample's own.
        more: further fields of `Figure`.
    """
    units = sample.units if units is None else units
    value, interval = bootstrap_ratio(numerators, denominators, units, seed=seed)
    rows = (numerators, denominators, units)
    return Figure(name, sample.name, value, interval, len(units), sample.unit, rows=rows, **more)


def finite(value: float) -> float | None:
    """The value as JSON can have it."""
    return value if math.isfinite(value) else None


class Sample:
    """Some documents of one corpus, and the sources they were written from.

    Args:
        name: the column's name.
        documents: in an order that depends on the seed only, not on how they lay in files.
        population: documents they were drawn from.
        sources: by id; those of these documents.
        part_of: the column all these documents are also in, if any.
    """

    def __init__(
        self,
        name: str,
        documents: Sequence[Document],
        population: int | None = None,
        sources: Mapping[str, Document] | None = None,
        part_of: str | None = None,
    ) -> None:
        self.name, self.documents, self.part_of = name, list(documents), part_of
        self.population = len(self.documents) if population is None else population
        self.sources = dict(sources or {})

    def __len__(self) -> int:
        return len(self.documents)

    @cached_property
    def texts(self) -> list[str]:
        return [document.text for document in self.documents]

    @cached_property
    def words(self) -> list[NDArray[np.uint64]]:
        """Hashes of every document's words (lower case, split at white space and punctuation)."""
        return list(word_hashes_all(self.texts))

    @cached_property
    def units(self) -> list[str]:
        """What an interval draws: the source of every row, or the row itself where it has none."""
        return [(document.metadata.get("sources") or (document.id,))[0] for document in self.documents]

    @property
    def unit(self) -> str:
        return (
            "source" if any(document.metadata.get("sources") for document in self.documents) else "document"
        )

    @cached_property
    def source_of(self) -> list[Document | None]:
        """The (first) source of every row that is known, else None."""
        found = ((document.metadata.get("sources") or (None,))[0] for document in self.documents)
        return [None if name is None else self.sources.get(name) for name in found]

    def first(self, number: int) -> Sample:
        """The first `number` documents."""
        return self.chosen(range(min(number, len(self.documents))))

    def chosen(self, rows: Iterable[int]) -> Sample:
        """The documents at these places."""
        rows = list(rows)
        documents = [self.documents[i] for i in rows]
        part = Sample(self.name, documents, self.population, self.sources, self.part_of)
        if "words" in self.__dict__:
            part.words = [self.words[i] for i in rows]
        return part


class Drawer:
    """Draws the same documents whatever order they come in: those whose hashed ids are smallest.

    Holds `most` documents at a time, so a corpus may be larger than memory.
    """

    def __init__(self, most: int, seed: int) -> None:
        self._most, self._seed = most, seed
        self._heap: list[tuple[int, str, Document]] = []
        self.seen = 0

    def add(self, document: Document) -> None:
        self.seen += 1
        entry = (-xxhash.xxh3_64_intdigest(document.id, self._seed), document.id, document)
        if len(self._heap) < self._most:
            heapq.heappush(self._heap, entry)
        elif entry[:2] > self._heap[0][:2]:
            heapq.heapreplace(self._heap, entry)

    def sample(self, name: str) -> Sample:
        ordered = sorted(self._heap, key=lambda entry: (-entry[0], entry[1]))
        return Sample(name, [document for _, _, document in ordered], self.seen)


def _no_model(config: ModelConfig | None) -> LanguageModel:
    raise UsageError("this measure asks a language model: name one under 'model'")


@dataclass
class Context:
    """What a measure may use beside its samples.

    Args:
        seed: of everything that is drawn.
        cache: folder for embeddings, kept between runs.
        open: opens a model, each one once; None is the model that the plan names for measuring.
        progress: called with (what, done, of how many).
        tables: further results, by the name of the file they are written to: the map, what judges said.
    """

    seed: int = 0
    cache: Path | None = None
    open: Callable[[ModelConfig | None], LanguageModel] = _no_model
    progress: Callable[[str, int, int | None], None] = lambda what, done, total: None
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


Columns = Mapping[str, Sample]


def common_amount(amounts: Mapping[str, int]) -> int:
    """How much of every column to measure where figures depend on the amount: as much as the smallest has.

    The sources count only if they have at least a third of what the others have; else they are left out
    there, for they are only a reference, and few of them would leave too little of the rest.
    """
    least = min((amount for name, amount in amounts.items() if name != SOURCE), default=0)
    reference = amounts.get(SOURCE, least)
    return min(least, reference) if 3 * reference >= least else least


async def together(
    work: Sequence[Coroutine[Any, Any, None]], progress: Callable[[int, int], None] = lambda done, total: None
) -> None:
    """Do all of `work`, `AT_ONCE` at a time; the first failure ends it and is raised."""
    waiting = iter(work)
    done = 0

    async def follow() -> None:
        nonlocal done
        for one in waiting:
            await one
            done += 1
            progress(done, len(work))

    progress(0, len(work))
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(AT_ONCE, len(work))):
                group.create_task(follow())
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    finally:
        for one in waiting:
            one.close()
