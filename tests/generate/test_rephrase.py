"""Rephrasing on the recorded stories."""

from __future__ import annotations

from typing import Any, get_args

from leaven.generate.rephrase import STEPS, Style
from leaven.stage import read_stage


def test_one_text_per_style(expand: Any, recorded: list[dict[str, Any]]) -> None:
    manifest, folder = expand("rephrase", styles=("easy", "hard", "qa"))
    rows = list(read_stage(folder))
    assert manifest["counts"] == {
        "read": 24, "kept": 24, "rejected": 0, "tokens": sum(row.metadata["tokens"] for row in rows),
        "documents_read": 8, "documents_expanded": 8, "documents_rejected": 0,
    }  # fmt: skip
    expected = {
        (r["doc_id"], r["step"]): r["response"].strip()
        for r in recorded
        if r["method"] == "rephrase" and r["step"] != "medium"
    }
    assert {(row.metadata["sources"][0], row.metadata["step"]): row.text for row in rows} == expected


def test_a_second_sample_that_nobody_recorded_is_a_reject_not_a_copy(expand: Any) -> None:
    manifest, folder = expand("rephrase", styles=("easy",), samples=2)
    assert (manifest["counts"]["kept"], manifest["reasons"]) == (8, {"refused by server": 8})
    assert {row.metadata["sample"] for row in read_stage(folder, "rejected")} == {1}


def test_every_style_has_its_prompt() -> None:
    assert set(get_args(Style)) == set(STEPS)
