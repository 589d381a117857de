"""What a language model is to Leaven: a request goes in, an answer with its usage comes out.

A backend is one class with `generate`; it sends exactly one request once. Everything that makes that
dependable (store, retries, concurrency, budget) stands around it in `client.py` and is shared by all
backends. A backend tells by the exception it raises what the client may do about a failure.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from leaven.document import to_json

Messages = tuple[tuple[str, str], ...]  # (role, content) in order


class Sampling(BaseModel):
    """How an answer is drawn.

    Args:
        temperature: 1.0 as in papers 001 and 003; 0 is greedy.
        top_p: nucleus mass.
        max_tokens: longest completion, in the server's tokens.
        stop: strings that end the completion.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int = Field(2048, ge=1)
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Origin:
    """Who asks: kept beside the answer for lineage and used by `replay`; not part of the key."""

    document: str = ""
    method: str = ""
    step: str = ""
    variables: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt, completely rendered.

    Args:
        messages: (role, content) pairs.
        schema: JSON schema the answer should follow, or None for free text.
        sample: index of the sample; asking with another index draws another answer.
        shared: leading characters of the first message that every request about this document shares
            (the document itself); stored once, and what a server's prefix cache can serve.
        score: ask for the log-probabilities of the (one) message's own tokens instead of a completion.
    """

    messages: Messages
    sampling: Sampling
    schema: dict[str, Any] | None = None
    sample: int = 0
    shared: int = 0
    origin: Origin = field(default_factory=Origin)
    score: bool = False

    def rendered(self) -> dict[str, Any]:
        """All that decides the answer, except `max_tokens` (see `store.py` for why)."""
        sampling = {
            "temperature": self.sampling.temperature,
            "top_p": self.sampling.top_p,
            "stop": self.sampling.stop,
        }
        body = {"messages": self.messages, "sampling": sampling, "schema": self.schema, "sample": self.sample}
        return body | ({"score": True} if self.score else {})

    def key(self, identity: str) -> str:
        """Content address: 40 hex digits over the rendered request and the backend's identity."""
        body = to_json([identity, self.rendered()])
        return hashlib.blake2b(body, digest_size=20).hexdigest()


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the server counted them.

    Args:
        cached: the part of `prompt` that the server says it took from its prefix cache.
        estimated: the server reported no usage and the counts were estimated from characters.
    """

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    estimated: bool = False

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt + other.prompt,
            self.cached + other.cached,
            self.completion + other.completion,
            self.estimated or other.estimated,
        )

    @property
    def total(self) -> int:
        return self.prompt + self.completion


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: `finish` is the server's reason (``"stop"``, ``"length"``, ...)."""

    text: str
    finish: str
    usage: Usage
    reasoning: str = ""


class Backend(Protocol):
    """One way to reach one model.

    A request with `score` is answered by ``scores_to_text`` of the natural log-probabilities of the text's
    tokens from the second on, or by `Refused` where the backend cannot.

    Attributes:
        model: its name, recorded on every row it writes.
        identity: everything besides the request that decides an answer (model, endpoint, API, extra
            body parameters, or a hash of the weights); part of every key.
        concurrency: most requests it wants at once.
        paid: its answers cost tokens that a budget should count.
    """

    model: str
    identity: str
    concurrency: int
    paid: bool

    async def generate(self, request: Request) -> Answer: ...

    async def close(self) -> None: ...


class Throttled(Exception):
    """The server asks for patience (429, or 503 with Retry-After); `retry_after` in seconds."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ServerError(Exception):
    """The server failed (5xx, or an answer that is none); worth another try, with less pressure."""


class Dropped(Exception):
    """No connection, or it broke before the answer was whole; worth another try."""


class Refused(Exception):
    """The server will not answer this one request (400, 413, 422); asking again will not help."""


class Fatal(Exception):
    """No request can succeed (401, 403, unknown model); the message is one complete line."""


OnLength = Literal["keep", "continue", "reject"]


def scoring(text: str) -> Request:
    """The request for the log-probabilities of a text's tokens."""
    return Request((("user", text),), Sampling(temperature=0.0, max_tokens=1), score=True)


def scores_to_text(scores: Iterable[float]) -> str:
    """Log-probabilities as the text of an answer, so that the response store keeps them like any other."""
    return json.dumps([round(float(score), 4) for score in scores])


def scores_from_text(text: str) -> list[float]:
    """What `scores_to_text` wrote."""
    return [float(score) for score in json.loads(text)]
