"""Pairs of related documents: exact against the definition, whatever the shards; every error mends itself."""

from __future__ import annotations

import gzip
import itertools
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leaven.corpus import neighbours
from leaven.corpus import pairs as p
from leaven.errors import UsageError

STORIES = Path(__file__).resolve().parents[2] / "examples" / "stories"
WORDS = ["the", "sea", "Light", "keeper's", "went", "up", "12", "—"]
# Coordinates from a few values: unit vectors with many exact ties, and with twins.
coordinates = st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0]), min_size=3, max_size=3)


def unit(rows: list[list[float]] | p.Vectors) -> p.Vectors:
    vectors = np.asarray(rows, dtype=np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def by_definition(vectors: p.Vectors, k: int, threshold: float) -> list[tuple[int, int, float]]:
    """All others of each row, most similar first, ties by number; the first `k`, those above the threshold."""
    exact = vectors.astype(np.float64)
    found = []
    for i in range(len(vectors)):
        similarity = {j: float(np.float32(exact[i] @ exact[j])) for j in range(len(vectors)) if j != i}
        order = sorted(similarity, key=lambda j: (-similarity[j], j))[:k]
        found += [(i, j, similarity[j]) for j in order if similarity[j] > np.float32(threshold)]
    return found


def listed(pairs: p.Pairs) -> list[tuple[int, int, float]]:
    columns = (pairs.first.tolist(), pairs.second.tolist(), pairs.similarity.tolist())
    return list(zip(*columns, strict=True))


def runs(text: str, n: int) -> set[tuple[str, ...]]:
    """Runs of letters-only words; a shorter text is one."""
    words = re.sub(r"[^\w\s]|[\d_]", "", text.lower()).split()
    n = min(n, len(words))
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)} if words else set()


def clustered(count: int, width: int = 24, seed: int = 0, spread: float = 0.15) -> p.Vectors:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(1, count // 12), width))
    return unit(centres[rng.integers(len(centres), size=count)] + spread * rng.normal(size=(count, width)))


@given(
    st.lists(coordinates, min_size=2, max_size=40),
    st.integers(1, 12),
    st.sampled_from([-1.0, 0.0, 0.5, 0.75, 0.99]),
    st.integers(1, 50),
)
def test_pairs_are_those_of_the_definition(
    rows: list[list[float]], k: int, threshold: float, values_at_once: int
) -> None:
    vectors = unit(rows)
    config = p.Pairing(threshold=threshold, neighbours=k)
    found = p.nearest_pairs(vectors, np.arange(len(rows)), config, values_at_once=values_at_once)
    assert listed(found) == by_definition(vectors, k, threshold)
    every = vectors @ vectors.T - 9 * np.eye(len(rows))
    assert found.highest == pytest.approx(every.max(), abs=1e-6)


@settings(deadline=None)
@given(st.integers(0, 99), st.integers(1, 30), st.data())
def test_shards_of_keys_and_of_values_change_nothing(seed: int, k: int, data: st.DataObject) -> None:
    vectors = clustered(70, seed=seed)
    config = p.Pairing(threshold=0.5, neighbours=k)
    whole = p.nearest_pairs(vectors, np.arange(70), config)
    assert listed(whole) == by_definition(vectors, k, 0.5)
    owner = np.array(data.draw(st.lists(st.integers(0, 4), min_size=70, max_size=70)))
    parts = [
        p.nearest_pairs(vectors, np.flatnonzero(owner == shard), config, values_at_once=7 + 9 * shard)
        for shard in range(5)
    ]
    assert listed(p.joined(parts)) == listed(whole)
    assert p.joined(parts).highest == pytest.approx(whole.highest, abs=1e-6)


def test_more_twins_than_neighbours_are_listed_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.concatenate(
        (clustered(30), np.repeat(clustered(1, seed=5), 60, axis=0), clustered(20, seed=3))
    )
    calls = []
    brute = neighbours._by_brute_force

    def counted(*given: object) -> object:
        calls.append(given)
        return brute(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(neighbours, "_by_brute_force", counted)
    monkeypatch.setattr(neighbours, "_CELLS", 500)
    found = p.nearest_pairs(vectors, np.arange(110), p.Pairing(neighbours=4), values_at_once=40)
    assert calls, "60 twins and 21 proposals: float32 cannot tell which come first"
    assert listed(found) == by_definition(vectors, 4, 0.75)
    assert found.second[found.first == 30].tolist() == [31, 32, 33, 34]
    assert found.second[found.first == 89].tolist() == [30, 31, 32, 33]


def test_a_memory_map_is_searched_and_vectors_without_unit_length_are_refused(tmp_path: Path) -> None:
    vectors = clustered(50)
    np.save(tmp_path / "vectors.npy", vectors)
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    config = p.Pairing(threshold=0.2)
    assert listed(p.nearest_pairs(mapped, np.arange(50), config)) == by_definition(vectors, 200, 0.2)
    vectors[17] *= 3
    with pytest.raises(UsageError, match=r"vector 17 has the length 3: .* divide each by its length"):
        p.nearest_pairs(vectors, np.arange(50), config)
    vectors[17] = np.nan
    with pytest.raises(UsageError, match="vector 17 has the length nan"):
        p.nearest_pairs(vectors, np.arange(50), config)


@given(
    st.lists(st.lists(st.sampled_from(WORDS), max_size=14).map(" ".join), min_size=1, max_size=8),
    st.integers(1, 13),
    st.sampled_from([1, 30, 10_000]),
)
def test_a_pair_shares_a_run_where_the_sets_of_strings_meet(texts: list[str], n: int, room: int) -> None:
    both = np.array(list(itertools.product(range(len(texts)), repeat=2)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(p, "_SHINGLES", room)
        patch.setattr(p, "_LOOK_UPS", 1 + room // 10)
        found = p.share_runs(texts, both[:, 0], both[:, 1], n)
    for (i, j), shares in zip(both.tolist(), found.tolist(), strict=True):
        # A text is never paired with itself; for those rows only what is said of twins matters.
        if i != j:
            assert shares == bool(runs(texts[i], n) & runs(texts[j], n)), (texts[i], texts[j])


def test_thirteen_words_in_a_row_and_not_twelve() -> None:
    row = "When the keeper of the light went up to see the far ships,"
    assert len(row.split()) == 13
    texts = [
        f"It was 1912. {row} it rained for days.",
        "Nobody knew. WHEN THE KEEPER of the 3 light's went up -- to see!",
        f"Later - {row.lower().replace(',', '')} and so on 12 more times.",
        f"Once {' '.join(row.split()[:12])} boats. And {' '.join(row.split()[1:])} all was well there.",
        "",
    ]
    first, second = np.array([0, 0, 0, 2, 3, 4, 0]), np.array([1, 2, 3, 0, 2, 0, 4])
    assert p.share_runs(texts, first, second).tolist() == [False, True, False, True, False, False, False]
    assert p.share_runs(texts, first[:0], second[:0]).tolist() == []
    twins = ["Yes, sir!", "yes sir", "yes sir no"]
    assert p.share_runs(twins, np.array([0, 0]), np.array([1, 2])).tolist() == [True, False]


def story_paragraphs(number: int) -> tuple[list[str], list[int]]:
    """Pieces of some 120 words of the other stories, and the story each is of."""
    with gzip.open(STORIES / "others.jsonl.gz", "rt", encoding="utf-8") as file:
        stories = [json.loads(line)["text"].split() for line in file]
    pieces = [
        (" ".join(words[at : at + 120]), i)
        for i, words in enumerate(stories)
        for at in range(0, len(words) - 120, 120)
    ]
    chosen = np.random.default_rng(0).permutation(len(pieces))[:number]
    return [pieces[i][0] for i in chosen], [pieces[i][1] for i in chosen]


def bags_of_words(texts: list[str]) -> p.Vectors:
    """Unit vectors that need no model: words hashed into 256 numbers, frequent ones counted less."""
    counts = np.zeros((len(texts), 256), dtype=np.float32)
    for i, text in enumerate(texts):
        for word in text.lower().split():
            counts[i, sum(map(ord, word)) * 31 % 256] += 1
    return unit(np.sqrt(counts) - np.sqrt(counts).mean(0))


def test_story_paragraphs_and_copies_of_them() -> None:
    texts, _ = story_paragraphs(300)
    copies = [" ".join(text.split()[:60] + texts[i + 1].split()[:60]) for i, text in enumerate(texts[:20])]
    texts += copies
    vectors = bags_of_words(texts)
    config = p.Pairing(threshold=0.3, neighbours=20)
    told: list[tuple[int, int]] = []
    found = p.find_pairs(texts, vectors, config, lambda done, of: told.append((done, of)))
    assert told[-1] == (320, 320)
    assert listed(found) == by_definition(vectors, 20, 0.3)
    expected = [bool(runs(texts[i], 13) & runs(texts[j], 13)) for i, j, _ in listed(found)]
    assert found.shares.tolist() == expected
    halves = {(i, 300 + i) for i in range(20)} | {(i + 1, 300 + i) for i in range(20)}
    rejected = set(zip(found.rejected().first.tolist(), found.rejected().second.tolist(), strict=True))
    assert rejected and {tuple(sorted(one)) for one in rejected} & halves
    counts = found.counts()
    assert counts["read"] == counts["kept"] + counts["rejected"] == len(found.first)
    assert counts["reasons"] == {"shares 13 words in a row": len(rejected)}
    assert not found.kept().shares.any() and len(found.kept().first) == counts["kept"]
    parts = [p.pair(texts, vectors, np.arange(shard, 320, 3), config) for shard in range(3)]
    again = p.joined(parts)
    assert listed(again) == listed(found) and again.shares.tolist() == found.shares.tolist()


def test_random_pairs_are_as_many_as_asked_for_and_do_not_look_at_similarity() -> None:
    texts, _ = story_paragraphs(60)
    texts += texts[:20]
    vectors = bags_of_words(texts)
    config = p.Pairing()
    drawn = p.random_pairs(texts, vectors, 400, config, seed=3)
    assert (
        len(drawn.kept().first) == 400 and not drawn.shares[-1:].all() | (drawn.first == drawn.second).any()
    )
    assert len(set(zip(drawn.first.tolist(), drawn.second.tolist(), strict=True))) == len(drawn.first)
    assert set(listed(drawn.rejected())) <= {
        (i, j, s)
        for i, j, s in listed(drawn)
        if texts[i] == texts[j] or runs(texts[i], 13) & runs(texts[j], 13)
    }
    assert (vectors[drawn.first] * vectors[drawn.second]).sum(1) == pytest.approx(drawn.similarity, abs=1e-5)
    again = p.random_pairs(texts, vectors, 400, config, seed=3)
    other = p.random_pairs(texts, vectors, 400, config, seed=4)
    assert listed(again) == listed(drawn) != listed(other)
    everything = vectors @ vectors.T
    mean = (everything.sum() - len(texts)) / (len(texts) * (len(texts) - 1))
    assert float(drawn.similarity.mean()) == pytest.approx(mean, abs=0.05)
    # All there are: every ordered pair but those of twins.
    most = 80 * 79 - int(sum(bool(runs(a, 13) & runs(b, 13)) for a, b in itertools.permutations(texts, 2)))
    assert len(p.random_pairs(texts, vectors, most, config, seed=0).kept().first) == most
    with pytest.raises(
        UsageError, match=rf"{most + 1} random pairs were asked for, but .* only {most} do not"
    ):
        p.random_pairs(texts, vectors, most + 1, config, seed=0)


@given(st.integers(0, 99))
def test_random_pairs_are_uniform_over_ordered_pairs(seed: int) -> None:
    texts = ["one", "two", "three"]
    vectors = unit([[1, 0], [0, 1], [1, 1]])
    drawn = p.random_pairs(texts, vectors, 6, p.Pairing(), seed)
    assert sorted(zip(drawn.first.tolist(), drawn.second.tolist(), strict=True)) == list(
        itertools.permutations(range(3), 2)
    )
    numbers = p._distinct(1_000_000, 300, np.random.default_rng(seed))
    assert len(set(numbers.tolist())) == 300 and numbers.max() < 1_000_000


def test_the_guide_counts_by_similarity() -> None:
    similarity = np.array([0.3, 0.7499, 0.75, 0.76, 0.7999, 1.0000001], dtype=np.float32)
    shares = np.array([False, False, False, True, False, True])
    nothing = np.zeros(6, dtype=np.int64)
    pairs = p.Pairs(nothing, nothing, similarity, shares, 13, 1.0)
    bins = p.guide(pairs, 0.05, np.array([np.nan, 0, 1, np.nan, 0, 1]))
    assert (bins[0].low, bins[-1].high, len(bins)) == (0.3, 1.0, 14)
    at = {one.low: one for one in bins}
    assert (at[0.75].pairs, at[0.75].judged, at[0.75].relevant) == (3, 2, 0.5)
    assert at[0.75].duplicate == pytest.approx(1 / 3)
    assert (at[0.95].pairs, at[0.95].duplicate, at[0.95].relevant) == (1, 1.0, 1.0)
    assert at[0.5].pairs == 0 and math.isnan(at[0.5].duplicate) and math.isnan(at[0.5].relevant)
    assert sum(one.pairs for one in bins) == 6
    assert math.isnan(p.guide(pairs)[0].relevant) and p.guide(pairs.take(nothing[:0])) == []


@given(st.lists(st.floats(-1, 1, width=32), min_size=1), st.sampled_from([0.01, 0.03, 0.05, 0.1, 0.3]))
def test_every_pair_is_in_the_bin_of_its_similarity(similarity: list[float], width: float) -> None:
    values = np.array(similarity, dtype=np.float32)
    nothing = np.zeros(len(values), dtype=np.int64)
    bins = p.guide(p.Pairs(nothing, nothing, values, nothing > 0, 13, 1.0), width)
    for one in bins:
        low, high = np.float32(one.low), np.float32(one.high)
        assert one.pairs == int(((values >= low) & ((values < high) | (high >= 1))).sum())
    assert sum(one.pairs for one in bins) == len(values)


def test_errors_say_what_to_change() -> None:
    vectors = unit([[1, 0], [1, 1], [0, 1], [1, 0.001]])
    texts = ["some words", "other words", "more of them", "few"]
    for few in (0, 1):
        with pytest.raises(UsageError, match=f"at least 2 documents, the corpus has {few}: add documents"):
            p.find_pairs(texts[:few], vectors[:few], p.Pairing())
    with pytest.raises(UsageError, match="all 4 documents are the same text"):
        p.find_pairs(["123"] * 4, vectors[[0, 0, 0, 0]], p.Pairing())
    with pytest.raises(UsageError, match=r"all 2 pairs above threshold 0.75 share 13 words in a row: lower"):
        p.find_pairs(["a", "b", "c", "a"], vectors, p.Pairing())
    with pytest.raises(UsageError, match=r"highest similarity is 0.707; threshold 0.70 would give pairs"):
        p.find_pairs(texts[:3], vectors[:3], p.Pairing())
    assert len(p.find_pairs(texts[:3], vectors[:3], p.Pairing(threshold=0.70)).first) == 4
    found = p.pair(texts[:3], vectors[:3], np.array([0, 2]), p.Pairing())
    assert found.counts() == {"read": 0, "kept": 0, "rejected": 0, "reasons": {}}
    assert p.nearest_pairs(vectors, np.arange(0), p.Pairing()).highest == -math.inf


@given(st.floats(-0.9, 1))
def test_the_threshold_that_is_proposed_gives_pairs(highest: float) -> None:
    angle = math.acos(highest)
    vectors = unit([[1, 0], [math.cos(angle), math.sin(angle)]])
    with pytest.raises(UsageError) as raised:
        p.find_pairs(["a", "b"], vectors, p.Pairing(threshold=0.999)) if highest < 0.99 else p.checked(
            p.nearest_pairs(vectors, np.arange(2), p.Pairing(threshold=0.75)).take([]), p.Pairing()
        )
    proposed = float(re.findall(r"threshold (-?[\d.]+) would", str(raised.value))[0])
    assert len(p.find_pairs(["a", "b"], vectors, p.Pairing(threshold=proposed)).first) == 2
    assert proposed > highest - 0.021


@pytest.mark.torch
def test_paragraphs_of_one_story_find_each_other_by_embedding() -> None:
    from leaven.corpus.embed import Config, Embedder

    texts, stories = story_paragraphs(120)
    vectors = Embedder(Config()).embed(texts)
    found = p.find_pairs(texts, vectors, p.Pairing(threshold=0.4, neighbours=5))
    assert listed(found) == by_definition(vectors, 5, 0.4)
    same = np.mean([stories[i] == stories[j] for i, j, _ in listed(found)])
    drawn = p.random_pairs(texts, vectors, len(found.kept().first), p.Pairing(), seed=0)
    by_chance = np.mean([stories[i] == stories[j] for i, j, _ in listed(drawn)])
    assert same > 3 * by_chance and found.similarity.mean() > drawn.similarity.mean() + 0.2
