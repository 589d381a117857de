"""Arms of a plan, trained: compute-matched, or not compared at all."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from leaven.corpus.tokens import train_tokenizer
from leaven.train import assert_matched

STORIES = Path(__file__).parents[2] / "examples" / "stories"
SHAPE = {"hidden": 32, "inner": 64, "layers": 1, "heads": 2, "tied": True}


def leaven(*arguments: object) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "leaven.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr.strip()


def write_plan(folder: Path, **changes: Any) -> Path:
    value: dict[str, Any] = {
        "name": "trained", "documents": {"path": str(STORIES / "documents.jsonl")},
        "model": {"backend": "replay", "path": str(STORIES / "answers.jsonl")},
        "generate": [{"rephrase": {"styles": ["easy"]}}], "clean": ["boilerplate"],
        "mix": {
            "tokens": 6400, "context": 64,
            "sources": {"real": {"stage": "corpus"}, "easy": {"stage": "clean"}},
            "arms": {"raw": {"sources": {"real": 1}}, "easy": {"sources": {"easy": 1}}},
        },
        "train": {"shape": SHAPE, "batch_size": 16, "seeds": [0, 1], "precision": "float32"},
    }  # fmt: skip
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(value | changes))
    return path


@pytest.mark.torch
def test_a_plan_trains_one_model_per_arm_and_seed(tmp_path: Path) -> None:
    plan = write_plan(tmp_path)
    code, out, errors = leaven("run", plan)
    assert code == 0, errors
    folder = tmp_path / "runs" / "trained" / "train"
    manifests = {
        path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob("*/manifest.json"))
    }
    assert list(manifests) == ["easy-0", "easy-1", "raw-0", "raw-1"]
    assert_matched(manifests)
    assert {one["counts"]["tokens"] for one in manifests.values()} == {6400}
    losses = [one["loss"] for one in manifests.values()]
    assert len(set(losses)) == 4, "other text, other weights"
    assert "raw-1: " in out and "6,400 tokens in 7 steps" in out
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("model.safetensors")}
    assert leaven("run", plan)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("model.safetensors")} == stamps
    _by_hand(folder, tmp_path / "alone", manifests["raw-0"])


def _by_hand(trained: Path, out: Path, planned: dict[str, Any]) -> None:
    """The same model from `leaven train`, and both evaluated by `leaven evaluate`."""
    mix = trained.parent / "mix"
    options = [
        f"--option=shape: {json.dumps(SHAPE)}",
        "--option=batch_size: 16",
        "--option=precision: float32",
    ]
    code, shown, errors = leaven("train", mix, "raw", "--out", out, *options)
    assert (code, errors) == (0, "") and "6,400 tokens" in shown
    alone = json.loads((out / "manifest.json").read_text())
    assert alone["loss"] == pytest.approx(planned["loss"], abs=1e-5)
    assert alone["fingerprint"] == planned["fingerprint"]
    questions = f"questions: {{kind: answers, path: {STORIES / 'questions.jsonl'}}}"
    models = [
        f"planned={trained / 'raw-0' / 'model'}",
        f"alone={out / 'model'}",
        f"easy={trained / 'easy-0' / 'model'}",
    ]
    code, shown, errors = leaven("evaluate", *models, "--set", questions, "--out", out.parent / "results")
    assert (code, errors) == (0, "") and "minus planned" in shown
    found = {one["arm"]: one for one in json.loads((out.parent / "results" / "results.json").read_text())}
    assert found["alone"]["difference"] == pytest.approx(0, abs=1e-4) != found["easy"]["difference"]
    for wrong, said in (
        (["train", mix, "rwa", "--out", out, "--option", "shape: 1m"], "has no arm 'rwa'"),
        (["train", trained, "raw", "--out", out, "--option", "shape: 1m"], "no finished mix"),
        (["train", mix, "raw", "--out", out, "--option", "shpae: 1m"], "did you mean 'shape'"),
        (["evaluate", "a=nowhere", "--set", questions, "--out", out], "nowhere: no such folder"),
        (["evaluate", "x/model", "y/model", "--set", questions, "--out", out], "two models of one name"),
        (
            ["evaluate", "a=m@http://127.0.0.1:1/v1", "--set", questions, "--out", out / "e"],
            "needs a checkpoint",
        ),
    ):
        code, _, errors = leaven(*wrong)
        assert code == 2 and said in errors and len(errors.splitlines()) == 1, (wrong, errors)


@pytest.mark.torch
def test_a_plan_finetunes_every_model_and_evaluates_what_comes_of_it(tmp_path: Path) -> None:
    rows = [{"prompt": f"Question: what is {i}?\nAnswer:", "completion": f" It is {i}."} for i in range(12)]
    rows.append({"prompt": "long " * 200, "completion": "x"})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sets = {"questions": {"kind": "answers", "path": str(STORIES / "questions.jsonl")}}
    tuned = {"path": "rows.jsonl", "batch_size": 4, "learning_rate": 1e-3, "precision": "float32"}
    trained = {"shape": SHAPE, "batch_size": 16, "precision": "float32"}
    plan = write_plan(tmp_path, train=trained, finetune=tuned, evaluate={"sets": sets})
    code, out, errors = leaven("run", plan)
    assert code == 0 and "raw-0, finetuned: " in out, errors
    folder = tmp_path / "runs" / "trained"
    found = {
        arm: json.loads((folder / "finetune" / f"{arm}-0" / "manifest.json").read_text())
        for arm in ("raw", "easy")
    }
    for one in found.values():
        assert {name: one["counts"][name] for name in ("read", "kept", "rejected", "steps")} == {
            "read": 13, "kept": 12, "rejected": 1, "steps": 3,
        }  # fmt: skip
    evaluated = json.loads((folder / "evaluate" / "manifest.json").read_text())
    assert evaluated["inputs"] == {f"{arm}-0": one["fingerprint"] for arm, one in found.items()}
    checkpoint = folder / "train" / "raw-0" / "model"
    options = [f"--option={name}: {value}" for name, value in tuned.items() if name != "path"]
    arguments = ["finetune", checkpoint, tmp_path / "rows.jsonl", "--out", tmp_path / "alone", *options]
    code, out, errors = leaven(*arguments)
    assert (code, errors) == (0, "") and "read 13 = kept 12 + rejected 1 rows" in out
    alone = json.loads((tmp_path / "alone" / "manifest.json").read_text())
    assert alone["fingerprint"] == found["raw"]["fingerprint"]
    assert alone["loss"] == pytest.approx(found["raw"]["loss"], abs=1e-5)


def manifest(**changes: Any) -> dict[str, Any]:
    value: dict[str, Any] = {
        "counts": {"tokens": 100, "steps": 10}, "parameters": 1000, "inputs": {"checkpoint": "a"},
        "config": {"train": {"learning_rate": 1e-3, "seed": 0}},
    }  # fmt: skip
    return copy.deepcopy(value | changes)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (manifest(counts={"tokens": 101, "steps": 10}), "tokens"),
        (manifest(counts={"tokens": 100, "steps": 11}), "steps"),
        (manifest(parameters=1001), "parameters"),
        (manifest(inputs={"checkpoint": "b"}), "checkpoint"),
        (manifest(config={"train": {"learning_rate": 2e-3, "seed": 0}}), "learning_rate"),
    ],
)
def test_models_that_were_not_trained_alike_are_not_compared(other: dict[str, Any], said: str) -> None:
    same = manifest(config={"train": {"learning_rate": 1e-3, "seed": 7}})
    assert_matched({"a": manifest(), "b": same})
    with pytest.raises(AssertionError, match=f"a and c differ in {said}"):
        assert_matched({"a": manifest(), "b": same, "c": other})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mix": None}, "'train' needs 'mix'"),
        ({"train": {"shape": "1mm"}}, "unknown model shape '1mm'; did you mean '1m'"),
        ({"train": {}}, "give either shape or checkpoint"),
        ({"train": {"shape": "1m", "schedule": {"name": "wds"}}}, "train.schedule.name"),
        ({"train": {"shape": "1m", "seeds": []}}, "train.seeds"),
        ({"train": {"checkpoint": "nowhere"}}, "set tokenizer: "),
        ({"finetune": {"path": "nowhere.jsonl"}}, "nowhere.jsonl"),
        ({"finetune": {}}, "needs a 'path'"),
        ({"finetune": {"path": "tiny.json"}, "train": None}, "'finetune' needs 'train'"),
        ({"train": {"checkpoint": "nowhere"}, "tokenizer": "tiny.json"}, "nowhere: no such folder"),
    ],
)
def test_a_training_that_cannot_be_is_one_line_before_anything_is_written(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    train_tokenizer(["a text"], 300).save(tmp_path / "tiny.json")
    code, _, errors = leaven("run", write_plan(tmp_path, **changes))
    assert code == 2 and said in errors and len(errors.splitlines()) == 1, errors
    assert not (tmp_path / "runs").exists()
