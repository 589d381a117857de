"""Judges: what their answers become, and what becomes of answers that are none."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from measuring import Answering, Scripted, by_name

from leaven.document import Document
from leaven.errors import UsageError
from leaven.generate import mga
from leaven.lm.ask import Ask
from leaven.lm.base import Request
from leaven.measure.base import Context, Figure, Sample
from leaven.measure.judges import JUDGES, STEPS, Config, drawn_sentences, measure, settle

Make = Callable[..., tuple[Context, Scripted]]
SOURCES = {f"s{i}": Document(text=f"Source {i} tells of a bag.", id=f"s{i}") for i in range(4)}


def sample(rows: int = 12) -> Sample:
    documents = [
        Document(
            text=f"Written text {i}. It has one more sentence. Its Written part is supported.",
            id=f"c{i}",
            metadata={"sources": [f"s{i % 4}"]},
        )
        for i in range(rows)
    ]
    return Sample("all", documents, sources=SOURCES)


def run(
    make: Make, answering: Answering, *ask: str, **options: Any
) -> tuple[dict[str, Figure], Context, Scripted]:
    context, backend = make(answering)
    columns = options.pop("columns", {"all": sample()})
    found = asyncio.run(measure(columns, Config(ask=ask, **options), context))
    return by_name(found, "all"), context, backend


def number_in(request: Request) -> int:
    return int(request.messages[0][1].split("Written text ")[1].split(".")[0])


def test_shares_are_of_the_documents_judged(scripted: Make) -> None:
    def copied(request: Request) -> str:
        return json.dumps({"reason": "r", "copied": number_in(request) < 3})

    found, context, _ = run(scripted, copied, "copying")
    figure = found["pair_copying"]
    assert (figure.value, figure.n, figure.better, figure.unit) == (0.25, 12, "lower", "source")
    assert figure.interval and figure.interval.units == 4
    rows = context.tables["verdicts"]
    assert [row["label"] for row in rows[:4]] == [True, True, True, False]
    assert rows[0]["judge"] == "copying" and rows[0]["id"] == "c0" and rows[0]["reason"] == "r"


def test_the_mga_judge_gives_the_papers_rates(scripted: Make) -> None:
    scores = [5, 4, 3, 2, 1, 5]

    def score(request: Request) -> str:
        return json.dumps({"analysis": "a", "score": scores[number_in(request) % 6]})

    found, _, _ = run(scripted, score, "consistency")
    assert found["consistency_score"].value == pytest.approx(20 / 6)
    assert found["consistency_at_least_3"].value == pytest.approx(4 / 6)
    assert found["consistency_at_least_4"].value == pytest.approx(3 / 6)
    assert found["consistency_at_most_2"].value == pytest.approx(2 / 6)


def test_what_the_method_has_judged_is_not_asked_again(scripted: Make) -> None:
    context, backend = scripted(lambda request: '{"analysis": "a", "score": 4}')
    source = SOURCES["s0"]
    variables = {"pair": 1, "strictness": "base", "genre": "g", "audience": "a"}
    row = Document(
        text="A reformulation.", id="m", metadata={"sources": ["s0"], "method": "mga", "variables": variables}
    )
    ask = Ask(context.open(None), source, "mga", mga.STEPS, count=lambda texts: [0])
    judged = {"pair": 1, "strictness": "base", "text": row.text}
    asyncio.run(ask("judge", judged, mga.Judgement))
    columns = {"all": Sample("all", [row], sources=SOURCES)}
    figures = asyncio.run(measure(columns, Config(ask=("consistency",)), context))
    assert backend.sent == 1 and by_name(figures, "all")["consistency_score"].value == 4


@pytest.mark.parametrize(
    ("text_first", "source_first", "settled"),
    [
        ("A", "B", "win"), ("A", "tie", "win"), ("tie", "B", "win"), ("B", "A", "loss"), ("tie", "A", "loss"),
        ("B", "tie", "loss"), ("A", "A", "tie"), ("B", "B", "tie"), ("tie", "tie", "tie"),
    ],
)  # fmt: skip
def test_both_orders_are_laid_together(text_first: str, source_first: str, settled: str) -> None:
    assert settle(text_first, source_first) == settled


def test_a_judge_that_likes_the_first_place_is_found_out(scripted: Make) -> None:
    found, context, backend = run(scripted, lambda request: '{"better": "A"}', "pairwise")
    assert found["pairwise_tie"].value == 1 and found["pairwise_position_bias"].value == 0.5
    assert backend.sent == 24
    assert {row["text_first"] + row["source_first"] for row in context.tables["verdicts"]} == {"AA"}


def test_a_fair_judge_has_no_position_bias(scripted: Make) -> None:
    def prefers_the_text(request: Request) -> str:
        first = request.messages[0][1].split("Passage A:\n")[1]
        return json.dumps({"better": "A" if first.startswith("Written") else "B"})

    found, _, _ = run(scripted, prefers_the_text, "pairwise")
    assert found["pairwise_win"].value == 1 and found["pairwise_position_bias"].value == 0


def test_unusable_answers_are_counted_and_left_out(scripted: Make) -> None:
    def nonsense(request: Request) -> str:
        return "I would rather not." if number_in(request) % 4 == 0 else '{"novel": true}'

    found, _, _ = run(scripted, nonsense, "novelty")
    figure = found["pair_novelty"]
    assert (figure.value, figure.n) == (1.0, 9)
    assert "3 of 12 answers unusable (invalid json 3)" in figure.note
    nothing, _, _ = run(scripted, lambda request: "never", "relevance")
    assert nothing["pair_irrelevance"].n == 0 and str(nothing["pair_irrelevance"].value) == "nan"


def test_factuality_has_three_classes_and_needs_no_source(scripted: Make) -> None:
    classes = ["undefined", "true", "false", "true"]

    def check(request: Request) -> str:
        return json.dumps({"factuality": classes[number_in(request) % 4]})

    alone = [Document(text=f"Written text {i}.", id=f"a{i}") for i in range(8)]
    found, _, _ = run(scripted, check, "factuality", "novelty", columns={"all": Sample("all", alone)})
    shares = [found[name].value for name in ("factuality_undefined", "no_factual_error", "factual_error")]
    assert shares == [0.25, 0.5, 0.25]
    assert "pair_novelty" not in found, "there is no source to hold it against"


def test_subjective_sentences_do_not_count_as_unsupported(scripted: Make) -> None:
    def check(request: Request) -> str:
        sentence = request.origin.variables["sentence"]
        return json.dumps({"subjective": sentence.startswith("It has"), "supported": "Written" in sentence})

    found, context, _ = run(scripted, check, "sentences", sentences=100)
    assert found["sentences_subjective"].value == 0.5 and found["sentences_subjective"].n == 24
    assert found["sentences_supported"].value == 1.0 and found["sentences_supported"].n == 12
    assert {row["item"] for row in context.tables["verdicts"]} >= {"It has one more sentence."}


def test_sentences_are_drawn_from_all_texts_by_the_seed() -> None:
    source = SOURCES["s0"]
    texts = [Document(text='He said "Go to the sea!" Then he went away. No.', id=str(i)) for i in range(5)]
    pairs = [(text, source) for text in texts]
    every = drawn_sentences(pairs, 100, 0)
    assert {sentence for *_, sentence in every} == {'He said "Go to the sea!', "Then he went away."}
    assert len(every) == 10, "the short one is left out"
    assert drawn_sentences(pairs, 4, 1) == drawn_sentences(pairs, 4, 1) != drawn_sentences(pairs, 4, 2)


def test_concepts_are_kept_with_their_relation(scripted: Make) -> None:
    answer = {
        "first": "a story", "second": "a talk", "concept": "bags", "domain": "culture", "kind": "event",
        "relation": "form",
    }  # fmt: skip
    found, context, _ = run(scripted, lambda request: json.dumps(answer), "concepts")
    assert found["relation_form"].value == 1 and found["relation_scope"].value == 0
    assert context.tables["verdicts"][0]["concept"] == "bags"


def test_a_group_is_judged_by_what_was_said_of_the_whole(scripted: Make) -> None:
    whole = sample()
    part = Sample("part", whole.documents[:3], sources=SOURCES, part_of="all")
    context, backend = scripted(lambda request: json.dumps({"copied": number_in(request) == 0}))
    columns = {"all": whole, "part": part}
    figures = asyncio.run(measure(columns, Config(ask=("copying",)), context))
    assert backend.sent == 12
    assert by_name(figures, "part")["pair_copying"].value == pytest.approx(1 / 3)


def test_a_larger_sample_asks_only_for_the_new_ones(scripted: Make) -> None:
    def answer(request: Request) -> str:
        return '{"repeats": false}'

    run(scripted, answer, "repetition", sample=5)
    _, _, backend = run(scripted, answer, "repetition", sample=8)
    assert backend.sent == 3


def test_an_unknown_judge_is_answered_with_the_nearest(scripted: Make) -> None:
    with pytest.raises(UsageError, match="unknown judge 'noveltie'; did you mean 'novelty'"):
        run(scripted, lambda request: "", "noveltie")


def test_every_judge_has_a_prompt_that_shows_what_it_judges() -> None:
    assert set(JUDGES) == set(STEPS)
    for name, step in STEPS.items():
        alone = name in ("repetition", "factuality")
        shown = [part for part in ("{text}", "{sentence}", "{a}") if part in step.prompt]
        assert bool(shown) != alone, name
        assert step.temperature == 0
