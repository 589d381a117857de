"""Samples to measure, and a model that answers as a function says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from measuring import Answering, Scripted

from leaven.document import Document
from leaven.lm.client import LanguageModel
from leaven.lm.store import ResponseStore
from leaven.measure.base import Context, Sample


@pytest.fixture
def scripted(tmp_path: Path) -> Iterator[Callable[..., tuple[Context, Scripted]]]:
    """``scripted(answering)`` gives a context whose model answers so, on a real response store."""
    store = ResponseStore(tmp_path / "answers", "test")

    def make(answering: Answering, **context: Any) -> tuple[Context, Scripted]:
        backend = Scripted(answering)
        model = LanguageModel(backend, store)
        return Context(open=lambda config: model, **context), backend

    yield make
    store.close()


@pytest.fixture
def mga_columns(stories: list[dict[str, Any]], recorded: list[dict[str, Any]]) -> dict[str, Sample]:
    """The recorded reformulations in a column per strictness, pairs 1 and 2 only, with their sources."""
    sources = {row["id"]: Document(text=row["text"], id=row["id"]) for row in stories}
    columns: dict[str, list[Document]] = {"base": [], "strict": [], "relaxed": []}
    for row in recorded:
        strictness = row["step"].removeprefix("reformulate_")
        if row["method"] == "mga" and strictness in columns and row["variables"]["pair"] <= 2:
            identifier = f"{row['doc_id']}-{strictness}-{row['variables']['pair']}"
            metadata = {"sources": [row["doc_id"]], "method": "mga", "variables": row["variables"]}
            columns[strictness].append(Document(text=row["response"], id=identifier, metadata=metadata))
    assert {name: len(rows) for name, rows in columns.items()} == {"base": 16, "strict": 16, "relaxed": 16}
    found = {name: Sample(name, rows, sources=sources) for name, rows in columns.items()}
    return found | {"source": Sample("source", list(sources.values()))}
