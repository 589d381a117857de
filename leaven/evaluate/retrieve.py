"""The open book: the passages of a corpus that belong to a question.

Paper: "Synthetic continued pretraining" (seed 003), section A.4.

    documents --chunks, title and author before each--> embeddings --nearest--> K chunks --rerank--> k passages

Chunks do not overlap and are at most `chunk_characters` long (256, 512 or 1024 in the paper); the search is exact and
by cosine, which orders unit vectors as the paper's Euclidean distance does. The reranker is a cross-encoder that
sentence-transformers loads; without one the nearest k are taken. recall@k is the share of questions for which a
chunk of the question's own document is among the first k.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from leaven.config import PlanLocation, PlanPath
from leaven.corpus.chunk import split_text
from leaven.corpus.embed import Config as Embedding
from leaven.corpus.embed import Embedder, nearest
from leaven.corpus.locate import Corpus, corpus_at
from leaven.document import Document
from leaven.errors import UsageError

if TYPE_CHECKING:
    from leaven.evaluate.sampled import Question

Progress = Callable[[str, int, int | None], None]


class Book(BaseModel):
    """Where to look things up, and how.

    Args:
        path: the documents: a run, a stage's folder, or documents in any form that Leaven reads.
        retrieve: chunks that the embeddings find (K).
        keep: chunks put before the question (k).
        rerank: folder of a cross-encoder that orders the K; None keeps the embeddings' order.
        order: ``best_last`` puts the best passage nearest to the question.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    path: PlanLocation
    chunk_characters: int = Field(1024, ge=32)
    retrieve: int = Field(128, ge=1)
    keep: int = Field(8, ge=1)
    rerank: PlanPath | None = None
    order: Literal["best_last", "best_first"] = "best_last"
    embedding: Embedding = Embedding()

    @property
    def corpus(self) -> Corpus:
        """The documents, found."""
        return corpus_at(self.path, "book")[0]


class Library:
    """A book's chunks, embedded.

    Args:
        cache: folder for embeddings, kept between runs.

    Raises:
        UsageError: no documents there, or missing packages.
    """

    def __init__(self, book: Book, cache: Path | None, progress: Progress) -> None:
        self._book = book
        self._embedder = Embedder(book.embedding, cache)
        self.chunks: list[str] = []
        self.owners: list[str] = []
        for document in book.corpus.read():
            for text in chunks(document, book.chunk_characters):
                self.chunks.append(text)
                self.owners.append(str(document.metadata.get("parent") or document.id))
        if not self.chunks:
            raise UsageError(f"evaluate: book {book.path}: no documents")
        self._vectors = self._embedder.embed(
            self.chunks, lambda done, total: progress("embedding the book", done, total)
        )

    def look_up(self, questions: Sequence[Question], progress: Progress) -> list[list[int]]:
        """Numbers of the chunks for every question, best first; at most `retrieve` each."""
        asked = ["\n".join([question.text, *question.options]) for question in questions]
        vectors = self._embedder.embed(asked)
        found = nearest(vectors, self._vectors, min(self._book.retrieve, len(self.chunks)))[1].tolist()
        if self._book.rerank is None:
            return [list(one) for one in found]
        encoder = _cross_encoder(self._book.rerank)
        ranked: list[list[int]] = []
        for number, (text, rows) in enumerate(zip(asked, found, strict=True)):
            scores = encoder.predict([(text, self.chunks[row]) for row in rows], show_progress_bar=False)
            ranked.append([rows[i] for i in np.argsort(-np.asarray(scores), kind="stable")])
            progress("reranking", number + 1, len(asked))
        return ranked

    def passages(self, rows: Sequence[int]) -> list[str]:
        """The chunks to put before a question, in the order they are put there."""
        kept = list(rows[: self._book.keep])
        return [self.chunks[row] for row in (reversed(kept) if self._book.order == "best_last" else kept)]


def chunks(document: Document, characters: int) -> list[str]:
    """A document's chunks, each with title and author before it."""
    known = document.metadata
    head = ", by ".join(str(known[name]) for name in ("title", "author") if known.get(name))
    parts = split_text(document.text, characters, lambda texts: [len(text) for text in texts])
    return [f"{head}\n{text}" if head else text for text, _ in parts]


def recall(
    questions: Sequence[Question], found: Sequence[Sequence[int]], owners: Sequence[str]
) -> dict[int, float]:
    """recall@k for k = 1, 2, 4, ... up to as many as were found; empty if no question names a document of the book.

    Args:
        found: chunk numbers by question, best first.
        owners: document of every chunk.
    """
    if not {question.unit for question in questions} & set(owners):
        return {}
    most = max((len(one) for one in found), default=0)
    ks = [1 << i for i in range(most.bit_length())]
    first = [
        next((i for i, row in enumerate(rows) if owners[row] == question.unit), most)
        for question, rows in zip(questions, found, strict=True)
    ]
    return {k: sum(place < k for place in first) / len(first) for k in ks}


def _cross_encoder(folder: Path):  # type: ignore[no-untyped-def]
    """The reranker.

    Raises:
        UsageError: missing packages, or no such model.
    """
    try:
        from sentence_transformers import CrossEncoder
    except ImportError as error:
        raise UsageError(f"reranking needs pip install 'leaven[embed]' ({error})") from error
    try:
        return CrossEncoder(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        raise UsageError(f"evaluate: reranker {folder}: {str(error).splitlines()[0]}") from error
