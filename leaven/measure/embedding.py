"""Figures of meaning: how far texts spread, and how near they stay to their sources.

    heterogeneity          1 - mean cosine of all pairs, exact (paper 000, table 5; paper 002 calls it
                           diversity)
    pair_similarity        median cosine of pairs, with mean, least, greatest and a histogram (paper 002, 4.2)
    vendi_score            effective number of different texts: exp of the entropy of the eigenvalues of the
                           similarity matrix (Friedman & Dieng 2023)
    k_means_clusters       effective number of clusters occupied, clusters found on all columns together
                           (after paper 001, which names a k-means score and does not define it)
    reference_similarity   mean cosine to the own source (paper 000, table 5; paper 003, table B.1)
    random_similarity      mean cosine to the other sources, what reference_similarity must be seen against
    nearest_is_own_source  share of rows nearer to their own source than to any other

Beside the figures two tables are written: ``map``, all texts in two dimensions (t-SNE), source and written in
one plane; and ``similarity``, every text with its likeness to its own source and to the nearest one.
`vendi_score` and `k_means_clusters` grow with the number of texts, so all columns have the same number there.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from leaven.corpus import embed
from leaven.corpus.embed import Config as EmbeddingModel
from leaven.corpus.embed import Vectors
from leaven.corpus.locate import SOURCE
from leaven.document import Document
from leaven.measure.base import Columns, Context, Figure, Options, Sample, common_amount, ratio
from leaven.measure.pairs import mean_dissimilarity
from leaven.measure.statistics import groups_of, jackknife

EXACT_PAIRS = 5000  # texts up to which every pair is looked at
DRAWN_PAIRS = 2_000_000
_BLOCK = 1024


class Config(Options):
    """Options of the embedding figures.

    Args:
        model: the embedding model.
        clusters: of k-means; None is the square root of the number of texts.
        map: most texts on the map; 0 draws none.
    """

    model: EmbeddingModel = EmbeddingModel()
    clusters: int | None = Field(None, ge=2)
    map: int = Field(2000, ge=0)


Key = tuple[str, str]  # (id, text)
Rows = dict[Key, int]


def _key(document: Document) -> Key:
    return document.id, document.text


async def measure(columns: Columns, config: Config, context: Context) -> list[Figure]:
    """All embedding figures of every column."""
    embedder = embed.Embedder(config.model, context.cache)
    progress = partial(context.progress, "embedding")
    # Columns share documents, and two corpora may use one id for two texts.
    row_of: Rows = {}
    for sample in columns.values():
        for document in (*sample.documents, *sample.sources.values()):
            row_of.setdefault(_key(document), len(row_of))
    vectors = embedder.embed([text for _, text in row_of], progress)
    rows = {name: np.array([row_of[_key(d)] for d in one.documents]) for name, one in columns.items()}
    labels = _k_means(vectors, config.clusters, context.seed)
    least = common_amount({name: len(sample) for name, sample in columns.items()})
    found: list[Figure] = []
    for name, sample in columns.items():
        own = vectors[rows[name]]
        found += _spread(sample, own, context.seed)
        if len(sample) >= least:
            found += _counts(sample.first(least), own[:least], labels[rows[name]][:least], context.seed)
        if name != SOURCE:
            found += _to_source(sample, own, vectors, row_of, context)
    if config.map:
        context.tables["map"] = list(_map(columns, vectors, row_of, config.map, context.seed))
    return found


def _spread(sample: Sample, vectors: Vectors, seed: int) -> Iterator[Figure]:
    if len(sample) < 2:
        return
    make = partial(Figure, column=sample.name, n=len(sample), unit=sample.unit)
    value, interval = mean_dissimilarity(vectors, groups_of(sample.units, seed, most=100))
    yield make("heterogeneity", value=value, interval=interval, better="higher")
    details = pair_similarity(vectors, seed)
    note = "all pairs" if details["exact"] else f"{details['pairs']:,} pairs drawn"
    yield make("pair_similarity", value=details["median"], note=note, details=details, better="lower")


def _counts(sample: Sample, vectors: Vectors, labels: NDArray[np.int64], seed: int) -> Iterator[Figure]:
    """Figures that grow with the number of texts."""
    if len(sample) < 2:
        return
    groups = groups_of(sample.units, seed)
    note = f"of {len(sample):,} texts"
    make = partial(
        Figure, column=sample.name, n=len(sample), unit=sample.unit, matched=True, better="higher", note=note
    )
    value, replicates = vendi_score(vectors, groups)
    yield make("vendi_score", value=value, interval=jackknife(replicates, value))
    clusters = int(labels.max()) + 1
    counts = np.zeros((int(groups.max()) + 1, clusters))
    np.add.at(counts, (groups, labels), 1)
    value = effective_number(counts.sum(0))
    replicates = [effective_number(counts.sum(0) - one) for one in counts]
    yield make("k_means_clusters", value=value, interval=jackknife(replicates, value))


def _to_source(
    sample: Sample, own: Vectors, vectors: Vectors, row_of: Rows, context: Context
) -> Iterator[Figure]:
    kept = [i for i, source in enumerate(sample.source_of) if source is not None]
    if not kept:
        return
    units = [sample.units[i] for i in kept]
    make = partial(ratio, sample=sample, units=units, seed=context.seed)
    names = sorted(sample.sources)
    among = vectors[[row_of[_key(sample.sources[name])] for name in names]]
    place = {name: i for i, name in enumerate(names)}
    theirs = np.array([place[source.id] for source in sample.source_of if source is not None])
    written = own[kept]
    cosines = np.einsum("ij,ij->i", written, among[theirs], dtype=np.float64)
    levels = np.quantile(cosines, [0.05, 0.5, 0.95]).tolist()
    details = {"quantiles": dict(zip(("0.05", "0.5", "0.95"), levels, strict=True))}
    yield make("reference_similarity", numerators=cosines, details=details)
    if len(names) < 2:
        return
    others = (written @ among.sum(0, dtype=np.float64) - cosines) / (len(names) - 1)
    yield make("random_similarity", numerators=others, note=f"mean over {len(names) - 1:,} other sources")
    best, nearest = embed.nearest(written, among)
    if sample.part_of is None:
        context.tables.setdefault("similarity", []).extend(
            {
                "column": sample.name, "id": sample.documents[i].id, "source": names[own_row],
                "similarity": float(cosine), "nearest": names[row], "nearest_similarity": float(best_cosine),
            }
            for i, own_row, cosine, row, best_cosine in zip(
                kept, theirs.tolist(), cosines, nearest[:, 0].tolist(), best[:, 0], strict=True
            )
        )  # fmt: skip
    hits = (nearest[:, 0] == theirs).astype(float)
    note = f"among {len(names):,} sources"
    yield make("nearest_is_own_source", numerators=hits, better="higher", note=note)


def pair_similarity(vectors: Vectors, seed: int = 0) -> dict[str, Any]:
    """Mean, median, least and greatest cosine over pairs of different rows, and a histogram.

    Exact up to `EXACT_PAIRS` rows, else over `DRAWN_PAIRS` pairs drawn at random (``exact`` says which).

    Args:
        vectors: shape (rows, d), of unit length.
    """
    rows = len(vectors)
    exact = rows <= EXACT_PAIRS
    if exact:
        parts = []
        for start in range(0, rows, _BLOCK):
            block = vectors[start : start + _BLOCK] @ vectors.T
            keep = np.arange(rows)[None, :] > np.arange(start, start + len(block))[:, None]
            parts.append(block[keep])
        cosines = np.concatenate(parts)
    else:
        rng = np.random.default_rng(seed)
        first = rng.integers(rows, size=DRAWN_PAIRS)
        second = (first + rng.integers(1, rows, size=DRAWN_PAIRS)) % rows
        cosines = np.concatenate([
            np.einsum("ij,ij->i", vectors[first[at : at + 65_536]], vectors[second[at : at + 65_536]])
            for at in range(0, DRAWN_PAIRS, 65_536)
        ])  # fmt: skip
    counts, edges = np.histogram(cosines, 40, (-1, 1))
    return {
        "mean": float(cosines.mean(dtype=np.float64)), "median": float(np.median(cosines)),
        "min": float(cosines.min()), "max": float(cosines.max()), "pairs": len(cosines), "exact": exact,
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }  # fmt: skip


def vendi_score(vectors: Vectors, groups: NDArray[np.intp]) -> tuple[float, list[float]]:
    """Vendi score of order 1 with cosine similarity, and the same without each group.

    Equal to ``vendi_score.score_dual``: the eigenvalues come from the d x d matrix, so any number of rows
    does.

    Args:
        vectors: shape (rows, d), of unit length.
        groups: group of every row, shape (rows,).
    """
    wide = vectors.astype(np.float64)
    number = int(groups.max()) + 1
    matrices = [wide[groups == group].T @ wide[groups == group] for group in range(number)]
    sizes = np.bincount(groups, minlength=number)
    total = np.sum(matrices, axis=0)
    replicates = [
        _vendi((total - one) / (len(wide) - size)) if size < len(wide) else float("nan")
        for one, size in zip(matrices, sizes.tolist(), strict=True)
    ]
    return _vendi(total / len(wide)), replicates


def _vendi(matrix: NDArray[np.float64]) -> float:
    return effective_number(np.linalg.eigvalsh(matrix), normalise=False)


def effective_number(weights: NDArray[Any], normalise: bool = True) -> float:
    """exp of the entropy of the weights: how many equal ones would be as varied."""
    kept = weights[weights > 0]
    if normalise:
        kept = kept / kept.sum()
    return float(np.exp(-(kept * np.log(kept)).sum())) if len(kept) else float("nan")


def _k_means(vectors: Vectors, clusters: int | None, seed: int) -> NDArray[np.int64]:
    """Cluster of every row; found on all rows together, so that columns can be compared."""
    from sklearn.cluster import KMeans, MiniBatchKMeans

    rows = len(vectors)
    number = min(rows, clusters or max(2, round(rows**0.5)))
    kind = KMeans if rows <= 20_000 else MiniBatchKMeans
    labels: NDArray[np.int64] = (
        kind(number, n_init=3, random_state=seed).fit_predict(vectors).astype(np.int64)
    )
    return labels


def _map(columns: Columns, vectors: Vectors, row_of: Rows, most: int, seed: int) -> Iterator[dict[str, Any]]:
    """One row per text: where it lies on the map, and the columns it belongs to."""
    from sklearn.manifold import TSNE

    share = max(1, most // len(columns))
    member: dict[Key, list[str]] = {}
    for name, sample in columns.items():
        for document in sample.documents[:share]:
            member.setdefault(_key(document), []).append(name)
    if len(member) < 4:
        return
    chosen = vectors[[row_of[key] for key in member]]
    perplexity = min(30, (len(member) - 1) / 3)
    places = TSNE(init="pca", perplexity=perplexity, random_state=seed).fit_transform(chosen)
    for ((identifier, _), names), (x, y) in zip(member.items(), places.tolist(), strict=True):
        yield {"id": identifier, "columns": names, "x": x, "y": y}
