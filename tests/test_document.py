"""The record: its ids, its lineage, and its way to disk and back."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaven.document import (
    Document,
    child,
    child_id,
    content_id,
    from_json,
    read_parquet,
    reject,
    to_json,
    write_parquet,
)  # fmt: skip

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
surrogates = st.text(st.characters(), max_size=20)  # any code point, halves of pairs too


@given(values | surrogates)
def test_json_is_read_back_and_is_the_same_for_equal_values(value: Any) -> None:
    assert from_json(to_json(value)) == value
    if isinstance(value, dict):
        assert to_json(dict(reversed(list(value.items())))) == to_json(value)


def test_ids_name_the_content_or_what_was_asked_for() -> None:
    assert content_id("text") == content_id("text") != content_id("text ")
    assert len(content_id("half a pair \ud83d")) == 32
    asked = (["d"], "mga", "pairs", {"genre": "essay", "audience": "all"})
    same = (["d"], "mga", "pairs", {"audience": "all", "genre": "essay"})
    assert child_id(*asked) == child_id(*same) != child_id(*asked, sample=1)
    others = [(["e"], *asked[1:]), (["d"], "x", *asked[2:]), (["d"], "mga", "x", asked[3])]
    assert len({child_id(*asked), *(child_id(*other) for other in others)}) == 4


def test_a_child_leads_to_its_source_and_inherits_only_its_names() -> None:
    source = Document(
        text="t", id="d", metadata={"title": "T", "author": "", "sources": ["x"], "method": "m", "url": "u"}
    )
    row = child(source, "written", method="mga", step="s", variables={"genre": "g"}, request="k", score=3)
    assert row.metadata == {
        "title": "T", "sources": ["d"], "method": "mga", "step": "s", "variables": {"genre": "g"},
        "sample": 0, "model": "", "request": "k", "tokens": 0, "score": 3,
    }  # fmt: skip


def test_children_of_two_pieces_of_one_row_lead_to_the_row_and_stay_apart() -> None:
    pieces = [Document(text="t", id=f"d-{i}", metadata={"row": "d"}) for i in range(2)]
    first, second = (child(piece, "w", method="m", step="s", variables={}) for piece in pieces)
    assert first.metadata["sources"] == second.metadata["sources"] == ["d"] and first.id != second.id


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
documents = st.builds(
    lambda text, identifier, title, variables, more: Document(
        text=text,
        id=identifier,
        metadata={"title": title, "sources": ["a", "b"], "variables": variables, "tokens": 3, **more},
    ),
    texts,
    texts,
    texts,
    st.dictionaries(texts, st.integers(-9, 9) | texts | st.lists(texts), max_size=3),
    st.dictionaries(st.sampled_from(["score", "url"]), st.integers(-9, 9) | texts),
)


@given(st.lists(documents, max_size=5))
def test_rows_come_back_from_parquet_as_they_were(rows: list[Document]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "new" / "0.parquet"
        assert write_parquet(path, rows) == len(rows)
        found = list(read_parquet(path))
        assert [(row.id, row.text, row.metadata) for row in found] == [
            (row.id, row.text, row.metadata) for row in rows
        ]
        assert [item.name for item in path.parent.iterdir()] == ["0.parquet"], "nothing half-written is left"


def test_rejects_keep_their_reason_as_columns(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    row = reject(Document(text="t", id="d", metadata={}), "too short", "3 words")
    write_parquet(tmp_path / "r.parquet", [row], rejected=True)
    table = pq.read_table(tmp_path / "r.parquet")
    assert table.column("reason").to_pylist() == ["too short"]
    assert next(read_parquet(tmp_path / "r.parquet")).metadata["detail"] == "3 words"


def test_a_failure_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "0.parquet"
    write_parquet(path, [Document(text="old", id="1")])

    def failing() -> Any:
        yield Document(text="new", id="2")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_parquet(path, failing())
    assert [row.text for row in read_parquet(path)] == ["old"]
