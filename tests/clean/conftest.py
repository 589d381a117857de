"""The recorded answers of the example stories as a finished corpus and a finished generate stage."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from leaven.clean.base import Sources
from leaven.document import Document, child
from leaven.stage import Stage, shards

STORIES = Path(__file__).parents[2] / "examples" / "stories"


def write_stage(folder: Path, by_shard: Sequence[Sequence[Document]], version: int = 0) -> Path:
    stage = Stage(folder, {"version": version}, {})
    stage.prepare()
    for number, documents in enumerate(by_shard):
        stage.write(number, documents, [], read=len(documents))
    stage.finish()
    return folder


def story_sources() -> list[Document]:
    lines = (STORIES / "documents.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        Document(text=row["text"], id=row["id"], metadata={"title": row["title"]})
        for row in map(json.loads, lines)
    ]


def story_children() -> list[Document]:
    """All recorded prose: rephrasings, EntiGraph's discussions, MGA's three kinds of reformulation."""
    sources = {source.id: source for source in story_sources()}
    rows = map(json.loads, (STORIES / "answers.jsonl").read_text(encoding="utf-8").splitlines())
    return [
        child(
            sources[row["doc_id"]],
            row["response"],
            method=row["method"],
            step=row["step"],
            variables=row["variables"],
            tokens=1,
        )
        for row in rows
        if row["method"] in ("rephrase", "entigraph", "mga")
        and row["step"] not in ("entities", "pairs", "judge")
    ]


@pytest.fixture
def stories(tmp_path: Path) -> Path:
    sources = story_sources()
    return write_stage(tmp_path / "corpus", [sources[:4], sources[4:]])


@pytest.fixture
def sources(stories: Path) -> Sources:
    return Sources(shards(stories), stories)


Write = Callable[..., Path]


@pytest.fixture
def written(tmp_path: Path) -> Write:
    """Write documents as a finished generate stage of so many shards."""

    def write(documents: Sequence[Document], pieces: int = 2, name: str = "written", **options: Any) -> Path:
        return write_stage(tmp_path / name, [documents[i::pieces] for i in range(pieces)], **options)

    return write


@pytest.fixture
def children() -> list[Document]:
    return story_children()


@pytest.fixture
def of_source() -> Callable[[str], Document]:
    """A document with this text, written from the first story."""
    first = story_sources()[0]
    return lambda text: child(first, text, method="m", step="s", variables={"text": text})
