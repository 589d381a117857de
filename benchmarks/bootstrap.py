"""How fast documents are paired for Synthetic Bootstrapped Pretraining, how exactly, and in what memory.

    python benchmarks/bootstrap.py [--only pairing|memory|shingles|sampling] [--peer PYTHON] [--limit 600]

pairing     the 200 nearest of 100,000 x 384 unit vectors in clusters of 50, whose members are as similar as
            related documents are: seconds, and recall on 1,000 of them against float64, beside a plain FAISS
            flat search of the same (recall there misses what float32 ranks wrongly) and, in an environment of
            its own (`--peer`), HNSW, one library after the other:
                python -m venv peers && peers/bin/pip install hnswlib usearch
memory      the same search for 4,096 keys among 1,000,000 vectors, in a process of its own: the highest
            memory it ever had, the 1.5 GB of vectors included. A corpus goes through in shards of keys, and
            one shard needs no more than another.
shingles    2 million pairs among 100,000 texts of 300 words, a tenth of them near-copies of others: megabytes
            of text and pairs a second, beside Python sets of strings on 2,000 of the pairs, which must say
            the same
sampling    tokens a second of the `transformers` backend at batch 128 beside transformers' own `generate`,
            in the same process and in turns, best of 3: models of 1m and 3m, untrained, 4,096 words, prompts of 16 to
            64 words, 240 new ones; then rows that want 128 to 240 (`generate` goes on to the longest, and what is
            past a row's limit counts for neither). Both must draw from one distribution: the mean
            log-probability of the rows, and the first token after one prompt 16,384 times

Targets: recall 1; the search within 1.5 times the plain one's seconds; 4 GB; 10 MB/s and no wrong pair;
sampling in bfloat16 twice as fast as `generate` in the same, and as `generate` in float32.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from leaven.corpus.neighbours import neighbours
from leaven.corpus.pairs import Pairing, share_runs
from leaven.lm import transformers as local
from leaven.lm.base import Answer, Request, Sampling
from leaven.train.shapes import config_of, shape

Vectors = NDArray[np.float32]
Rows = NDArray[np.int64]

WIDTH, CLUSTER, CHECKED = 384, 50, 1000
TARGET_TIMES, TARGET_GB, TARGET_MB = 1.5, 4.0, 10.0
MEMORY_ROWS, MEMORY_KEYS = 1_000_000, 4096
SHAPES_SAMPLED, VOCABULARY, SAMPLED, NEW, SHORTEST = ("1m", "3m"), 4096, 128, 240, 128
FIRST_TOKENS, TARGET_SAMPLING, SURE = 16_384, 2.0, 1e-4
PEER_CODE = """
import importlib, json, sys, time
import numpy as np
name, path, k, out = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
vectors = np.load(path)
module = importlib.import_module(name if name == "hnswlib" else "usearch.index")
started = time.perf_counter()
if name == "hnswlib":
    index = module.Index(space="ip", dim=vectors.shape[1])
    index.init_index(max_elements=len(vectors), ef_construction=200, M=16)
    index.add_items(vectors)
    index.set_ef(512)
    rows = index.knn_query(vectors, k=k)[0]
else:
    index = module.Index(ndim=vectors.shape[1], metric="ip", dtype="f32", expansion_search=512)
    index.add(np.arange(len(vectors)), vectors)
    rows = index.search(vectors, k).keys
print(time.perf_counter() - started)
np.save(out, rows.astype(np.int64))
"""


def clustered(rows: int) -> Vectors:
    """Unit vectors in clusters, whose members have cosines between 0.5 and 0.96 by cluster."""
    rng = np.random.default_rng(0)
    number = rows // CLUSTER
    centres = rng.normal(size=(number, WIDTH)).astype(np.float32) / WIDTH**0.5
    spreads = rng.uniform(0.2, 1.0, number).astype(np.float32)
    made = np.empty((rows, WIDTH), dtype=np.float32)
    for start in range(0, rows, 50_000):
        part = made[start : start + 50_000]
        cluster = rng.integers(number, size=len(part))
        part[:] = rng.standard_normal(part.shape, dtype=np.float32) * (spreads[cluster] / WIDTH**0.5)[:, None]
        part += centres[cluster]
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return made


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def truth_of(vectors: Vectors, keys: Rows, k: int) -> tuple[Rows, NDArray[np.float64]]:
    """The k nearest rows of each key by float64, itself excluded, and their cosines, shape (keys, k)."""
    nearest, cosines = [], []
    for some in np.array_split(keys, 10):
        products = np.zeros((len(some), len(vectors)))
        for start in range(0, len(vectors), 50_000):
            part = vectors[start : start + 50_000].astype(np.float64)
            products[:, start : start + 50_000] = vectors[some].astype(np.float64) @ part.T
        products[np.arange(len(some)), some] = -np.inf
        nearest.append(np.argpartition(-products, k, axis=1)[:, :k])
        cosines.append(np.take_along_axis(products, nearest[-1], 1))
    return np.concatenate(nearest), np.concatenate(cosines)


def recall(first: Rows, second: Rows, keys: Rows, nearest: Rows, wanted: NDArray[np.bool_]) -> float:
    """Share of the wanted true neighbours of the keys that are among the pairs found."""
    inside = np.isin(first, keys)
    found = set(zip(first[inside].tolist(), second[inside].tolist(), strict=True))
    place, column = np.nonzero(wanted)
    true = zip(keys[place].tolist(), nearest[place, column].tolist(), strict=True)
    return sum(pair in found for pair in true) / len(place)


def without_self(rows: Rows, k: int) -> tuple[Rows, Rows]:
    """Lists of k + 1 neighbours of all rows as pairs, without each row itself, k at most of each."""
    other = rows != np.arange(len(rows))[:, None]
    other &= np.cumsum(other, axis=1) <= k
    first, column = np.nonzero(other)
    return first, rows[first, column]


def pairing(options: argparse.Namespace) -> bool:
    import faiss

    config = Pairing()
    k, every = config.neighbours, np.arange(options.rows)
    vectors = clustered(options.rows)
    keys = np.sort(np.random.default_rng(1).permutation(options.rows)[:CHECKED])
    nearest, cosines = truth_of(vectors, keys, k)
    all_of_them = np.ones(nearest.shape, dtype=bool)

    def plain() -> Rows:
        index = faiss.IndexFlatIP(WIDTH)
        index.add(vectors)
        return np.asarray(index.search(vectors, k + 1)[1])

    neighbours(vectors, every[:2000], k)  # threads and pages
    flat, rows = timed(plain)
    lines = [("faiss flat", flat, recall(*without_self(rows, k), keys, nearest, all_of_them))]
    for name, above in ((f"leaven, all {k}", -2.0), (f"leaven, above {config.threshold}", config.threshold)):
        seconds, (first, second, _, _) = timed(partial(neighbours, vectors, every, k, above))
        lines.append((name, seconds, recall(first, second, keys, nearest, cosines > above)))
    met = lines[1][2] == lines[2][2] == 1.0 and lines[2][1] / flat <= TARGET_TIMES
    print(f"{options.rows:,} x {WIDTH}, {k} nearest of all; {len(first):,} pairs above {config.threshold}")
    print(f"{'':24}{'seconds':>9}{'of faiss':>10}{'recall':>10}")
    for name, seconds, found in lines:
        print(f"{name:24}{seconds:9.1f}{seconds / flat:10.2f}{found:10.6f}", flush=True)
    for name in ("hnswlib", "usearch") if options.peer else ():
        seconds, rows = searched_by(options, name, vectors, k)
        if len(rows):
            found = recall(*without_self(rows, k), keys, nearest, all_of_them)
            print(f"{name:24}{seconds:9.1f}{seconds / flat:10.2f}{found:10.6f}")
        else:
            print(f"{name:24} {'not installed there, or over the limit'}")
    return met


def searched_by(options: argparse.Namespace, name: str, vectors: Vectors, k: int) -> tuple[float, Rows]:
    """(seconds, k + 1 neighbours of all) by a package of the peers' environment; no rows where it failed."""
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder) / "vectors.npy", Path(folder) / "rows.npy"
        np.save(given, vectors)
        command = [options.peer, "-c", PEER_CODE, name, str(given), str(k + 1), str(out)]
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=options.limit)
        except subprocess.TimeoutExpired:
            return options.limit, np.zeros((0, 0), dtype=np.int64)
        rows = np.load(out) if done.returncode == 0 else np.zeros((0, 0), dtype=np.int64)
        return float(done.stdout or 0), rows


def memory(options: argparse.Namespace) -> bool:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        before, seconds, found, highest = pool.apply(search_many)
    print(
        f"\n{MEMORY_KEYS:,} keys among {MEMORY_ROWS:,} x {WIDTH}: {seconds:.1f} s, {found:,} pairs; highest "
        f"memory {highest:.2f} GB ({before:.2f} GB with the vectors before the search)"
    )
    return highest < TARGET_GB


def search_many() -> tuple[float, float, int, float]:
    """(GB before, seconds, pairs, highest GB) of this process."""
    vectors = clustered(MEMORY_ROWS)
    keys = np.arange(0, MEMORY_ROWS, MEMORY_ROWS // MEMORY_KEYS)[:MEMORY_KEYS]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    config = Pairing()
    seconds, (first, _, _, _) = timed(lambda: neighbours(vectors, keys, config.neighbours, config.threshold))
    return before, seconds, len(first), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def shingles(options: argparse.Namespace) -> bool:
    from clean import make_texts

    texts, planted = make_texts(options.texts)
    rng = np.random.default_rng(0)
    drawn = rng.integers(options.texts, size=(20 * options.texts, 2))
    both = np.concatenate((drawn[drawn[:, 0] != drawn[:, 1]], np.array(planted)))
    both = both[rng.permutation(len(both))]
    seconds, shares = timed(lambda: share_runs(texts, both[:, 0], both[:, 1]))
    size = sum(map(len, texts)) / 1e6
    some = np.concatenate((np.flatnonzero(shares)[:1000], np.flatnonzero(~shares)[:1000]))
    slow, expected = timed(lambda: [bool(runs(texts[i]) & runs(texts[j])) for i, j in both[some].tolist()])
    wrong = int((shares[some] != np.array(expected)).sum())
    print(
        f"\nshared runs of 13 words: {len(both):,} pairs among {size:.0f} MB of text in {seconds:.1f} s, "
        f"{size / seconds:.1f} MB/s, {len(both) / seconds:,.0f} pairs/s; {int(shares.sum()):,} share one "
        f"({len(planted):,} near-copies were planted)\n"
        f"sets of strings: {len(some) / slow:,.0f} pairs/s; {wrong} of {len(some):,} pairs told differently"
    )
    return size / seconds >= TARGET_MB and not wrong


def runs(text: str, n: int = 13) -> set[str]:
    words = re.sub(r"[^\w\s]|[\d_]", "", text.lower()).split()
    return {" ".join(words[i : i + n]) for i in range(len(words) - n + 1)}


def words_checkpoint(name: str, folder: Path) -> Path:
    """An untrained model of a shape over the words w0 .. w4095, none of which ends a text."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    config = config_of(shape(name), vocab_size=VOCABULARY, context=512, end=0)
    config.initializer_range, config.eos_token_id = 0.1, None  # scores that differ as a trained model's do
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    return folder


def text_of(tokens: list[int]) -> str:
    return " ".join(f"w{token}" for token in tokens)


class Sides:
    """The backend and transformers' `generate` on the same checkpoint in the same precision."""

    def __init__(self, folder: Path, dtype: Any) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self.backend = local.Config(path=folder, dtype=dtype, device="cpu", batch_size=SAMPLED).open()
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
        rng = np.random.default_rng(0)
        self.prompts = [rng.integers(1, VOCABULARY, n).tolist() for n in rng.integers(16, 65, SAMPLED)]
        self.limits = rng.integers(SHORTEST, NEW + 1, SAMPLED).tolist()

    def ours(self, prompts: list[list[int]], limits: list[int], top_p: float = 1.0) -> list[list[int]]:
        async def ask() -> list[Answer]:
            requests = (
                Request((("user", text_of(prompt)),), Sampling(max_tokens=limit, top_p=top_p), sample=i)
                for i, (prompt, limit) in enumerate(zip(prompts, limits, strict=True))
            )
            return list(await asyncio.gather(*map(self.backend.generate, requests)))

        answers = self.loop.run_until_complete(ask())
        return [[int(word[1:]) for word in answer.text.split()] for answer in answers]

    def generate(self, prompts: list[list[int]], new: int, top_p: float = 1.0) -> list[list[int]]:
        import torch

        longest = max(map(len, prompts))
        options: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_p": top_p, "top_k": 0}
        with torch.inference_mode():
            drawn = self.model.generate(
                torch.tensor([[0] * (longest - len(one)) + one for one in prompts]),
                attention_mask=torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in prompts]),
                max_new_tokens=new, pad_token_id=0, **options,
            )  # fmt: skip
        return list(drawn[:, longest:].tolist())

    def __enter__(self) -> Sides:
        self.loop = asyncio.new_event_loop()
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.run_until_complete(self.backend.close())
        self.loop.close()


def sampling(options: argparse.Namespace) -> bool:
    good = True
    for name in SHAPES_SAMPLED:
        rates: dict[str, dict[str, float]] = {}
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = words_checkpoint(name, Path(folder))
            for dtype in ("float32", "bfloat16"):
                with Sides(checkpoint, dtype) as sides:
                    rates[dtype], same = sampled_by(sides)
                    good &= same
        for dtype, rate in rates.items():
            print(
                f"\nsampling {name} {dtype}: {rate['ours']:,.0f} tokens/s, generate {rate['generate']:,.0f}: "
                f"{rate['ours'] / rate['generate']:.2f}x; {SHORTEST} to {NEW} tokens a row: "
                f"{rate['ours, mixed']:,.0f} beside {rate['generate, mixed']:,.0f}: "
                f"{rate['ours, mixed'] / rate['generate, mixed']:.2f}x; "
                f"{rate['ours'] / rates['float32']['generate']:.2f}x generate in float32"
            )
        fast = rates["bfloat16"]["ours"]
        good &= fast >= TARGET_SAMPLING * max(rate["generate"] for rate in rates.values())
    return good


def sampled_by(sides: Sides) -> tuple[dict[str, float], bool]:
    """Tokens a second of the two, and whether they draw from the same distribution."""
    full, wanted = [NEW] * SAMPLED, sum(sides.limits)
    sides.ours(sides.prompts, [2] * SAMPLED), sides.generate(sides.prompts, 2)  # loads, warms up
    best: dict[str, float] = {}
    for _ in range(3):
        all_of_it, ours = timed(lambda: sides.ours(sides.prompts, full))
        mixed, _ = timed(lambda: sides.ours(sides.prompts, sides.limits))
        theirs, generated = timed(lambda: sides.generate(sides.prompts, NEW))
        found = {
            "ours": SAMPLED * NEW / all_of_it, "ours, mixed": wanted / mixed,
            "generate": SAMPLED * NEW / theirs, "generate, mixed": wanted / theirs,
        }  # fmt: skip
        best = {kind: max(rate, best.get(kind, 0)) for kind, rate in found.items()}
    p_values = [stats.ttest_ind(likelihood(sides, ours), likelihood(sides, generated)).pvalue]
    one = sides.prompts[0][:16]
    for top_p in (1.0, 0.9):
        counts = np.zeros((2, VOCABULARY), dtype=np.int64)
        asked = [one] * FIRST_TOKENS
        for row, drawn in enumerate(
            (sides.ours(asked, [1] * FIRST_TOKENS, top_p), sides.generate(asked, 1, top_p))
        ):
            np.add.at(counts[row], np.array(drawn)[:, 0], 1)
        common = counts.sum(0) >= 20
        table = np.column_stack((counts[:, common], counts[:, ~common].sum(1)))
        p_values.append(stats.chi2_contingency(table[:, table.sum(0) > 0]).pvalue)
    print(
        f"  one distribution? p = {', '.join(f'{p:.2g}' for p in p_values)} (texts; first words, top_p 1 and 0.9)"
    )
    return best, min(p_values) > SURE


def likelihood(sides: Sides, drawn: list[list[int]]) -> list[float]:
    """Mean log-probability of each row's tokens under the model."""
    import torch

    found = []
    with torch.inference_mode():
        for prompt, tokens in zip(sides.prompts, drawn, strict=True):
            row = torch.tensor([prompt + tokens])
            scores = sides.model(input_ids=row).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
            found.append(scores.gather(-1, row[0, len(prompt) :, None]).mean().item())
    return found


PARTS: dict[str, Callable[[argparse.Namespace], bool]] = {
    "pairing": pairing,
    "memory": memory,
    "shingles": shingles,
    "sampling": sampling,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--rows", type=int, default=100_000, help="vectors to pair")
    parser.add_argument("--texts", type=int, default=100_000, help="texts to look for shared runs in")
    parser.add_argument("--peer", metavar="PYTHON", help="interpreter that has hnswlib or usearch")
    parser.add_argument("--limit", type=int, default=600, help="seconds a peer may take")
    options = parser.parse_args()
    met = {name: PARTS[name](options) for name in ([options.only] if options.only else PARTS)}
    missed = ", ".join(name for name, good in met.items() if not good)
    print("\ntargets met" if not missed else f"\ntargets MISSED: {missed}")
    return 0 if not missed else 1


if __name__ == "__main__":
    sys.exit(main())
