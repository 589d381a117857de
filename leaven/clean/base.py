"""What a filter is: a config, a check of one document, and for some a survey of all of them beforehand.

A filter that only looks at the document also works in any datatrove pipeline:
``LambdaFilter(Length(Length.Config()).filter)``.
"""

from __future__ import annotations

import hashlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from leaven.document import Document, read_parquet
from leaven.errors import UsageError

_SHARDS_HELD = 4  # source shards in memory; children lie in the order of their sources, so few are needed

Place = tuple[int, int]  # (shard, row in the shard) as a segment of filters reads them


class Options(BaseModel):
    """Base of every filter's options: frozen, and unknown ones are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class Verdict:
    """What a filter found about one document.

    Args:
        keep: False rejects it.
        value: the measured value, as JSON has it; None where there was nothing to measure.
        detail: one line for a person, why it was rejected.
        text: the edited text, if the filter edits.
        facts: more to record beside the value.
    """

    keep: bool
    value: Any
    detail: str = ""
    text: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)


class Sources:
    """The documents that others were written from, found by id; holds a few shards at a time.

    Args:
        shards: Parquet files of a corpus stage.
        folder: for errors.
    """

    def __init__(self, shards: Sequence[Path], folder: Path) -> None:
        self._shards, self._folder = shards, folder
        self._shard_of = self._index()
        self._load = lru_cache(maxsize=_SHARDS_HELD)(self._read)

    def __iter__(self) -> Iterator[Document]:
        """All source documents, shard by shard."""
        for path in self._shards:
            yield from read_parquet(path)

    def require(self, written: Sequence[Path]) -> None:
        """Check that the sources of all rows are here.

        Args:
            written: Parquet files of written documents.

        Raises:
            UsageError: one is not; it names the row.
        """
        import pyarrow.parquet as pq

        for path in written:
            for row in pq.read_table(path, columns=["id", "sources"]).to_pylist():
                missing = [name for name in row["sources"] or () if name not in self._shard_of]
                if missing:
                    raise UsageError(
                        f"{self._folder}: source {missing[0]!r} of {row['id']} in {path} is not in it; "
                        "give the corpus folder that the rows were written from"
                    )

    def of(self, document: Document) -> list[Document]:
        """The sources of a document; none for one that was written from nothing."""
        identifiers = document.metadata.get("sources") or ()
        return [self._load(self._shard_of[identifier])[identifier] for identifier in identifiers]

    def _index(self) -> dict[str, int]:
        import pyarrow.parquet as pq

        return {
            identifier: number
            for number, path in enumerate(self._shards)
            for identifier in pq.read_table(path, columns=["id"])["id"].to_pylist()
        }

    def _read(self, shard: int) -> dict[str, Document]:
        return {document.id: document for document in read_parquet(self._shards[shard])}


Rows = Callable[[], Iterable[tuple[Place, Document]]]


class Filter(ABC):
    """Base of all filters.

    Class attributes:
        name: as plans and reject reasons have it.
        Config: its options; an instance declares the type of its `config` anew.
        surveys_rows: whether it must see all rows before it can decide on one.
    """

    name: ClassVar[str]
    Config: ClassVar[type[Options]] = Options
    surveys_rows: ClassVar[bool] = False
    config: Options

    def __init__(self, config: Options | None = None) -> None:
        self.config = config if config is not None else self.Config()

    def open(self, sources: Sources) -> None:  # noqa: B027
        """Called once before the first check; reads what the filter needs of the sources."""

    def survey(self, rows: Rows) -> None:  # noqa: B027
        """Called once before the first check when `surveys_rows`.

        Args:
            rows: gives all rows that earlier filters kept, as those left them, each time it is called.
        """

    @abstractmethod
    def check(self, document: Document, place: Place = (0, 0)) -> Verdict:
        """Judge one document without changing it."""

    def files(self) -> Sequence[Path]:
        """Files whose contents decide the outcome; part of the stage's fingerprint."""
        return ()

    def report(self) -> dict[str, Any]:
        """What was found over the whole output, for the manifest."""
        return {}

    def filter(self, document: Document) -> bool | tuple[bool, str]:
        """Check, edit and record, with the result that datatrove's filters return."""
        verdict = self.apply(document)
        return verdict.keep or (False, self.name)

    def apply(self, document: Document, place: Place = (0, 0)) -> Verdict:
        """Check the document, put the edited text in place, and record the verdict in its metadata."""
        verdict = self.check(document, place)
        if verdict.text is not None:
            document.text = verdict.text
        # A new mapping: rows read from one dictionary must not share their checks.
        checks = dict(document.metadata.get("checks") or {})
        edited = {"edited": True} if verdict.text is not None else {}
        checks[self.name] = {"value": verdict.value, "keep": verdict.keep, **edited, **verdict.facts}
        document.metadata["checks"] = checks
        return verdict

    def describe(self) -> dict[str, Any]:
        """Everything that decides the outcome; the code is part of it, so a mended filter is applied anew."""
        code = Path(inspect.getfile(type(self))).read_bytes()
        return {
            "filter": self.name,
            "options": self.config.model_dump(mode="json"),
            "files": [_digest(path) for path in self.files()],
            "code": hashlib.blake2b(code, digest_size=8).hexdigest(),
        }


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()[:32]
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error
