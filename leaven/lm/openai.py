"""Any OpenAI-compatible server over aiohttp: vLLM, SGLang, llama.cpp, Ollama, hosted services.

aiohttp rather than an SDK: 8 to 30 times the requests per second on the same cores, and no retries of
its own that would hide 429s from the concurrency control. There is no limit on how long a server may
take unless the user sets `timeout`.
"""

from __future__ import annotations

import email.utils
import os
import time
from typing import TYPE_CHECKING, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field

from leaven.document import to_json
from leaven.errors import UsageError
from leaven.lm.base import (
    Answer,
    Dropped,
    Fatal,
    Refused,
    Request,
    ServerError,
    Throttled,
    Usage,
    scores_to_text,
)  # fmt: skip

if TYPE_CHECKING:
    import aiohttp

JsonMode = Literal["schema", "object", "none"]
_WEAKER: dict[JsonMode, JsonMode] = {"schema": "object", "object": "none"}


class Config(BaseModel):
    """An OpenAI-compatible model.

    Args:
        name: model name as the server knows it.
        url: base URL including the version, for example ``http://127.0.0.1:8000/v1``.
        api: ``chat`` sends messages, ``completions`` their plain concatenation (base models).
        key_env: name of the environment variable that holds the API key; the key itself is never stored.
        extra: further fields of the request body, sent as they are (``seed``, ``top_k``,
            ``chat_template_kwargs``, ...); they are part of what identifies an answer.
        endpoint: name under which answers are stored, by default the URL. Set it if the same model
            moves between addresses, so that its answers are found again.
        concurrency: most requests in flight; the controller finds the right number below it.
        timeout: seconds without a byte before a request is given up and retried; None waits for ever.
        json_mode: strongest way of asking for JSON to try; a server that refuses one is asked by the
            next weaker one from then on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    backend: Literal["openai"] = "openai"
    name: str
    url: str
    api: Literal["chat", "completions"] = "chat"
    key_env: str | None = None
    extra: dict[str, Any] = Field(default_factory=dict)
    endpoint: str | None = None
    concurrency: int = Field(256, ge=1)
    timeout: float | None = Field(None, gt=0)
    json_mode: JsonMode = "schema"

    def open(self) -> OpenAI:
        return OpenAI(self)


class OpenAI:
    """See `Config`."""

    paid = True

    def __init__(self, config: Config) -> None:
        if not config.url.startswith(("http://", "https://")):
            raise UsageError(
                f"model {config.name}: url must begin with http:// or https://, not {config.url!r}"
            )
        if config.key_env and not os.environ.get(config.key_env):
            raise UsageError(
                f"model {config.name}: environment variable {config.key_env} (the API key) is not set"
            )
        self.config = config
        self.model = config.name
        self.concurrency = config.concurrency
        extra = orjson.dumps(config.extra, option=orjson.OPT_SORT_KEYS).decode()
        self.identity = (
            f"openai {config.api} {config.endpoint or config.url.rstrip('/')} {config.name} {extra}"
        )
        self._json_mode: JsonMode = config.json_mode
        path = "/chat/completions" if config.api == "chat" else "/completions"
        self._url = config.url.rstrip("/") + path
        self._session: aiohttp.ClientSession | None = None

    async def generate(self, request: Request) -> Answer:
        """Send once; raises what `base` names."""
        if request.score and self.config.api != "completions":
            raise Refused(f"model {self.model}: log-probabilities of a text need api: completions")
        if request.schema is None or self.config.api == "completions":
            return await self._post(request, "none")
        mode = self._json_mode
        while True:
            try:
                answer = await self._post(request, mode)
            except Refused:
                if mode == "none":
                    raise
                mode = _WEAKER[mode]  # perhaps the server does not know this response_format
            else:
                self._json_mode = mode
                return answer

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def body(self, request: Request, mode: JsonMode) -> dict[str, Any]:
        """The request body as it goes over the wire."""
        body: dict[str, Any] = {"model": self.model}
        if self.config.api == "chat":
            body["messages"] = [{"role": role, "content": content} for role, content in request.messages]
        else:
            body["prompt"] = "\n\n".join(content for _, content in request.messages)
        sampling = request.sampling
        body["temperature"], body["top_p"] = sampling.temperature, sampling.top_p
        body["max_tokens"] = sampling.max_tokens
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if request.score:
            body |= {"echo": True, "logprobs": 0}
        if mode == "schema":
            schema = {"name": "answer", "schema": request.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif mode == "object":
            body["response_format"] = {"type": "json_object"}
        return body | self.config.extra

    def _open_session(self) -> aiohttp.ClientSession:
        import aiohttp
        from yarl import URL

        headers = {}
        self._parsed_url = URL(self._url)
        variable = self.config.key_env
        if variable:
            if not os.environ.get(variable):
                raise UsageError(
                    f"model {self.model}: environment variable {variable} (the API key) is not set"
                )
            headers["Authorization"] = f"Bearer {os.environ[variable]}"
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=self.config.timeout)
        connector = aiohttp.TCPConnector(limit=0)  # the gate alone decides how many are in flight
        # No cookies: every request stands alone, and a jar costs time on each.
        jar = aiohttp.DummyCookieJar()
        return aiohttp.ClientSession(connector=connector, headers=headers, timeout=timeout, cookie_jar=jar)

    async def _post(self, request: Request, mode: JsonMode) -> Answer:
        import aiohttp

        if self._session is None:
            self._session = self._open_session()
        payload = aiohttp.BytesPayload(to_json(self.body(request, mode)), content_type="application/json")
        try:
            async with self._session.post(self._parsed_url, data=payload, allow_redirects=False) as response:
                content = await response.read()
                status, retry_after = response.status, response.headers.get("Retry-After")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            what = "no byte within the timeout" if isinstance(error, TimeoutError) else str(error)
            raise Dropped(f"{self._url}: {what or type(error).__name__}") from error
        if status != 200:
            raise _failure(status, content, retry_after, self._url, self.config)
        return _parse(content, request, self.config.api, self._url)


def _parse(content: bytes, request: Request, api: str, url: str) -> Answer:
    try:
        body = orjson.loads(content)
        choice = body["choices"][0]
        if api == "chat":
            message = choice["message"]
            text = message.get("content") or ""
            reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
        else:
            text, reasoning = choice["text"] or "", ""
        finish = choice.get("finish_reason") or "stop"
        if request.score:
            # The server goes on for `max_tokens` after the text: those tokens are not the text's.
            text, finish = scores_to_text(_scores(choice["logprobs"], len(request.messages[0][1]))), "stop"
        counts = body.get("usage")
        if counts:
            details = counts.get("prompt_tokens_details") or {}
            cached = int(details.get("cached_tokens") or 0)
            usage = Usage(int(counts["prompt_tokens"]), cached, int(counts.get("completion_tokens") or 0))
        else:
            sent = sum(len(text) for _, text in request.messages)
            usage = Usage(sent // 4, 0, len(text) // 4, estimated=True)
    except (orjson.JSONDecodeError, KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        shown = content[:120].decode("utf-8", "replace")
        raise ServerError(f"{url}: status 200 but not a completion: {shown!r}") from error
    if finish in ("abort", "error"):  # vLLM and SGLang, while they are shutting down
        raise ServerError(f"{url}: the server gave up in the middle of an answer (finish reason {finish})")
    return Answer(text, finish, usage, reasoning)


def _scores(logprobs: dict[str, Any], characters: int) -> list[float]:
    """Log-probabilities of the echoed tokens; the first has none."""
    tokens = zip(logprobs["text_offset"], logprobs["token_logprobs"], strict=True)
    inside = [score for offset, score in tokens if offset < characters]
    return [float(score) for score in inside[1:]]


def _failure(status: int, content: bytes, retry_after: str | None, url: str, config: Config) -> Exception:
    """The exception that says what status and body mean to the client."""
    try:
        body = orjson.loads(content)
    except orjson.JSONDecodeError:
        body = None
    error = body.get("error", body) if isinstance(body, dict) else None
    details: dict[str, Any] = error if isinstance(error, dict) else {}
    message = details.get("message") or details.get("detail") or content[:300].decode("utf-8", "replace")
    line = " ".join(f"{url}: status {status}: {message}".split())
    if status in (401, 403):
        key = (
            f"check the key in {config.key_env}"
            if config.key_env
            else "set key_env to the variable with the key"
        )
        return Fatal(f"{line}; {key}")
    if status == 404:
        return Fatal(f"{line}; check url and name of the model (url usually ends in /v1)")
    if details.get("code") == "insufficient_quota":
        return Fatal(line)
    if status in (429, 529) or (status == 503 and retry_after):
        return Throttled(line, _seconds(retry_after))
    if status >= 500 or status == 408:
        return ServerError(line)
    return Refused(line)


def _seconds(retry_after: str | None) -> float | None:
    """Retry-After is a number of seconds or an HTTP date."""
    if not retry_after:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (TypeError, ValueError):
        return None
