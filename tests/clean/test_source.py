"""Copying and coverage on the recorded answers: light editing is seen, lost subjects are seen."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from statistics import median

import pytest

from leaven.clean.base import Sources
from leaven.clean.source import Copying, Coverage
from leaven.document import Document


def test_light_editing_is_measured_as_copying(sources: Sources, children: list[Document]) -> None:
    one = Copying()
    one.open(sources)
    shares: dict[str, list[float]] = defaultdict(list)
    for row in children:
        shares[row.metadata["step"]].append(one.check(row).value)
    strict = shares.pop("reformulate_strict")
    assert max(map(max, shares.values())) < 0.01
    assert median(strict) > 0.05 and max(strict) > 0.2
    assert all(one.check(row).keep for row in children if row.metadata["step"] == "reformulate_base")


def test_copying_counts_shingles(sources: Sources, of_source: Callable[[str], Document]) -> None:
    one = Copying(Copying.Config(n=3, max_share=0.5))
    one.open(sources)
    words = next(iter(sources)).text.split()[:10]
    whole = one.check(of_source(" ".join(words).upper()))
    assert (whole.keep, whole.value) == (False, 1.0) and "100%" in whole.detail
    half = one.check(of_source(" ".join([*words, *(f"new{c}" for c in "abcdefghij")])))
    assert half.value == pytest.approx(8 / 18, abs=1e-4) and half.keep
    assert one.check(of_source("too short")).value is None


def test_every_source_of_a_document_counts(sources: Sources) -> None:
    one = Copying()
    one.open(sources)
    first, second = list(sources)[:2]
    both = Document(text=second.text, id="x", metadata={"sources": [first.id, second.id]})
    assert one.check(both).value == 1.0
    both.text = f"{first.text}\n{second.text}"
    assert one.check(both).value > 0.97, "a text pasted from two sources is copied as a whole"


def test_coverage_tells_a_text_from_one_of_another_source(sources: Sources, children: list[Document]) -> None:
    one = Coverage()
    one.open(sources)
    ids = [source.id for source in sources]
    faithful = [row for row in children if row.metadata["step"] != "reformulate_relaxed"]
    assert all(one.check(row).keep for row in faithful)
    relaxed = [row for row in children if row.metadata["step"] == "reformulate_relaxed"]
    assert sum(not one.check(row).keep for row in relaxed) > len(relaxed) / 2
    for row in faithful:
        row.metadata["sources"] = [ids[(ids.index(row.metadata["sources"][0]) + 1) % len(ids)]]
    strangers = [one.check(row) for row in faithful]
    assert sum(not found.keep for found in strangers) > 0.9 * len(strangers)
    assert all(found.detail for found in strangers if not found.keep)


def test_keywords_are_the_corpus_rare_and_the_document_frequent(sources: Sources) -> None:
    one = Coverage(Coverage.Config(keywords=10))
    one.open(sources)
    keywords = one.keywords(next(iter(sources)).text)
    assert {"queazy", "asteroid"} <= keywords and len(keywords) == 10
    assert not keywords & {"the", "and", "with", "said"}
