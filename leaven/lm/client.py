"""One model, dependable: store first, then a slot, then the backend, then the store again.

    answer(request)
      -> in the store?            nothing is sent
      -> the same in flight?      wait for that one
      -> budget, slot, backend    retried by the rules below, holding no slot while it waits
      -> store                    committed before anyone sees the answer

What a failure means is decided here, once for all backends:

    Throttled     the gate cuts and waits Retry-After; again, without end while anything succeeds, but after
                  `patience` seconds of nothing but refusals the run stops
    ServerError   the gate cuts; again up to `attempts`, then this request is rejected, or the run stops if
                  nothing else succeeds either
    Dropped       the gate learns nothing; the same, and at the very start the run soon ends
    Refused       this request is rejected; the run stops when the first requests are all refused
    Fatal         the run stops at once
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field

from leaven.errors import Rejected, Stopped, UsageError
from leaven.lm.base import (
    Answer,
    Backend,
    Dropped,
    Fatal,
    Refused,
    Request,
    ServerError,
    Throttled,
    Usage,
    scores_from_text,
    scoring,
)  # fmt: skip
from leaven.lm.budget import Meter
from leaven.lm.control import Gate
from leaven.lm.store import ResponseStore

ATTEMPTS = 6  # of one request, failures of the server and of the connection together
PATIENCE = 300.0  # seconds in which a server may do nothing but refuse (429) before the run stops
FIRST_REFUSALS = 20  # requests refused (4xx) with no success at all before the run stops


@dataclass
class Traffic:
    """Counters of one session, for progress and manifests."""

    sent: int = 0
    answered: int = 0
    from_store: int = 0
    retries: int = 0
    refused: int = 0
    usage: Usage = field(default_factory=Usage)
    seconds: float = 0.0


class LanguageModel:
    """A backend with everything that makes it safe to spend money on.

    Args:
        attempts: tries of one request before it counts as failed.
        patience: seconds of nothing but throttling before the run stops.
        first_delay: seconds before the first retry; doubles each time, with full jitter, up to 60.
    """

    def __init__(
        self,
        backend: Backend,
        store: ResponseStore,
        meter: Meter | None = None,
        *,
        attempts: int = ATTEMPTS,
        patience: float = PATIENCE,
        first_delay: float = 0.5,
    ) -> None:
        self.backend, self.store = backend, store
        self.meter = meter or Meter()
        self.gate = Gate(backend.concurrency)
        self.traffic = Traffic()
        self._attempts, self._patience, self._first_delay = attempts, patience, first_delay
        self._in_flight: dict[str, list[asyncio.Future[Answer]]] = {}
        self._last_success: float | None = None
        self._opened = time.monotonic()

    @property
    def name(self) -> str:
        return self.backend.model

    async def answer(self, request: Request, priority: int = 0) -> tuple[str, Answer]:
        """The answer to `request`, from the store or from the model.

        Args:
            priority: lower goes first; the running number of the document.

        Returns:
            (key in the response store, answer).

        Raises:
            Rejected: this request cannot be answered.
            Stopped, UsageError: no request can, for now.
        """
        key = request.key(self.backend.identity)
        stored = self.store.find(key, request.sampling.max_tokens)
        if stored is not None:
            self.traffic.from_store += 1
            return key, stored
        twins = self._in_flight.get(key)
        if twins is not None:  # the same is being asked right now: wait for that answer
            twin: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
            twins.append(twin)
            return key, await twin
        twins = self._in_flight[key] = []
        try:
            answer = await self._ask_and_store(key, request, priority)
        except BaseException as error:
            for twin in twins:  # it fails for the same reason
                if not twin.done():
                    twin.set_exception(error) if isinstance(error, Exception) else twin.cancel()
            raise
        finally:
            del self._in_flight[key]
        for twin in twins:
            if not twin.done():
                twin.set_result(answer)
        return key, answer

    async def score(self, text: str, priority: int = 0) -> list[float]:
        """Natural log-probabilities of the text's tokens from the second on, in the model's own tokens.

        Stored and found again like any answer.

        Raises:
            Rejected: this text cannot be scored (the backend cannot score at all: then every text).
        """
        _, answer = await self.answer(scoring(text), priority)
        return scores_from_text(answer.text)

    async def close(self) -> None:
        """Close the backend's connections; the store stays open."""
        await self.backend.close()

    async def _ask_and_store(self, key: str, request: Request, priority: int) -> Answer:
        answer, seconds = await self._send(request, priority)
        model, identity = self.backend.model, self.backend.identity
        await self.store.add(key, request, answer, model=model, identity=identity, seconds=seconds)
        return answer

    async def _send(self, request: Request, priority: int) -> tuple[Answer, float]:
        failures = 0
        first_try = time.monotonic()
        while True:
            if self.store.failure:
                raise self.store.failure
            delay: float | None
            try:
                return await self._send_once(request, priority)
            except Throttled as error:
                self._check_patience(error)
                delay = error.retry_after
            except (ServerError, Dropped) as error:
                failures += 1
                self._check_failures(error, failures, first_try)
                delay = None
            self.traffic.retries += 1
            if delay is None:
                delay = random.uniform(0.5, 1.0) * min(60.0, self._first_delay * 2 ** max(0, failures - 1))
            await asyncio.sleep(delay)

    async def _send_once(self, request: Request, priority: int) -> tuple[Answer, float]:
        worst = None
        if self.meter.capped:
            worst = self.meter.worst_case(request)
            await self.meter.set_aside(worst)
        used: Usage | None = None
        try:
            ticket = await self.gate.acquire(priority)
            started = time.monotonic()
            self.traffic.sent += 1
            try:
                answer = await self.backend.generate(request)
            except (Throttled, ServerError) as error:
                self.gate.release(ticket, complained=True, retry_after=getattr(error, "retry_after", None))
                raise
            except Refused as error:
                self.gate.abandon()
                self._count_refusal(error)
                raise Rejected("refused by server", str(error)) from error
            except Fatal as error:
                self.gate.abandon()
                raise UsageError(str(error)) from error
            except BaseException:
                self.gate.abandon()
                raise
            self.gate.release(ticket)
            self._last_success = time.monotonic()
            used = answer.usage
            self.traffic.answered += 1
            self.traffic.usage = self.traffic.usage + used
            seconds = self._last_success - started
            self.traffic.seconds += seconds
            return answer, seconds
        finally:
            self.meter.settle(worst, used, request)

    def _check_patience(self, error: Throttled) -> None:
        waited = time.monotonic() - (self._last_success or self._opened)
        if waited > self._patience:
            raise Stopped(
                f"{self.name}: the server has refused every request for {waited:.0f} s ({error}); "
                "everything received is kept, run the same command again later"
            ) from error

    def _check_failures(self, error: Exception, failures: int, first_try: float) -> None:
        if self._last_success is None:
            if failures >= min(3, self._attempts):
                raise UsageError(f"cannot get an answer from {self.name}: {error}") from error
        elif failures >= self._attempts:
            if self._last_success < first_try:
                raise Stopped(
                    f"{self.name}: no answer from the server any more ({error}); "
                    "everything received is kept, run the same command again to go on"
                ) from error
            reason = "connection lost" if isinstance(error, Dropped) else "server error"
            raise Rejected(reason, f"{failures} tries: {error}") from error

    def _count_refusal(self, error: Refused) -> None:
        self.traffic.refused += 1
        if self._last_success is None and self.traffic.refused >= FIRST_REFUSALS:
            raise UsageError(f"{self.name}: the server refused the first {FIRST_REFUSALS} requests: {error}")
