"""A small OpenAI-compatible server, real HTTP in a process of its own, for tests and benchmarks.

Its answers are a deterministic function of the request: JSON after the schema it is given, else text
made of the document's own sentences in another order, so that cleaning has something real to do. It
counts, logs every answer it gives, accounts shared prefixes as vLLM does, and fails on demand.

    python tests/openai_server.py --port 0      prints "PORT n" when it is ready; ends with its parent

    POST /v1/chat/completions, /v1/completions  as OpenAI's
    GET  /stats                                 what was asked so far
    GET  /last                                  path, headers and body of the last request
    POST /fault {"kind": ..., "times": n, ...}  how the next n answers fail
    POST /reset                                 forget counts, faults and cache
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import re
import sys
import threading
from collections import Counter, OrderedDict
from typing import Any

from aiohttp import web

# Faults in the answer itself; the others take its place.
SPOILT = ("empty", "length", "abort", "nonsense", "broken_json", "no_usage")
BLOCK = 16  # tokens of a cache block, as in vLLM
TOKEN = re.compile(r"\w{1,6}|[^\w\s]|\s+\w{1,6}")
NAME = re.compile(r"(?<![.!?\"] )(?<!^)\b[A-Z][a-z]+(?: [A-Z][a-z]+)*\b")
OTHER = ("quiet", "bright", "narrow", "sudden", "patient", "distant", "hollow", "gentle")


class PrefixCache:
    """Which leading blocks of a prompt an LRU cache of `size` blocks would serve."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.blocks: OrderedDict[int, None] = OrderedDict()
        self.distinct: set[int] = set()
        self.asked = self.served = 0

    def ask(self, tokens: list[str]) -> int:
        """Tokens of this prompt served from the cache; its blocks become the most recent."""
        chain, parent = [], 0
        for start in range(0, len(tokens) - BLOCK + 1, BLOCK):
            parent = hash((parent, *tokens[start : start + BLOCK]))
            chain.append(parent)
        hit = next((i for i, block in enumerate(chain) if block not in self.blocks), len(chain))
        for block in reversed(chain):  # the head of a prompt is used most recently, so it is evicted last
            self.blocks[block] = None
            self.blocks.move_to_end(block)
        while len(self.blocks) > self.size:
            self.blocks.popitem(last=False)
        self.distinct.update(chain)
        self.asked += len(chain) * BLOCK
        self.served += hit * BLOCK
        return hit * BLOCK

    @property
    def bound(self) -> int:
        """Most tokens any order could be served: each distinct block is computed once."""
        return self.asked - len(self.distinct) * BLOCK


class Server:
    """State and handlers."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.log = open(options.log, "a", encoding="utf-8") if options.log else None  # noqa: SIM115
        self.reset()

    def reset(self) -> None:
        self.counts: Counter[str] = Counter()
        self.bodies: Counter[str] = Counter()
        self.faults: list[dict[str, Any]] = []
        self.in_flight = self.most_in_flight = 0
        self.cache = PrefixCache(self.options.cache_blocks)
        self.last: tuple[str, dict[str, str], bytes] = ("", {}, b"{}")

    async def handle(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        self.counts["requests"] += 1
        self.last = (request.path, dict(request.headers), raw)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            fault = self._fault(request, raw)
            if fault is not None and fault["kind"] == "slow":
                self.counts["fault slow"] += 1
                await asyncio.sleep(fault["seconds"])
                fault = None
            if fault is None or fault["kind"] in SPOILT:
                return await self._answer(request, raw, fault)
            return await self._fail(request, raw, fault)
        finally:
            self.in_flight -= 1

    def _fault(self, request: web.Request, raw: bytes) -> dict[str, Any] | None:
        for fault in self.faults:
            kind = fault["kind"]
            if kind == "no_schema":
                if b'"response_format"' in raw:
                    return {"kind": "status", "status": 400, "message": "response_format is not supported"}
            elif kind == "key":
                if request.headers.get("Authorization") != f"Bearer {fault['key']}":
                    return {"kind": "status", "status": 401, "message": "Incorrect API key provided"}
            elif kind == "ceiling":
                if self.in_flight > fault["ceiling"]:
                    return {"kind": "status", "status": 429, "message": "too many requests in flight"}
            elif kind == "matching":
                if fault["text"].encode() in raw:
                    return fault["fault"]
            else:
                fault["times"] -= 1
                if fault["times"] <= 0:
                    self.faults.remove(fault)
                return fault
        return None

    async def _fail(self, request: web.Request, raw: bytes, fault: dict[str, Any]) -> web.StreamResponse:
        self.counts[f"fault {fault['kind']} {fault.get('status', '')}".strip()] += 1
        if fault["kind"] == "status":
            headers = dict(fault.get("headers", {}))
            if "retry_after" in fault:
                headers["Retry-After"] = str(fault["retry_after"])
            error = {"error": {"message": fault.get("message", "scripted"), "code": fault.get("code")}}
            return web.json_response(error, status=fault["status"], headers=headers)
        if fault["kind"] == "garbage":
            return web.Response(text="<html>gateway</html>")
        if fault["kind"] == "cut":
            response = web.StreamResponse(headers={"Content-Length": "5000"})
            await response.prepare(request)
            await response.write(b'{"choices": [{"message"')
        assert request.transport is not None
        request.transport.abort()  # "drop", and the end of "cut"
        return web.Response()

    async def _answer(self, request: web.Request, raw: bytes, fault: dict[str, Any] | None) -> web.Response:
        body = json.loads(raw)
        chat = "messages" in body
        prompt = body["messages"][0]["content"] if chat else body["prompt"]
        tokens = TOKEN.findall(prompt) if self.options.bytes is None else []
        cached = self.cache.ask(tokens)
        if self.options.delay:
            await asyncio.sleep(self.options.delay)
        digest = hashlib.blake2b(raw, digest_size=16).hexdigest()
        text = self._text(body, prompt, digest)
        finish = "stop"
        if fault is not None:
            self.counts[f"fault {fault['kind']}"] += 1
            text, finish = _spoil(text, fault["kind"])
        answer_tokens = TOKEN.findall(text)
        if len(answer_tokens) > body.get("max_tokens", 1 << 30):
            text, finish = "".join(answer_tokens[: body["max_tokens"]]), "length"
        self.bodies[digest] += 1
        self.counts["answered"] += 1
        if body.get("echo"):
            return web.json_response(_echo(prompt, text, digest, tokens))
        usage = {
            "prompt_tokens": len(tokens),
            "completion_tokens": min(len(answer_tokens), body.get("max_tokens", 1 << 30)),
            "prompt_tokens_details": {"cached_tokens": cached},
        }
        self.counts["prompt_tokens"] += usage["prompt_tokens"]
        self.counts["completion_tokens"] += usage["completion_tokens"]
        if fault is not None and fault["kind"] == "no_usage":
            usage = {}
        if self.log:
            answer = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
            self.log.write(json.dumps({"body": digest, "answer": answer}) + "\n")
            self.log.flush()
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
        choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        return web.json_response({"id": digest, "choices": [choice], "usage": usage})

    def _text(self, body: dict[str, Any], prompt: str, digest: str) -> str:
        if self.options.bytes is not None:
            return "x" * self.options.bytes
        document = prompt.split("\n-----\n", 1)[0]
        draw = random.Random(digest)
        schema = body.get("response_format", {}).get("json_schema", {}).get("schema")
        if schema is not None:
            fields = schema["properties"].items()
            return json.dumps({name: _value(name, kind, document, draw) for name, kind in fields})
        return _prose(document, draw)

    async def stats(self, request: web.Request) -> web.Response:
        found = dict(self.counts) | {
            "most_in_flight": self.most_in_flight,
            "asked_twice": sum(times > 1 for times in self.bodies.values()),
            "cache": {"asked": self.cache.asked, "served": self.cache.served, "bound": self.cache.bound},
        }
        return web.json_response(found)

    async def recall(self, request: web.Request) -> web.Response:
        path, headers, raw = self.last
        return web.json_response({"path": path, "headers": headers, "body": json.loads(raw)})

    async def script(self, request: web.Request) -> web.Response:
        self.faults.append({"times": 1, **await request.json()})
        return web.Response()

    async def forget(self, request: web.Request) -> web.Response:
        self.reset()
        return web.Response()


def _echo(prompt: str, text: str, digest: str, tokens: list[str]) -> dict[str, Any]:
    """Log-probabilities of the prompt's tokens and of one more, as vLLM gives them; long ones are rarer."""
    shown = [*tokens, *TOKEN.findall(text)[:1]]
    offsets, at = [], 0
    for token in shown:
        offsets.append(at)
        at += len(token)
    scores = [None, *(-0.5 * len(token) for token in shown[1:])]
    logprobs = {"tokens": shown, "token_logprobs": scores, "text_offset": offsets}
    choice = {"index": 0, "finish_reason": "length", "text": "".join(shown), "logprobs": logprobs}
    usage = {"prompt_tokens": len(tokens), "completion_tokens": 1}
    return {"id": digest, "choices": [choice], "usage": usage}


def _value(name: str, kind: dict[str, Any], document: str, draw: random.Random) -> Any:
    if kind.get("type") == "boolean":
        return draw.random() < 0.7
    if "enum" in kind:
        return draw.choice(kind["enum"])
    if name == "entities":
        names = sorted(set(NAME.findall(document))) or ["Nobody", "Nothing"]
        return draw.sample(names, min(len(names), draw.randint(10, 16)))
    if name == "score":
        return draw.choice([2, 3, 3, 4, 4, 5, 5, 5])
    if name == "summary":
        return _prose(document, draw)[:400]
    return f"{draw.choice(OTHER)} {name} of {draw.randrange(10_000)}"


def _prose(document: str, draw: random.Random) -> str:
    """60 words or more, from a tenth of the document on, in sentences of its own, reordered and changed."""
    sentences = re.split(r"(?<=[.!?])\s+", document)
    draw.shuffle(sentences)
    wanted = max(60, int(len(document.split()) * draw.uniform(0.03, 0.12)))
    words: list[str] = []
    for sentence in sentences:
        words += [draw.choice(OTHER) if draw.random() < 0.2 else word for word in sentence.split()]
        if len(words) >= wanted:
            break
    while len(words) < 60:
        words.append(draw.choice(OTHER))
    return " ".join(words)


def _spoil(text: str, kind: str) -> tuple[str, str]:
    if kind == "empty":
        return "", "stop"
    if kind in ("length", "abort"):
        return text[: len(text) // 2], kind
    if kind == "no_usage":
        return text, "stop"
    if kind == "broken_json":
        return "```json\n" + text.rstrip("}") + ",}\n```", "stop"
    return "I would rather talk about the weather.", "stop"


def end_with_parent() -> None:
    """Standard input is a pipe from the parent: its end is the parent's end."""

    def wait() -> None:
        sys.stdin.buffer.read()
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


async def serve(options: argparse.Namespace) -> None:
    server = Server(options)
    app = web.Application(client_max_size=1 << 26)
    app.router.add_post("/v1/chat/completions", server.handle)
    app.router.add_post("/v1/completions", server.handle)
    app.router.add_get("/stats", server.stats)
    app.router.add_get("/last", server.recall)
    app.router.add_post("/fault", server.script)
    app.router.add_post("/reset", server.forget)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", options.port, backlog=4096)
    await site.start()
    print(f"PORT {runner.addresses[0][1]}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before every answer")
    parser.add_argument("--bytes", type=int, help="answer with this many bytes, for benchmarks")
    parser.add_argument("--log", help="append hashes of request body and answer text of every answer")
    parser.add_argument("--cache-blocks", type=int, default=100_000)
    end_with_parent()
    asyncio.run(serve(parser.parse_args()))
