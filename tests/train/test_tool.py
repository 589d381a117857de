"""From the recorded teacher to D_SFT, to a student that is asked what it was taught, to the table of both."""

from __future__ import annotations

import asyncio
import json
import math
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from server import Server

from leaven.corpus.chunk import chunk_document
from leaven.corpus.tokens import load_tokenizer
from leaven.errors import UsageError
from leaven.generate import mga
from leaven.lm.store import ResponseStore
from leaven.plan import resolve
from leaven.run import run
from leaven.stage import read_stage, shards
from leaven.train.compare import SCORES, UNJUDGED, UNWRITTEN, Scores, compare, compared, scores_of
from leaven.train.tool import distill, write_examples

STORIES = Path(__file__).parents[2] / "examples" / "stories"
ANSWERS = STORIES / "answers.jsonl"
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
LOOSE = {"mga": {"name": "loose", "first": 2, "strictness": ["strict", "relaxed"]}}


def make_run(
    out: Path, generate: list[Any], recording: Path = ANSWERS, to: str = "generate", **changes: Any
) -> Path:
    value = {
        "name": "teacher", "out": out, "answers": out.parent / "answers",
        "documents": {"path": str(STORIES / "documents.jsonl")},
        "model": {"backend": "replay", "path": recording}, "generate": generate, "max_failed": 1,
    }  # fmt: skip
    run(resolve(value | changes, Path()), to=to)
    return out


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose stage `mga` scored 5 throughout and whose stage `loose` has 13 texts of 32 below 3."""
    return make_run(
        tmp_path_factory.mktemp("teacher") / "run", ["mga", LOOSE, {"rephrase": {"styles": ["easy"]}}]
    )


def test_every_example_is_a_prompt_and_answer_of_the_store(teacher: Path) -> None:
    found = distill(teacher)
    assert {name: examples.counts() for name, examples in found.items()} == {
        "pairs": {"read": 8, "kept": 8, "rejected": 0, "reasons": {}},
        "reformulate": {"read": 40, "kept": 40, "rejected": 0, "reasons": {}},
    }
    store = ResponseStore(teacher.parent / "answers")
    try:
        expected = []
        for row in read_stage(teacher / "generate" / "mga"):
            asked = store.lookup(row.metadata["request"])
            assert asked is not None and asked["text"].strip() == row.text
            ((_, prompt),) = asked["request"]["messages"]
            source, step = row.metadata["sources"][0], row.metadata["step"]
            expected.append({"prompt": prompt, "completion": row.text, "document": source, "step": step})
    finally:
        store.close()

    def by_text(row: dict[str, str]) -> str:
        return row["completion"]

    assert sorted(found["reformulate"].rows, key=by_text) == sorted(expected, key=by_text)


def test_pairs_are_the_recorded_answers_word_for_word(teacher: Path, recorded: list[dict[str, Any]]) -> None:
    answers = {one["doc_id"]: one["response"].strip() for one in recorded if one["step"] == "pairs"}
    rows = distill(teacher, steps=("pairs",))["pairs"].rows
    assert {row["document"]: row["completion"] for row in rows} == answers
    for row in rows:
        assert row["prompt"].endswith(mga.PAIRS.replace("{pairs}", "5")) and row["step"] == "pairs"


def test_what_is_judged_too_low_is_counted_not_learnt_from(teacher: Path) -> None:
    strict = distill(teacher, "loose")["reformulate"]
    assert strict.counts() == {"read": 32, "kept": 19, "rejected": 13, "reasons": {"judged below 3": 13}}
    kept = {row.text for row in read_stage(teacher / "generate" / "loose")}
    assert {row["completion"] for row in strict.rows} == kept
    assert len(distill(teacher, "loose", least=4)["reformulate"].rows) == 16
    assert len(distill(teacher, "loose", least=1)["reformulate"].rows) == 32, (
        "below the run's own cut as well"
    )
    only = distill(teacher, "loose", steps=("reformulate_strict",))
    assert not only["pairs"].rows and {row["step"] for row in only["reformulate"].rows} == {
        "reformulate_strict"
    }


def test_answers_that_needed_help_are_left_out_and_counted(
    tmp_path: Path, recorded: list[dict[str, Any]]
) -> None:
    """One document without usable pairs, one reformulation that is empty, one judgement that cannot be read."""
    rows = [dict(row) for row in recorded if row["method"] == "mga"]
    first, second, third = list(dict.fromkeys(row["doc_id"] for row in rows))[:3]
    for row in rows:
        if (row["doc_id"], row["step"]) == (first, "pairs"):
            row["response"] = '{"genre_1": "a letter"}'
        one = row["variables"].get("pair") == 1 and row["variables"].get("strictness", "base") == "base"
        if (row["doc_id"], row["step"]) == (second, "reformulate_base") and one:
            row["response"] = " "
        if (row["doc_id"], row["step"]) == (third, "judge") and one:
            row["response"] = "very good"
    recording = tmp_path / "answers.jsonl"
    recording.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = make_run(tmp_path / "run", ["mga"], recording)
    found = distill(out)
    assert found["pairs"].counts() == {
        "read": 8, "kept": 7, "rejected": 1, "reasons": {"invalid json": 1},
    }  # fmt: skip
    assert found["reformulate"].counts() == {
        "read": 35, "kept": 33, "rejected": 2, "reasons": {"empty answer": 1, "judge: invalid json": 1},
    }  # fmt: skip
    scores = scores_of(out)
    assert scores.counts == {5: 33, UNWRITTEN: 5 + 1, UNJUDGED: 1}, "40 were to be written"
    assert scores.rate(3) == 33 / 40


def test_documents_that_were_chunked_are_found_again(
    tmp_path: Path, teacher: Path, recorded: list[dict[str, Any]]
) -> None:
    count = load_tokenizer(str(teacher / "corpus")).count
    rows = []
    for document in read_stage(teacher / "corpus"):
        own = [row for row in recorded if (row["doc_id"], row["method"]) == (document.id, "mga")]
        for piece in chunk_document(document, 700, count):
            rows += [{**row, "doc_id": piece.id} for row in own]
    pieces = len({row["doc_id"] for row in rows})
    recording = tmp_path / "answers.jsonl"
    recording.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = make_run(tmp_path / "run", [{"mga": {"chunk_tokens": 700}}], recording)
    found = distill(out)
    assert len(found["pairs"].rows) == pieces > 8 and len(found["reformulate"].rows) == 5 * pieces
    assert {row["document"] for row in found["pairs"].rows} == {row["document"] for row in _rows(teacher)}
    assert any("\nPart: 2 of " in row["prompt"] for row in found["pairs"].rows)
    assert scores_of(out).counts == {5: 5 * pieces}


def _rows(run: Path) -> list[dict[str, str]]:
    return distill(run)["reformulate"].rows


def test_examples_are_written_once_with_counts_that_add_up(teacher: Path, tmp_path: Path) -> None:
    manifest = write_examples(teacher, tmp_path / "sft", "loose")
    assert manifest["counts"] == {"read": 40, "kept": 27, "rejected": 13}
    assert manifest["reasons"] == {"judged below 3": 13}
    assert {name: one["kept"] for name, one in manifest["sets"].items()} == {"pairs": 8, "reformulate": 19}
    lines = [json.loads(line) for line in (tmp_path / "sft" / "reformulate.jsonl").open()]
    assert lines == distill(teacher, "loose")["reformulate"].rows
    stamp = (tmp_path / "sft" / "pairs.jsonl").stat().st_mtime_ns
    assert write_examples(teacher, tmp_path / "sft", "loose") == manifest
    assert (tmp_path / "sft" / "pairs.jsonl").stat().st_mtime_ns == stamp


def test_what_cannot_be_distilled_is_one_line(teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no finished stage generate/mgaa; did you mean 'mga'\?"):
        distill(teacher, "mgaa")
    with pytest.raises(UsageError, match="written by rephrase; tool models are made for mga"):
        distill(teacher, "rephrase")
    with pytest.raises(UsageError, match="unknown step 'pair'; did you mean 'pairs'"):
        distill(teacher, steps=("pair",))
    with pytest.raises(UsageError, match="no such folder; give the one"):
        distill(teacher, answers=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="40 of 40 rows cannot be followed to their answers"):
        distill(teacher, answers=tmp_path / "empty")
    unjudged = make_run(tmp_path / "run", [{"mga": {"judge": False}}])
    with pytest.raises(UsageError, match=r"was not judged .* set judge: true"):
        distill(unjudged)
    assert len(distill(unjudged, steps=("pairs",))["pairs"].rows) == 8, "pairs need no judge"
    with pytest.raises(UsageError, match="no document in common"):
        compare(teacher, make_run(tmp_path / "other", ["mga"], documents={"path": str(_other(tmp_path))}))


def _other(folder: Path) -> Path:
    path = folder / "other.jsonl"
    path.write_text(json.dumps({"id": "other", "text": "Another text, of which nothing is recorded."}) + "\n")
    return path


# -- the table ---------------------------------------------------------------------------------------------


def scores(counts: dict[int, int], documents: int = 50, judge: str = "j") -> Scores:
    """Outcomes dealt out to documents in turn."""
    every = [outcome for outcome, number in counts.items() for _ in range(number)]
    return Scores("m", judge, {f"d{i}": every[i::documents] for i in range(documents)})


def test_the_papers_table_one() -> None:
    """Its rates divide by all 15,355, of which 183 and 198 have no score."""
    teacher = scores({5: 4120, 4: 7143, 3: 3034, 2: 661, 1: 214, UNJUDGED: 183})
    student = scores({5: 3788, 4: 7124, 3: 3224, 2: 736, 1: 285, UNWRITTEN: 198})
    table = compared(teacher, student)
    assert round(100 * teacher.rate(3), 2) == 93.11 and round(100 * student.rate(3), 2) == 92.06
    assert round(100 * table.difference, 2) == -1.05 and table.interval is not None
    assert table.interval.low < table.difference < table.interval.high and table.interval.units == 50
    shown = table.markdown()
    assert "| 15,355 |" in shown and "| 93.11% | - |" in shown and "| 92.06% | -1.05 (" in shown
    value = table.to_json()
    assert value["student"]["not_written"] == 198 and value["teacher"]["scores"]["5"] == 4120


def test_a_student_that_wrote_nothing_has_a_rate_of_zero_and_the_table_says_so() -> None:
    table = compared(scores({5: 100}), scores({UNWRITTEN: 100}, judge=""))
    assert table.student.rate(3) == 0 and table.difference == -1
    assert table.interval is None, "the same on every document: no spread"
    assert "wrote nothing that could be used" in table.markdown() and json.dumps(table.to_json())


def test_a_student_that_nobody_judged_has_no_rate() -> None:
    table = compared(scores({5: 100}), scores({UNWRITTEN: 90, UNJUDGED: 10}, judge=""))
    assert math.isnan(table.student.rate(3)) and math.isnan(table.difference)
    value = table.to_json()
    assert value["student"]["rate"] is None and value["difference"] is None and value["interval"] is None
    assert "not judged, so it has no rate" in table.markdown() and "nan" not in table.markdown()


outcomes = st.lists(st.sampled_from([*SCORES, UNWRITTEN, UNJUDGED]), min_size=1, max_size=6)
runs = st.dictionaries(st.sampled_from("abcdef"), outcomes, min_size=1)


@given(runs, runs, st.integers(1, 5))
def test_rates_are_shares_of_all_and_the_difference_is_theirs(
    first: dict[str, list[int]], second: dict[str, list[int]], least: int
) -> None:
    common = set(first) & set(second)
    if common:
        one, other = (Scores("m", "j", found).only(common) for found in (first, second))
        table = compared(one, other, least=least)
        every = [outcome for name in common for outcome in first[name]]
        assert one.rate(least) == pytest.approx(sum(outcome >= least for outcome in every) / len(every))
        assert table.difference == pytest.approx(other.rate(least) - one.rate(least))
        assert one.counts == Counter(every) and compared(one, one).difference == 0


def measured(run: Path, labels: dict[str, int], *, sample: int = 100, judge: str = "the judge") -> None:
    """A measure stage as the judges leave it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from leaven.stage import write_json

    rows = [{"judge": "consistency", "id": name, "label": str(label)} for name, label in labels.items()]
    rows.append({"judge": "novelty", "id": next(iter(labels), "x"), "label": "True"})
    judges = {"ask": ["consistency", "novelty"], "sample": sample}
    config = {"measures": {"judges": judges}, "models": [judge], "sample": 100}
    write_json(run / "measure" / "manifest.json", {"config": config})
    pq.write_table(pa.Table.from_pylist(rows), run / "measure" / "verdicts.parquet")


def test_an_unjudged_run_has_the_scores_of_its_measure_stage_by_the_same_judge(
    teacher: Path, tmp_path: Path
) -> None:
    student = make_run(tmp_path / "run", [{"mga": {"judge": False}}])
    assert scores_of(student).counts == {UNJUDGED: 40} and not scores_of(student).judge
    ids = [row.id for row in read_stage(student / "generate" / "mga")]
    measured(student, dict(zip(ids, [5, 2] * 20, strict=True)), judge=scores_of(teacher).judge)
    table = compare(teacher, student)
    assert table.student.counts == {5: 20, 2: 20} and table.difference == -0.5 and table.interval is not None
    measured(student, {ids[0]: 5}, judge=scores_of(teacher).judge)
    assert scores_of(student).counts == {5: 1, UNJUDGED: 39}
    measured(student, {ids[0]: 5}, judge="another judge")
    with pytest.raises(
        UsageError, match=r"by 'another judge'; write the student's run with mga: \{judge: false\}"
    ):
        compare(teacher, student)
    measured(student, {ids[0]: 5}, sample=20)
    with pytest.raises(UsageError, match="judged a sample of 20, the run has 40 texts"):
        compare(teacher, student)


def test_a_student_is_judged_by_its_teacher_over_a_real_server(server: Server, tmp_path: Path) -> None:
    """The judge of the teacher's run and that of the student's measure stage are found to be one."""
    judge = {"backend": "openai", "name": "large", "url": server.url}
    large = make_run(tmp_path / "large", [{"mga": {"pairs": 2}}], model=judge)
    found = distill(large)
    texts = found["reformulate"].counts()
    assert found["pairs"].counts()["read"] == 8 and texts["read"] == 16 and texts["kept"] < 16
    small = tmp_path / "small"
    make_run(
        small, [{"mga": {"pairs": 2, "judge": False}}], model={**judge, "name": "small"}, to="measure",
        measure={"figures": [{"judges": {"ask": ["consistency"]}}], "model": judge},
    )  # fmt: skip
    table = compare(large, small)
    assert table.teacher.counts.total() == table.student.counts.total() == 16
    assert table.teacher.judge == table.student.judge != "" and table.student.model == "small"
    assert table.student.counts[UNJUDGED] == table.student.counts[UNWRITTEN] == 0
    assert table.teacher.rate(3) == texts["kept"] / 16
    own = make_run(tmp_path / "own", [{"mga": {"pairs": 2}}], model={**judge, "name": "small"})
    with pytest.raises(UsageError, match="write the student's run with mga"):
        compare(large, own)


# -- the student -------------------------------------------------------------------------------------------


@pytest.mark.torch
@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_a_student_is_taught_exactly_what_its_plan_will_ask(
    teacher: Path, tmp_path: Path, template: str | None
) -> None:
    """Token ids of the training prompt, against those that the backend makes of the plan's own request."""
    from transformers import AutoModelForCausalLM

    from leaven.lm import transformers
    from leaven.lm.ask import Ask
    from leaven.train.rows import Encoder, row_of

    checkpoint = _checkpoint(tmp_path / "base", template)
    encoder = Encoder(checkpoint, AutoModelForCausalLM.from_pretrained(checkpoint), chat=False)
    taught = distill(teacher, steps=("pairs",))["pairs"].rows
    backend = transformers.Config(path=checkpoint, device="cpu").open()
    requests: list[Any] = []

    class Recorder:
        name = "student"

        async def answer(self, request: Any, priority: int = 0) -> Any:
            requests.append(request)
            raise RuntimeError("asked")

    async def work() -> None:
        backend._load()
        for document in read_stage(teacher / "corpus"):
            ask = Ask(Recorder(), document, "mga", mga.STEPS, count=lambda texts: [0 for _ in texts])
            with pytest.raises(RuntimeError, match="asked"):
                await mga.genre_audience_pairs(ask, mga.Config())
        await backend.close()

    asyncio.run(work())
    by_document = {row["document"]: row for row in taught}
    assert len(requests) == len(taught) == 8
    for request in requests:
        asked = backend._encode(request)
        row = by_document[request.origin.document]
        ids, labels = encoder.encode(row_of(row, ""))
        assert ids[: len(asked)] == asked and set(labels[: len(asked)]) == {-100}
        answer = [label for label in labels if label != -100]
        assert encoder.tokenizer.decode(answer, skip_special_tokens=True).startswith(row["completion"])


def _checkpoint(folder: Path, template: str | None) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from leaven.corpus.tokens import END, train_tokenizer

    torch.manual_seed(0)
    texts = [json.loads(line)["text"] for line in (STORIES / "documents.jsonl").open()]
    backend = train_tokenizer(texts, 600).backend
    backend.encode_special_tokens = False
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END)
    tokenizer.chat_template = template
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=4096, eos_token_id=0, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.torch
def test_a_finetuned_student_writes_a_plan_and_is_compared(teacher: Path, tmp_path: Path) -> None:
    """Two documents, a student of a thousand weights: nothing usable comes of it, and the table says that."""
    from leaven.train.finetune import Finetune, finetune

    rows = [row for examples in distill(teacher).values() for row in examples.rows]
    rows = sorted(rows, key=lambda row: len(row["prompt"] + row["completion"]))[:4]
    how = Finetune(batch_size=2, accumulate=2, learning_rate=1e-3, precision="float32")
    finetune(_checkpoint(tmp_path / "base", None), how, tmp_path / "tuned", rows)
    documents = tmp_path / "two.jsonl"
    documents.write_text("".join((STORIES / "documents.jsonl").read_text().splitlines(keepends=True)[:2]))
    steps = {"pairs": {"max_tokens": 8}}
    student = make_run(
        tmp_path / "student", [{"mga": {"judge": False, "steps": steps}}], documents={"path": str(documents)},
        model={"backend": "transformers", "path": tmp_path / "tuned" / "model"},
    )  # fmt: skip
    table = compare(teacher, student)
    assert table.teacher.counts == {5: 10} and table.student.counts == {UNWRITTEN: 10}, "of two documents"
    assert table.difference == -1 and "wrote nothing that could be used" in table.markdown()
    assert len(shards(student / "generate" / "mga", "rejected")) > 0
    shutil.rmtree(tmp_path / "tuned")
