"""Sets, scores and differences: against numbers worked out by hand, and with real checkpoints."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leaven.errors import UsageError
from leaven.evaluate import Candidate, Evaluate, evaluate
from leaven.evaluate.harness import Harness
from leaven.evaluate.likelihood import _windows
from leaven.evaluate.patterns import Texts
from leaven.evaluate.results import doubts, read_results, results_against, results_markdown, summarise
from leaven.evaluate.sets import LikelihoodSet, read
from leaven.lm import loop
from leaven.measure.base import Context

STORIES = Path(__file__).parents[2] / "examples" / "stories"


def write(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_the_example_sets_are_whole() -> None:
    questions = read("q", LikelihoodSet(kind="answers", path=STORIES / "questions.jsonl"))
    choices = read("c", LikelihoodSet(kind="choices", path=STORIES / "choices.jsonl"))
    assert (len(questions), len(choices)) == (96, 64)
    assert len({item.unit for item in questions}) == len({item.unit for item in choices}) == 8
    assert questions[0].prefix.startswith("Question: ") and questions[0].prefix.endswith("\nAnswer:")
    assert all(len(item.continuations) == 4 and item.continuations[0].startswith(" ") for item in choices)


@pytest.mark.parametrize(
    ("kind", "row", "said"),
    [
        ("answers", {"question": "q"}, ":1: missing answer"),
        ("choices", {"question": "q", "options": ["a"], "answer": 0}, "two or more"),
        (
            "choices",
            {"question": "q", "options": ["a", "b"], "answer": 2},
            "option .0 to 1., not 2",
        ),
        ("choices", {"question": "q", "options": ["a", "b"], "answer": "a"}, "not 'a'"),
        ("text", "{broken", ":1: not JSON"),
        ("text", "[1]", "must be a JSON object"),
        ("text", "", "no items"),
    ],
)
def test_a_bad_set_is_named_by_its_line(tmp_path: Path, kind: Any, row: Any, said: str) -> None:
    path = write(tmp_path / "set.jsonl", row)
    with pytest.raises(UsageError, match=said):
        read("s", LikelihoodSet(kind=kind, path=path))


def test_an_id_is_used_once(tmp_path: Path) -> None:
    path = write(tmp_path / "s.jsonl", {"id": 1, "text": "a"}, {"id": 1, "text": "b"})
    with pytest.raises(UsageError, match=":2: id '1' is used twice"):
        read("s", LikelihoodSet(kind="text", path=path))


@pytest.mark.parametrize(
    ("before", "text", "context"), [(3, 5, 16), (14, 5, 16), (40, 15, 16), (2, 16, 16), (9, 70, 16)]
)
def test_every_token_of_a_continuation_is_scored_once_with_something_before_it(
    before: int, text: int, context: int
) -> None:
    prefix, tokens = list(range(-before, 0)), list(range(text))
    scored: list[int] = []
    for window, count in _windows(prefix, tokens, context):
        assert 0 < count < len(window) <= context
        scored += window[len(window) - count :]
    assert scored == tokens


def rows(
    arm: str, seed: int, values: dict[str, tuple[float, float]], figure: str = "loss"
) -> list[dict[str, Any]]:
    return [
        {"set": "q", "figure": figure, "arm": arm, "seed": seed, "item": item, "unit": item[0], "over": over,
         "under": under}
        for item, (over, under) in values.items()
    ]  # fmt: skip


def test_an_arm_is_the_mean_of_its_seeds_and_differs_from_the_baseline_item_by_item() -> None:
    items = [f"{unit}{i}" for unit in "abcd" for i in range(3)]
    base = {item: (10.0 + i, 2.0) for i, item in enumerate(items)}
    better = {item: (over - 1.0, under) for item, (over, under) in base.items()}
    worse = {item: (over + 0.5, under) for item, (over, under) in base.items()}
    found = summarise(
        rows("raw", 0, base) + rows("raw", 1, worse) + rows("mga", 0, better) + rows("mga", 1, base),
        ["raw", "mga"], "raw", 0,
    )  # fmt: skip
    raw, mga = found
    total = sum(over for over, _ in base.values())
    assert raw.value == pytest.approx((total + 12 * 0.25) / 24) and raw.difference is None
    assert raw.seeds == pytest.approx((total / 24, (total + 6) / 24))
    assert mga.difference == pytest.approx(-0.75 / 2) and mga.items == 12
    assert mga.apart and mga.apart.low == pytest.approx(mga.apart.high), "every item differs by the same"
    assert mga.apart.units == 4


def test_a_difference_that_seeds_may_have_made_is_doubted() -> None:
    items = [f"{unit}0" for unit in "abcdefgh"]

    def made(arm: str, seed: int, loss: float) -> list[dict[str, Any]]:
        return rows(arm, seed, {item: (loss + i / 100, 1.0) for i, item in enumerate(items)})

    arms = ["raw", "apart", "mixed", "one"]
    found = summarise(
        made("raw", 0, 2.0) + made("raw", 1, 2.2) + made("apart", 0, 1.5) + made("apart", 1, 1.9)
        + made("mixed", 0, 1.0) + made("mixed", 1, 2.1) + made("one", 0, 2.05), arms, "raw", 0,
    )  # fmt: skip
    assert all(one.apart and one.apart.high < 0 for one in found[1:]), (
        "certain over the documents, all of them"
    )
    assert [line.split(":")[0] for line in doubts(found, "raw")] == ["q, loss, mixed"]
    assert "more seeds are needed" in results_markdown(found, "raw")


def test_an_item_that_one_model_lacks_is_left_out_for_all_and_counted() -> None:
    whole = {item: (2.0, 1.0) for item in ("a0", "a1", "b0")}
    found = summarise(
        rows("raw", 0, whole) + rows("mga", 0, {"a0": (1.0, 1.0), "b0": (5.0, 1.0)}), ["raw", "mga"], "raw", 0
    )
    assert [(one.value, one.items, one.missing) for one in found] == [(2.0, 2, 1), (3.0, 2, 1)]
    assert "q: 1 items that some model could not be scored on are left out for all, 2 are in" in (
        results_markdown(found, "raw")
    )


@pytest.mark.torch
def test_models_are_scored_as_transformers_scores_them(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from leaven.corpus.tokens import train_tokenizer
    from leaven.train.pretrain import _save_tokenizer
    from leaven.train.shapes import Shape, config_of

    tokenizer = train_tokenizer(["The bag fell into the sea. Question: what fell? Answer: the bag"] * 3, 300)
    tokenizer.save(tmp_path / "tokenizer.json")
    folders = {}
    for seed in (0, 1):
        torch.manual_seed(seed)
        shape = Shape(hidden=32, inner=64, layers=1, heads=2, tied=True)
        model = AutoModelForCausalLM.from_config(config_of(shape, vocab_size=300, context=64, end=0))
        folders[seed] = tmp_path / f"model{seed}"
        model.save_pretrained(folders[seed])
        _save_tokenizer(tmp_path / "tokenizer.json", 0, folders[seed])
    questions = write(
        tmp_path / "q.jsonl",
        {"question": "what fell?", "answer": "the bag", "document": "a"},
        {
            "question": "what, and where did it fall?",
            "answer": "the bag, into the sea, far out",
            "document": "b",
        },
    )
    choices = write(
        tmp_path / "c.jsonl",
        {"question": "what fell?", "options": ["the bag", "sea", "nothing"], "answer": 1},
    )
    texts = write(
        tmp_path / "t.jsonl",
        {"text": "The bag fell into the sea. " * 12, "source": "sea"},
        {"text": "What fell fell far out.", "source": "land"},
    )
    options = Evaluate.model_validate({"sets": {
        "questions": {"kind": "answers", "path": questions}, "choices": {"kind": "choices", "path": choices},
        "texts": {"kind": "text", "path": texts, "by": "source"},
    }})  # fmt: skip
    options = options.model_copy(update={
        "harness": Harness(tasks=("leaven_questions", "leaven_choices")), "patterns": Texts(path=texts, bins=5),
    })  # fmt: skip
    models = [Candidate("raw", 0, "f0", folders[0]), Candidate("other", 0, "f1", folders[1])]
    manifest = loop.run(evaluate(models, options, tmp_path / "out", Context()))
    assert manifest["counts"] == {"models": 2, "items": 5} and manifest["baseline"] == "raw"
    found = {(one.set, one.figure, one.arm): one for one in read_results(tmp_path / "out")}
    model, encoder = (
        AutoModelForCausalLM.from_pretrained(folders[0]),
        AutoTokenizer.from_pretrained(folders[0]),
    )

    def loss(prefix: str, text: str) -> tuple[float, int]:
        before, after = (encoder.encode(one, add_special_tokens=False) for one in (prefix, text))
        with torch.inference_mode():
            scores = model(torch.tensor([before + after])).logits[0, :-1].log_softmax(-1)
        picked = [scores[len(before) - 1 + i, token] for i, token in enumerate(after)]
        return -float(sum(picked)), len(after)

    pairs = [
        loss("Question: what fell?\nAnswer:", " the bag"),
        loss("Question: what, and where?\nAnswer:", " the bag, into the sea, far out"),
    ]
    expected = sum(total for total, _ in pairs) / sum(count for _, count in pairs)
    assert found["questions", "loss", "raw"].value == pytest.approx(expected, abs=1e-4)
    means = [-total / count for total, count in (
        loss("Question: what fell?\nAnswer:", f" {one}") for one in ("the bag", "sea", "nothing")
    )]  # fmt: skip
    margin = means[1] - max(means[0], means[2])
    assert found["choices", "margin", "raw"].value == pytest.approx(margin, abs=1e-4)
    assert found["choices", "accuracy", "raw"].value == float(margin > 0)
    loss_of = {name: found[name, "loss", "raw"] for name in ("texts", "texts/sea", "texts/land")}
    assert 4 < loss_of["texts"].value < 7, "untrained: near log 300"
    assert min(loss_of["texts/sea"].value, loss_of["texts/land"].value) < loss_of["texts"].value
    assert [one.items for one in loss_of.values()] == [2, 1, 1]
    assert found["texts", "perplexity", "raw"].value == pytest.approx(math.exp(loss_of["texts"].value))
    assert ("questions", "perplexity", "raw") not in found
    acc = found["lm-eval/leaven_choices", "acc", "raw"]
    assert acc.items == 1 and acc.value in (0.0, 1.0) and acc.difference is None
    bits = found["lm-eval/leaven_questions", "bits_per_byte", "raw"]
    letters = len(" the bag" + " the bag, into the sea, far out")
    assert bits.value == pytest.approx(sum(total for total, _ in pairs) / letters / math.log(2), abs=1e-3)
    compared = json.loads((tmp_path / "out" / "patterns" / "other" / "patterns.json").read_text())
    assert compared["texts"] == 2 == sum(compared["counts"]) + compared["without"]
    assert compared["difference"]["value"] == pytest.approx(np.mean([
        found[f"texts/{name}", "loss", "other"].value - loss_of[f"texts/{name}"].value for name in ("sea", "land")
    ]), abs=1e-4)  # fmt: skip
    assert sorted(path.stem for path in (tmp_path / "out" / "tasks").glob("*.yaml")) == [
        "leaven_choices", "leaven_questions", "leaven_texts",
    ]  # fmt: skip
    table = results_markdown(list(found.values()), "raw")
    assert "| questions | loss ↓ | other |" in table and "minus raw" in table
    turned = {(one.set, one.figure, one.arm): one for one in results_against(tmp_path / "out", "other")}
    here, there = found["questions", "loss", "other"], turned["questions", "loss", "raw"]
    assert there.difference == pytest.approx(-(here.difference or 0)) != 0 and there.value != here.value
    with pytest.raises(UsageError, match="'rwa' is no arm; did you mean 'raw'"):
        results_against(tmp_path / "out", "rwa")
    stamp = (tmp_path / "out" / "results.json").stat().st_mtime_ns
    loop.run(evaluate(models, options, tmp_path / "out", Context()))
    assert (tmp_path / "out" / "results.json").stat().st_mtime_ns == stamp
    with pytest.raises(UsageError, match="baseline 'rwa' is no arm; did you mean 'raw'"):
        options = options.model_copy(update={"baseline": "rwa"})
        loop.run(evaluate(models, options, tmp_path / "none", Context()))
