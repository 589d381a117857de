"""SBP's synthesizer: what it is tuned on is what it is asked with, and its failures are counted."""

from __future__ import annotations

import numpy as np
from measuring import Scripted

from leaven.document import Document
from leaven.generate import load_method, sbp
from leaven.lm import loop
from leaven.lm.ask import Ask
from leaven.lm.base import Answer, Request, Usage
from leaven.lm.client import LanguageModel
from leaven.lm.store import ResponseStore

FIRST = Document(text="The bag fell.", id="a", metadata={"title": "The Bag"})
SECOND = Document(text="The sea was calm.", id="b", metadata={})
AGAIN = " ".join(f"word{i}" for i in range(13))


class Writer(Scripted):
    """Ends by itself, but for its third text."""

    async def generate(self, request: Request) -> Answer:
        answer = await super().generate(request)
        return Answer(answer.text, "length" if request.sample == 2 else "stop", Usage(1, 0, 1))


def run(tmp_path, texts, **options):  # type: ignore[no-untyped-def]
    seen: list[Request] = []

    def answer(request: Request) -> str:
        seen.append(request)
        return str(texts[request.sample])

    ask = Ask(
        LanguageModel(Writer(answer), ResponseStore(tmp_path, "run")), FIRST, "sbp", load_method("sbp").steps,
        count=lambda texts: [len(text.split()) for text in texts],
    )  # fmt: skip

    async def written() -> list[Document]:
        return [one async for one in sbp.expand(FIRST, ask, sbp.Config(samples=len(texts), **options))]

    return loop.run(written()), ask.rejected, seen


def test_it_is_asked_with_what_it_was_tuned_on(tmp_path) -> None:  # type: ignore[no-untyped-def]
    rows = list(sbp.examples([FIRST, SECOND], np.array([0, 1]), np.array([1, 0])))
    written, rejected, seen = run(tmp_path, ["A ship came."])
    assert [request.messages for request in seen] == [(("user", rows[0]["prompt"]),)]
    assert rows[0]["completion"] == SECOND.text and rows[1]["completion"] == FIRST.text
    assert (seen[0].sampling.temperature, seen[0].sampling.top_p) == (1.0, 0.9)
    assert [one.text for one in written] == ["A ship came."] and not rejected
    assert written[0].metadata["sources"] == ["a"] and written[0].metadata["method"] == "sbp"


def test_repetition_and_cut_texts_are_rejected_and_counted(tmp_path) -> None:  # type: ignore[no-untyped-def]
    texts = ["A ship came.", f"{AGAIN} and {AGAIN}", "It went on and", "", f"{AGAIN} once"]
    written, rejected, _ = run(tmp_path / "strict", texts)
    assert [one.text for one in written] == [texts[0], texts[4]]
    assert sorted(one.metadata["reason"] for one in rejected) == ["empty answer", "repetition", "truncated"]
    assert len({one.id for one in (*written, *rejected)}) == 5, "every sample is one row"
    written, rejected, _ = run(tmp_path / "loose", texts, keep_cut=True)
    assert texts[2] in [one.text for one in written] and len(written) + len(rejected) == 5


def unit(rows):  # type: ignore[no-untyped-def]
    found = np.array(rows, dtype=np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_relevance_is_the_probability_to_be_nearer_to_the_own_seed() -> None:
    rng = np.random.default_rng(0)
    seeds = unit(rng.normal(size=(40, 16)))
    own = np.arange(40)
    faithful = sbp.relevance(seeds, unit(seeds + 0.1 * rng.normal(size=seeds.shape)), own)
    assert faithful["relevance"] > 0.99 and faithful["similarity"] > 0.8 > abs(faithful["random"])
    careless = sbp.relevance(seeds, unit(rng.normal(size=(400, 16))), np.tile(own, 10))
    assert 0.45 < careless["relevance"] < 0.55, "one half is chance"
    same = sbp.relevance(np.repeat(seeds[:1], 5, axis=0), seeds[:1], np.array([2]))
    assert same["relevance"] == 0.5, "ties count half"
    by_hand = np.mean([[seeds[0] @ seeds[0] > seeds[0] @ seeds[j] for j in range(1, 40)]])
    assert sbp.relevance(seeds, seeds[:1], own[:1])["relevance"] == by_hand == 1


def pairing(vectors, **options):  # type: ignore[no-untyped-def]
    texts = [f"document {i} says {chr(97 + i % 26)}" for i in range(len(vectors))]
    return sbp.choose_pairing(texts, vectors, sbp.Config(**options))


def test_the_threshold_is_the_paper_s_where_it_gives_enough_pairs() -> None:
    rng = np.random.default_rng(1)
    centres = unit(rng.normal(size=(20, 32)))
    near = unit(np.repeat(centres, 5, axis=0) + 0.05 * rng.normal(size=(100, 32)))
    found, bins = pairing(near)
    assert (found.threshold, found.neighbours) == (0.75, 200)
    assert sum(one.pairs for one in bins if one.low >= 0.75) == 100 * 4, (
        "each has the four others of its centre"
    )
    assert pairing(near, per_document=5)[0].threshold == -1, "one more than there are"
    far = unit(np.repeat(centres, 5, axis=0) + 0.2 * rng.normal(size=(100, 32)))
    found, bins = pairing(far, per_document=3)
    assert (found.threshold, found.neighbours) == (-1, 3), "every document with its nearest"
    assert sum(one.pairs for one in bins if one.low >= 0.75) < 300
    assert pairing(far, threshold=0.3)[0].threshold == 0.3, "what the user says stands"
