"""A corpus of the example stories, and a replayed model to expand it with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leaven.corpus import build_corpus
from leaven.corpus.read import Input
from leaven.corpus.tokens import load_tokenizer
from leaven.generate import load_method
from leaven.generate._runner import Job, generate
from leaven.lm import replay
from leaven.lm.client import LanguageModel
from leaven.lm.store import ResponseStore

STORIES = Path(__file__).parents[2] / "examples" / "stories"


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stories") / "corpus"
    build_corpus(Input(path=str(STORIES / "documents.jsonl")), folder)
    return folder


Expand = Callable[..., tuple[dict[str, Any], Path]]


@pytest.fixture
def expand(corpus: Path, tmp_path: Path) -> Expand:
    """Run a method over the stories with a recording; returns (manifest, folder)."""

    def run(
        method: str,
        recording: Path = STORIES / "answers.jsonl",
        chunk_tokens: int | None = None,
        **options: Any,
    ) -> tuple[dict[str, Any], Path]:
        async def work() -> dict[str, Any]:
            store = ResponseStore(tmp_path / "answers", "test")
            model = LanguageModel(replay.Config(path=recording).open(), store)
            try:
                found = load_method(method)
                job = Job(found, found.Config(**options), found.steps, chunk_tokens)
                count = load_tokenizer(str(corpus / "tokenizer.json")).count
                return await generate(job, corpus, tmp_path / "out", model, count)
            finally:
                store.close()

        return asyncio.run(work()), tmp_path / "out"

    return run


@pytest.fixture
def groups_file() -> Path:
    return STORIES / "groups.jsonl"
