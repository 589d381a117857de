"""Requests per second with every answer durably stored, beside a bare aiohttp client on the same server.

    python benchmarks/client.py [--requests 20000] [--peer distilabel=PYTHON] [--peer curator=PYTHON] ...

The server answers each request after 20 ms with 1 KB. Leaven goes its whole way: prompt, key, look-up,
gate, HTTP, parse, compress, commit. The bare client only posts and reads. Peers run in environments of
their own (`--peer NAME=PYTHON`), with fewer requests because they are slower; one that is not given is
reported as not measured.

Target: at least 60% of bare aiohttp, and 4 times or more every peer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from leaven.lm import loop

IN_FLIGHT = 256
ROUNDS = 5
PEER_SECONDS = 180
DELAY = 0.02
ANSWER_BYTES = 1000
TARGET_SHARE, TARGET_TIMES = 0.6, 4.0
PEERS = {
    "datatrove": "pip install datatrove aiosqlite httpx 'xxhash<4' orjson",
    "distilabel": "pip install 'distilabel[openai]'",
    "curator": "pip install bespokelabs-curator",
}


class FastServer(asyncio.Protocol):
    """The least a server can do: find the end of a request, answer after a while.

    Connections stay open unless the client asks otherwise (datatrove's reads until they close).
    """

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self.buffer) < end + 4 + length:
                return
            self.buffer = self.buffer[end + 4 + length :]
            asyncio.get_running_loop().call_later(DELAY, self.respond, b"connection: close" in head)

    def respond(self, close: bool) -> None:
        if not self.transport.is_closing():
            self.transport.write(self.answer)
            if close:
                self.transport.close()


async def serve() -> None:
    usage = {"prompt_tokens": 200, "completion_tokens": 250, "total_tokens": 450}
    message = {"role": "assistant", "content": "x" * ANSWER_BYTES}
    body = {
        "id": "1", "object": "chat.completion", "created": 1, "model": "m", "usage": usage,
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
    }  # fmt: skip
    content = json.dumps(body).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    answer = head.encode() + content
    server = await asyncio.get_running_loop().create_server(
        lambda: FastServer(answer), "127.0.0.1", 0, backlog=1024
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def prompts(number: int) -> list[str]:
    return [f"Document {i}. " + "Some words that stand for a short document. " * 20 for i in range(number)]


async def bare(url: str, number: int) -> float:
    """Requests per second of aiohttp alone."""
    import aiohttp
    import orjson

    bodies = [
        orjson.dumps({"model": "m", "messages": [{"role": "user", "content": p}]}) for p in prompts(number)
    ]
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        connector=connector, headers={"Content-Type": "application/json"}
    ) as session:
        waiting = iter(bodies)

        async def work() -> None:
            for body in waiting:
                async with session.post(url + "/chat/completions", data=body) as response:
                    orjson.loads(await response.read())

        started = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))
        return number / (time.perf_counter() - started)


async def leaven(url: str, number: int, folder: Path) -> float:
    """Requests per second through Ask, client, backend and store, until every answer is on disk."""
    from leaven.document import Document
    from leaven.lm import openai
    from leaven.lm.ask import Ask, Step
    from leaven.lm.client import LanguageModel
    from leaven.lm.store import ResponseStore

    store = ResponseStore(folder, "bench")
    model = LanguageModel(openai.Config(name="m", url=url, concurrency=IN_FLIGHT).open(), store)
    steps = {"write": Step(prompt="Rewrite it.")}
    waiting = iter(enumerate(prompts(number)))

    async def work() -> None:
        for i, text in waiting:
            document = Document(text=text, id=str(i))
            ask = Ask(
                model, document, "bench", steps, priority=i, count=lambda texts: [len(t) for t in texts]
            )
            written = await ask.write("write", {})
            assert written is not None

    started = time.perf_counter()
    # More documents than slots: while some wait for their commit, others fill the slots.
    await asyncio.gather(*(work() for _ in range(2 * IN_FLIGHT)))
    seconds = time.perf_counter() - started
    assert len(store) == number
    await model.close()
    store.close()
    return number / seconds


PEER_CODE = {
    "datatrove": """
import asyncio, sys, time, tempfile
from pathlib import Path
from datatrove.data import Document
from datatrove.pipeline.inference.run_inference import InferenceConfig, InferenceRunner
from datatrove.pipeline.writers import JsonlWriter
url, number, in_flight = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
folder = tempfile.mkdtemp()
async def rollout(document, generate):
    return (await generate({"messages": [{"role": "user", "content": document.text}]})).text
config = InferenceConfig(server_type="endpoint", model_name_or_path="m", endpoint_url=url.removesuffix("/v1"),
    rollouts_per_document=1, max_concurrent_generations=in_flight, use_chat=True, metric_interval=3600)
writer = JsonlWriter(folder + "/out", "${rank}_${chunk_index}.jsonl")
runner = InferenceRunner(rollout_fn=rollout, config=config, output_writer=writer,
    checkpoints_local_dir=folder + "/check", records_per_chunk=500)
texts = [f"Document {i}. " + "Some words that stand for a short document. " * 20 for i in range(number)]
documents = [Document(text=text, id=str(i)) for i, text in enumerate(texts)]
started = time.perf_counter()
runner.run(iter(documents), 0, 1)
print("RATE", number / (time.perf_counter() - started))
""",
    "distilabel": """
import sys, time
from distilabel.models import OpenAILLM
url, number, in_flight = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
llm = OpenAILLM(model="m", base_url=url, api_key="none", timeout=300)
llm.load()
texts = [f"Document {i}. " + "Some words that stand for a short document. " * 20 for i in range(number)]
inputs = [[{"role": "user", "content": text}] for text in texts]
started = time.perf_counter()
for at in range(0, number, in_flight):
    llm.generate(inputs[at:at + in_flight])
print("RATE", number / (time.perf_counter() - started))
""",
    "curator": """
import os, sys, time
os.environ["TELEMETRY_ENABLED"] = "0"
os.environ["CURATOR_DISABLE_CACHE"] = "1"
import tiktoken
# Its vocabulary would be downloaded; any encoding serves here, where tokens are only counted.
ranks = {bytes([i]): i for i in range(256)}
encoding = tiktoken.Encoding("bytes", pat_str=r"[\\s\\S]{1,16}", mergeable_ranks=ranks, special_tokens={})
tiktoken.get_encoding = lambda name: encoding
from bespokelabs import curator
url, number, in_flight = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
llm = curator.LLM(model_name="m", backend="openai", backend_params={"base_url": url, "api_key": "none",
    "max_concurrent_requests": in_flight, "max_requests_per_minute": 10**7, "max_tokens_per_minute": 10**10})
rows = [f"Document {i}. " + "Some words that stand for a short document. " * 20 for i in range(number)]
started = time.perf_counter()
llm(rows)
print("RATE", number / (time.perf_counter() - started))
""",
}


def peer(name: str, python: str, url: str, number: int) -> float | None:
    """Requests per second of a peer in its own environment; None if it did not run (shows why)."""
    command = [python, "-c", PEER_CODE[name], url, str(number), str(IN_FLIGHT)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PEER_SECONDS)
    except subprocess.TimeoutExpired:
        print(f"{name} did not finish {number:,} requests in {PEER_SECONDS} s")
        return None
    for line in done.stdout.splitlines():
        if line.startswith("RATE "):
            return float(line.split()[1])
    print(f"{name} did not run: {(done.stderr.strip().splitlines() or ['no output'])[-1][:200]}")
    return None


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--peer-requests", type=int, default=3_000)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve())
        return 0
    server = subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
    try:
        asyncio.run(bare(url, 1000))  # warm up
        # In turns, so that a slow moment of the machine does not fall on one side only; medians count.
        rates: dict[str, list[float]] = {"bare aiohttp": [], "leaven": []}
        for _ in range(ROUNDS):
            rates["bare aiohttp"].append(asyncio.run(bare(url, options.requests)))
            with tempfile.TemporaryDirectory() as folder:
                rates["leaven"].append(loop.run(leaven(url, options.requests, Path(folder))))
        shares = [ours / theirs for ours, theirs in zip(rates["leaven"], rates["bare aiohttp"], strict=True)]
        best = {name: statistics.median(found) for name, found in rates.items()}
        given = dict(item.split("=", 1) for item in options.peer)
        for name, python in given.items():
            rate = peer(name, python, url, options.peer_requests)
            if rate is not None:
                best[name] = rate
    finally:
        server.kill()
    print(f"{'':16}{'requests/s':>12}{'x leaven':>10}")
    for name, rate in best.items():
        print(f"{name:16}{rate:12,.0f}{rate / best['leaven']:10.2f}")
    for name in PEERS.keys() - given.keys():
        print(f"{name:16} not measured ({PEERS[name]}; --peer {name}=PYTHON)")
    share = statistics.median(shares)
    slower = {name: best["leaven"] / best[name] for name in given if name in best}
    met = share >= TARGET_SHARE and all(times >= TARGET_TIMES for times in slower.values())
    spread = ", ".join(f"{one:.0%}" for one in sorted(shares))
    print(f"leaven reaches {share:.0%} of bare aiohttp (rounds: {spread}); target {TARGET_SHARE:.0%}")
    print("targets met" if met else "targets MISSED")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
