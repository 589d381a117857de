"""Synthetic Bootstrapped Pretraining: a model tuned on pairs of related documents writes the next one of a pair.

Paper: "Synthetic Bootstrapped Pretraining" (thesis, seed 003), sections 3.3 and B.1.1.

    corpus --corpus/pairs.py--> pairs (d1, d2) --`examples`, train/finetune.py--> synthesizer p(d2 | d1)
    every document as d1 --`expand`, any number of samples--> new documents

There is no instruction: what the synthesizer was tuned on is the document as every prompt of Leaven shows it (title and
author if they are known, text, a line of dashes) and then the other document, so `examples` and `expand` must be
used together. Loss is on d2 only; the paper tunes at a constant rate of 5e-6 from the pretrained checkpoint, in a
context of twice the longest document.

Sampling is the paper's: temperature 1.0, top_p 0.9. A text that repeats a run of 13 words is rejected (B.1.1:
repetition failures), and so is one that was cut off at `max_tokens`, unless `keep_cut` says otherwise: small models
seldom end by themselves. Copies of d1 and near-duplicates are the filters' business (`copying`, `near_duplicates`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from leaven.corpus.shingles import repeats_shingle
from leaven.document import Document
from leaven.lm.ask import Ask, Step, head, in_order

STEPS = {
    "document": Step(
        prompt="", temperature=1.0, top_p=0.9, max_tokens=4096, on_length="keep", typical_ratio=1.0
    )
}
SHINGLE = 13


class Config(BaseModel):
    """Options of `sbp`.

    Args:
        samples: documents written from every one.
        keep_cut: keep a text that was cut off at `max_tokens`; it is marked.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    samples: int = Field(1, ge=1)
    keep_cut: bool = False


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
