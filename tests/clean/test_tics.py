"""Stock phrases, and phrases found in the output itself; formats, names and terms are not tics."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

from leaven.clean.base import Place, Sources
from leaven.clean.tics import Tics
from leaven.document import Document

PLAIN = "The pump stands behind the shed and is filled with oil once a week. " * 4


def surveyed(one: Tics, documents: list[Document], sources: Any) -> Tics:
    def rows() -> Iterator[tuple[Place, Document]]:
        return (((0, i), document) for i, document in enumerate(documents))

    one.open(sources)
    one.survey(rows)
    return one


def test_stock_phrases_are_counted() -> None:
    one = Tics()
    assert one.check(Document(text=PLAIN, id="a")).value == 0
    twice = "Please note that it rains. Let us delve into the rich tapestry of pumps. " + PLAIN
    found = one.check(Document(text=twice, id="b"))
    assert not found.keep and found.value == 3
    assert found.facts["found"] == ["Please note that", "Let us delve into", "the rich tapestry"]
    assert one.check(Document(text="It’s important to note that it rains. " + PLAIN, id="c")).value == 1  # noqa: RUF001
    assert one.check(Document(text="It’s important to note that it rains. " + PLAIN, id="c")).keep  # noqa: RUF001
    short = one.check(Document(text="Please note that it rains.", id="d"))
    assert not short.keep and short.facts["share"] == 0.6
    strict = Tics(Tics.Config(max_count=0))
    assert not strict.check(Document(text="It plays a crucial role in it. " + PLAIN, id="e")).keep


def many(families: int, extra: Callable[[int], str]) -> tuple[list[Document], list[Document]]:
    """Sources of random words and four children each, with `extra` in every child."""
    draw = random.Random(1)
    vocabulary = [f"term{i}" for i in range(4000)]
    sources, children = [], []
    for family in range(families):
        sources.append(Document(text=" ".join(draw.choices(vocabulary, k=400)), id=f"s{family}"))
        for number in range(4):
            words = draw.choices(vocabulary, k=150)
            text = f"{' '.join(words[:70])} {extra(family)} {' '.join(words[70:])}"
            children.append(
                Document(text=text, id=f"c{family}-{number}", metadata={"sources": [f"s{family}"]})
            )
    return sources, children


def test_a_phrase_of_many_families_is_found_and_counted() -> None:
    sources, children = many(40, lambda _: "Now this teaches all of us a lesson of lasting worth, friends.")
    one = surveyed(Tics(Tics.Config(max_count=0)), children, sources)
    report = one.report()
    assert report["ngrams"] == 8  # the 5-grams of 12 words
    assert "this teaches all of us" in {entry["phrase"] for entry in report["most_frequent"]}
    assert all(entry["rows"] == 160 and entry["families"] == 40 for entry in report["most_frequent"])
    found = one.check(children[0])
    assert not found.keep and found.value == 1, "overlapping n-grams are one tic"
    assert found.facts["found"] == ["now this teaches all of us a lesson of lasting worth friends"]
    assert one.check(Document(text=PLAIN, id="x")).keep


def test_headings_terms_of_one_family_and_phrases_of_the_sources_are_not_tics() -> None:
    def extra(family: int) -> str:
        name = f"the old interplanetary hauling company number x{family} of mars"
        return f"\n### Discussion of this text in relation to pumps\n{name} made by the grace of god and men"

    sources, children = many(40, extra)
    for source in sources[::4]:
        source.text += " of mars made by the grace of god and men"
    report = surveyed(Tics(), children, sources).report()
    # Names differ from family to family except for their beginning, which is a tic of these texts indeed.
    assert {entry["phrase"] for entry in report["most_frequent"]} == {
        "the old interplanetary hauling company",
        "old interplanetary hauling company number",
    }


def test_the_recorded_answers_have_none(sources: Sources, children: list[Document]) -> None:
    one = surveyed(Tics(), children, sources)
    assert one.report()["ngrams"] == 0
    assert all(one.check(row).keep for row in children)
