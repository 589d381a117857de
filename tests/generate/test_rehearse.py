"""The estimate: a rehearsal asks what the run then asks, and counts it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

from leaven.generate._rehearse import Rehearsal
from leaven.lm.ask import Step
from leaven.lm.base import Answer, Origin, Request, Sampling, Usage
from leaven.lm.store import ResponseStore

STEPS = {"m": {"write": Step(prompt="Write.", typical_tokens=10, typical_ratio=2.0, max_tokens=500)}}


class Backend:
    model, identity, concurrency, paid = "model", "id", 8, True

    async def generate(self, request: Request) -> Answer:
        raise AssertionError("a rehearsal sends nothing")

    async def close(self) -> None: ...


def request(
    document: str = "d", prompt: str = "x" * 400, schema: dict[str, Any] | None = None, **variables: Any
) -> Request:
    origin = Origin(document, "m", "write", variables)
    text = f"{prompt} {sorted(variables.items())}"
    return Request((("user", text),), Sampling(max_tokens=500), schema, shared=len(prompt), origin=origin)


def rehearse(folder: Path, stored: list[tuple[Request, Answer]], asked: list[Request]) -> Any:
    """(answers, estimate of the step) of a rehearsal beside a store that holds `stored`."""

    async def work() -> Any:
        store = ResponseStore(folder / "answers", "test")
        for one, answer in stored:
            await store.add(one.key("id"), one, answer, model="model", identity="id", seconds=1.0)
        rehearsal = Rehearsal(Backend(), store, STEPS, tokens_per_character=0.25)
        answers = [(await rehearsal.answer(one))[1] for one in asked]
        store.close()
        return answers, rehearsal.estimates[("m", "write")]

    return asyncio.run(work())


def test_before_any_answer_lengths_are_the_steps_typical_ones(tmp_path: Path) -> None:
    answers, estimate = rehearse(tmp_path, [], [request(what="a"), request(what="b")])
    length = len(request(what="a").messages[0][1])
    assert (estimate.requests, estimate.stored, estimate.observed) == (2, 0, 0)
    assert estimate.usage.prompt == 2 * round(length * 0.25)
    assert estimate.usage.cached == 100, "the second request begins like the first"
    assert estimate.usage.completion == 2 * (10 + 2 * 100)
    assert len(answers[0].text) > 400


def test_the_same_request_twice_is_counted_once_and_a_stored_one_not_at_all(tmp_path: Path) -> None:
    stored = (request(what="a"), Answer("kept", "stop", Usage(100, 0, 7)))
    answers, estimate = rehearse(
        tmp_path, [stored], [request(what="a"), request(what="b"), request(what="b")]
    )
    assert (estimate.requests, estimate.stored) == (1, 1)
    assert answers[0].text == "kept"


def test_lengths_follow_the_answers_that_were_seen(tmp_path: Path) -> None:
    stored = [
        (request(f"s{n}", "x" * n, what="a"), Answer("seen", "stop", Usage(n, 0, n // 10)))
        for n in range(300, 3300, 300)
    ]
    longer = request("new", "y" * 5000, what="a")
    answers, estimate = rehearse(tmp_path, stored, [longer])
    characters = len(longer.messages[0][1])
    assert estimate.observed == 10 and answers[0].text == "seen"
    assert estimate.usage.completion == pytest.approx(characters / 10, abs=2), "a line through the seen"
    assert estimate.usage.prompt == pytest.approx(characters, rel=0.05), "the server's own tokens a character"


class Inner(BaseModel):
    label: str
    score: int = Field(ge=1, le=5)


class Schema(BaseModel):
    names: list[str]
    parts: list[Inner]
    kind: Literal["a", "b"]
    ratio: float = Field(ge=0, le=1)
    sure: bool
    note: str | None


def test_a_stand_in_fits_the_schema_and_its_items_differ(tmp_path: Path) -> None:
    answers, _ = rehearse(tmp_path, [], [request(schema=Schema.model_json_schema())])
    value = Schema.model_validate_json(answers[0].text)
    assert len(set(value.names)) == len(value.names) > 2
    assert len({part.label for part in value.parts}) == len(value.parts)
