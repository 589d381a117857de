"""How much of EntiGraph's prompts a server's prefix cache can serve, in Leaven's order and in a naive one.

    python benchmarks/prefix.py [--documents 20]

The test server accounts shared prefixes as vLLM does (blocks of 16 tokens, LRU). Its cache holds about
four documents. What no order can exceed: every distinct block is computed once. The naive order asks the
same requests round-robin over the documents, one after the other.

Target: 95% of that bound.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from server import Server, start_server  # noqa: E402

from leaven.corpus import build_corpus  # noqa: E402
from leaven.corpus.read import Input  # noqa: E402
from leaven.corpus.tokens import load_tokenizer  # noqa: E402
from leaven.generate import load_method  # noqa: E402
from leaven.generate._runner import Job, generate  # noqa: E402
from leaven.lm import loop, openai  # noqa: E402
from leaven.lm.base import Answer, Request, Usage  # noqa: E402
from leaven.lm.client import LanguageModel  # noqa: E402
from leaven.lm.store import ResponseStore  # noqa: E402

TARGET = 0.95
CACHE_BLOCKS = 4 * 350  # of 16 tokens: four documents of about 5,500 tokens
PAIRS = 60


def write_documents(path: Path, number: int) -> None:
    """`number` documents of 4 to 5 thousand words, each the example stories in an order of its own."""
    rows = [json.loads(line) for line in (ROOT / "examples/stories/documents.jsonl").open(encoding="utf-8")]
    orders = itertools.islice(itertools.permutations(range(len(rows)), 6), 0, 10_000, 10_000 // number)
    with path.open("w", encoding="utf-8") as file:
        for i, order in zip(range(number), orders, strict=False):
            text = f"Collection {i}.\n\n" + "\n\n".join(rows[j]["text"] for j in order)
            file.write(json.dumps({"id": str(i), "title": f"Collection {i}", "text": text}) + "\n")


class Recorder(LanguageModel):
    """A model that also keeps what it was asked, in order of asking."""

    asked: list[Request]

    async def answer(self, request: Request, priority: int = 0) -> tuple[str, Answer]:
        self.asked.append(request)
        return await super().answer(request, priority)


async def in_our_order(corpus: Path, out: Path, server: Server) -> list[Request]:
    store = ResponseStore(out / "answers", "prefix")
    model = Recorder(openai.Config(name="m", url=server.url, concurrency=64).open(), store)
    model.asked = []
    method = load_method("entigraph")
    job = Job(method, method.Config(pairs=PAIRS), method.steps)
    await generate(job, corpus, out / "generate", model, load_tokenizer(str(corpus / "tokenizer.json")).count)
    await model.close()
    store.close()
    return model.asked


async def round_robin(requests: list[Request], server: Server) -> Usage:
    by_document: dict[str, list[Request]] = {}
    for request in requests:
        by_document.setdefault(request.origin.document, []).append(request)
    backend = openai.Config(name="m", url=server.url).open()
    used = Usage()
    for turn in itertools.zip_longest(*by_document.values()):
        for request in filter(None, turn):
            used = used + (await backend.generate(request)).usage
    await backend.close()
    return used


def report(name: str, cache: dict[str, Any]) -> float:
    share = float(cache["served"] / cache["bound"])
    asked = cache["asked"]
    print(
        f"{name:14}{asked:12,} tokens, {cache['served'] / asked:6.1%} from cache, {share:6.1%} of the bound"
    )
    return share


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=20)
    options = parser.parse_args()
    server = start_server("--cache-blocks", CACHE_BLOCKS, "--delay", 0.02)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_documents(folder / "documents.jsonl", options.documents)
        build_corpus(Input(path=str(folder / "documents.jsonl")), folder / "corpus")
        requests = loop.run(in_our_order(folder / "corpus", folder, server))
        ours = report("leaven", server.stats()["cache"])
        server.reset()
        loop.run(round_robin(requests, server))
        report("round-robin", server.stats()["cache"])
    server.stop()
    print(f"{len(requests):,} requests, cache of {CACHE_BLOCKS} blocks; target {TARGET:.0%} of the bound")
    print("target met" if ours >= TARGET else "target MISSED")
    return 0 if ours >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
