"""The corpus stage: documents read, cut into chunks, counted in tokens and sharded.

    input -> read.py -> chunk.py -> tokens.py -> OUT/data, OUT/rejected, OUT/tokenizer.json, OUT/manifest.json

Every later stage starts from this folder. Chunks of one document share a shard, and shards are chosen
by a hash of the document's text, so the same corpus is sharded alike on every machine and engine.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leaven.document import Document, content_id
from leaven.errors import Stopped, UsageError

if TYPE_CHECKING:
    from leaven.corpus.read import Input
    from leaven.corpus.tokens import Tokenizer
    from leaven.stage import Stage

__all__ = ["build_corpus"]

SHARD_BYTES = 64_000_000  # UTF-8 text in a shard: some seconds of work for a filter, minutes for a model
SAMPLE_BYTES = 50_000_000  # a BPE of 8,192 entries no longer changes to speak of beyond this
VOCABULARY = 8192
_BATCH_BYTES = 1_000_000

Progress = Callable[[str, int, int | None], None]


def build_corpus(
    source: Input,
    out: Path,
    *,
    tokenizer: str | int = VOCABULARY,
    chunk_tokens: int | None = None,
    shards: int | None = None,
    hold_out: float = 0.0,
    held: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Read an input into a stage's folder; skipped when the same input was built the same way.

    The corpus is first copied to temporary files (in ``TMPDIR``, as large as the text), so memory
    holds one batch of documents and the ids; `out` is touched only when all input was read.

    Args:
        source: where the documents are.
        out: the stage's folder.
        tokenizer: what `load_tokenizer` takes; a number trains one with at most so many entries on the
            first 50 MB of the corpus (fewer for a corpus below 200 bytes an entry).
        chunk_tokens: cut documents into chunks of at most this many tokens; None leaves them whole.
        shards: number of shards; None: one for every 64 MB of text.
        hold_out: share of the documents, whole and chosen by their text alone, that is set aside to evaluate on;
            at least one where it is above 0.
        held: write the documents that were set aside, instead of the others.
        progress: called with (what is done, how many, of how many or None).

    Returns:
        the manifest. `counts`: ``documents_read`` = ``documents_kept`` + ``documents_rejected`` are
        source documents, ``bytes`` their kept UTF-8 text; ``kept`` are rows written (chunks),
        ``tokens`` their tokens. Also `tokenizer` (name, fingerprint, vocab_size), `files`,
        `skipped_files`, and `other_part`: documents on the other side of `hold_out`, not counted as read.

    Raises:
        UsageError: from reading, from the tokenizer, or an argument out of range; nothing is written.
    """
    from leaven.corpus.read import find_files, input_fingerprints, is_dataset
    from leaven.corpus.tokens import load_tokenizer, train_tokenizer
    from leaven.stage import Stage

    for name, value in (("chunk_tokens", chunk_tokens), ("shards", shards)):
        if value is not None and value < 1:
            raise UsageError(f"{name} must be at least 1, not {value}")
    given = load_tokenizer(tokenizer) if isinstance(tokenizer, str) else None
    inputs = input_fingerprints(source)
    config: dict[str, Any] = {
        "input": source.model_dump(),
        "tokenizer": given.fingerprint if given else {"trained": tokenizer},
        "chunk_tokens": chunk_tokens,
        "shards": shards,
    }
    if hold_out:
        config |= {"hold_out": hold_out, "held": held}
    stage = Stage(Path(out), config, inputs)
    if stage.manifest:
        return stage.manifest
    tell = progress or _silent
    with tempfile.TemporaryDirectory(prefix="leaven-corpus-") as folder:
        try:
            spill = _Spill(Path(folder))
            read = spill.read(source, tell)
            other = spill.part(hold_out, held)
            spill.scatter(shards or max(1, math.ceil(spill.bytes / SHARD_BYTES)))
        except OSError as error:
            raise Stopped(
                f"cannot write to {folder}: {error.strerror or error}; set TMPDIR to a larger disk"
            ) from error
        used = given or train_tokenizer(spill.sample(), min(int(tokenizer), max(512, spill.bytes // 200)))
        stage.prepare()
        used.save(stage.folder / "tokenizer.json")
        written = 0
        for shard in range(spill.shards):
            part = stage.part(shard) or _write_shard(stage, spill, shard, used, chunk_tokens)
            written += part["documents_kept"] + part["documents_rejected"]
            tell("shards written", shard + 1, spill.shards)
    assert written + other == read, f"{out}: read {read} documents, wrote {written} and left {other}"
    described = {"name": used.name, "fingerprint": used.fingerprint, "vocab_size": used.vocab_size}
    skipped = [] if is_dataset(source) else find_files(source).skipped
    return stage.finish(
        tokenizer=described, shards=spill.shards, files=list(inputs), skipped_files=skipped,
        **({"other_part": other} if hold_out else {}),
    )  # fmt: skip


def _silent(what: str, done: int, total: int | None) -> None:
    """No progress wanted."""


def _write_shard(
    stage: Stage, spill: _Spill, shard: int, tokenizer: Tokenizer, chunk_tokens: int | None
) -> dict[str, Any]:
    def kept() -> Iterator[Document]:
        for batch in _batches(d for d in spill.documents(shard) if "reason" not in d.metadata):
            written["documents_kept"] += len(batch)
            written["bytes"] += sum(_size(d) for d in batch)
            yield from _chunks(batch, tokenizer, chunk_tokens)

    def rejected() -> Iterator[Document]:
        for document in spill.documents(shard):
            if "reason" in document.metadata:
                written["documents_rejected"] += 1
                yield document

    counts = spill.counts[shard]
    written = {"documents_kept": 0, "documents_rejected": 0, "bytes": 0}
    part = stage.write(shard, kept(), rejected(), **counts)
    written["documents_read"] = written["documents_kept"] + written["documents_rejected"]
    assert written == counts, f"shard {shard}: {counts} were read, {written} written"
    return part


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents in lists of about a megabyte of text, for batched tokenizing."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _size(document: Document) -> int:
    return len(document.text.encode("utf-8"))


def _chunks(batch: list[Document], tokenizer: Tokenizer, limit: int | None) -> Iterator[Document]:
    from leaven.corpus.chunk import chunk_document

    for document, tokens in zip(batch, tokenizer.count([d.text for d in batch]), strict=True):
        if limit is not None and tokens > limit:
            yield from chunk_document(document, limit, tokenizer.count)
        else:
            document.metadata["tokens"] = tokens
            yield document


class _Spill:
    """Everything that was read, kept on disk until the number of shards is known.

    One file of JSON lines first, then one a shard; a shard's lines are in the order of reading.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._all = folder / "all"
        self.bytes = 0
        self.shards = 0
        self.counts: list[dict[str, int]] = []

    def read(self, source: Input, progress: Progress) -> int:
        """Copy the input here; returns the number of documents read, good or not."""
        from leaven.corpus.read import read_documents

        read = 0
        with self._all.open("w", encoding="utf-8") as file:

            def add(document: Document) -> None:
                nonlocal read
                read += 1
                file.write(json.dumps([document.id, document.text, document.metadata]) + "\n")
                if read % 1000 == 0:
                    progress("documents read", read, None)

            for document in read_documents(source, add):
                self.bytes += _size(document)
                add(document)
        progress("documents read", read, read)
        return read

    def part(self, share: float, held: bool) -> int:
        """Keep the documents that are held out, or all others; returns how many were left out.

        Rows that are no documents stay with the others.

        Raises:
            UsageError: too few documents to divide.
        """
        if not share:
            return 0
        with self._all.open(encoding="utf-8") as lines:
            every = map(_parse, lines)
            different = sorted({content_id(one.text) for one in every if "reason" not in one.metadata})
        if len(different) < 2:
            raise UsageError(
                f"hold_out needs at least two different documents, there are {len(different)}: give more "
                "documents, or hold_out: 0"
            )
        number = min(len(different) - 1, math.ceil(share * len(different)))
        chosen = set(different[:number])
        left, self.bytes = 0, 0
        rest = self._folder / "rest"
        with self._all.open(encoding="utf-8") as lines, rest.open("w", encoding="utf-8") as file:
            for line in lines:
                document = _parse(line)
                good = "reason" not in document.metadata
                if (good and content_id(document.text) in chosen) is held:
                    file.write(line)
                    self.bytes += _size(document) if good else 0
                else:
                    left += 1
        rest.replace(self._all)
        return left

    def scatter(self, shards: int) -> None:
        """Divide what was read into shards by a hash of the text."""
        self.shards = shards
        names = ("documents_read", "documents_kept", "documents_rejected", "bytes")
        self.counts = [dict.fromkeys(names, 0) for _ in range(shards)]
        waiting: dict[int, list[str]] = {}
        size = 0
        with self._all.open(encoding="utf-8") as file:
            for line in file:
                document = _parse(line)
                shard = int(content_id(document.text), 16) % shards
                counts = self.counts[shard]
                counts["documents_read"] += 1
                good = "reason" not in document.metadata
                counts["documents_kept" if good else "documents_rejected"] += 1
                counts["bytes"] += _size(document) if good else 0
                waiting.setdefault(shard, []).append(line)
                size += len(line)
                if size >= SHARD_BYTES:
                    self._append(waiting)
                    size = 0
        self._append(waiting)

    def _append(self, waiting: dict[int, list[str]]) -> None:
        # Opened and closed each time: thousands of shards would exceed the limit on open files.
        for shard, lines in waiting.items():
            with (self._folder / f"{shard:05d}").open("a", encoding="utf-8") as file:
                file.writelines(lines)
        waiting.clear()

    def documents(self, shard: int) -> Iterator[Document]:
        """A shard's documents; a reject has its reason in the metadata."""
        path = self._folder / f"{shard:05d}"
        if path.exists():
            with path.open(encoding="utf-8") as file:
                yield from map(_parse, file)

    def sample(self) -> Iterator[str]:
        """Texts of the first good documents, to train a tokenizer on."""
        size = 0
        with self._all.open(encoding="utf-8") as file:
            for document in map(_parse, file):
                if "reason" not in document.metadata:
                    yield document.text
                    size += len(document.text)
                    if size >= SAMPLE_BYTES:
                        return


def _parse(line: str) -> Document:
    identifier, text, metadata = json.loads(line)
    return Document(text=text, id=identifier, metadata=metadata)
