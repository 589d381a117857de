"""How fast the measures are, beside the package that defines them, and what they need of memory.

    python benchmarks/measure.py [--texts FILE] [--peer PYTHON] [--vectors 1000000] [--documents 100000]

1. Every lexical figure with a public definition, on the paragraphs of FILE (JSONL with `text`; by default
   those of the example stories and answers): seconds of ours and of the `diversity` package, and both values.
   Same texts, same machine, one after the other; the package in an environment of its own (`--peer`):
       python -m venv peers && peers/bin/pip install diversity spacy openai
   It joins all texts into one before it counts n-grams (ours of that one text is printed below), rounds
   to three digits, and compresses with gzip twice; both use one compressor, so there no target is set.
2. Heterogeneity of 1,000,000 x 384 unit vectors: seconds, and memory above the vectors.
3. Duplicate rate (Jaccard 0.6) at 100,000 texts.
4. Embedding: texts a second through the cache beside the bare model on the same texts.

Targets: n-gram diversity and self-repetition 10 times the package's speed or more; heterogeneity under 3 s
and 1 GB; embedding within 10% of the bare model.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from leaven.corpus.shingles import word_hashes_all
from leaven.measure import lexical
from leaven.measure.pairs import mean_dissimilarity

STORIES = Path(__file__).resolve().parents[1] / "examples" / "stories"
TARGET_TIMES, TARGET_SECONDS, TARGET_MB, TARGET_SHARE = 10.0, 3.0, 1000, 0.9
EMBEDDED = 2000
PEER_CODE = """
import json, sys, time
from diversity import compression_ratio, ngram_diversity_score
from diversity.self_repetition import self_repetition_score
texts = [json.loads(line)["text"] for line in open(sys.argv[1])]
for name, work in [
    ("ngram_diversity", lambda: ngram_diversity_score(texts, 4)),
    ("compression_ratio", lambda: compression_ratio(texts, "gzip")),
    ("self_repetition", lambda: self_repetition_score(texts, 4, verbose=False)),
]:
    started = time.perf_counter()
    value = work()
    print(json.dumps([name, time.perf_counter() - started, float(value)]), flush=True)
"""


def paragraphs(path: Path | None) -> list[str]:
    if path is not None:
        return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [
        json.loads(line) for name in ("documents", "answers") for line in (STORIES / f"{name}.jsonl").open()
    ]
    texts = [row.get("text") or row["response"] for row in rows]
    return [part for text in texts for part in text.split("\n\n") if len(part.split()) >= 8]


def ours(texts: list[str]) -> dict[str, Callable[[], float]]:
    """Each figure from the texts on, without an interval (all texts in one group)."""
    alone = np.zeros(len(texts), dtype=np.intp)

    def compression() -> float:
        packer, whole = zlib.compressobj(9, zlib.DEFLATED, 31), " ".join(texts).encode()
        return len(whole) / (len(packer.compress(whole)) + len(packer.flush()))

    return {
        "ngram_diversity": lambda: lexical.ngram_diversity(list(word_hashes_all(texts, exact=True)), alone)[
            0
        ],
        "compression_ratio": compression,
        "self_repetition": lambda: lexical.self_repetition(list(word_hashes_all(texts, exact=True)), alone)[
            0
        ],
    }


def timed(work: Callable[[], Any], rounds: int = 3) -> tuple[float, Any]:
    """(best seconds, result)."""
    best, result = float("inf"), None
    for _ in range(rounds):
        started = time.perf_counter()
        result = work()
        best = min(best, time.perf_counter() - started)
    return best, result


def bench_lexical(texts: list[str], peer: str | None, limit: int) -> bool:
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
        file.flush()
        theirs: dict[str, tuple[float, float]] = {}
        failed = False
        if peer:
            process = subprocess.Popen([peer, "-c", PEER_CODE, file.name], stdout=subprocess.PIPE, text=True)
            try:
                out, _ = process.communicate(timeout=limit)
                failed = process.returncode != 0
            except subprocess.TimeoutExpired:
                process.kill()
                out, _ = process.communicate()
            theirs = {name: (seconds, value) for name, seconds, value in map(json.loads, out.splitlines())}
    words = sum(len(text.split()) for text in texts)
    print(f"{len(texts):,} paragraphs, {words:,} words, {sum(map(len, texts)) / 1e6:.1f} MB")
    print(f"{'figure':20}{'seconds':>9}{'diversity':>11}{'times':>8}{'value':>12}{'diversity':>12}")
    met = True
    for name, work in ours(texts).items():
        seconds, value = timed(work)
        line = f"{name:20}{seconds:9.3f}"
        if name in theirs:
            slower = theirs[name][0] / seconds
            met &= slower >= TARGET_TIMES or name == "compression_ratio"
            line += f"{theirs[name][0]:11.2f}{slower:8.1f}{value:12.4f}{theirs[name][1]:12.4f}"
        else:
            why = "failed" if failed else f"over {limit} s" if peer else "no peer"
            line += f"{why:>11}{'':8}{value:12.4f}"
            met &= bool(peer)
        print(line)
    joined = list(word_hashes_all([" ".join(texts)], exact=True))
    value = lexical.ngram_diversity(joined, np.zeros(1, dtype=np.intp))[0]
    print(f"n-gram diversity of all texts joined into one, as the package counts: {value:.4f}")
    groups = lexical.groups_of([str(i) for i in range(len(texts))], 0)
    hashed = list(word_hashes_all(texts, exact=True))
    seconds, _ = timed(lambda: lexical.ngram_diversity(hashed, groups), 1)
    print(f"with its interval, n-gram diversity takes {seconds:.2f} s")
    return met


def bench_heterogeneity(rows: int) -> bool:
    rng = np.random.default_rng(0)
    vectors = rng.normal(0.1, 1, (rows, 384)).astype(np.float32)
    for start in range(0, rows, 100_000):
        part = vectors[start : start + 100_000]
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    groups = np.arange(rows) % 100
    seconds, (value, _) = timed(lambda: mean_dissimilarity(vectors, groups))
    tracemalloc.start()  # numpy reports its arrays to it; it slows, so once more
    mean_dissimilarity(vectors, groups)
    above = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    line = f"heterogeneity of {rows:,} x 384: {seconds:.2f} s, {above:.0f} MB above them"
    print(f"\n{line} (value {value:.6f})")
    return seconds < TARGET_SECONDS and above < TARGET_MB


def bench_duplicates(number: int) -> None:
    from clean import make_texts

    made, pairs = make_texts(number)
    seconds, found = timed(lambda: lexical.duplicates(made, 0.6), 1)
    line = f"duplicate rate of {number:,} texts of 300 words: {seconds:.1f} s; {found.mean():.4f}"
    print(f"\n{line} of them have a near-duplicate before them ({len(pairs):,} pairs planted)")


def bench_embedding(texts: list[str]) -> bool:
    import torch
    from sentence_transformers import SentenceTransformer

    from leaven.corpus import embed

    chosen = texts[:EMBEDDED]
    rates: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        embedder = embed.Embedder(embed.Config(), Path(folder))
        embedder.embed(chosen[:64])
        dtype = getattr(torch, embedder._dtype)
        bare = SentenceTransformer(str(embedder._path), model_kwargs={"dtype": dtype})
        bare.encode(chosen[:64])
        for turn in range(3):
            fresh = embed.Embedder(embed.Config(), Path(folder) / str(turn))
            fresh._model = embedder._model
            seconds, _ = timed(lambda: bare.encode(chosen, batch_size=16, normalize_embeddings=True), 1)
            rates["bare"] = max(rates.get("bare", 0), len(chosen) / seconds)
            seconds, _ = timed(lambda fresh=fresh: fresh.embed(chosen), 1)  # type: ignore[misc]
            rates["leaven"] = max(rates.get("leaven", 0), len(chosen) / seconds)
        seconds, _ = timed(lambda: fresh.embed(chosen), 1)
        rates["cached"] = len(chosen) / seconds
    share = rates["leaven"] / rates["bare"]
    print(f"\nembedding {len(chosen):,} paragraphs ({embedder._dtype}): {rates['leaven']:.0f}/s, bare model "
          f"{rates['bare']:.0f}/s ({share:.0%}), from the cache {rates['cached']:,.0f}/s")  # fmt: skip
    return share >= TARGET_SHARE


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--peer", metavar="PYTHON")
    parser.add_argument("--limit", type=int, default=300, help="seconds the peer may take")
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--documents", type=int, default=100_000)
    options = parser.parse_args()
    texts = paragraphs(options.texts)
    met = [bench_lexical(texts, options.peer, options.limit), bench_heterogeneity(options.vectors)]
    bench_duplicates(options.documents)
    met.append(bench_embedding(texts))
    if options.peer is None:
        met[0] = True
        print("the diversity package was not measured (--peer PYTHON)")
    print("targets met" if all(met) else f"targets MISSED (lexical, heterogeneity, embedding: {met})")
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
