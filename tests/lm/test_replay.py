"""Recorded answers in a model's place."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from leaven.errors import UsageError
from leaven.lm.base import Origin, Refused, Request, Sampling
from leaven.lm.replay import Config, Replay

ROW: dict[str, Any] = {
    "doc_id": "d",
    "method": "mga",
    "step": "pairs",
    "variables": {"genre": "essay"},
    "response": "recorded text",
}


def replay(folder: Path, *rows: dict[str, Any] | str) -> Replay:
    path = folder / "answers.jsonl"
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("\n".join(lines), encoding="utf-8")
    return Config(path=path).open()


def ask(backend: Replay, document: str = "d", step: str = "pairs", sample: int = 0, **variables: Any) -> str:
    origin = Origin(document, "mga", step, variables)
    request = Request((("user", "Any prompt."),), Sampling(), sample=sample, origin=origin)
    return asyncio.run(backend.generate(request)).text


def test_a_row_answers_what_has_its_document_step_variables_and_sample(tmp_path: Path) -> None:
    other = {**ROW, "variables": {"genre": "letter"}, "response": "a letter"}
    second = {**ROW, "sample": 1, "response": "another essay"}
    backend = replay(tmp_path, ROW, "", other, second)
    assert ask(backend, genre="essay") == "recorded text"
    assert ask(backend, genre="essay", derived="not recorded") == "recorded text"
    assert ask(backend, genre="letter") == "a letter"
    assert ask(backend, genre="essay", sample=1) == "another essay"
    assert backend.variables("d", "mga", "pairs") == [
        {"genre": "essay"},
        {"genre": "letter"},
        {"genre": "essay"},
    ]


def test_what_is_not_recorded_is_refused_and_named(tmp_path: Path) -> None:
    backend = replay(tmp_path, ROW)
    for wrong in ({"document": "e"}, {"step": "judge"}, {"sample": 1}, {"genre": "song"}, {}):
        with pytest.raises(Refused, match="nothing recorded for document"):
            ask(backend, **{"genre": "essay", **wrong} if wrong else {})


def test_answers_are_labelled_estimated_and_cost_nothing(tmp_path: Path) -> None:
    backend = replay(tmp_path, ROW)
    request = Request(
        (("user", "x" * 400),), Sampling(), origin=Origin("d", "mga", "pairs", ROW["variables"])
    )
    answer = asyncio.run(backend.generate(request))
    assert answer.usage.estimated and answer.usage.prompt == 100 and not backend.paid
    assert backend.model == "recorded"


def test_identity_is_the_content_of_the_recording(tmp_path: Path) -> None:
    first = replay(tmp_path, ROW).identity
    assert replay(tmp_path, ROW).identity == first
    assert replay(tmp_path, {**ROW, "response": "changed"}).identity != first


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{broken", r"answers.jsonl:2: broken JSON"),
        ('{"doc_id": "d", "method": "mga"}', r"answers.jsonl:2: missing response, step, variables"),
        ("[1]", r"answers.jsonl:2: not a JSON object"),
        ('{"variables": "essay"}', r"answers.jsonl:2: not a JSON object with an object of variables"),
    ],
)
def test_a_bad_recording_is_named_by_its_line(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        replay(tmp_path, ROW, line)


def test_a_line_separator_inside_a_text_ends_no_row(tmp_path: Path) -> None:
    row = json.dumps({**ROW, "response": "one\u2028two"}, ensure_ascii=False)
    assert ask(replay(tmp_path, row), genre="essay") == "one\u2028two"


def test_a_missing_recording_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere.jsonl: No such file"):
        Config(path=tmp_path / "nowhere.jsonl").open()
