"""MGA on the recorded stories, and its answers' schemas on everything a model may send."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from leaven.generate.mga import STEPS, Judgement, pairs_schema
from leaven.stage import read_stage


def test_five_reformulations_per_document_each_traced_to_its_pair_and_judge(expand: Any) -> None:
    manifest, folder = expand("mga")
    rows = list(read_stage(folder))
    assert manifest["counts"]["kept"] == len(rows) == 8 * 5
    assert {row.metadata["score"] for row in rows} == {5}
    for row in rows:
        variables = row.metadata["variables"]
        assert variables["genre"] and variables["audience"] and variables["strictness"] == "base"
        assert len(row.metadata["sources"]) == 1 and len(row.metadata["request"]) == 40
        assert row.metadata["judge"] != row.metadata["request"]
    by_source = {row.metadata["sources"][0]: set() for row in rows}
    for row in rows:
        by_source[row.metadata["sources"][0]].add(row.metadata["variables"]["genre"])
    assert all(len(genres) == 5 for genres in by_source.values())


def test_relaxed_texts_judged_below_three_are_kept_as_rejects(
    expand: Any, recorded: list[dict[str, Any]]
) -> None:
    manifest, folder = expand("mga", first=2, strictness=("strict", "relaxed"))
    scores = [
        json.loads(row["response"])["A"]["score"]
        for row in recorded
        if row["step"] == "judge" and row["variables"]["strictness"] in ("strict", "relaxed")
    ]
    assert manifest["counts"]["kept"] == sum(score >= 3 for score in scores)
    assert manifest["reasons"] == {"judged below 3": sum(score < 3 for score in scores)}
    for row in read_stage(folder, "rejected"):
        assert row.text and row.metadata["score"] < 3 and row.metadata["detail"].startswith("score ")


def test_a_higher_cut_keeps_fewer(expand: Any) -> None:
    manifest, _ = expand("mga", first=2, strictness=("relaxed",), keep_score=4)
    assert manifest["counts"]["kept"] == 0
    assert manifest["counts"]["documents_rejected"] == 8


def test_too_few_pairs_reject_the_document_and_keep_the_answer(
    expand: Any, recorded: list[dict[str, Any]], tmp_path: Path
) -> None:
    rows = [dict(row) for row in recorded if row["method"] == "mga"]
    victim = rows[0]["doc_id"]
    for row in rows:
        if row["doc_id"] == victim and row["step"] == "pairs":
            answer = json.loads(row["response"])
            del answer["genre_4"], answer["audience_4"]
            row["response"] = json.dumps(answer)
    recording = tmp_path / "recording.jsonl"
    recording.write_text("".join(json.dumps(row) + "\n" for row in rows))
    manifest, folder = expand("mga", recording=recording)
    assert manifest["counts"]["documents_rejected"] == 1 and manifest["counts"]["kept"] == 7 * 5
    (reject,) = read_stage(folder, "rejected")
    assert reject.metadata["reason"] == "invalid json" and "genre_4" in reject.metadata["detail"]
    assert reject.metadata["sources"] == [victim] and "genre_1" in reject.text


@given(st.integers(1, 8), st.integers(1, 8), st.text(min_size=1).filter(str.strip))
def test_a_pair_answer_needs_exactly_the_pairs_asked_for(asked: int, given_pairs: int, text: str) -> None:
    answer = {f"{kind}_{i}": text for i in range(1, given_pairs + 1) for kind in ("genre", "audience")}
    if given_pairs >= asked:
        assert pairs_schema(asked).model_validate(answer)
    else:
        with pytest.raises(ValidationError):
            pairs_schema(asked).model_validate(answer)


def test_blank_genres_are_no_genres() -> None:
    with pytest.raises(ValidationError):
        pairs_schema(1).model_validate({"genre_1": "  ", "audience_1": "all"})


@pytest.mark.parametrize(
    "answer", [{"score": 6}, {"score": 0}, {"analysis": "fine"}, {"A": 3}, {"score": "high"}]
)
def test_scores_outside_one_to_five_are_not_scores(answer: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Judgement.model_validate(answer)


def test_a_wrapped_judgement_is_unwrapped() -> None:
    assert Judgement.model_validate({"A": {"analysis": "x", "score": 4}}).score == 4


def test_every_reformulation_prompt_ends_with_what_varies() -> None:
    for strictness in ("base", "strict", "relaxed"):
        prompt = STEPS[f"reformulate_{strictness}"].prompt
        assert prompt.index("{genre}") > 0.6 * len(prompt), (
            "the fixed part must come first, for prefix caches"
        )
