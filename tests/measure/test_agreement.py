"""A judge beside people: kappa from a label file, and a file to fill in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from leaven.document import Document
from leaven.errors import UsageError
from leaven.measure._runner import _write_table
from leaven.measure.agreement import agree, template


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """A measure folder with verdicts of two judges on six texts."""
    rows: list[dict[str, Any]] = []
    for i, (score, novel) in enumerate(
        zip([5, 4, 3, 2, 1, 5], [True, True, False, False, True, True], strict=True)
    ):
        common = {"id": f"t{i}", "item": "", "reason": "", "request": "", "column": "all"}
        rows += [
            {"judge": "consistency", "label": score, **common},
            {"judge": "novelty", "label": novel, **common},
        ]
    (tmp_path / "measure").mkdir()
    _write_table(tmp_path / "measure" / "verdicts.parquet", rows)
    return tmp_path / "measure"


def labels(folder: Path, *rows: Any) -> Path:
    path = folder.parent / "labels.jsonl"
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def label(judge: str, number: int, value: Any, annotator: str = "ada") -> dict[str, Any]:
    return {"judge": judge, "id": f"t{number}", "label": value, "annotator": annotator}


def test_full_agreement_is_one_and_its_opposite_below_chance(measured: Path) -> None:
    true = [True, True, False, False, True, True]
    path = labels(measured, *(label("novelty", i, value) for i, value in enumerate(true)))
    (found,) = agree(measured, path)
    assert (found.first, found.second, found.agreement.kappa, found.agreement.items) == (
        "judge",
        "ada",
        1.0,
        6,
    )
    opposite = labels(measured, *(label("novelty", i, not value) for i, value in enumerate(true)))
    agreement = agree(measured, opposite)[0].agreement
    assert agreement.observed == 0 and agreement.kappa == pytest.approx(-16 / 20)


def test_scores_are_also_weighted_by_their_distance(measured: Path) -> None:
    path = labels(measured, *(label("consistency", i, value) for i, value in enumerate([5, 4, 2, 2, 1, 4])))
    agreement = agree(measured, path)[0].agreement
    assert agreement.weighted is not None and agreement.weighted > agreement.kappa > 0.4
    assert agreement.table[(3, 2)] == 1 and agreement.interval is not None


def test_two_people_are_compared_with_the_judge_and_with_each_other(measured: Path) -> None:
    rows = [label("novelty", i, i % 2 == 0, name) for name in ("ada", "bob") for i in range(6)]
    found = agree(measured, labels(measured, *rows))
    assert [(one.first, one.second) for one in found] == [("judge", "ada"), ("judge", "bob"), ("ada", "bob")]
    assert found[2].agreement.kappa == 1


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"judge": "novelti", "id": "t0", "label": True}, "no verdicts of 'novelti'; did you mean 'novelty'"),
        ({"judge": "novelty", "label": True}, "line 1: missing id"),
        ({"judge": "novelty", "id": "other", "label": True}, "no text that label labelled was judged"),
        ({"judge": "novelty", "id": "t0", "label": None}, "no line has a label yet"),
        ("{broken", "line 1: not JSON"),
        ("[1]", "line 1: must be a JSON object"),
    ],
)
def test_a_bad_label_file_is_one_line(measured: Path, row: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        agree(measured, labels(measured, row))


def test_a_folder_without_verdicts_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no verdicts; measure with judges first"):
        agree(tmp_path, tmp_path / "labels.jsonl")


def test_the_template_hides_the_judges_answers_and_is_read_once_filled(measured: Path) -> None:
    texts = {f"t{i}": Document(text=f"Text {i}.", id=f"t{i}", metadata={"sources": ["s"]}) for i in range(6)}
    path = measured.parent / "to_label.jsonl"
    assert template(measured, texts, path, number=4) == 8
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert {row["judge"] for row in rows} == {"consistency", "novelty"}
    assert all(row["label"] is None and row["text"] == f"Text {row['id'][1:]}." for row in rows)
    assert not any("reason" in row for row in rows)
    filled = [row | {"label": True} for row in rows if row["judge"] == "novelty"]
    assert agree(measured, labels(measured, *filled))[0].agreement.items == 4
