"""How fast the filters are, and how near-duplicate search compares with its peers.

    python benchmarks/clean.py [--documents 100000] [--peers PYTHON] [--limit 300]

First table: documents and megabytes a second of one process for each filter, on the recorded answers of
the example stories. Second table: near-duplicates (Jaccard of word 5-grams >= 0.6) among random texts of
300 words into which near-copies were planted, each method in a process of its own. A reported pair is right
if its exact Jaccard, counted here with Python sets, is at least 0.6; the pairs to be found are the planted
ones of at least 0.6 (two random texts share next to nothing). Seconds run from texts in memory to pairs;
`x` is that time over ours. Peers report what their index returns, with 128 hash functions, as their
documentation shows.

Peers live in an environment of their own, named by --peers:
    python -m venv peers && peers/bin/pip install datasketch rensa "datatrove[processing]" orjson spacy
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

N, THRESHOLD, WORDS, PLANTED = 5, 0.6, 300, 0.1
STORIES = Path(__file__).resolve().parents[1] / "examples" / "stories"
Pairs = list[tuple[int, int]]


def make_texts(count: int) -> tuple[list[str], Pairs]:
    """Random texts, and the pairs of them of which one is a near-copy of the other: 0 to 30 words changed."""
    draw = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = ["".join(draw.choices(letters, k=draw.randint(2, 10))) for _ in range(20_000)]
    texts = [draw.choices(vocabulary, k=WORDS) for _ in range(count)]
    order = draw.sample(range(count), 2 * int(count * PLANTED))
    pairs = [(min(pair), max(pair)) for pair in zip(order[::2], order[1::2], strict=True)]
    for i, j in pairs:
        texts[j] = list(texts[i])
        for place in draw.sample(range(WORDS), draw.randint(0, 30)):
            texts[j][place] = draw.choice(vocabulary)
    return [" ".join(words) for words in texts], sorted(pairs)


def grams(text: str) -> set[str]:
    words = text.split()
    return {" ".join(words[i : i + N]) for i in range(len(words) - N + 1)}


def exact(texts: list[str], i: int, j: int) -> float:
    a, b = grams(texts[i]), grams(texts[j])
    return len(a & b) / len(a | b)


def by_leaven(texts: list[str]) -> Pairs:
    from leaven.corpus.shingles import near_duplicates, shingle_all

    return [(i, j) for i, j, _ in near_duplicates(list(shingle_all(texts, N)), THRESHOLD)]


def by_datasketch(texts: list[str]) -> Pairs:
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=THRESHOLD, num_perm=128)
    found = []
    for j, text in enumerate(texts):
        signature = MinHash(num_perm=128)
        signature.update_batch([gram.encode() for gram in grams(text)])
        found += [(i, j) for i in index.query(signature)]
        index.insert(j, signature)
    return found


def by_rensa(texts: list[str]) -> Pairs:
    from rensa import RMinHash, RMinHashLSH

    index = RMinHashLSH(threshold=THRESHOLD, num_perm=128, num_bands=32)
    signatures = []
    for start in range(0, len(texts), 10_000):  # all token sets at once would take several times the memory
        batch = [list(grams(text)) for text in texts[start : start + 10_000]]
        signatures += RMinHash.from_token_sets(batch, 128, 42)
    index.insert_many(signatures)
    return [(i, j) for j, found in enumerate(index.query_all(signatures)) for i in found if i < j]


def by_datatrove(texts: list[str], language: Any = "en") -> Pairs:
    from datatrove.data import Document
    from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig

    config = MinhashConfig(n_grams=N, num_buckets=32, hashes_per_bucket=4)
    with tempfile.TemporaryDirectory() as folder:
        step = MinhashDedupSignature(f"{folder}/signatures", config, language=language)
        step.run((Document(text=text, id=str(i)) for i, text in enumerate(texts)), 0, 1)
        for bucket in range(config.num_buckets):
            search = MinhashDedupBuckets(f"{folder}/signatures", f"{folder}/buckets", config=config)
            search.run(None, bucket, config.num_buckets)
        data = b"".join(path.read_bytes() for path in Path(folder, "buckets").glob("*.dups"))
    return [(min(i, j), max(i, j)) for _, i, _, j in struct.iter_unpack("<4I", data)]


def by_datatrove_split(texts: list[str]) -> Pairs:
    from datatrove.utils.word_tokenizers import WordTokenizer

    class Split(WordTokenizer):
        def word_tokenize(self, text: str) -> list[str]:
            return text.split()

        def sent_tokenize(self, text: str) -> list[str]:
            return [text]

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            return [(0, len(text))]

    return by_datatrove(texts, Split())


METHODS: dict[str, tuple[Callable[[list[str]], Pairs], tuple[str, ...]]] = {
    "leaven": (by_leaven, ("numpy",)),
    "datasketch": (by_datasketch, ("datasketch",)),
    "rensa": (by_rensa, ("rensa",)),
    "datatrove, split at spaces": (by_datatrove_split, ("datatrove", "orjson")),
    "datatrove": (by_datatrove, ("datatrove", "orjson", "spacy")),
}


def peak_mb() -> float:
    """Most memory this process had at once (Linux; getrusage would count its starter too)."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1000


def worker(method: str, corpus: Path) -> None:
    """Run one method in this process; prints one JSON line."""
    search, needed = METHODS[method]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        print(json.dumps({"missing": missing}))
        return
    texts = corpus.read_text().splitlines()
    before = peak_mb()
    started = time.perf_counter()
    pairs = sorted(set(search(texts)))
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "peak_mb": peak_mb(), "texts_mb": before, "pairs": pairs}))


def measure(method: str, corpus: Path, python: str, limit: float) -> dict[str, Any]:
    """Run one method in a process of its own, for `limit` seconds at most."""
    command = [python, __file__, "--worker", method, "--corpus", str(corpus)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"note": f"not finished after {limit:g} s"}
    if done.returncode:
        return {"note": "failed: " + (done.stderr.strip().splitlines() or ["no message"])[-1]}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if "missing" in result:
        return {"note": f"not measured: {Path(python).parent}/pip install {' '.join(result['missing'])}"}
    return result


def compare(count: int, peers: str, limit: float) -> None:
    """Print the table of near-duplicate search."""
    texts, planted = make_texts(count)
    wanted = {pair for pair in planted if exact(texts, *pair) >= THRESHOLD}
    print(f"\nNear-duplicates: {count:,} texts of {WORDS} words, {len(wanted):,} pairs to find")
    print(f"{'method':<28}{'seconds':>9}{'x':>7}{'recall':>9}{'precision':>11}{'peak MB':>9}{'texts MB':>10}")
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "texts"
        corpus.write_text("\n".join(texts))
        ours = 0.0
        for method in METHODS:
            result = measure(method, corpus, sys.executable if method == "leaven" else peers, limit)
            if "note" in result:
                print(f"{method:<28}{result['note']}")
                continue
            ours = ours or result["seconds"]
            found = {(i, j) for i, j in result["pairs"]}
            right = sum(pair in wanted or exact(texts, *pair) >= THRESHOLD for pair in found)
            print(
                f"{method:<28}{result['seconds']:>9.1f}{result['seconds'] / ours:>7.1f}"
                f"{len(found & wanted) / len(wanted):>9.4f}{right / max(1, len(found)):>11.4f}"
                f"{result['peak_mb']:>9,.0f}{result['texts_mb']:>10,.0f}",
                flush=True,
            )


def written(count: int) -> tuple[list[Any], list[Any]]:
    """Source documents, and `count` children: the recorded answers, then the same in another order."""
    from leaven.document import Document, child

    stories = [json.loads(line) for line in (STORIES / "documents.jsonl").read_text().splitlines()]
    sources = {story["id"]: Document(text=story["text"], id=story["id"], metadata={}) for story in stories}
    answers = [json.loads(line) for line in (STORIES / "answers.jsonl").read_text().splitlines()]
    answers = [
        a for a in answers if a["method"] in ("rephrase", "entigraph", "mga") and a["response"][0] not in "{["
    ]
    draw = random.Random(0)
    children = []
    for i in range(count):
        answer = answers[i % len(answers)]
        sentences = answer["response"].split(". ")
        if i >= len(answers):
            draw.shuffle(sentences)
        lineage = {name: answer[name] for name in ("method", "step", "variables")}
        children.append(child(sources[answer["doc_id"]], ". ".join(sentences), sample=i, **lineage))
    return list(sources.values()), children


def filters(count: int) -> None:
    """Print the table of filters."""
    from leaven.clean import FILTERS, load_filter
    from leaven.clean.base import Place, Sources
    from leaven.stage import Stage, shards

    sources, children = written(count)
    megabytes = sum(len(document.text.encode()) for document in children) / 1e6
    print(f"Filters, one process: {count:,} written documents, {megabytes:.1f} MB, sources of 750 words")
    print(f"{'filter':<22}{'docs/s':>10}{'MB/s':>9}{'rejected':>10}")
    with tempfile.TemporaryDirectory() as folder:
        stage = Stage(Path(folder) / "corpus", {}, {})
        stage.prepare()
        stage.write(0, sources, [], read=len(sources))
        stage.finish()
        opened = Sources(shards(stage.folder), stage.folder)

        def rows() -> Iterator[tuple[Place, Any]]:
            return (((0, row), document) for row, document in enumerate(children))

        for name in FILTERS:
            kind = load_filter(name)
            options = {"files": (STORIES / "documents.jsonl",), "n": 13} if name == "decontaminate" else {}
            one = kind(kind.Config(**options))
            one.open(opened)
            started = time.perf_counter()
            if one.surveys_rows:
                one.survey(rows)
            rejected = sum(not one.check(document, place).keep for place, document in rows())
            seconds = time.perf_counter() - started
            print(
                f"{name:<22}{count / seconds:>10,.0f}{megabytes / seconds:>9.1f}{rejected:>10,}", flush=True
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--documents", type=int, default=100_000, help="texts in the near-duplicate table")
    parser.add_argument("--filtered", type=int, default=2_000, help="documents in the filter table")
    parser.add_argument(
        "--peers", default=sys.executable, help="python of the environment that has the peers"
    )
    parser.add_argument("--limit", type=float, default=300.0, help="seconds that a method may take")
    parser.add_argument("--worker", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--corpus", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker, arguments.corpus)
        return
    filters(arguments.filtered)
    compare(arguments.documents, arguments.peers, arguments.limit)


if __name__ == "__main__":
    main()
