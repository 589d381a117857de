"""What goes over the wire to an OpenAI-compatible server, and what each of its replies means."""

from __future__ import annotations

import asyncio
import time
from email.utils import formatdate
from typing import Any

import pytest
from server import Server

from leaven.errors import UsageError
from leaven.lm.base import (
    Answer,
    Dropped,
    Fatal,
    Messages,
    Refused,
    Request,
    Sampling,
    ServerError,
    Throttled,
)
from leaven.lm.openai import Config

SCHEMA = {"type": "object", "properties": {"summary": {"type": "string"}}}


def request(*messages: tuple[str, str], schema: dict[str, Any] | None = None, **sampling: Any) -> Request:
    asked: Messages = messages or (("user", "The Duke slept. " * 20),)
    return Request(asked, Sampling(**sampling), schema)


def ask(server: Server, *requests: Request, **options: Any) -> list[Answer]:
    async def work() -> list[Answer]:
        backend = Config(name="m", url=server.url, **options).open()
        try:
            return [await backend.generate(one) for one in requests]
        finally:
            await backend.close()

    return asyncio.run(work())


def test_a_chat_request_carries_messages_sampling_and_the_extra_fields(server: Server) -> None:
    sampling = {"temperature": 0.5, "top_p": 0.9, "max_tokens": 50, "stop": ("END",)}
    extra = {"top_k": 20, "chat_template_kwargs": {"enable_thinking": False}}
    ask(server, request(("system", "Be brief."), ("user", "Hello.")), extra=extra)
    ask(server, request(("system", "Be brief."), ("user", "Hello."), **sampling), extra=extra)
    last = server.last()
    assert last["path"] == "/v1/chat/completions"
    assert last["body"] == {
        "model": "m",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello."}],
        "temperature": 0.5, "top_p": 0.9, "max_tokens": 50, "stop": ["END"],
        "top_k": 20, "chat_template_kwargs": {"enable_thinking": False},
    }  # fmt: skip
    assert "Authorization" not in last["headers"]


def test_a_base_model_gets_plain_text_and_its_answer_is_read(server: Server) -> None:
    (answer,) = ask(server, request(("user", "One."), ("user", "Two.")), api="completions")
    last = server.last()
    assert last["path"] == "/v1/completions" and last["body"]["prompt"] == "One.\n\nTwo."
    assert answer.text and answer.finish == "stop"


def test_the_key_comes_from_the_environment_and_is_no_part_of_the_identity(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "very-secret")
    ask(server, request(), key_env="MY_KEY")
    assert server.last()["headers"]["Authorization"] == "Bearer very-secret"
    backend = Config(name="m", url=server.url, key_env="MY_KEY").open()
    assert "very-secret" not in repr(backend.config) + backend.identity
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(UsageError, match=r"MY_KEY .the API key. is not set"):
        Config(name="m", url=server.url, key_env="MY_KEY").open()


def test_identity_follows_what_decides_an_answer() -> None:
    def identity(**options: Any) -> str:
        return Config(**{"name": "m", "url": "http://a/v1", **options}).open().identity

    assert identity(url="http://a/v1/") == identity()
    assert identity(concurrency=3, timeout=5) == identity()
    assert identity(url="http://b/v1", endpoint="x") == identity(url="http://c/v1", endpoint="x")
    different = [{}, {"name": "n"}, {"url": "http://b/v1"}, {"api": "completions"}, {"extra": {"seed": 1}}]
    assert len({identity(**options) for options in different}) == len(different)
    with pytest.raises(UsageError, match="must begin with http"):
        identity(url="localhost:8000")


def test_usage_is_the_servers_and_says_what_came_from_its_cache(server: Server) -> None:
    first, second = ask(server, request(), request())
    assert (first.usage.cached, first.usage.estimated) == (0, False)
    assert second.usage.prompt == first.usage.prompt and second.usage.cached >= 16
    stats = server.stats()
    assert first.usage.completion + second.usage.completion == stats["completion_tokens"]
    server.fault("no_usage")
    (unknown,) = ask(server, request())
    assert unknown.usage.estimated and unknown.usage.prompt == len("The Duke slept. " * 20) // 4


def test_a_server_that_refuses_a_way_of_asking_for_json_is_asked_a_weaker_way_from_then_on(
    server: Server,
) -> None:
    server.fault("no_schema")
    ask(server, request(schema=SCHEMA), request(("user", "Another one."), schema=SCHEMA))
    assert server.stats()["requests"] == 4, "schema, object, none; then none at once"
    assert "response_format" not in server.last()["body"]
    server.reset()
    ask(server, request(schema=SCHEMA))
    assert server.last()["body"]["response_format"]["json_schema"]["schema"] == SCHEMA
    ask(server, request(schema=SCHEMA), json_mode="object")
    assert server.last()["body"]["response_format"] == {"type": "json_object"}
    ask(server, request(), json_mode="schema")
    assert "response_format" not in server.last()["body"]


def test_a_request_refused_for_another_reason_does_not_weaken_the_next(server: Server) -> None:
    server.fault("matching", text="too long", fault={"kind": "status", "status": 400, "message": "no"})

    async def work() -> None:
        backend = Config(name="m", url=server.url).open()
        with pytest.raises(Refused):
            await backend.generate(request(("user", "This is too long."), schema=SCHEMA))
        await backend.generate(request(schema=SCHEMA))
        await backend.close()

    asyncio.run(work())
    assert server.last()["body"]["response_format"]["type"] == "json_schema"


@pytest.mark.parametrize(
    ("status", "more", "kind", "said"),
    [
        (401, {}, Fatal, "set key_env to the variable with the key"),
        (403, {}, Fatal, "status 403: scripted"),
        (404, {}, Fatal, "check url and name of the model"),
        (429, {"code": "insufficient_quota", "message": "no money"}, Fatal, "no money"),
        (429, {}, Throttled, "status 429"),
        (529, {}, Throttled, "status 529"),
        (503, {"retry_after": 7}, Throttled, "status 503"),
        (503, {}, ServerError, "status 503"),
        (500, {}, ServerError, "status 500"),
        (408, {}, ServerError, "status 408"),
        (400, {}, Refused, "status 400"),
        (413, {}, Refused, "status 413"),
        (422, {"message": "two\nlines"}, Refused, "two lines"),
    ],
)
def test_what_a_status_means(
    server: Server, status: int, more: dict[str, Any], kind: type[Exception], said: str
) -> None:
    server.fault("status", status=status, **more)
    with pytest.raises(kind, match=said) as error:
        ask(server, request())
    assert "\n" not in str(error.value)


def test_retry_after_is_seconds_or_a_date(server: Server) -> None:
    def delay(value: str) -> float | None:
        server.fault("status", status=429, headers={"Retry-After": value})
        with pytest.raises(Throttled) as error:
            ask(server, request())
        return error.value.retry_after

    assert delay("7") == 7
    assert 25 < (delay(formatdate(time.time() + 30, usegmt=True)) or 0) <= 30
    assert delay(formatdate(time.time() - 30, usegmt=True)) == 0
    assert delay("soon") is None


@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        ("garbage", ServerError, "not a completion: '<html>gateway"),
        ("abort", ServerError, "gave up in the middle"),
        ("drop", Dropped, "http://127.0.0.1"),
        ("cut", Dropped, "http://127.0.0.1"),
    ],
)
def test_what_is_no_answer(server: Server, fault: str, kind: type[Exception], said: str) -> None:
    server.fault(fault)
    with pytest.raises(kind, match=said):
        ask(server, request())


def test_a_server_may_be_slow_unless_the_user_sets_a_limit(server: Server) -> None:
    server.fault("slow", seconds=0.4)
    assert ask(server, request())[0].finish == "stop"
    server.fault("slow", seconds=0.4)
    with pytest.raises(Dropped, match="no byte within the timeout"):
        ask(server, request(), timeout=0.1)
