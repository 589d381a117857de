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


def manifest(**changes: Any) -> dict[str, Any]:
    value: dict[str, Any] = {
        "counts": {"tokens": 100, "steps": 10}, "parameters": 1000,
        "config": {"train": {"learning_rate": 1e-3, "seed": 0}},
    }  # fmt: skip
    return copy.deepcopy(value | changes)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (manifest(counts={"tokens": 101, "steps": 10}), "tokens"),
        (manifest(counts={"tokens": 100, "steps": 11}), "steps"),
        (manifest(parameters=1001), "parameters"),
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
    ],
)
def test_a_training_that_cannot_be_is_one_line_before_anything_is_written(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    code, _, errors = leaven("run", write_plan(tmp_path, **changes))
    assert code == 2 and said in errors and len(errors.splitlines()) == 1, errors
    assert not (tmp_path / "runs").exists()
