"""Token streams: documents as numbers, one after another, and an arm's blocks in training order on disk.

    documents --encode, END after each--> SOURCE.tokens  --blocks, in the recipe's order--> ARM/tokens.bin

Every arm is one flat file of token ids (uint16, or uint32 for vocabularies above 65,536), block after block
in the order of training: block i is ``tokens[i * context : (i + 1) * context]``. A trainer maps it into
memory, and where it was killed it goes on, for the order is in the file.

Documents are packed without padding: each ends with the tokenizer's end mark (and begins with `begin` if the
recipe names one), the stream is cut into blocks, and a document may go on in the next block (paper 003, A.2:
packing as in continued pretraining). A source that is seen several times is shuffled anew for every epoch.
``megadocuments`` keeps all documents written from one source together, in a stream of their own order.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from leaven.corpus.tokens import Tokenizer
from leaven.document import Document
from leaven.errors import UsageError
from leaven.mix.recipe import Allocation, Supply

Order = Literal["documents", "megadocuments"]
Tokens = NDArray[Any]  # uint16, or uint32 for large vocabularies
END_MARKS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[SEP]")
_BATCH = 512  # documents encoded at once


@dataclass(frozen=True)
class Marks:
    """Ids put around every document.

    Args:
        end: after it.
        begin: before it, or None.
    """

    end: int
    begin: int | None = None


@dataclass(frozen=True)
class Stream:
    """One source as tokens.

    Args:
        tokens: of all documents, marks included, shape (tokens,).
        starts: where each document begins, and the end of the last, shape (documents + 1,).
        groups: number of the source document each was written from, shape (documents,).
        synthetic: written by a model.
    """

    tokens: Tokens
    starts: NDArray[np.int64]
    groups: NDArray[np.int64]
    synthetic: bool

    @property
    def supply(self) -> Supply:
        return Supply(len(self.tokens), self.synthetic)

    def whole_blocks(self, context: int) -> Tokens:
        """As many blocks as it fills, in the order of its documents, shape (blocks, context)."""
        count = len(self.tokens) // context
        return self.tokens[: count * context].reshape(count, context)


def marks_of(tokenizer: Tokenizer, end: str | None = None, begin: str | None = None) -> Marks:
    """The ids of the marks.

    Args:
        end: its spelling; None finds the tokenizer's own.

    Raises:
        UsageError: the tokenizer has no such token.
    """
    found = []
    for wanted, known in ((end, END_MARKS), (begin, ())):
        names = [wanted] if wanted is not None else list(known)
        ids = (tokenizer.backend.token_to_id(name) for name in names)
        found.append(next((one for one in ids if one is not None), None))
        if found[-1] is None and names:
            raise UsageError(
                f"tokenizer {tokenizer.name}: it has none of the tokens {', '.join(names)}; name its own "
                "under mix: 'end' or 'begin'"
            )
    assert found[0] is not None
    return Marks(found[0], found[1])


def encode(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    marks: Marks,
    progress: Callable[[int], None] = lambda done: None,
) -> Stream:
    """All documents as one stream, in the order of their ids."""
    kind = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    rows = sorted(documents, key=lambda document: document.id)
    parts: list[NDArray[np.int64]] = []
    before = [] if marks.begin is None else [marks.begin]
    for start in range(0, len(rows), _BATCH):
        texts = [row.text for row in rows[start : start + _BATCH]]
        for encoding in tokenizer.backend.encode_batch_fast(texts, add_special_tokens=False):
            parts.append(np.array([*before, *encoding.ids, marks.end]))
        progress(start + len(texts))
    sources = [(row.metadata.get("sources") or (row.id,))[0] for row in rows]
    number = {name: i for i, name in enumerate(sorted(set(sources)))}
    lengths = np.array([len(part) for part in parts], dtype=np.int64)
    return Stream(
        np.concatenate(parts).astype(kind) if parts else np.zeros(0, kind),
        np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
        np.array([number[name] for name in sources], dtype=np.int64),
        any(row.metadata.get("method") for row in rows),
    )


def ordered(stream: Stream, order: Order, seed: int, epoch: int) -> NDArray[np.int64]:
    """The documents' numbers in the order of one epoch, shape (documents,)."""
    rng = np.random.default_rng([seed, 3, epoch])
    shuffled = rng.permutation(len(stream.groups))
    if order == "documents":
        return shuffled
    place = rng.permutation(int(stream.groups.max(initial=-1)) + 1)
    found: NDArray[np.int64] = shuffled[np.argsort(place[stream.groups[shuffled]], kind="stable")]
    return found


def blocks(stream: Stream, context: int, order: Order, seed: int) -> Iterator[Tokens]:
    """Blocks of `context` tokens without end, epoch after epoch."""
    waiting: list[Tokens] = []
    held = 0
    epoch = 0
    while True:
        for number in ordered(stream, order, seed, epoch).tolist():
            document = stream.tokens[stream.starts[number] : stream.starts[number + 1]]
            waiting.append(document)
            held += len(document)
            if held < context:
                continue
            joined = np.concatenate(waiting)
            whole = len(joined) // context * context
            yield from joined[:whole].reshape(-1, context)
            waiting, held = [joined[whole:]], len(joined) - whole
        epoch += 1


def write_tokens(path: Path, tokens: Tokens) -> None:
    """Write blocks as they are, whole or not at all."""
    partial = path.with_suffix(".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    tokens.tofile(partial)
    os.replace(partial, path)


def write_arm(path: Path, allocation: Allocation, streams: Sequence[Stream], order: Order, seed: int) -> None:
    """Write an arm's blocks in training order, whole or not at all.

    Args:
        streams: of the allocation's sources, in the order of its shares.

    Raises:
        UsageError: megadocuments were asked for and one is longer than the context.
    """
    context = allocation.context
    if order == "megadocuments":
        for share, stream in zip(allocation.shares, streams, strict=True):
            lengths = np.bincount(stream.groups, np.diff(stream.starts)).astype(int)
            if len(lengths) and stream.synthetic and lengths.max() > context:
                raise UsageError(
                    f"arm {allocation.arm}: megadocuments of {share.source!r} have up to {lengths.max():,} "
                    f"tokens, the context holds {context:,}; lengthen the context or use order: documents"
                )
    partial = path.with_suffix(".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = np.result_type(*(stream.tokens.dtype for stream in streams))
    shape = (len(allocation.which), context)
    out = np.memmap(partial, dtype=kind, mode="w+", shape=shape)
    for number, stream in enumerate(streams):
        places = np.flatnonzero(allocation.which == number)
        if len(places):
            found = blocks(stream, context, order, seed + number)
            for place, block in zip(places.tolist(), found, strict=False):
                out[place] = block
    out.flush()
    del out
    os.replace(partial, path)
