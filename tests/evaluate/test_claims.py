"""Summaries by claims: counts, what is normalised by what, and judges that fail."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from measuring import Scripted

from leaven.errors import UsageError
from leaven.evaluate import Candidate, Evaluate, evaluate
from leaven.evaluate.results import Result, read_results
from leaven.lm import openai
from leaven.lm.base import Request
from leaven.lm.client import LanguageModel
from leaven.lm.store import ResponseStore
from leaven.measure.base import Context

HUMAN = [
    "T1. T2. c.",
    "T1. F.",
]  # salient 2 and 1: mean 1.5; false 0 and 1: mean 0.5; claims 3 and 2: mean 2.5
# What each model writes: capital T is a salient truth, small c a cosmetic one, F a falsehood.
WRITTEN = {"good": "T1. T2. T3.", "bad": "F. F. c. F.", "silent": ""}


def answer(request: Request) -> str:
    """The judge: it splits at full stops and reads what kind a claim is off its first letter."""
    text = request.messages[-1][1]
    if "Take it apart" in text:
        summary = text.split("\n\n-----")[0].strip()
        return json.dumps({"claims": [one.strip() for one in summary.split(".") if one.strip()]})
    lines = [line for line in text.splitlines() if line[:1].isdigit()]
    verdicts = [
        {
            "number": int(line.split(".")[0]),
            "true": line.split()[1][0] != "F",
            "salient": line.split()[1][0] == "T",
        }
        for line in lines
    ]
    return json.dumps({"verdicts": verdicts})


def run(tmp_path: Path, judge: Scripted, written: dict[str, str], **more: object) -> list[Result]:
    (tmp_path / "sources.jsonl").write_text(
        "\n".join(json.dumps({"id": i, "title": f"Story {i}", "text": "It happened."}) for i in ("a", "b"))
    )
    (tmp_path / "set.jsonl").write_text(
        "\n".join(json.dumps({"document": i, "title": f"Story {i}", "summary": HUMAN}) for i in ("a", "b"))
    )
    one = {"kind": "claims", "path": tmp_path / "set.jsonl", "documents": str(tmp_path / "sources.jsonl")}
    options = Evaluate.model_validate({"sets": {"sum": one | more}})
    store = ResponseStore(tmp_path / "answers", "run")
    judging = LanguageModel(judge, store, first_delay=0)
    models = {name: LanguageModel(_Writer(name, text), store) for name, text in written.items()}

    def opened(config: object) -> LanguageModel:
        return models[config.name] if isinstance(config, openai.Config) else judging

    candidates = [
        Candidate(name, 0, name, served=openai.Config(name=name, url="http://127.0.0.1:1/v1"))
        for name in written
    ]
    asyncio.run(evaluate(candidates, options, tmp_path / "out", Context(0, None, opened)))
    return read_results(tmp_path / "out")


class _Writer(Scripted):
    """A model that always writes the same."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(lambda request: text)
        self.model = self.identity = name


def test_claims_are_multiples_of_what_people_wrote(tmp_path: Path) -> None:
    found = {(one.set, one.figure, one.arm): one for one in run(tmp_path, Scripted(answer), WRITTEN)}
    for kind in ("sum/short", "sum/long"):
        assert found[kind, "salient_claims", "good"].value == pytest.approx(3 / 1.5)
        assert found[kind, "false_claims", "good"].value == 0
        assert found[kind, "false_claims", "bad"].value == pytest.approx(3 / 0.5)
        assert found[kind, "claims", "bad"].value == pytest.approx(4 / 2.5)
        assert found[kind, "salient_claims", "bad"].value == 0
        assert found[kind, "claims", "silent"].value == 0, "an empty summary has no claims"
        assert found[kind, "salient_claims", "bad"].difference == pytest.approx(-2)


def test_what_a_judge_cannot_handle_is_left_out_for_all_and_counted(tmp_path: Path) -> None:
    def forgetful(request: Request) -> str:
        text = request.messages[-1][1]
        if "Take it apart" not in text and "F" in text.split("numbered")[-1]:
            return json.dumps({"verdicts": [{"number": 1, "true": True, "salient": True}] * 2})
        return answer(request)

    written = {"good": "T1. T2.", "bad": "F. F."}
    (tmp_path / "whole").mkdir()
    found = run(tmp_path / "whole", Scripted(answer), written)
    assert {one.missing for one in found} == {0} and {one.items for one in found} == {2}
    found = run(tmp_path, Scripted(forgetful), written)
    assert not found, "the human summaries could not be judged either: nothing is left to compare"
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["reasons"] == {"verdicts do not match": 8}
    assert "verdicts do not match 8" in (tmp_path / "out" / "results.md").read_text()


def test_a_missing_source_and_a_bad_summary_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="must be a text or a list"):
        bad = tmp_path / "bad.jsonl"
        bad.write_text(json.dumps({"document": "a", "title": "A", "summary": 3}))
        run(tmp_path, Scripted(answer), {"m": "T."}, path=bad)
    with pytest.raises(UsageError, match=r"document 'z' is not in .*1 of 1 are missing"):
        lost = tmp_path / "lost.jsonl"
        lost.write_text(json.dumps({"document": "z", "title": "Z", "summary": "T."}))
        run(tmp_path, Scripted(answer), {"m": "T."}, path=lost)
