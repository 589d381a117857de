"""Chunks: nothing lost, within the limit, even, and cut where a reader would pause."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaven.corpus.chunk import chunk_document, split_text
from leaven.document import Document


def words(texts: Sequence[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def characters(texts: Sequence[str]) -> list[int]:
    return [len(text) for text in texts]


def crowded(texts: Sequence[str]) -> list[int]:
    """A counter whose pieces do not add up: joined text costs more than its parts."""
    return [len(text.split()) + len(text.split()) // 3 for text in texts]


PIECES = st.sampled_from(
    [
        "word",
        "Mr. ",
        "end. ",
        "A",
        '"Yes!" ',
        "\n\n",
        "\n",
        " ",
        "\t\n \n",
        "HEADING",
        "中文。",
        "…",
        "\u00a0",
    ]
)
TEXTS = st.lists(PIECES, max_size=120).map("".join) | st.text(max_size=300)


@pytest.mark.parametrize("count", [words, characters, crowded])
@given(text=TEXTS, limit=st.integers(1, 40))
def test_nothing_is_lost_and_the_limit_holds(count, text: str, limit: int) -> None:  # type: ignore[no-untyped-def]
    parts = split_text(text, limit, count)
    assert parts == split_text(text, limit, count)
    place = 0
    for chunk, tokens in parts:
        found = text.index(chunk, place)
        assert not text[place:found].strip(), "only whitespace may be left out between chunks"
        place = found + len(chunk)
        assert [tokens] == count([chunk])
        assert tokens <= limit or len(chunk.split()) == 1
    assert not text[place:].strip()


@given(st.integers(1, 400), st.integers(10, 60))
def test_lengths_are_evened_out(number: int, limit: int) -> None:
    text = " ".join(f"Sentence {i}." for i in range(number))
    sizes = [tokens for _, tokens in split_text(text, limit, words)]
    assert max(sizes) - min(sizes) <= limit * 0.3 + 2
    assert len(sizes) <= -(-number // (limit // 2)), "no more chunks than whole sentences need"


def test_cuts_prefer_paragraphs_then_sentences() -> None:
    paragraph = "One two three. Four five six. Seven eight nine."
    assert [c for c, _ in split_text(f"{paragraph}\n\n{paragraph}", 10, words)] == [paragraph, paragraph]
    halves = [c for c, _ in split_text("Mr. Smith went home early. Then he slept very well.", 6, words)]
    assert halves == ["Mr. Smith went home early.", "Then he slept very well."]


def test_heading_stays_with_what_it_heads_and_doubled_breaks_do_not_cut_a_sentence() -> None:
    body = "It was a dark night. Nobody saw the ship. It came down slowly."
    text = f"{body}\n\nCHAPTER TWO\n\n{body}\n\n{body}"
    chunks = [c for c, _ in split_text(text, 22, words)]
    assert not any(c.endswith("CHAPTER TWO") for c in chunks)
    noisy = "He gave them more of\n\nan education than they\n\nexpected that day. "
    noisy += "They were all quite\n\npleased with it."
    assert [c for c, _ in split_text(noisy, 14, words)] == [
        "He gave them more of\n\nan education than they\n\nexpected that day.",
        "They were all quite\n\npleased with it.",
    ]


def test_a_word_longer_than_the_limit_stands_alone() -> None:
    assert split_text("ab " + "x" * 30 + " cd", 5, characters) == [("ab", 2), ("x" * 30, 30), ("cd", 2)]


def test_chunk_documents_carry_lineage() -> None:
    text = " ".join(f"Number {i} is here." for i in range(20))
    parent = Document(text=text, id="p", metadata={"title": "T", "author": "A", "year": 1})
    chunks = chunk_document(parent, 30, words)
    assert len(chunks) == 3 and len({c.id for c in chunks}) == 3
    assert [c.metadata["chunk"] for c in chunks] == [0, 1, 2]
    for chunk in chunks:
        expected = {"title": "T", "author": "A", "year": 1, "parent": "p", "chunks": 3, "sources": ["p"]}
        assert expected.items() <= chunk.metadata.items()
        assert chunk.metadata["tokens"] == words([chunk.text])[0] <= 30
    assert [c.id for c in chunk_document(Document(text=text, id="p"), 30, words)] == [c.id for c in chunks]
    assert chunk_document(Document(text=text, id="q"), 30, words)[0].id != chunks[0].id
    (whole,) = chunk_document(parent, 80, words)
    assert whole is parent and whole.metadata["tokens"] == 80 and "chunk" not in whole.metadata
