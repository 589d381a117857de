"""Stored answers replayed per second: what it costs to run a plan again.

    python benchmarks/resume.py [--answers 100000]

Fills a store with answers of 1 KB to requests about documents of 800 words (20 requests each, as EntiGraph
asks them), then asks everything again through Ask with a backend that must not be called.

Target: 20,000 a second.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

from leaven.document import Document
from leaven.lm import loop
from leaven.lm.ask import Ask, Step
from leaven.lm.base import Answer, Request, Usage
from leaven.lm.client import LanguageModel
from leaven.lm.store import ResponseStore

TARGET = 20_000
PER_DOCUMENT = 20
STEPS = {"relate": Step(prompt="Relate these two:\n{entities}")}


class Scripted:
    """Answers at once, until it is forbidden to."""

    model, identity, concurrency, paid = "scripted", "scripted", 512, False
    allowed = True

    async def generate(self, request: Request) -> Answer:
        assert self.allowed, "a stored answer was asked for again"
        return Answer("An answer of about one kilobyte. " * 31, "stop", Usage(1000, 0, 250))

    async def close(self) -> None:
        pass


async def ask_all(model: LanguageModel, number: int) -> float:
    """Seconds to ask `number` requests, 32 documents at once."""
    text = "Every document holds eight hundred words of text or thereabouts. " * 80
    documents = iter(range(number // PER_DOCUMENT))

    async def work() -> None:
        for i in documents:
            ask = Ask(
                model, Document(text=f"{i} {text}", id=str(i)), "bench", STEPS, priority=i, count=len_all
            )
            writing = (ask.write("relate", {"entities": [f"A{j}", f"B{j}"]}) for j in range(PER_DOCUMENT))
            assert all(await asyncio.gather(*writing))

    started = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(32)))
    return time.perf_counter() - started


def len_all(texts: object) -> list[int]:
    return [len(text) for text in texts]  # type: ignore[attr-defined]


async def measure(number: int, folder: Path) -> tuple[float, float, float]:
    """(answers stored per second, replayed per second, bytes on disk per answer)."""
    backend = Scripted()
    store = ResponseStore(folder, "bench")
    filled = await ask_all(LanguageModel(backend, store), number)
    store.close()
    size = sum(path.stat().st_size for path in folder.iterdir())
    backend.allowed = False
    store = ResponseStore(folder, "bench")
    model = LanguageModel(backend, store)
    replayed = await ask_all(model, number)
    assert model.traffic.from_store == number == len(store)
    store.close()
    return number / filled, number / replayed, size / number


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--answers", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        stored, replayed, size = loop.run(measure(options.answers, Path(folder)))
    print(f"stored   {stored:10,.0f} answers/s, each committed ({size:,.0f} bytes on disk an answer)")
    print(f"replayed {replayed:10,.0f} answers/s, target {TARGET:,}")
    print("target met" if replayed >= TARGET else "target MISSED")
    return 0 if replayed >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
