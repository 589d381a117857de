"""Self-training's parts that are arithmetic: prefixes, the budget of a round, perplexity tiers."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from measuring import Scripted

from leaven.document import Document
from leaven.errors import UsageError
from leaven.generate import load_method
from leaven.generate._runner import Job
from leaven.generate._training import Task
from leaven.generate.self_train import TIERS, Config, _write, by_tier, perplexity, prefixes
from leaven.lm import loop
from leaven.lm.base import Request, scores_to_text
from leaven.lm.client import LanguageModel
from leaven.lm.store import ResponseStore


def documents(*texts: str) -> list[Document]:
    return [Document(text=text, id=f"d{i}", metadata={}) for i, text in enumerate(texts)]


def letters(text: str) -> list[int]:
    return [ord(one) for one in text]


def spelled(ids: list[int]) -> str:
    return "".join(map(chr, ids))


def drawn(texts: list[str], k: int, number: int, seed: int = 0) -> list[Document]:
    found = prefixes(documents(*texts), [letters(text) for text in texts], spelled, k, [seed, 1])
    return list(itertools.islice(found, number))


@given(st.lists(st.text("abc", min_size=1, max_size=20), min_size=1, max_size=6), st.integers(1, 25))
def test_a_prefix_is_k_tokens_of_its_document(texts: list[str], k: int) -> None:
    if max(map(len, texts)) < k:
        with pytest.raises(UsageError, match=f"no document has the {k} tokens"):
            drawn(texts, k, 1)
        return
    for one in drawn(texts, k, 20):
        source = texts[int(one.metadata["row"][1:])]
        assert one.text == source[one.metadata["start"] : one.metadata["start"] + k] and len(one.text) == k


def test_every_place_is_as_likely_and_the_seed_decides() -> None:
    texts = ["abcdef", "xy", "pqrst"]
    counts = Counter(one.id for one in drawn(texts, 3, 7000))
    assert set(counts) == {*(f"d0:{i}" for i in range(4)), *(f"d2:{i}" for i in range(3))}, "d1 is too short"
    assert all(850 < count < 1150 for count in counts.values())
    ids = [[one.id for one in drawn(texts, 3, 50, seed)] for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]


def test_no_prefix_is_an_empty_text_of_any_document() -> None:
    found = drawn(["a", "b" * 500], 0, 1000)
    assert {one.text for one in found} == {""}
    assert 400 < sum(one.metadata["row"] == "d0" for one in found) < 600


def test_perplexity_is_that_of_the_tokens() -> None:
    assert perplexity([np.log(0.5), np.log(0.125)]) == pytest.approx(4)
    assert perplexity([]) == float("inf"), "one token has nothing before it"


@given(
    st.lists(st.tuples(st.integers(1, 400), st.floats(1, 1e4)), min_size=1, max_size=60),
    st.sampled_from(TIERS),
)
def test_a_tier_is_a_third_of_the_tokens_in_order_of_perplexity(
    rows: list[tuple[int, float]], tier: Any
) -> None:
    given = [
        Document(text="", id=str(i), metadata={"written": written}) for i, (written, _) in enumerate(rows)
    ]
    kept, others = by_tier(given, [value for _, value in rows], tier)
    assert sorted(int(one.id) for one in (*kept, *others)) == list(range(len(rows))), "nothing is lost"
    assert [int(one.id) for one in kept] == sorted(int(one.id) for one in kept)
    total, longest = sum(written for written, _ in rows), max(written for written, _ in rows)
    tokens = sum(one.metadata["written"] for one in kept)
    assert total / 3 - 1e-6 <= tokens <= total / 3 + 2 * longest
    inside, outside = ([one.metadata["perplexity"] for one in some] for some in (kept, others))
    if outside and tier == "low":
        assert max(inside) <= min(outside)
    if outside and tier == "high":
        assert min(inside) >= max(outside)


class Talker(Scripted):
    """Goes on with ten words, and scores a text by how many letters it has."""

    def __init__(self) -> None:
        super().__init__(self.say)
        self.seen: list[Request] = []

    def say(self, request: Request) -> str:
        self.seen.append(request)
        ((_, text),) = request.messages
        return (
            scores_to_text([-len(text) / 100] * 5)
            if request.score
            else " and so on" * 3 + str(request.sample)
        )


class Letters:
    """Of a tokenizer, what writing needs: a letter is a token, but a budget counts words."""

    def encode(self, text: str) -> list[int]:
        return letters(text)

    def decode(self, ids: list[int]) -> str:
        return spelled(ids)

    def count(self, texts: list[str]) -> list[int]:
        return [len(text.split()) for text in texts]


def write(tmp_path: Path, tokens: int, **options: Any) -> tuple[list[Document], list[Document], Talker]:
    method, config = load_method("self_train"), Config(**options)
    talker = Talker()
    texts = ["the bag fell into the sea", "nobody saw it fall that day"]
    task = Task(
        "self_train", Job(method, config, method.steps), tmp_path, tmp_path / "out", tmp_path / "work",
        Letters(), print,  # type: ignore[arg-type]
    )  # fmt: skip

    class Opener:
        def open(self, checkpoint: Path, name: str) -> LanguageModel:
            return LanguageModel(talker, ResponseStore(tmp_path / "answers", "run"))

        def progress(self, *_: Any) -> None: ...

    places = prefixes(documents(*texts), [letters(text) for text in texts], spelled, config.prefix, [0])
    kept, rejected = loop.run(_write(task, config, Opener(), tmp_path, 1, places, tokens))  # type: ignore[arg-type]
    return kept, rejected, talker


def test_a_round_ends_with_the_text_that_fills_it(tmp_path: Path) -> None:
    kept, rejected, talker = write(tmp_path, 100, prefix=4)
    written = [row.metadata["written"] for row in kept]
    assert sum(written) >= 100 > sum(written[:-1])
    assert {row.metadata["reason"] for row in rejected} <= {"beyond the budget"}
    assert len(kept) + len(rejected) == talker.sent
    assert [row.metadata["sample"] for row in kept] == list(range(len(kept))), "in the order drawn"
    for row, request in zip(kept, talker.seen, strict=False):
        ((_, asked),) = request.messages
        assert len(asked) == 4, "the prefix and nothing around it"
        assert row.text == f"{asked} and so on and so on and so on{row.metadata['sample']}", (
            "nothing is stripped"
        )


def test_with_a_tier_three_times_as_much_is_written(tmp_path: Path) -> None:
    kept, rejected, _ = write(tmp_path, 100, prefix=4, tier="high")
    chosen = sum(row.metadata["written"] for row in kept)
    others = [row for row in rejected if row.metadata["reason"] == "perplexity tier"]
    assert chosen >= 100 and chosen + sum(row.metadata["written"] for row in others) >= 300
    assert min(row.metadata["perplexity"] for row in kept) >= max(
        row.metadata["perplexity"] for row in others
    )


def test_a_model_that_says_nothing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Talker, "say", lambda self, request: "")
    with pytest.raises(
        UsageError, match=r"round 1: the model wrote nothing to \d+ prefixes; pretrain it longer"
    ):
        write(tmp_path, 100, prefix=4)
