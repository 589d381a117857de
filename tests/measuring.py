"""What tests of measures share: a model that answers as a function says, and figures by name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from leaven.lm.base import Answer, Request, Usage
from leaven.measure.base import Figure

Answering = Callable[[Request], str]


class Scripted:
    """A backend whose answers are `answering(request)`; counts what was sent."""

    model, identity, concurrency, paid = "scripted", "scripted", 64, False

    def __init__(self, answering: Answering) -> None:
        self.answering = answering
        self.sent = 0

    async def generate(self, request: Request) -> Answer:
        self.sent += 1
        await asyncio.sleep(0)
        return Answer(self.answering(request), "stop", Usage(1, 0, 1))

    async def close(self) -> None: ...


def by_name(figures: list[Figure], column: str) -> dict[str, Figure]:
    return {figure.name: figure for figure in figures if figure.column == column}
