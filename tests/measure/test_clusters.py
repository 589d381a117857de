"""The cluster-agent against a model whose partitions are known, and against one that answers badly."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from measuring import Answering, Scripted

from leaven.document import Document
from leaven.errors import Rejected, UsageError
from leaven.lm.base import Request
from leaven.measure.base import Context, Figure, Sample
from leaven.measure.clusters import Config, cluster_score, measure, partition

Make = Callable[..., tuple[Context, Scripted]]
CRITERIA = {
    "attributes": [{"name": "Topic", "definition": "d"}],
    "scales": [{"name": "Length", "definition": "d"}],
}
CHOSEN = {"chosen": [{"name": "Topic", "definition": "What it is about."}]}
SETUP = {"propose": CRITERIA, "gather": CHOSEN, "summarise": CHOSEN}


def sample(kinds: int, texts: int = 40) -> Sample:
    """Texts that each say which of `kinds` kinds they are of."""
    rows = [Document(text=f"This is of kind {i % kinds}, number {i}.", id=str(i)) for i in range(texts)]
    return Sample("all", rows)


def by_kind(request: Request) -> list[list[int]]:
    """The true groups of a round's texts."""
    groups: dict[str, list[int]] = {}
    for number, kind in re.findall(r"Text (\d+):\nThis is of kind (\d+)", request.messages[0][1]):
        groups.setdefault(kind, []).append(int(number))
    return list(groups.values())


def answers(**changed: Any) -> Answering:
    """A perfect model, but for the steps in `changed` (a value, or a function of the request)."""

    def answer(request: Request) -> str:
        step = request.origin.step
        found: Any = SETUP.get(step)
        if step == "cluster":
            found = {"groups": [{"texts": group, "reason": "same kind"} for group in by_kind(request)]}
        elif step == "verify":
            found = {"groups": []}
        if step in changed:
            found = changed[step](request) if callable(changed[step]) else changed[step]
        return found if isinstance(found, str) else json.dumps(found)

    return answer


def run(make: Make, answering: Answering, texts: Sample, **options: Any) -> tuple[Figure, Scripted]:
    context, backend = make(answering)
    config = Config(**{"rounds": 20, "proposals": 3, "batch": 5, **options})
    (figure,) = asyncio.run(measure({"all": texts}, config, context))
    return figure, backend


def true_scores(kinds: int, rounds: int, texts: int = 40) -> list[float]:
    """C / S of every round, from the texts it draws."""
    draws = (random.Random(f"0 round {number}").sample(range(texts), 10) for number in range(rounds))
    return [len({i % kinds for i in draw}) ** 2 / 10 for draw in draws]


def test_the_score_of_known_partitions_is_exact(scripted: Make) -> None:
    figure, backend = run(scripted, answers(), sample(4))
    expected = true_scores(4, 20)
    assert figure.details["scores"] == expected
    assert figure.value == pytest.approx(np.mean(expected), abs=1e-15)
    assert figure.details["standard_error"] == pytest.approx(np.std(expected, ddof=1) / 20**0.5)
    assert backend.sent == 3 + 2 + 1 + 2 * 20
    assert figure.unit == "round" and figure.n == 20 and figure.interval


def test_the_bounds_all_alike_and_all_different(scripted: Make) -> None:
    assert run(scripted, answers(), sample(1))[0].value == pytest.approx(1 / 10)
    assert run(scripted, answers(), sample(40))[0].value == pytest.approx(10)


def test_more_rounds_only_ask_for_the_new_ones(scripted: Make) -> None:
    first, _ = run(scripted, answers(), sample(4))
    again, same = run(scripted, answers(), sample(4))
    assert same.sent == 0 and again.value == first.value
    longer, more = run(scripted, answers(), sample(4), rounds=30)
    assert more.sent == 2 * 10 and longer.details["scores"][:20] == first.details["scores"]


def test_rounds_stop_when_the_interval_is_narrow_enough(scripted: Make) -> None:
    figure, _ = run(scripted, answers(), sample(4), rounds=500, stop_at=0.5)
    assert figure.details["rounds"] < 500
    assert figure.interval and figure.interval.high - figure.interval.low < 0.5
    wide, _ = run(scripted, answers(), sample(4), rounds=20, stop_at=0.001)
    assert wide.details["rounds"] == 20


def test_an_invalid_group_is_removed_with_its_texts(scripted: Make) -> None:
    def first_is_wrong(request: Request) -> Any:
        return {"groups": [{"group": 1, "valid": False, "reason": "no"}]}

    figure, _ = run(scripted, answers(verify=first_is_wrong), sample(2), rounds=5)
    for score in figure.details["scores"]:
        assert score in [1 / n for n in range(1, 10)], "one group of n texts is left: 1 / n"


def test_a_single_text_is_valid_whatever_the_verifier_says(scripted: Make) -> None:
    nothing = {"groups": [{"group": i, "valid": False} for i in range(1, 11)]}
    assert run(scripted, answers(verify=nothing), sample(40), rounds=4)[0].value == 10
    figure, _ = run(scripted, answers(verify=nothing), sample(1), rounds=4)
    assert np.isnan(figure.value) and figure.details["rejected"] == {"no valid group": 4}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("no json at all", "invalid json"),
        ({"groups": []}, "invalid json"),
        ({"groups": [{"texts": [1, 2, 3], "reason": ""}]}, "no partition"),
        ({"groups": [{"texts": list(range(1, 11))}, {"texts": [1, 2, 3, 4]}]}, "no partition"),
        ({"groups": [{"texts": [*range(1, 11), 77, 78, 79]}]}, "no partition"),
        ({"groups": [{"texts": []}]}, "no partition"),
    ],
)
def test_an_answer_that_is_no_partition_never_counts(scripted: Make, bad: Any, reason: str) -> None:
    """Every third round is answered badly: the score is that of the others alone."""

    def sometimes(request: Request) -> Any:
        number = int(request.origin.document.split()[1])
        good = {"groups": [{"texts": group} for group in by_kind(request)]}
        return bad if number % 3 == 0 else good

    figure, _ = run(scripted, answers(cluster=sometimes), sample(4))
    kept = [score for number, score in enumerate(true_scores(4, 20)) if number % 3]
    assert figure.details["scores"] == kept and figure.value == pytest.approx(np.mean(kept), abs=1e-15)
    assert figure.details["rejected"] == {reason: 7} and "7 rejected" in figure.note


def test_a_slip_is_mended_and_counted(scripted: Make) -> None:
    def slip(request: Request) -> Any:
        return {"groups": [{"texts": list(range(1, 10))}, {"texts": [9]}]}  # 9 twice, 10 missing

    figure, _ = run(scripted, answers(cluster=slip), sample(4), rounds=4)
    assert figure.value == pytest.approx(4 / 10), "1 to 9 in one group, 10 alone: 2^2 / 10"
    assert figure.details["repaired"] == 4 and "4 repaired" in figure.note


numbers = st.lists(st.lists(st.integers(-2, 12), max_size=6), max_size=6)


@given(numbers)
def test_what_passes_as_a_partition_is_one(groups: list[list[int]]) -> None:
    try:
        found, repaired = partition(groups, 10)
    except Rejected:
        return
    assert sorted(text for group in found for text in group) == list(range(1, 11)) and all(found)
    assert repaired or sorted(map(sorted, found)) == sorted(map(sorted, groups))
    assert 1 / 10 <= cluster_score(found) <= 10


def test_criteria_fall_back_to_the_most_frequent_proposals(scripted: Make) -> None:
    figure, _ = run(scripted, answers(gather="nonsense", summarise="nonsense"), sample(4), rounds=2)
    assert [one["name"] for one in figure.details["criteria"]] == ["topic", "length"]


def test_a_model_that_proposes_nothing_usable_is_named(scripted: Make) -> None:
    with pytest.raises(UsageError, match="scripted gave no usable criteria in 3 proposals"):
        run(scripted, answers(propose="nonsense"), sample(4))


def test_fewer_texts_than_a_round_needs_is_said(scripted: Make) -> None:
    figure, backend = run(scripted, answers(), sample(4, texts=9))
    assert np.isnan(figure.value) and figure.note == "needs 10 texts" and backend.sent == 0


def test_prompts_can_be_changed_by_step(scripted: Make) -> None:
    seen: list[str] = []

    def remember(request: Request) -> Any:
        seen.append(request.messages[0][1])
        return {"groups": [{"texts": group} for group in by_kind(request)]}

    prompt = "Sort these {number} by {criteria}"
    run(scripted, answers(cluster=remember), sample(4), rounds=2, steps={"cluster": {"prompt": prompt}})
    assert seen and all("Sort these 10 by - Topic: What it is about." in one for one in seen)
