"""`Ask`: the only way from a method to a model.

One `Ask` belongs to one document and one method. It renders the prompt (the document first, the
variables last, so that a server's prefix cache serves all requests about one document), applies the
user's overrides for the step, and turns an answer into text, a validated object or a written document;
or into a reject that keeps the raw answer.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from leaven.config import PlanPath
from leaven.document import Document, child, reject
from leaven.errors import Rejected, UsageError, nearest
from leaven.lm.base import Answer, Messages, OnLength, Origin, Request, Sampling
from leaven.lm.structured import Malformed, Schema, parse

T = TypeVar("T")

CONTINUE = (
    "You were cut off. Go on from exactly the character where you stopped; repeat nothing, add no remark."
)
CORRECT = (
    "That answer cannot be used: {error}\nSend the whole JSON object again, corrected, and nothing else."
)
MOST_CONTINUATIONS = 3

_PLACEHOLDER = re.compile(r"\{(\w+)\}")
# A model without a separate reasoning field puts its thoughts before the answer.
_THOUGHTS = re.compile(r"\A\s*<think>.*?</think>\s*", re.DOTALL)


class Step(BaseModel):
    """One kind of request of a method: its prompt and how the answer is drawn.

    Args:
        prompt: what follows the document; ``{name}`` is replaced by the variable of that name
            (``{title}`` and ``{author}`` always exist), any other brace is left alone.
        on_length: what becomes of an answer cut off at `max_tokens`: ``keep`` it (marked), ``continue``
            it by further requests, or ``reject`` it. It is never silently paid for again.
        typical_tokens, typical_ratio: length of a typical answer, as a number of tokens plus a multiple
            of the document's; for planning only, as is
        typical_answer: an answer the method can go on with, where one made from the schema would not do.
        raw: the model goes on with the document's own text: no heading and no line of dashes around it, and not
            even white space is stripped from the answer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    prompt: str
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 2048
    stop: tuple[str, ...] = ()
    on_length: OnLength = "reject"
    typical_tokens: int = 0
    typical_ratio: float = 0.0
    typical_answer: str = ""
    raw: bool = False

    @cached_property
    def sampling(self) -> Sampling:
        return Sampling(
            temperature=self.temperature, top_p=self.top_p, max_tokens=self.max_tokens, stop=self.stop
        )


class StepOverride(BaseModel):
    """What a user may change about a step in the plan; unset fields keep the method's defaults.

    Args:
        prompt: another prompt, using the same placeholders.
        prompt_file: the same from a file, relative to the plan.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    prompt: str | None = None
    prompt_file: PlanPath | None = None
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    stop: tuple[str, ...] | None = None
    on_length: OnLength | None = None


def override(steps: Mapping[str, Step], changes: Mapping[str, StepOverride], where: str) -> dict[str, Step]:
    """The method's steps with the user's changes.

    Args:
        where: how to name the method in an error.

    Raises:
        UsageError: unknown step, unreadable prompt file, or placeholders that differ from the default's.
    """
    merged = dict(steps)
    for name, change in changes.items():
        if name not in steps:
            raise UsageError(f"{where}: no step {name!r}; {nearest(name, steps)}")
        fields = change.model_dump(exclude_none=True)
        path = fields.pop("prompt_file", None)
        if path is not None:
            try:
                fields["prompt"] = Path(path).read_text(encoding="utf-8")
            except OSError as error:
                raise UsageError(f"{where}, step {name}: prompt_file {path}: {error.strerror}") from error
        if "prompt" in fields:
            _check_placeholders(steps[name].prompt, fields["prompt"], f"{where}, step {name}")
        merged[name] = steps[name].model_copy(update=fields)
    return merged


def _check_placeholders(default: str, prompt: str, where: str) -> None:
    needed, found = set(_PLACEHOLDER.findall(default)), set(_PLACEHOLDER.findall(prompt))
    always = {"title", "author"}
    for name in sorted(found - needed - always):
        raise UsageError(f"{where}: the prompt has no variable {{{name}}}; {nearest(name, needed | always)}")
    for name in sorted(needed - found - always):
        raise UsageError(f"{where}: the prompt must use {{{name}}}, or every request would be the same")


def fill(prompt: str, variables: Mapping[str, Any]) -> str:
    """Replace ``{name}`` by the variable of that name; a list becomes one line per item."""

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in variables:
            return match.group(0)
        found = variables[name]
        return "\n".join(f"- {item}" for item in found) if isinstance(found, (list, tuple)) else str(found)

    return _PLACEHOLDER.sub(value, prompt)


def head(document: Document) -> str:
    """The document as every prompt about it begins: title, author, part, text."""
    lines = [
        f"{name.capitalize()}: {document.metadata[name]}"
        for name in ("title", "author")
        if document.metadata.get(name)
    ]
    if document.metadata.get("chunks", 1) > 1:
        lines.append(f"Part: {document.metadata['chunk'] + 1} of {document.metadata['chunks']}")
    return "\n".join(lines) + ("\n\n" if lines else "") + document.text + "\n\n-----\n\n"


@dataclass(frozen=True, slots=True)
class Reply(Generic[T]):
    """An answer fit to use.

    Args:
        text: without thoughts and outer white space.
        value: the validated object where a schema was given, else None.
        request: key in the response store.
        finish: the server's finish reason.
    """

    text: str
    value: T
    request: str
    finish: str


class Answerer(Protocol):
    """What `Ask` needs of a model: a `LanguageModel`, or a rehearsal of one."""

    @property
    def name(self) -> str: ...

    async def answer(self, request: Request, priority: int = 0) -> tuple[str, Answer]: ...


class Ask:
    """See the header.

    Args:
        steps: the method's steps with the user's overrides applied.
        priority: running number of the document; lower is served first.
        share: the document's share of the corpus's tokens, by which methods divide a corpus-wide budget.
        count: token counts of texts.
    """

    def __init__(
        self,
        model: Answerer,
        document: Document,
        method: str,
        steps: Mapping[str, Step],
        *,
        priority: int = 0,
        share: float = 1.0,
        count: Callable[[Sequence[str]], list[int]],
    ) -> None:
        self.document, self.method, self.steps = document, method, steps
        self.rejected: list[Document] = []
        self.share = share
        self._model, self._priority, self._count = model, priority, count
        self._head = head(document)

    async def __call__(
        self, step: str, variables: Mapping[str, Any], schema: type[Schema] | None = None, sample: int = 0
    ) -> Reply[Any]:
        """Ask one thing about the document.

        Args:
            step: name in the method's `STEPS`.
            variables: fill the prompt, name the request in lineage and choose a recorded answer.
            schema: validate the answer; a malformed one gets one correction turn.
            sample: ask again with another index for another draw.

        Raises:
            Rejected: no usable answer.
        """
        settings = self.steps[step]
        known = {
            "title": self.document.metadata.get("title", "this text"),
            "author": "",
            **self.document.metadata,
        }
        shared = self.document.text if settings.raw else self._head
        prompt = shared + fill(settings.prompt, {**known, **variables})
        messages: Messages = (("user", prompt),)
        origin = Origin(self.document.id, self.method, step, dict(variables))
        json_schema = _json_schema(schema) if schema else None
        request = Request(messages, settings.sampling, json_schema, sample, len(shared), origin)
        key, answer = await self._model.answer(request, self._priority)
        text, finish = await self._complete(request, key, answer, settings)
        if schema is None:
            if not text.strip():
                raise Rejected("empty answer", f"step {step}, finish reason {finish}", answer.text, key)
            return Reply(text, None, key, finish)
        return await self._validated(request, key, text, finish, schema)

    async def write(
        self, step: str, variables: Mapping[str, Any], sample: int = 0, **metadata: Any
    ) -> Document | None:
        """Ask for a text and make it a document; None if it was rejected (the reject is kept).

        Args:
            metadata: further metadata of the document.
        """
        try:
            reply = await self(step, variables, sample=sample)
        except Rejected as error:
            self.note(step, variables, error, sample)
            return None
        return self.make(reply, step, variables, sample, **metadata)

    def make(
        self,
        reply: Reply[Any],
        step: str,
        variables: Mapping[str, Any],
        sample: int = 0,
        text: str | None = None,
        **metadata: Any,
    ) -> Document:
        """The document that a reply gives; `text` replaces the reply's own."""
        body = reply.text if text is None else text
        if reply.finish == "length":
            metadata["finish"] = "length"
        return child(
            self.document,
            body,
            method=self.method,
            step=step,
            variables=dict(variables),
            sample=sample,
            model=self._model.name,
            request=reply.request,
            **metadata,
        )

    def note(self, step: str, variables: Mapping[str, Any], error: Rejected, sample: int = 0) -> None:
        """Keep a reject for a document that was asked for and could not be written."""
        row = child(
            self.document,
            error.raw,
            method=self.method,
            step=step,
            variables=dict(variables),
            sample=sample,
            model=self._model.name,
            request=error.request,
        )
        self.rejected.append(reject(row, error.reason, error.detail))

    def discard(self, document: Document, reason: str, detail: str) -> None:
        """Reject a document that was written but is not good enough."""
        self.rejected.append(reject(document, reason, detail))

    def tokens(self, text: str) -> int:
        """Length of `text` in the corpus tokenizer's tokens."""
        return self._count([text])[0]

    async def _complete(self, request: Request, key: str, answer: Answer, settings: Step) -> tuple[str, str]:
        """Apply `on_length` and strip thoughts; returns (text, finish reason)."""
        text, finish = answer.text, answer.finish
        turns = 0
        while finish == "length" and settings.on_length == "continue" and turns < MOST_CONTINUATIONS:
            turns += 1
            messages = (*request.messages, ("assistant", text), ("user", CONTINUE))
            _, more = await self._model.answer(_with_messages(request, messages), self._priority)
            text, finish = text + more.text, more.finish
        if finish == "length" and settings.on_length != "keep":
            tokens = answer.usage.completion
            detail = (
                f"cut off after {tokens} tokens (max_tokens {settings.max_tokens}, {turns} continuations)"
            )
            raise Rejected("truncated", detail, text, key)
        if finish == "content_filter":
            raise Rejected("content filter", "the server withheld the rest of the answer", text, key)
        return (text if settings.raw else _THOUGHTS.sub("", text).strip()), finish

    async def _validated(
        self, request: Request, key: str, text: str, finish: str, schema: type[Schema]
    ) -> Reply[Schema]:
        try:
            return Reply(text, parse(text, schema), key, finish)
        except Malformed as error:
            turn = ("user", CORRECT.format(error=error))
            messages = (*request.messages, ("assistant", text), turn)
        key, answer = await self._model.answer(_with_messages(request, messages), self._priority)
        if answer.finish == "length":
            raise Rejected("truncated", "the corrected JSON was cut off", answer.text, key)
        corrected = _THOUGHTS.sub("", answer.text).strip()
        try:
            return Reply(corrected, parse(corrected, schema), key, answer.finish)
        except Malformed as error:
            raise Rejected("invalid json", f"after one correction: {error}", answer.text, key) from error


def _with_messages(request: Request, messages: Messages) -> Request:
    return Request(messages, request.sampling, request.schema, request.sample, request.shared, request.origin)


@lru_cache(maxsize=256)
def _json_schema(schema: type[BaseModel]) -> dict[str, Any]:
    return schema.model_json_schema()


async def in_order(work: Iterable[Awaitable[T | None]]) -> AsyncIterator[T]:
    """Run everything at once, yield results in the order given, leave out None.

    If one fails the others are cancelled and the failure is raised: what a method wants to survive it
    turns into a reject itself (`Ask.write` does).
    """
    tasks = [asyncio.ensure_future(item) for item in work]
    try:
        for task in tasks:
            result = await task
            if result is not None:
                yield result
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
