"""Near-duplicates among rows: the first in order stays, exactly the planted ones go."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaven.clean import duplicates
from leaven.clean.base import Place
from leaven.clean.duplicates import NearDuplicates
from leaven.corpus.shingles import jaccard, shingle_all
from leaven.document import Document


def kept(texts: list[str], **options: float) -> tuple[list[int], NearDuplicates]:
    rows = [((i // 10, i % 10), Document(text=text, id=f"d{i}")) for i, text in enumerate(texts)]

    def again() -> Iterator[tuple[Place, Document]]:
        return iter(rows)

    one = NearDuplicates(NearDuplicates.Config.model_validate(options))
    one.survey(again)
    return [i for i, (place, row) in enumerate(rows) if one.check(row, place).keep], one


def test_planted_twins_of_recorded_answers_are_found_exactly(children: list[Document]) -> None:
    texts = [row.text for row in children]
    twins = {}
    for i in range(0, len(children), 5):
        words = texts[i].split()
        words[len(words) // 2] = "changed"
        twins[len(texts)] = i
        texts.append(" ".join(words).upper())
    found, one = kept(texts)
    assert found == list(range(len(children)))
    row = Document(text=texts[-1], id="x")
    verdict = one.apply(row, ((len(texts) - 1) // 10, (len(texts) - 1) % 10))
    assert row.metadata["checks"]["near_duplicates"]["twin"] == f"d{twins[len(texts) - 1]}"
    assert 0.9 < verdict.value < 1 and verdict.detail.startswith("Jaccard 0.9")
    assert one.report()["rejected"] == len(twins)


@given(st.lists(st.lists(st.sampled_from("abcd"), max_size=7), max_size=14))
def test_the_same_as_going_through_the_rows_one_by_one(made: list[list[str]]) -> None:
    texts = [" ".join(words) for words in made]
    arrays = list(shingle_all(texts, 2))
    expected: list[int] = []
    for j, array in enumerate(arrays):
        if not any(jaccard(arrays[i], array) >= 0.8 for i in expected):
            expected.append(j)
    assert kept(texts, n=2, threshold=0.8)[0] == expected


def test_copies_are_compared_with_the_first_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_SIGNED_AT_ONCE", 7)
    texts = ["one two three four five six seven", "", "eight nine"] * 30 + [""]
    found, one = kept(texts)
    assert found == sorted({0, 2, *range(1, 90, 3), 90})
    assert one.report() == {"compared_pairs": 58, "rejected": 58}


def test_a_twin_of_a_rejected_row_is_held_against_the_kept_one() -> None:
    base = [f"w{i}" for i in range(60)]
    near = [*base[:30], "other", *base[31:]]
    far = [*near[:10], "new", *near[11:]]
    texts = [" ".join(words) for words in (base, near, near, far)]
    found, one = kept(texts, threshold=0.75)
    assert found == [0, 3], "far resembles near, which is gone, but not base"
    assert one.check(Document(text=texts[2], id="x"), (0, 2)).facts == {"twin": "d0"}


def test_no_rows() -> None:
    assert kept([])[0] == []
