"""Exported sets under the real lm-evaluation-harness: the same numbers as ours, and errors a person can mend."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from leaven.errors import UsageError
from leaven.evaluate.harness import Found, Tasks, _value, export, load_tasks, run
from leaven.evaluate.sets import Item

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.torch

PROMPT = "Question: {}\nAnswer:"
CHOICES = [
    Item("one", "a", PROMPT.format("what fell?"), (" the bag", " sea", " nothing at all"), 1),
    Item("two", "a", PROMPT.format("where did it fall?"), (" into the sea", " on land"), 0),
    Item(
        "three", "b", PROMPT.format("who asked?"), (" the Answer", " Question", " the bag, far out", " ü"), 2
    ),
]
ANSWERS = [
    Item("one", "a", PROMPT.format("what fell?"), (" the bag",)),
    Item("two", "b", PROMPT.format("and where?"), (" [into] the sea, far out",)),
    Item("three", "c", PROMPT.format("who asked?"), (" 7",)),
]
TEXTS = [
    Item("t1", "t1", "", ("The bag fell into the sea.",)),
    Item("t2", "t2", "", (" It fell\n\nagain, ünder way. ",)),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with weights large enough that options differ."""
    import torch
    from transformers import AutoModelForCausalLM

    from leaven.corpus.tokens import train_tokenizer
    from leaven.train.pretrain import _save_tokenizer
    from leaven.train.shapes import Shape, config_of

    folder = tmp_path_factory.mktemp("harness")
    train_tokenizer(["The bag fell into the sea. Question: what fell? Answer: the bag"] * 3, 300).save(
        folder / "tokenizer.json"
    )
    torch.manual_seed(0)
    shape = Shape(hidden=32, inner=64, layers=1, heads=2, tied=True)
    config = config_of(shape, vocab_size=300, context=64, end=0)
    config.initializer_range = 0.3
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    _save_tokenizer(folder / "tokenizer.json", 0, folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All three sets in one folder, moved after they were written."""
    written, moved = tmp_path_factory.mktemp("written"), tmp_path_factory.mktemp("elsewhere") / "tasks"
    export("choices", "choices", CHOICES, written)
    export("answers", "answers", ANSWERS, written)
    export("texts", "text", TEXTS, written)
    shutil.move(written, moved)
    return moved


@pytest.fixture(scope="module")
def tasks(folder: Path) -> Tasks:
    return load_tasks(["leaven_choices", "leaven_answers", "leaven_texts"], [folder])


@pytest.fixture(scope="module")
def found(checkpoint: Path, tasks: Tasks) -> Found:
    return run(checkpoint, tasks, device="cpu")


def scores(checkpoint: Path, items: list[Item]) -> list[list[tuple[float, int]]]:
    from leaven.evaluate.likelihood import Scorer

    flat = iter(
        Scorer(checkpoint, "cpu").score([(one.prefix, text) for one in items for text in one.continuations])
    )
    return [[next(flat) for _ in one.continuations] for one in items]


def values(found: Found, task: str, metric: str) -> dict[str, tuple[float, float]]:
    return {row.item: (row.over, row.under) for row in found.rows[task] if row.figure == metric}


def test_items_are_exported_whole(folder: Path) -> None:
    lines = (folder / "leaven_choices.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["one", "two", "three"]
    assert json.loads(lines[0]) == {
        "id": "one", "document": "a", "prompt": CHOICES[0].prefix, "options": ["the bag", "sea", "nothing at all"],
        "right": 1,
    }  # fmt: skip
    assert not list(folder.glob("*.partial"))


def test_choices_are_scored_as_we_score_them(checkpoint: Path, found: Found) -> None:
    ours = scores(checkpoint, CHOICES)
    for item, own in zip(CHOICES, ours, strict=True):
        sums = [total for total, _ in own]
        by_length = [total / len(text[1:]) for (total, _), text in zip(own, item.continuations, strict=True)]
        assert values(found, "leaven_choices", "acc")[item.id] == (
            float(sums.index(max(sums)) == item.right),
            1.0,
        )
        expected = float(by_length.index(max(by_length)) == item.right)
        assert values(found, "leaven_choices", "acc_norm")[item.id] == (expected, 1.0)
    assert {row.item: row.unit for row in found.rows["leaven_choices"]} == {
        "one": "a",
        "two": "a",
        "three": "b",
    }


def test_log_probabilities_of_options_are_the_same_numbers(checkpoint: Path, tasks: Tasks) -> None:
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=str(checkpoint), dtype="float32", device="cpu", batch_size=3)
    task = tasks.single["leaven_choices"]
    task.build_all_requests(rank=0, world_size=1)
    theirs = [total for total, _ in model.loglikelihood(task.instances, disable_tqdm=True)]
    assert theirs == pytest.approx(
        [total for own in scores(checkpoint, CHOICES) for total, _ in own], abs=1e-4
    )


def test_answers_and_texts_are_scored_as_we_score_them(checkpoint: Path, found: Found) -> None:
    for task, items in (("leaven_answers", ANSWERS), ("leaven_texts", TEXTS)):
        own = {item.id: -one[0][0] for item, one in zip(items, scores(checkpoint, items), strict=True)}
        for item in items:
            size = len(item.continuations[0].encode())
            bits, size_found = values(found, task, "bits_per_byte")[item.id]
            nats, words = values(found, task, "word_perplexity")[item.id]
            assert (bits * math.log(2), size_found, nats) == pytest.approx(
                (own[item.id], size, own[item.id]), abs=1e-4
            )
            assert words >= len(item.continuations[0].split())


def test_aggregates_are_what_the_items_give(found: Found) -> None:
    means = {"acc", "acc_norm", "bits_per_byte"}
    checked = 0
    for figure in found.figures:
        pairs = values(found, figure.task, figure.metric).values()
        mean = sum(over for over, _ in pairs) / sum(under for _, under in pairs)
        assert figure.value == pytest.approx(mean if figure.metric in means else math.exp(mean))
        assert figure.items == len(pairs)
        checked += 1
    assert checked == 2 + 3 + 3
    errors = {(one.task, one.metric): one.stderr for one in found.figures}
    assert errors["leaven_choices", "acc"] is not None and errors["leaven_texts", "bits_per_byte"] is None


def test_tasks_run_again_on_fewer_items_and_without_noise(
    checkpoint: Path, tasks: Tasks, found: Found, capfd: pytest.CaptureFixture[str]
) -> None:
    fewer = run(checkpoint, replace(tasks, asked=tasks.asked[:1]), limit=2, device="cpu")
    assert capfd.readouterr() == ("", "")
    assert fewer.rows == {
        "leaven_choices": [row for row in found.rows["leaven_choices"] if row.item != "three"]
    }


def test_examples_are_other_items(checkpoint: Path, folder: Path, found: Found) -> None:
    tasks = load_tasks(["leaven_choices", "leaven_answers", "leaven_texts"], [folder], num_fewshot=2)
    again = run(checkpoint, tasks, device="cpu")
    assert again.shots == {"leaven_choices": 2, "leaven_answers": 2, "leaven_texts": 0}
    assert found.shots == dict.fromkeys(again.shots, 0)
    for name, items in (("leaven_choices", CHOICES), ("leaven_answers", ANSWERS)):
        for instance in tasks.single[name].instances:
            own = items[instance.doc_id]
            first, second = (
                one.prefix + one.continuations[one.right] + "\n\n" for one in items if one is not own
            )
            assert instance.args[0].removesuffix(own.prefix) in {first + second, second + first}


def test_other_tasks_name_items_by_what_they_hold(checkpoint: Path, tmp_path: Path) -> None:
    export("own", "choices", [*CHOICES, CHOICES[0]], tmp_path)
    (tmp_path / "foreign.yaml").write_text(
        (tmp_path / "leaven_own.yaml").read_text().replace("task: leaven_own", "task: foreign")
    )
    (tmp_path / "leaven_own.yaml").unlink()
    rows = run(checkpoint, load_tasks(["foreign"], [tmp_path]), device="cpu").rows["foreign"]
    names = [row.item for row in rows if row.figure == "acc"]
    assert len(set(names)) == 4 and names[3] == f"{names[0]}-2"
    assert all(row.unit == row.item for row in rows)


def test_a_group_is_averaged_and_its_tasks_keep_their_items(checkpoint: Path, tmp_path: Path) -> None:
    export("first", "choices", CHOICES, tmp_path)
    export("second", "choices", CHOICES[:2], tmp_path)
    (tmp_path / "both.yaml").write_text(
        "group: both\ntask: [leaven_first, leaven_second]\n"
        "aggregate_metric_list: [{metric: acc, aggregation: mean, weight_by_size: true}]\n"
    )
    found = run(checkpoint, load_tasks(["both"], [tmp_path]), device="cpu")
    pairs = [
        pair for task in ("leaven_first", "leaven_second") for pair in values(found, task, "acc").values()
    ]
    group = next(one for one in found.figures if (one.task, one.metric) == ("both", "acc"))
    assert group.value == pytest.approx(sum(over for over, _ in pairs) / 5) and set(found.rows) == set(
        found.shots
    )
    assert len(found.rows) == 2 and group.items == 5
    with pytest.raises(UsageError, match=r"Duplicate task 'leaven_first'.*; ask for one of them only"):
        load_tasks(["both", "leaven_first"], [tmp_path])


@pytest.mark.parametrize(
    ("value", "aggregation", "expected"),
    [
        (1, "mean", (1.0, 1.0)),
        (-2.0, "perplexity", (2.0, 1.0)),
        ((-6.0, 3), "weighted_perplexity", (6.0, 3.0)),
        ((-6.0, 3), "bits_per_byte", (6.0 / math.log(2), 3.0)),
        ((1, 0), "f1_score", None),
    ],
)
def test_values_are_ratios_of_sums(value: Any, aggregation: str, expected: Any) -> None:
    assert _value(value, aggregation) == expected


def test_errors_say_what_to_mend(checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    task = (
        (folder / "leaven_texts.yaml").read_text().replace("custom_dataset: !function leaven_sets.read", "")
    )
    task = task.replace("dataset_kwargs:\n  file: leaven_texts.jsonl", "dataset_path: far/away")
    (tmp_path / "far" / "far.yaml").write_text(task)
    with pytest.raises(UsageError, match=r"^lm-eval: data of task leaven_texts cannot be had .*[Hh]ub.*$"):
        load_tasks(["leaven_texts"], [tmp_path / "far"])
    with pytest.raises(UsageError, match="is no folder of tasks"):
        load_tasks(["leaven_choices"], [tmp_path / "none"])
    with pytest.raises(UsageError, match="none: no such folder"):
        run(tmp_path / "none", load_tasks(["leaven_choices"], [folder]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"lm-eval: checkpoint .*empty: "):
        run(tmp_path / "empty", load_tasks(["leaven_choices"], [folder]))
    export("long", "answers", [Item("x", "x", "Q", (" the bag" * 200,))], tmp_path / "long")
    with pytest.raises(UsageError, match=r"longer than the context of .* \(64 tokens\)"):
        run(checkpoint, load_tasks(["leaven_long"], [tmp_path / "long"]), device="cpu")
    with pytest.raises(UsageError, match=r"set name 'a b' may hold"):
        export("a b", "choices", CHOICES, tmp_path)
    with pytest.raises(UsageError, match=r"item 'x' has an empty text"):
        export("s", "choices", [Item("x", "x", "Q", (" a", " "))], tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.slow  # reads all the tasks that come with lm-eval
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("leaven_choice", r"^lm-eval: unknown task 'leaven_choice'; did you mean 'leaven_choices'\?$"),
        (
            "0123456789-0123456789",
            r"^lm-eval: unknown task '0123456789-.*'; `lm-eval ls tasks` names them all$",
        ),
        ("hellaswag", r"^lm-eval: data of task hellaswag cannot be had .*[Hh]ub.*$"),
    ],
)
def test_an_unknown_task_is_named_with_the_nearest(folder: Path, name: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load_tasks([name], [folder])


def test_a_missing_harness_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(UsageError, match=r"pip install 'leaven\[eval\]'"):
        load_tasks(["x"])


def test_every_item_has_one_value_of_a_metric(found: Found) -> None:
    for task, items in (("leaven_choices", CHOICES), ("leaven_answers", ANSWERS), ("leaven_texts", TEXTS)):
        rows = found.rows[task]
        assert len({(row.item, row.figure) for row in rows}) == len(rows)
        assert {row.item for row in rows} == {item.id for item in items}
