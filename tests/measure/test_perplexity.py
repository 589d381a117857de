"""Perplexity by a server that echoes log-probabilities, by a checkpoint, and by models that cannot."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from measuring import Scripted, by_name
from server import Server

from leaven.document import Document
from leaven.errors import UsageError
from leaven.lm.base import scores_to_text
from leaven.lm.client import LanguageModel
from leaven.lm.openai import Config as OpenAI
from leaven.lm.store import ResponseStore
from leaven.measure.base import Context, Figure, Sample
from leaven.measure.perplexity import Config, measure

TEXTS = ["The bag fell down.", "A second text, which is longer than the first one was.", "Third."]


def sample(texts: list[str] = TEXTS) -> Sample:
    return Sample("all", [Document(text=text, id=str(i)) for i, text in enumerate(texts)])


def run(folder: Path, *models: Any, **config: Any) -> dict[str, Figure]:
    async def work() -> list[Figure]:
        store = ResponseStore(folder / "answers", "test")
        opened = [LanguageModel(model.open(), store) for model in models]
        context = Context(open=lambda one: opened[0] if one is None else opened[1])
        try:
            return await measure({"all": sample()}, Config(**config), context)
        finally:
            for model in opened:
                await model.close()
            store.close()

    return by_name(asyncio.run(work()), "all")


def test_perplexity_is_exp_of_the_mean_loss_per_token(server: Server, tmp_path: Path) -> None:
    """The test server gives every token but the first half a nat per character."""
    from openai_server import TOKEN

    model = OpenAI(name="base", url=server.url, api="completions")
    found = run(tmp_path, model)
    tokens = [TOKEN.findall(text) for text in TEXTS]
    loss = sum(0.5 * len(token) for one in tokens for token in one[1:])
    count = sum(len(one) - 1 for one in tokens)
    assert found["perplexity"].value == pytest.approx(math.exp(loss / count), rel=1e-9)
    size = sum(len(text.encode()) for text in TEXTS)
    assert found["bits_per_byte"].value == pytest.approx(loss / size / math.log(2), rel=1e-9)
    assert found["perplexity"].interval and found["perplexity"].n == 3
    sent = server.last()["body"]
    assert sent["echo"] is True and sent["max_tokens"] == 1
    asked = server.stats()["requests"]
    assert run(tmp_path, model)["perplexity"].value == found["perplexity"].value
    assert server.stats()["requests"] == asked, "scores are in the response store"


def test_the_gap_is_the_first_model_minus_the_second(
    scripted: Callable[..., tuple[Context, Scripted]],
) -> None:
    small, _ = scripted(lambda request: scores_to_text([-2.0, -2.0]))
    large, _ = scripted(lambda request: scores_to_text([-1.5, -1.5]))
    large.open(None).backend.identity = "another"  # type: ignore[misc]
    context = Context(open=lambda one: small.open(None) if one is None else large.open(None))
    config = Config(against=OpenAI(name="x", url="http://x/v1"))
    found = by_name(asyncio.run(measure({"all": sample()}, config, context)), "all")
    assert found["perplexity_gap"].value == pytest.approx(math.exp(2) - math.exp(1.5))


def test_a_model_that_cannot_score_is_one_line(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="need api: completions"):
        run(tmp_path, OpenAI(name="chat", url=server.url))


def test_a_text_that_fails_is_counted_and_left_out(server: Server, tmp_path: Path) -> None:
    server.fault("matching", text="Third", fault={"kind": "status", "status": 413, "message": "too long"})
    found = run(tmp_path, OpenAI(name="base", url=server.url, api="completions"))
    assert found["perplexity"].n == 2 and "1 could not be scored" in found["perplexity"].note
