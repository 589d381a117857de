"""How fast training and packing are, beside a plain PyTorch loop and datatrove's tokenizer pipeline.

    python benchmarks/train.py [--texts FILE] [--steps 16] [--rounds 3] [--only speed|packing]

1. Training: tokens a second of `leaven.train.train` on a packed arm (transformers Trainer) beside a plain
   loop over the same blocks: the same configuration, first weights, parameter groups, clipping, schedule,
   bf16 autocast and torch.compile; both log the loss of every step. Each run is a process of its own, the
   two take turns, and both have the same malloc settings, which a plain loop profits from as well. A run's
   figure is the median step after the first 4, so that compiling counts in neither. That both end with the
   same loss is checked. On a GPU also the share of its peak (`--peak`) that the multiplications of the
   model take: 6 FLOPs a token and parameter, and 12 a token, layer and unit of width for each token of
   the context.
2. Packing: tokens a second and core from texts in memory to a shuffled file of tokens, with one tokenizer
   (byte-level BPE of 4,096) on the same documents. Ours: `encode` and `write_arm`, one process; datatrove:
   `DocumentTokenizer`, which shuffles, and `DocumentTokenizerMerger`, one process a core. Both are pinned to
   as many cores as they are said to have, and RAYON_NUM_THREADS is what a process can use. Both must find
   the same number of tokens.

What else runs on a machine can only slow a run, so each side's best round counts; `x` is ours over theirs,
and its spread that of single rounds. A run during which other processes took more than a tenth of a core
is named: repeat such a benchmark when the machine is idle.

Without --texts (JSONL with `text`), the texts are the example stories and their recorded answers,
again and again with the sentences in another order, up to 8 MB.
Targets: training within 5% of the plain loop; packing at least as fast as datatrove.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from leaven.corpus.tokens import END, Tokenizer, load_tokenizer, train_tokenizer
from leaven.document import Document
from leaven.mix import Mix, mix
from leaven.train.shapes import SHAPES, config_of, shape

if TYPE_CHECKING:
    from leaven.train import Train

STORIES = Path(__file__).resolve().parents[1] / "examples" / "stories"
TARGET_TRAINING, TARGET_PACKING, SAME_LOSS = 0.95, 1.0, 0.05
DISTURBED = 0.1
VOCABULARY, SKIPPED, MADE_BYTES = 4096, 4, 8_000_000
MALLOC = {  # freed memory is kept: a step needs the same again
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
    "MALLOC_TOP_PAD_": str(1 << 28),
}
PEAKS = {  # dense bf16 TFLOP/s by part of the device's name, from the makers' data sheets
    "H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "B200": 2250, "L40S": 362, "L4": 121, "A10": 125,
}  # fmt: skip


def texts_of(path: Path | None) -> list[str]:
    """The texts of a file, or the example's with variation."""
    if path is not None:
        with path.open(encoding="utf-8") as file:
            return [json.loads(line)["text"] for line in file]
    rows = [
        json.loads(line) for name in ("documents", "answers") for line in (STORIES / f"{name}.jsonl").open()
    ]
    made = [row.get("text") or row["response"] for row in rows]
    draw, own, size = random.Random(0), len(made), sum(map(len, made))
    while size < MADE_BYTES:
        sentences = made[len(made) % own].split(". ")
        draw.shuffle(sentences)
        made.append(". ".join(sentences))
        size += len(made[-1])
    return made


def documents_of(texts: list[str]) -> list[Document]:
    return [Document(text=text, id=f"{i:08d}", metadata={}) for i, text in enumerate(texts)]


def in_process(*arguments: str, environment: dict[str, str]) -> dict[str, Any]:
    """Run one side in a process of its own; what it prints last."""
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if result["others"] > DISTURBED:
        print(f"  (other processes took {result['others']:.1f} cores from {arguments[1]})", flush=True)
    return result


class Moment(NamedTuple):
    """Seconds: of the clock, of all processes on all cores, and of this process and its children."""

    clock: float
    everyone: float
    own: float


def now() -> Moment:
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    everyone = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return Moment(time.perf_counter(), everyone, sum(os.times()[:4]))


def others(start: Moment, end: Moment) -> float:
    """Cores that other processes took on average."""
    return (end.everyone - start.everyone - end.own + start.own) / (end.clock - start.clock)


def row(name: str, rates: dict[str, list[float]], target: float) -> bool:
    """Print the best round of both sides, theirs and ours, and every round's ratio; whether it is met."""
    theirs, ours = rates.values()
    times = max(ours) / max(theirs)
    rounds = " ".join(f"{mine / other:.3f}" for mine, other in zip(ours, theirs, strict=True))
    good = times >= target
    print(f"{name:<8}{max(theirs):>12,.0f}{max(ours):>12,.0f}{times:>7.3f}  {rounds:<32}"
          f"{'ok' if good else 'MISSED'}", flush=True)  # fmt: skip
    return good


def options_of(name: str, batch: int) -> Train:
    from leaven.train import Train

    return Train(shape=name, batch_size=batch, precision="bfloat16", compile=True, learning_rate=1e-3)


def by_leaven(folder: Path, options: Train) -> tuple[list[Moment], list[float]]:
    """When each step was logged, and the losses."""
    from leaven.train import train

    times: list[Moment] = []
    with tempfile.TemporaryDirectory() as out:
        train(folder, "text", options, Path(out), lambda *_: times.append(now()))
        lines = (Path(out) / "log.jsonl").read_text().splitlines()
    return times, [json.loads(line)["loss"] for line in lines]


def by_plain(folder: Path, options: Train) -> tuple[list[Moment], list[float]]:
    """The same in a plain loop."""
    import torch
    from transformers import AutoModelForCausalLM

    mixed = json.loads((folder / "manifest.json").read_text())
    path, context = folder / "text" / "tokens.bin", mixed["context"]
    blocks = np.memmap(path, dtype=mixed["dtype"], mode="r").reshape(-1, context)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(options.seed)
    config = config_of(
        shape(str(options.shape)), vocab_size=mixed["vocab_size"], context=context, end=mixed["end"]
    )
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(device)
    groups: list[dict[str, Any]] = [
        {"params": [one for one in model.parameters() if one.ndim > 1]},
        {"params": [one for one in model.parameters() if one.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups, lr=options.learning_rate, betas=options.betas, weight_decay=options.weight_decay, fused=True
    )
    steps = len(blocks) // options.batch_size
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: options.schedule.at(min(step, steps - 1), steps)
    )
    forward = torch.compile(model)
    times, losses = [], []
    for step in range(steps):
        rows = blocks[step * options.batch_size : (step + 1) * options.batch_size]
        batch = torch.from_numpy(rows.astype(np.int64)).to(device)
        with torch.autocast(device, torch.bfloat16):
            loss = forward(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        times.append(now())
    return times, losses


def speed_worker(side: str, folder: Path, name: str, batch: int) -> dict[str, Any]:
    """Seconds of each step after the first few, and the last loss."""
    import torch

    times, losses = (by_leaven if side == "leaven" else by_plain)(folder, options_of(name, batch))
    times = times[SKIPPED - 1 :]
    steps = [end.clock - start.clock for start, end in itertools.pairwise(times)]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"steps": steps, "loss": losses[-1], "device": device, "others": others(times[0], times[-1])}


def flops_of(name: str, context: int) -> int:
    """Floating-point operations of one token, forward and backward."""
    one = SHAPES[name]
    multiplied = one.parameters(VOCABULARY) - (0 if one.tied else VOCABULARY * one.hidden)
    width = one.heads * (one.head_dim or one.hidden // one.heads)
    return 6 * multiplied + 12 * one.layers * width * context


def bench_speed(texts: list[str], arguments: argparse.Namespace) -> bool:
    print("Training: tokens a second, bf16, compiled; vocabulary of "
          f"{VOCABULARY:,}, context {arguments.context}, batch {arguments.batch}, "
          f"median of {arguments.steps} steps, {arguments.rounds} rounds")  # fmt: skip
    print(f"{'shape':<8}{'plain':>12}{'leaven':>12}{'x':>7}  {'each round':<32}target {TARGET_TRAINING}")
    met = True
    step = arguments.batch * arguments.context
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "mix"
        tokenizer = train_tokenizer(texts, VOCABULARY)
        plan = Mix.model_validate({
            "tokens": (SKIPPED + arguments.steps) * step, "context": arguments.context,
            "sources": {"text": {"stage": "corpus"}}, "arms": {"text": {"sources": {"text": 1}}},
        })  # fmt: skip
        mix(plan, {"text": ("text", lambda: documents_of(texts))}, tokenizer, folder)
        for one in arguments.shapes:
            rates: dict[str, list[float]] = {"plain": [], "leaven": []}
            losses: dict[str, float] = {}
            for _ in range(arguments.rounds):
                for side, found in rates.items():
                    call = ["--worker", side, "--folder", str(folder), "--shapes", one]
                    result = in_process(*call, "--batch", str(arguments.batch), environment=MALLOC)
                    found.append(step / statistics.median(result["steps"]))
                    losses[side] = result["loss"]
            if abs(losses["plain"] - losses["leaven"]) > SAME_LOSS:
                raise SystemExit(f"the two do not train alike: last losses {losses}")
            met &= row(one, rates, TARGET_TRAINING)
            if result["device"]:
                known = (value for part, value in PEAKS.items() if part in result["device"])
                peak = arguments.peak or next(known, 0)
                used = max(rates["leaven"]) * flops_of(one, arguments.context) / 1e12
                share = f"{used / peak:.1%} of its {peak:g}" if peak else "its peak is not known: give --peak"
                print(f"{'':8}{result['device']}: {used:.1f} TFLOP/s, {share}")
    return met


def pack_leaven(documents: list[Document], tokenizer: Tokenizer, out: Path) -> int:
    from leaven.mix.pack import encode, marks_of, write_arm
    from leaven.mix.recipe import Amount, allocate

    stream = encode(documents, tokenizer, marks_of(tokenizer))
    once, supplies = {"text": Amount(weight=1)}, {"text": stream.supply}
    whole = allocate("all", once, supplies, tokens=len(stream.tokens), context=256, seed=0)
    write_arm(out / "tokens.bin", whole, [stream], "documents", 0)
    return len(stream.tokens)


def pack_datatrove(documents: list[Document], tokenizer: Path, out: Path, cores: int) -> int:
    from datatrove.pipeline.tokens import DocumentTokenizer, DocumentTokenizerMerger
    from datatrove.utils.logging import logger

    logger.remove()

    def shard(rank: int) -> None:
        step = DocumentTokenizer(str(out / "parts"), str(tokenizer), eos_token=END, seed=rank)
        step.run(iter(documents[rank::cores]), rank, cores)

    if cores == 1:
        shard(0)
    else:  # forked: each has its documents and its imports already
        fork = multiprocessing.get_context("fork")
        workers = [fork.Process(target=shard, args=(rank,)) for rank in range(cores)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    merge = DocumentTokenizerMerger(str(out / "parts"), str(out / "all"), "all", seed=0, progress=False)
    merge.run()
    return sum(path.stat().st_size for path in (out / "all").glob("*.ds")) // 2


def packing_worker(side: str, folder: Path, cores: int) -> dict[str, Any]:
    """Tokens a second of one side in this process, pinned to so many cores."""
    import datatrove.pipeline.tokens  # noqa: F401  (imported before the clock runs, as ours is)

    import leaven.mix.pack  # noqa: F401

    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    documents = documents_of(texts_of(folder / "texts.jsonl"))
    path = folder / "tokenizer.json"
    tokenizer = load_tokenizer(str(path))
    with tempfile.TemporaryDirectory() as out:
        started = now()
        if side == "leaven":
            tokens = pack_leaven(documents, tokenizer, Path(out))
        else:
            tokens = pack_datatrove(documents, path, Path(out), cores)
        ended = now()
    rate = tokens / (ended.clock - started.clock)
    return {"tokens": tokens, "rate": rate, "others": others(started, ended)}


def bench_packing(texts: list[str], arguments: argparse.Namespace) -> bool:
    size = sum(len(text.encode()) for text in texts) / 1e6
    print(f"\nPacking: tokens a second and core; {len(texts):,} texts, {size:.1f} MB, "
          f"{arguments.rounds} rounds")  # fmt: skip
    print(f"{'cores':<8}{'datatrove':>12}{'leaven':>12}{'x':>7}  {'each round':<32}target {TARGET_PACKING:g}")
    met = True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train_tokenizer(texts, VOCABULARY, folder / "tokenizer.json")
        (folder / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
        for cores in sorted({1, min(2, len(os.sched_getaffinity(0)))}):
            rates: dict[str, list[float]] = {"datatrove": [], "leaven": []}
            tokens = set()
            for _ in range(arguments.rounds):
                for side, found in rates.items():
                    call = ["--worker", f"pack-{side}", "--folder", name, "--cores", str(cores)]
                    threads = cores if side == "leaven" else 1  # datatrove has a process a core
                    result = in_process(*call, environment={"RAYON_NUM_THREADS": str(threads)})
                    found.append(result["rate"] / cores)
                    tokens.add(result["tokens"])
            if len(tokens) != 1:
                raise SystemExit(f"the two do not find the same number of tokens: {sorted(tokens)}")
            met &= row(str(cores), rates, TARGET_PACKING)
    return met


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", type=Path, help="JSONL with `text`")
    parser.add_argument("--steps", type=int, default=16, help="measured steps of a run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["speed", "packing"])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["3m", "10m"], metavar="SHAPE")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--peak", type=float, help="TFLOP/s of the GPU in bf16, where it is not known")
    parser.add_argument(
        "--worker", choices=["plain", "leaven", "pack-leaven", "pack-datatrove"], help=argparse.SUPPRESS
    )
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cores", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        pack, _, side = arguments.worker.rpartition("-")
        if pack:
            print(json.dumps(packing_worker(side, arguments.folder, arguments.cores)))
        else:
            print(json.dumps(speed_worker(side, arguments.folder, arguments.shapes[0], arguments.batch)))
        return 0
    texts = texts_of(arguments.texts)
    met = {}
    if arguments.only != "packing":
        met["training"] = bench_speed(texts, arguments)
    if arguments.only != "speed":
        met["packing"] = bench_packing(texts, arguments)
    print("targets met" if all(met.values()) else f"targets MISSED ({met})")
    return 0 if all(met.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
