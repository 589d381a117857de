"""Plans: what is wrong is said in one line that names file, field and fix, before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from leaven.errors import UsageError
from leaven.plan import load_plan

MODEL = {"backend": "openai", "name": "m", "url": "http://127.0.0.1:1/v1"}
GOOD: dict[str, Any] = {
    "name": "try",
    "documents": {"path": "documents.jsonl"},
    "model": MODEL,
    "generate": ["rephrase"],
    "clean": ["length"],
}


@pytest.fixture
def plan_file(tmp_path: Path) -> Any:
    def write(**changes: Any) -> Path:
        value = {k: v for k, v in {**GOOD, **changes}.items() if v is not None}
        path = tmp_path / "plan.yaml"
        path.write_text(yaml.safe_dump(value))
        return path

    return write


def test_relative_paths_start_at_the_plan(plan_file: Any, tmp_path: Path, monkeypatch: Any) -> None:
    prompt = tmp_path / "prompts" / "easy.txt"
    prompt.parent.mkdir()
    prompt.write_text("Say it simply.")
    path = plan_file(
        prices="prices.yaml",
        generate=[{"rephrase": {"steps": {"easy": {"prompt_file": "prompts/easy.txt"}}}}],
        clean=[{"decontaminate": {"files": ["eval.jsonl"]}}],
    )
    (tmp_path / "eval.jsonl").write_text('{"q": "a b c"}\n')
    monkeypatch.chdir("/")
    plan = load_plan(path)
    assert plan.folder == tmp_path / "runs" / "try"
    assert plan.file.answers == tmp_path / "answers"
    assert plan.file.prices == tmp_path / "prices.yaml"
    assert plan.file.documents.path == str(tmp_path / "documents.jsonl")
    assert plan.generate[0].job.steps["easy"].prompt == "Say it simply."


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generat": []}, "unknown option 'generat'; did you mean 'generate'"),
        ({"name": "a/b"}, "name: string should match pattern"),
        ({"documents": None}, "documents: field required"),
        (
            {"documents": {"path": "x", "titel": "t"}},
            "unknown option 'documents.titel'; did you mean 'title'",
        ),
        ({"model": {**MODEL, "urll": "x"}}, "unknown option 'model.openai.urll'; did you mean 'url'"),
        ({"model": {"backend": "opnai"}}, "model: "),
        ({"model": None}, "rephrase needs a 'model'"),
        ({"generate": ["mgaa"]}, "unknown method 'mgaa'; did you mean 'mga'"),
        (
            {"generate": [{"mga": {"strictnes": ["base"]}}]},
            "unknown option 'strictnes'; did you mean 'strictness'",
        ),
        (
            {"generate": [{"mga": {"pairs": 0}}]},
            "mga: pairs: input should be greater than or equal to 1, not 0",
        ),
        ({"generate": [{"mga": {}, "rephrase": {}}]}, "one 'name: options'"),
        ({"generate": ["mga", "mga"]}, "used twice; give one of them another 'name'"),
        ({"generate": [{"mga": {"steps": {"pair": {}}}}]}, "no step 'pair'; did you mean 'pairs'"),
        (
            {"generate": [{"entigraph": {"steps": {"pair": {"prompt": "Relate {entitis}"}}}}]},
            "no variable {entitis}; did you mean 'entities'",
        ),
        ({"generate": [{"entigraph": {"steps": {"pair": {"prompt": "Relate."}}}}]}, "must use {entities}"),
        ({"clean": ["lenght"]}, "unknown filter 'lenght'; did you mean 'length'"),
        ({"clean": [{"length": {"min_word": 3}}]}, "unknown option 'min_word'; did you mean 'min_words'"),
        ({"budget": {"tokens": -1}}, "budget.tokens: input should be greater than or equal to 1, not -1"),
    ],
)
def test_mistakes_are_named_with_their_fix(plan_file: Any, changes: dict[str, Any], message: str) -> None:
    path = plan_file()
    value = yaml.safe_load(path.read_text()) | changes
    path.write_text(yaml.safe_dump({k: v for k, v in value.items() if v is not None}))
    with pytest.raises(UsageError) as error:
        load_plan(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (path.parent / "runs").exists() and not (path.parent / "answers").exists()


def test_a_missing_or_broken_plan_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"plan .*nowhere.yaml: No such file"):
        load_plan(tmp_path / "nowhere.yaml")
    path = tmp_path / "plan.yaml"
    path.write_text("a: [")
    with pytest.raises(UsageError, match="not YAML"):
        load_plan(path)
    path.write_text("- a")
    with pytest.raises(UsageError, match="must be a mapping"):
        load_plan(path)
