"""Shared n-grams with evaluation files of every kind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from leaven.clean import parse_filters
from leaven.clean.decontaminate import Decontaminate
from leaven.document import Document
from leaven.errors import UsageError

QUESTION = "Which of the two brothers kept the light on the northern reef in winter?"


def opened(path: Path, **options: object) -> Decontaminate:
    one = Decontaminate(Decontaminate.Config.model_validate({"files": [path], **options}))
    one.open()
    return one


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    rows = [
        {
            "question": QUESTION,
            "options": [{"text": "The elder one who came home from the sea in May"}, "Ann"],
            "n": 3,
        },
        {"question": "Who?", "source": "a passage that everybody is free to train on as they like"},
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def test_shared_ngrams_are_found_and_recorded(questions: Path) -> None:
    one = opened(questions)
    row = Document(text="They asked: which of the two Brothers kept the LIGHT, then? Nobody knew.", id="d")
    assert one.filter(row) == (False, "decontaminate")
    check = row.metadata["checks"]["decontaminate"]
    assert check == {"value": "which of the two brothers kept the light", "keep": False, "matches": 1}
    assert one.check(Document(text="which of the two brothers kept the lamp", id="d")).keep
    nested = Document(text="It was the elder one who came home from the sea.", id="d")
    assert not one.check(nested).keep
    assert one.report()["strings"] == 5 and one.report()["too_short_to_match"] == 2
    assert opened(questions, n=13).check(row).keep


def test_fields_choose_what_is_protected(questions: Path) -> None:
    trained = Document(text="a passage that everybody is free to train on as they like", id="d")
    assert not opened(questions).check(trained).keep
    assert opened(questions, fields=["question", "options"]).check(trained).keep


def test_text_files_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "held_out.txt"
    path.write_text("one two three four five\n\nsix seven eight nine ten\n")
    one = opened(path, n=5)
    assert not one.check(Document(text="Six, seven, eight, nine, ten!", id="d")).keep
    assert one.check(Document(text="three four five six seven", id="d")).keep


def test_errors_name_file_field_and_fix(questions: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no field 'questions'; did you mean 'question'\?"):
        opened(questions, fields=["questions"])
    with pytest.raises(UsageError, match=r"none\.jsonl: No such file"):
        opened(tmp_path / "none.jsonl")
    with pytest.raises(UsageError, match="has 30 words, so nothing could match; lower n"):
        opened(questions, n=30)
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"a": "b"}\n\n{"a": \n')
    with pytest.raises(UsageError, match=r"broken\.jsonl, line 3: not JSON"):
        opened(broken)
    broken.write_text("[1]\n")
    with pytest.raises(UsageError, match="line 1: must be a JSON object"):
        opened(broken)
    with pytest.raises(UsageError, match="files"):
        parse_filters(["decontaminate"])


def test_paths_start_at_the_plan(questions: Path) -> None:
    found = parse_filters([{"decontaminate": {"files": ["questions.jsonl"]}}], questions.parent)
    assert list(found[0].files()) == [questions]
