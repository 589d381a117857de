"""Run one method over a corpus: shard by shard into a stage's folder, many documents at once.

Documents are started in order and only while the model could take more requests; a request's priority is
its document's number. So the requests of one document stay together, meet a warm prefix cache, and memory
holds the documents in flight, not the corpus. A shard is written when its last document is done; a restart
skips finished shards and finds every answer of the others in the response store.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel

from leaven.corpus.chunk import chunk_document
from leaven.document import Document, child, read_parquet, reject
from leaven.errors import Rejected
from leaven.generate import Method
from leaven.lm.ask import Answerer, Ask, Step
from leaven.lm.base import Backend
from leaven.lm.control import Gate
from leaven.stage import Stage, read_manifest, shards

Progress = Callable[[int, int], None]  # (documents done, documents in all)
Count = Callable[[Sequence[str]], list[int]]


class Model(Answerer, Protocol):
    """What a run needs of a model: a `LanguageModel`, or a rehearsal of one."""

    backend: Backend
    gate: Gate


@dataclass
class _Expansion:
    """What became of one document."""

    written: list[Document] = field(default_factory=list)
    rejected: list[Document] = field(default_factory=list)


@dataclass(frozen=True)
class Job:
    """One entry under `generate` in a plan, resolved.

    Args:
        config: the method's options.
        steps: the method's steps with the user's overrides.
        chunk_tokens: split longer documents before they are expanded; None sends them whole.
    """

    method: Method
    config: BaseModel
    steps: Mapping[str, Step]
    chunk_tokens: int | None = None

    def describe(self, identity: str) -> dict[str, Any]:
        """Everything that decides the output; the method's source is part of it, so that a changed
        parser redoes the stage (from stored answers) instead of leaving old rows."""
        return {
            "method": self.method.name,
            "options": self.config.model_dump(mode="json"),
            "files": {
                name: _hash(path) for name, path in self.config if isinstance(path, Path) and path.is_file()
            },
            "steps": {name: step.model_dump(mode="json") for name, step in self.steps.items()},
            "chunk_tokens": self.chunk_tokens,
            "model": identity,
            "code": _hash(self.method.source),
        }


def _hash(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()


async def generate(
    job: Job,
    corpus: Path,
    out: Path,
    model: Model,
    count: Count,
    progress: Progress | None = None,
    only: set[str] | None = None,
) -> dict[str, Any]:
    """Expand every document of the corpus; returns the manifest.

    Args:
        corpus: a finished corpus stage.
        out: the stage's folder to write.
        count: token counts of texts by the corpus's tokenizer.
        only: ids of the documents to expand; None expands all.

    Raises:
        Stopped, UsageError: the model cannot go on; finished shards and all answers are kept.
    """
    inputs = read_manifest(corpus)
    paths = shards(corpus)
    assert inputs is not None
    stage = Stage(out, job.describe(model.backend.identity), {"corpus": inputs["fingerprint"]})
    if stage.manifest is not None:
        return stage.manifest
    stage.prepare()
    runner = _Runner(job, stage, model, count, inputs["counts"], progress, only)
    try:
        async with asyncio.TaskGroup() as group:
            for number, path in enumerate(paths):
                await runner.start_shard(group, number, path)
    except BaseExceptionGroup as failures:
        # All tasks fail for the same reason (server gone, budget spent): one is enough to tell.
        raise failures.exceptions[0] from None
    return stage.finish(model=model.name, tokens_in=inputs["counts"]["tokens"])


class _Runner:
    def __init__(
        self,
        job: Job,
        stage: Stage,
        model: Model,
        count: Count,
        corpus: Mapping[str, int],
        progress: Progress | None,
        only: set[str] | None,
    ) -> None:
        self._job, self._stage, self._model, self._count = job, stage, model, count
        self._tokens, self._total = max(1, corpus["tokens"]), corpus["kept"] if only is None else len(only)
        self._progress, self._only = progress, only
        self._done = self._started = 0
        self._most_open = 4 * model.backend.concurrency
        self._advance(0)

    async def start_shard(self, group: asyncio.TaskGroup, number: int, path: Path) -> None:
        """Start all documents of a shard as the model has room; it is written when they are done."""
        part = self._stage.part(number)
        if part is not None:
            self._started += part["documents_read"]
            self._advance(part["documents_read"])
            return
        tasks: list[asyncio.Task[_Expansion]] = []
        for document in read_parquet(path):
            if self._only is not None and document.id not in self._only:
                continue
            await self._room()
            tasks.append(group.create_task(self._expand(document, self._started)))
            self._started += 1
        group.create_task(self._finish_shard(number, tasks))

    async def _room(self) -> None:
        """Wait until the model is short of requests; one turn of the loop at least."""
        await asyncio.sleep(0)
        while self._started > self._done and (
            not self._model.gate.hungry or self._started - self._done >= self._most_open
        ):
            await asyncio.sleep(0.002)

    async def _expand(self, document: Document, priority: int) -> _Expansion:
        done = _Expansion()
        for piece in pieces(document, self._job.chunk_tokens, self._count):
            share = piece.metadata.get("tokens", 0) / self._tokens
            ask = Ask(
                self._model, piece, self._job.method.name, self._job.steps,
                priority=priority, share=share, count=self._count,
            )  # fmt: skip
            try:
                async for written in self._job.method.expand(piece, ask, self._job.config):
                    done.written.append(written)
            except Rejected as error:
                done.rejected.append(_unexpanded(piece, self._job.method.name, self._model.name, error))
            done.rejected += ask.rejected
        self._advance(1)
        return done

    async def _finish_shard(self, number: int, tasks: list[asyncio.Task[_Expansion]]) -> None:
        done = [await task for task in tasks]
        written = [row for one in done for row in one.written]
        for row, tokens in zip(written, self._count([row.text for row in written]), strict=True):
            row.metadata["tokens"] = tokens
        rejected = [row for one in done for row in one.rejected]
        expanded = sum(bool(one.written) for one in done)
        self._stage.write(
            number, written, rejected, read=len(written) + len(rejected), documents_read=len(done),
            documents_expanded=expanded, documents_rejected=len(done) - expanded,
        )  # fmt: skip

    def _advance(self, documents: int) -> None:
        self._done += documents
        if self._progress is not None:
            self._progress(self._done, self._total)


def _unexpanded(document: Document, method: str, model: str, error: Rejected) -> Document:
    """Reject row for a document of which nothing could be written."""
    row = child(
        document, error.raw, method=method, step="document", variables={}, model=model, request=error.request
    )
    return reject(row, error.reason, error.detail)


def pieces(
    document: Document, limit: int | None, count: Callable[[Sequence[str]], list[int]]
) -> list[Document]:
    """A document as a method sees it: whole, or as chunks of at most `limit` tokens that know its id as `row`."""
    if limit is None or document.metadata.get("tokens", 0) <= limit:
        return [document]
    found = chunk_document(document, limit, count)
    for piece in found:
        piece.metadata["row"] = document.id
    return found
