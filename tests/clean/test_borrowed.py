"""datatrove's filters by name: they decide as datatrove does, offline."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from leaven.clean import parse_filters
from leaven.clean.base import Filter
from leaven.document import Document
from leaven.errors import UsageError

NAMES = ("gopher_quality", "gopher_repetition", "c4_quality")
PAGE = "The old pump stands behind the shed. It has to be filled with oil, and that is easy. " * 5
LOOP = "Buy the pump now\n" * 40


def made(name: str, **options: object) -> Filter:
    return parse_filters([{name: options}])[0]


@pytest.mark.parametrize("name", NAMES)
def test_recorded_answers_pass(name: str, children: list[Document]) -> None:
    one = made(name)
    assert all(one.check(row).keep for row in children)


def test_gopher_rejects_with_datatroves_reason() -> None:
    short = made("gopher_quality").check(Document(text="Too short.", id="d"))
    assert (short.keep, short.value) == (False, "gopher_short_doc")
    assert (
        made("gopher_quality", min_doc_words=1, min_stop_words=0)
        .check(Document(text="Too short.", id="d"))
        .keep
    )
    loop = made("gopher_repetition").check(Document(text=LOOP, id="d"))
    assert (loop.keep, loop.value) == (False, "dup_line_frac")
    ngrams = made("gopher_repetition").check(Document(text=PAGE, id="d"))
    assert (ngrams.keep, ngrams.value) == (False, "top_4_gram")


@pytest.mark.parametrize("name", NAMES)
def test_empty_text_is_rejected(name: str) -> None:
    assert made(name).check(Document(text=" \n", id="d")).value == "empty"


def test_c4_edits_the_text() -> None:
    row = Document(text=f"A heading\n{PAGE.strip()}[1]\nClick here to accept our use of cookies.\n", id="d")
    assert made("c4_quality").filter(row) is True
    assert row.text == PAGE.strip()
    assert row.metadata["checks"]["c4_quality"]["edited"] is True
    assert made("c4_quality").check(Document(text="Two lines. Only.", id="d")).value == "too_few_sentences"
    assert made("c4_quality").check(Document(text=PAGE + "{", id="d")).value != "passed"


def test_options_are_checked() -> None:
    with pytest.raises(UsageError, match=r"unknown option 'min_words'; did you mean 'min_doc_words'\?"):
        made("gopher_quality", min_words=3)
    with pytest.raises(UsageError, match="splitter"):
        made("c4_quality", splitter="nltk")


@pytest.mark.skipif(find_spec("spacy") is not None, reason="spaCy is installed")
@pytest.mark.parametrize("name", NAMES)
def test_missing_spacy_names_the_fix(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name}: splitter 'spacy' needs spaCy: pip install spacy"):
        made(name, splitter="spacy")


@pytest.mark.skipif(find_spec("spacy") is None, reason="needs spaCy")
@pytest.mark.parametrize("name", NAMES)
def test_spacy_works_offline(name: str, children: list[Document]) -> None:
    assert made(name, splitter="spacy").check(children[0]).keep
    assert not made(name, splitter="spacy").check(Document(text=LOOP, id="d")).keep
