"""Lexical figures against their definitions written out, and the relations that must hold on real text."""

from __future__ import annotations

import asyncio
import gzip
import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from measuring import by_name
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics.pairwise import cosine_similarity

from leaven.corpus.shingles import word_hashes_all
from leaven.document import Document
from leaven.measure.base import Context, Figure, Sample
from leaven.measure.lexical import (
    Config,
    _printed,
    _short_shares,
    compression_ratio,
    distinct_share,
    measure,
    ngram_diversity,
    ngram_overlap,
    self_repetition,
    tfidf_dissimilarity,
    type_token_ratio,
)

words = st.lists(st.sampled_from(["the", "red", "bag", "fell", "Bag", "a", "über", "x,"]), max_size=12)
corpora = st.lists(words.map(" ".join), min_size=1, max_size=6)


def grams(text: str, n: int) -> list[tuple[str, ...]]:
    parts = text.split()
    return [tuple(parts[i : i + n]) for i in range(len(parts) - n + 1)]


def hashed(texts: Sequence[str]) -> Any:
    return list(word_hashes_all(texts, exact=True)), np.arange(len(texts)) % 20


@given(corpora)
def test_ngram_diversity_is_distinct_over_all_inside_documents(texts: list[str]) -> None:
    expected = 0.0
    for n in range(1, 5):
        every = [gram for text in texts for gram in grams(text, n)]
        expected += len(set(every)) / len(every) if every else 0
    assert ngram_diversity(*hashed(texts))[0] == pytest.approx(expected, abs=1e-12)


@given(corpora)
def test_leaving_a_group_out_is_measuring_without_it(texts: list[str]) -> None:
    found, groups = hashed(texts)
    document = np.repeat(np.arange(len(found)), [len(one) for one in found])
    _, without = distinct_share(np.concatenate(found), document, groups, 2)
    assert len(texts) == 1 or len(without) == len(texts)
    for group, value in enumerate(without):
        kept = [gram for i, text in enumerate(texts) if groups[i] != group for gram in grams(text, 2)]
        if kept:
            assert value == pytest.approx(len(set(kept)) / len(kept))


@given(corpora, st.integers(1, 3))
def test_one_sort_for_three_lengths_gives_what_three_sorts_give(texts: list[str], most: int) -> None:
    found, groups = hashed(texts)
    every, document = np.concatenate(found), np.repeat(np.arange(len(found)), [len(one) for one in found])
    together = _short_shares(every, document, groups, most)
    for n, (share, without) in enumerate(together, 1):
        alone = distinct_share(every, document, groups, n)
        assert share == alone[0]
        assert without == pytest.approx(alone[1], nan_ok=True)


@given(corpora)
def test_self_repetition_in_both_definitions(texts: list[str]) -> None:
    unique = [set(grams(text, 4)) for text in texts]
    users = Counter(gram for one in unique for gram in one)
    package = [math.log(sum(users[gram] for gram in one) - len(one) + 1) for one in unique]
    printed = [
        math.log(len(one) * sum(users[gram] - 1 + 1 for gram in one)) if one else 0.0 for one in unique
    ]
    assert self_repetition(*hashed(texts))[0] == pytest.approx(np.mean(package), abs=1e-9)
    assert self_repetition(*hashed(texts), _printed)[0] == pytest.approx(np.mean(printed), abs=1e-9)


def test_compression_is_gzips_and_once() -> None:
    texts = ["The bag fell. " * 30, "Another text about nothing at all, which repeats little."]
    joined = " ".join(texts).encode()
    assert compression_ratio(texts, np.arange(2))[0] == pytest.approx(
        len(joined) / len(gzip.compress(joined)), abs=1e-12
    )


def test_tfidf_dissimilarity_is_the_mean_over_all_pairs(stories: list[dict[str, Any]]) -> None:
    texts = [row["text"] for row in stories]
    matrix = cosine_similarity(TfidfVectorizer().fit_transform(texts))
    mean = (matrix.sum() - np.trace(matrix)) / (len(texts) * (len(texts) - 1))
    assert tfidf_dissimilarity(texts, np.arange(8))[0] == pytest.approx(1 - mean, abs=1e-12)


def test_type_token_ratio_ignores_case_and_punctuation() -> None:
    texts = ["The bag, the BAG.", "A bag!"]
    assert type_token_ratio(list(word_hashes_all(texts)), np.arange(2))[0] == pytest.approx(3 / 6)


def test_overlap_counts_every_occurrence_and_divides_by_words() -> None:
    source = Document(text="One two three. Four!", id="s")
    row = Document(text="one two one two five", id="c", metadata={"sources": ["s"]})
    lost = Document(text="one two", id="x", metadata={"sources": ["gone"]})
    hits, total, units = ngram_overlap(Sample("all", [row, lost], sources={"s": source}), 2)
    assert (hits.tolist(), total.tolist(), units) == ([2], [5], ["s"])


def figures(columns: dict[str, Sample], **config: Any) -> list[Figure]:
    return asyncio.run(measure(columns, Config(**config), Context()))


def sample(texts: Sequence[str], name: str = "all") -> Sample:
    return Sample(name, [Document(text=text, id=f"{i}") for i, text in enumerate(texts)])


DIVERSITY = {
    "ngram_diversity": 1, "type_token_ratio": 1, "tfidf_dissimilarity": 1, "self_repetition": -1,
    "self_repetition_001": -1, "compression_ratio": -1, "duplicate_rate": -1,
}  # fmt: skip


def test_a_corpus_that_repeats_itself_is_less_diverse_by_every_figure(stories: list[dict[str, Any]]) -> None:
    paragraphs = [p for row in stories for p in row["text"].split("\n\n") if len(p.split()) > 15][:60]
    once = by_name(figures({"all": sample(paragraphs)}), "all")
    twice = by_name(figures({"all": sample(paragraphs * 2)}), "all")
    for name, sign in DIVERSITY.items():
        assert sign * twice[name].value < sign * once[name].value, name
        assert (once[name].better == "higher") == (sign > 0)


def test_the_order_of_documents_decides_nothing(stories: list[dict[str, Any]]) -> None:
    paragraphs = [p for row in stories for p in row["text"].split("\n\n")][:60]
    shuffled = random.Random(1).sample(paragraphs, len(paragraphs))
    first, second = (by_name(figures({"all": sample(one)}), "all") for one in (paragraphs, shuffled))
    for name in set(DIVERSITY) - {"compression_ratio"}:  # gzip sees 32 KB at a time, in order
        assert first[name].value == pytest.approx(second[name].value, abs=1e-9), name


def test_strict_shares_most_with_its_source_and_relaxed_least(mga_columns: dict[str, Sample]) -> None:
    found = figures(mga_columns)
    for n in (4, 8):
        strict, base, relaxed = (
            by_name(found, column)[f"ngram_overlap_{n}"].value for column in ("strict", "base", "relaxed")
        )
        assert strict > base > relaxed


def test_figures_that_depend_on_the_amount_are_taken_on_the_same_amount(
    stories: list[dict[str, Any]],
) -> None:
    texts = [row["text"] for row in stories]
    columns = {"all": sample(texts), "part": sample(texts[:3], "part")}
    found = figures(columns)
    whole, part = (by_name(found, name)["ngram_diversity"] for name in columns)
    assert whole.matched and whole.note == part.note
    assert whole.value == part.value, "the first three documents of the whole are the part"
    assert by_name(found, "all")["tfidf_dissimilarity"].n == 8


def test_sources_that_are_too_few_are_left_out_of_the_common_amount() -> None:
    texts = [f"Text number {i} says {i * 7} and no more." for i in range(30)]
    found = figures({"all": sample(texts), "source": sample(texts[:2], "source")})
    assert "ngram_diversity" not in by_name(found, "source")
    assert by_name(found, "all")["ngram_diversity"].n == 30


def test_one_document_has_figures_without_intervals() -> None:
    found = by_name(figures({"all": sample(["A single text about one bag."])}), "all")
    assert found["ngram_diversity"].value == 4 and found["ngram_diversity"].interval is None
    assert "tfidf_dissimilarity" not in found and found["context_length"].value == 6


@pytest.mark.parametrize("text", ["", "...", "\ud83d half a pair", "日本語の文", " "])
def test_odd_texts_are_measured(text: str) -> None:
    found = by_name(figures({"all": sample([text, "Two words."])}), "all")
    assert {"ngram_diversity", "compression_ratio", "context_length"} <= set(found)


def test_unique_genres_are_counted(mga_columns: dict[str, Sample]) -> None:
    rows = [
        Document(text=f"Text {i}.", id=str(i), metadata={"variables": {"genre": g, "audience": a}})
        for i, (g, a) in enumerate([("essay", "all"), ("essay", "few"), ("song", "all")])
    ]
    found = by_name(figures({"all": Sample("all", rows)}), "all")
    counts = [found[f"unique_{name}"].value for name in ("genres", "audiences", "pairs")]
    assert counts == [2, 2, 3]
