"""Store, slot, backend and store again: what the client does with each kind of failure."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from leaven.errors import Rejected, Stopped, UsageError
from leaven.lm.base import (
    Answer,
    Dropped,
    Fatal,
    Refused,
    Request,
    Sampling,
    ServerError,
    Throttled,
    Usage,
)  # fmt: skip
from leaven.lm.budget import Meter
from leaven.lm.client import FIRST_REFUSALS, LanguageModel
from leaven.lm.store import ResponseStore

GOOD = Answer("text", "stop", Usage(10, 0, 5))


class Faulty:
    """A backend that plays a script of answers and failures, then answers for ever."""

    model, identity, concurrency, paid = "m", "id", 8, True

    def __init__(self, *script: Answer | Exception, seconds: float = 0.0) -> None:
        self.script, self.asked, self.seconds = list(script), list[Request](), seconds

    async def generate(self, request: Request) -> Answer:
        self.asked.append(request)
        await asyncio.sleep(self.seconds)
        step = self.script.pop(0) if self.script else GOOD
        if isinstance(step, Exception):
            raise step
        return step

    async def close(self) -> None: ...


def request(text: str = "one", sample: int = 0) -> Request:
    return Request((("user", text),), Sampling(max_tokens=20), sample=sample)


def run(
    folder: Path,
    backend: Faulty,
    work: Callable[[LanguageModel], Coroutine[Any, Any, Any]],
    meter: Meter | None = None,
    **options: Any,
) -> LanguageModel:
    """Work with a model that has an empty store; it is returned for its counters."""

    async def whole() -> LanguageModel:
        store = ResponseStore(folder / "answers", "test")
        model = LanguageModel(backend, store, meter, first_delay=0.002, **options)
        try:
            await work(model)
        finally:
            store.close()
        return model

    return asyncio.run(whole())


def test_an_answer_is_asked_for_once_and_then_found(tmp_path: Path) -> None:
    backend = Faulty()

    async def work(model: LanguageModel) -> None:
        key, answer = await model.answer(request())
        assert (key, answer) == (request().key("id"), GOOD)
        assert await model.answer(request()) == (key, GOOD)
        assert (await model.answer(request(sample=1)))[0] != key

    traffic = run(tmp_path, backend, work).traffic
    assert (traffic.sent, traffic.answered, traffic.from_store) == (2, 2, 1)
    assert traffic.usage == Usage(20, 0, 10) and len(backend.asked) == 2


def test_the_same_question_in_flight_is_sent_once_and_fails_for_all_who_ask(tmp_path: Path) -> None:
    backend = Faulty(GOOD, Refused("no"), seconds=0.02)

    async def work(model: LanguageModel) -> None:
        found = await asyncio.gather(*(model.answer(request()) for _ in range(5)))
        assert {answer.text for _, answer in found} == {"text"}
        others = (model.answer(request("two")) for _ in range(5))
        failed = await asyncio.gather(*others, return_exceptions=True)
        assert [type(error) for error in failed] == [Rejected] * 5

    run(tmp_path, backend, work)
    assert len(backend.asked) == 2


def test_a_twin_is_not_left_waiting_when_the_first_is_cancelled(tmp_path: Path) -> None:
    async def work(model: LanguageModel) -> None:
        first = asyncio.ensure_future(model.answer(request()))
        second = asyncio.ensure_future(model.answer(request()))
        await asyncio.sleep(0.01)
        first.cancel()
        done = await asyncio.wait_for(asyncio.gather(first, second, return_exceptions=True), 1)
        assert all(isinstance(one, asyncio.CancelledError) for one in done)
        assert model.gate.in_flight == 0

    run(tmp_path, Faulty(seconds=60), work)


def test_throttling_is_waited_out_and_lowers_the_limit(tmp_path: Path) -> None:
    backend = Faulty(GOOD, Throttled("429", 0.03), Throttled("429"), GOOD)

    async def work(model: LanguageModel) -> None:
        await model.answer(request())
        limit, before = model.gate.limit, time.monotonic()
        await model.answer(request("two"))
        assert time.monotonic() - before > 0.02, "about as long as the server asked"
        assert model.gate.limit < limit and model.gate.cuts == 2

    assert run(tmp_path, backend, work).traffic.retries == 2


def test_a_server_that_only_refuses_is_given_up_after_the_patience(tmp_path: Path) -> None:
    backend = Faulty(*[Throttled("429 slow down", 0.01)] * 1000)

    async def work(model: LanguageModel) -> None:
        with pytest.raises(Stopped, match=r"refused every request for \d+ s .429 slow down"):
            await model.answer(request())

    run(tmp_path, backend, work, patience=0.05)
    assert len(backend.asked) < 20


@pytest.mark.parametrize("failure", [ServerError("500"), Dropped("reset")])
def test_passing_failures_are_tried_again(tmp_path: Path, failure: Exception) -> None:
    backend = Faulty(GOOD, *[failure] * 5, GOOD)

    async def work(model: LanguageModel) -> None:
        await model.answer(request())
        assert (await model.answer(request("two")))[1] == GOOD
        assert (model.gate.cuts > 0) == isinstance(failure, ServerError), "a lost connection is no complaint"

    assert run(tmp_path, backend, work).traffic.retries == 5


@pytest.mark.parametrize(
    ("failure", "reason"), [(ServerError("500"), "server error"), (Dropped("reset"), "connection lost")]
)
def test_one_request_that_keeps_failing_while_others_succeed_is_a_reject(
    tmp_path: Path, failure: Exception, reason: str
) -> None:
    class Picky(Faulty):
        async def generate(self, request: Request) -> Answer:
            if request.messages[0][1] == "bad":
                raise failure
            return GOOD

    async def work(model: LanguageModel) -> None:
        await model.answer(request())

        async def others() -> None:
            for i in range(1000):
                await model.answer(request(f"other {i}"))

        succeeding = asyncio.ensure_future(others())
        with pytest.raises(Rejected, match="3 tries") as error:
            await model.answer(request("bad"))
        succeeding.cancel()
        assert error.value.reason == reason
        assert model.store.find(request("bad").key("id"), 1) is None

    run(tmp_path, Picky(), work, attempts=3)


def test_a_server_that_died_stops_the_run_instead_of_rejecting_everything(tmp_path: Path) -> None:
    backend = Faulty(GOOD, *[Dropped("refused")] * 100)

    async def work(model: LanguageModel) -> None:
        await model.answer(request())
        with pytest.raises(Stopped, match=r"no answer from the server any more .refused."):
            await model.answer(request("two"))

    run(tmp_path, backend, work)


def test_a_server_that_never_answered_is_soon_given_up(tmp_path: Path) -> None:
    backend = Faulty(*[Dropped("cannot connect")] * 100)

    async def work(model: LanguageModel) -> None:
        with pytest.raises(UsageError, match="cannot get an answer from m: cannot connect"):
            await model.answer(request())

    run(tmp_path, backend, work)
    assert len(backend.asked) == 3


def test_one_refusal_is_a_reject_and_nothing_but_refusals_an_error(tmp_path: Path) -> None:
    async def work(model: LanguageModel) -> None:
        for i in range(FIRST_REFUSALS - 1):
            with pytest.raises(Rejected, match="context too long") as error:
                await model.answer(request(str(i)))
            assert error.value.reason == "refused by server"
        with pytest.raises(UsageError, match="refused the first 20 requests: context too long"):
            await model.answer(request("last"))

    traffic = run(tmp_path, Faulty(*[Refused("context too long")] * 100), work).traffic
    assert traffic.refused == traffic.sent == FIRST_REFUSALS and traffic.retries == 0


def test_a_fatal_failure_is_the_users_to_mend_and_is_not_tried_again(tmp_path: Path) -> None:
    backend = Faulty(Fatal("status 401: wrong key"))

    async def work(model: LanguageModel) -> None:
        with pytest.raises(UsageError, match="wrong key"):
            await model.answer(request())
        assert model.gate.in_flight == 0

    run(tmp_path, backend, work)
    assert len(backend.asked) == 1


def test_what_a_failed_request_reserved_is_free_again(tmp_path: Path) -> None:
    meter = Meter(max_tokens=60)  # room for one request at a time

    async def work(model: LanguageModel) -> None:
        with pytest.raises(Rejected):
            await model.answer(request())
        await model.answer(request("two"))
        with pytest.raises(Stopped, match="token budget reached: 15 of 60 spent"):
            await model.answer(request("a long one " * 40))

    model = run(tmp_path, Faulty(Refused("no")), work, meter)
    assert model.meter.spent == Usage(10, 0, 5)
