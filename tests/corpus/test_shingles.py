"""Shingles: one definition of words, hashes that mean equality, near-duplicates against brute force."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaven.corpus import shingles as s

WORDS = [f"w{i}" for i in range(12)]
texts = st.lists(st.text(alphabet="aB 1é'-–_\n’漢", max_size=30), max_size=6)  # noqa: RUF001


def grams(words: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def test_words_by_both_normalisations() -> None:
    text = "Mr. O'Neil's 3 well-known_dogs—née 1912."
    assert s.words(text) == ["mr", "o", "neil", "s", "3", "well", "known", "dogs", "née", "1912"]
    assert s.words(text, letters_only=True) == ["mr", "oneils", "wellknowndogsnée"]
    assert s.words("It's 5 o'clock!") == ["it", "s", "5", "o", "clock"]
    assert s.words("It's 5 o'clock!", letters_only=True) == ["its", "oclock"]


@given(st.text(alphabet=[chr(c) for c in range(128)]), st.booleans())
def test_the_byte_tables_mean_the_same_as_the_regular_expressions(text: str, letters_only: bool) -> None:
    beyond_ascii = s.words(text + " é", letters_only)
    assert s.words(text, letters_only) == beyond_ascii[:-1]


@given(st.text(alphabet="abÉ .-1", max_size=60), st.text(alphabet="abÉ .-1", max_size=60), st.booleans())
def test_hashes_are_equal_exactly_where_words_are(a: str, b: str, letters_only: bool) -> None:
    left, right = s.words(a, letters_only), s.words(b, letters_only)
    hashes = s.word_hashes(a, letters_only), s.word_hashes(b, letters_only)
    for i, j in itertools.product(range(len(left)), range(len(right))):
        assert (left[i] == right[j]) == (hashes[0][i] == hashes[1][j])
    assert (len(left), len(right)) == (len(hashes[0]), len(hashes[1]))


@given(
    st.lists(st.sampled_from(WORDS), max_size=40),
    st.lists(st.sampled_from(WORDS), max_size=40),
    st.integers(1, 6),
)
def test_sets_of_shingles_are_sets_of_ngrams(a: list[str], b: list[str], n: int) -> None:
    x, y = set(grams(a, n)), set(grams(b, n))
    left, right = s.shingles(" ".join(a), n), s.shingles(" ".join(b), n)
    assert (len(left), len(right), s.shared(left, right)) == (len(x), len(y), len(x & y))
    assert s.jaccard(left, right) == pytest.approx(len(x & y) / len(x | y) if x & y else 0.0)
    assert s.shared_share(left, right) == pytest.approx(len(x & y) / len(x) if x else 0.0)
    assert s.any_shared(left, right) == bool(x & y)
    assert np.all(np.diff(left.astype(object)) > 0)
    twice = [gram for gram in x if grams(a, n).count(gram) > 1]
    assert s.repeated(" ".join(a), n, letters_only=False) == len(twice)


@given(texts, st.integers(1, 4))
def test_many_at_once_are_the_same_as_one_by_one(batch: list[str], n: int) -> None:
    for text, found in zip(batch, s.shingle_all(batch, n), strict=True):
        whole = len(s.words(text))
        expected = s.shingles(text, n if whole >= n else max(1, whole))
        assert found.tolist() == expected.tolist()


def test_batches_do_not_run_into_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    many = [f"text {i} " + "and so on " * (i % 7) for i in range(50)]
    whole = [x.tolist() for x in s.shingle_all(many, 3)]
    monkeypatch.setattr(s, "_BATCH_CHARACTERS", 40)
    assert [x.tolist() for x in s.shingle_all(many, 3)] == whole


def test_a_loop_of_13_words_is_found() -> None:
    sentence = "the keeper of the light went up the stairs to see the far ships"
    assert len(sentence.split()) == 14
    assert s.repeats_shingle(f"{sentence}. Then, at 5, {sentence}!")
    assert not s.repeats_shingle(f"{sentence}. Then {' '.join(sentence.split()[:12])}.")


def planted(count: int = 150) -> list[str]:
    """Texts of random words, half of them edited copies of others, from nearly none to nearly all words."""
    draw = np.random.default_rng(7)
    vocabulary = np.array([f"word{i}" for i in range(3000)])
    made = [vocabulary[draw.integers(0, 3000, 80)] for _ in range(count)]
    for i in range(0, count - 1, 2):
        copy = made[i].copy()
        places = draw.integers(0, 80, draw.integers(0, 9))
        copy[places] = vocabulary[draw.integers(0, 3000, len(places))]
        made[i + 1] = copy
    return [" ".join(words) for words in made]


@pytest.mark.parametrize("threshold", [0.6, 0.75, 0.95, 1.0])
def test_near_duplicates_are_those_of_brute_force(threshold: float) -> None:
    arrays = list(s.shingle_all([*planted(), "", "", "short", "Short!"]))
    expected = {
        (i, j): s.jaccard(arrays[i], arrays[j])
        for i, j in itertools.combinations(range(len(arrays)), 2)
        if s.jaccard(arrays[i], arrays[j]) >= threshold
    }
    found = s.near_duplicates(arrays, threshold)
    assert {(i, j): similarity for i, j, similarity in found} == pytest.approx(expected)
    assert (152, 153) in expected and len(expected) > 5
    assert found == sorted(found)


@given(st.lists(st.lists(st.sampled_from(WORDS[:4]), max_size=9), max_size=9))
def test_no_reported_pair_is_wrong_and_identical_texts_are_always_found(made: list[list[str]]) -> None:
    arrays = list(s.shingle_all([" ".join(words) for words in made], 2))
    found = s.near_duplicates(arrays, 0.6)
    for i, j, similarity in found:
        assert i < j and similarity == pytest.approx(s.jaccard(arrays[i], arrays[j])) and similarity >= 0.6
    same = {
        (i, j)
        for i, j in itertools.combinations(range(len(arrays)), 2)
        if len(arrays[i]) and arrays[i].tolist() == arrays[j].tolist()
    }
    assert same <= {(i, j) for i, j, _ in found}
    assert len(found) == len(set(found))


def test_signatures_estimate_jaccard_and_do_not_depend_on_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = list(s.shingle_all(planted(40)))
    signatures = s.minhash(arrays, 2048)
    for i in range(0, 40, 2):
        estimate = float((signatures[i] == signatures[i + 1]).mean())
        assert estimate == pytest.approx(s.jaccard(arrays[i], arrays[i + 1]), abs=0.06)
    monkeypatch.setattr(s, "_BATCH_SHINGLES", 100)
    assert np.array_equal(s.minhash(arrays, 2048), signatures)
    assert (s.minhash([np.zeros(0, dtype=np.uint64)]) == 2**32 - 1).all()
    assert s.minhash([]).shape == (0, s.BANDS * s.ROWS)
    assert s.near_duplicates([]) == []


@given(st.integers(1, 12), st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11))))
def test_clusters_are_connected_components(count: int, edges: list[tuple[int, int]]) -> None:
    pairs = [(i % count, j % count, 1.0) for i, j in edges]
    label = list(range(count))
    for _ in range(count):
        for i, j, _similarity in pairs:
            label[i] = label[j] = min(label[i], label[j])
    assert s.clusters(pairs, count).tolist() == label


def test_hashes_are_the_same_in_every_process() -> None:
    code = (
        "from leaven.corpus.shingles import shingles; print(shingles('One two three four five six').tolist())"
    )
    runs = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert len(runs) == 1 and eval(runs.pop()) == s.shingles("one TWO three, four five six").tolist()
