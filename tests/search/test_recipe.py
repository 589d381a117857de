"""The environment `recipe`: its baseline is the demo's plan, nothing leaks, and neither a recipe nor weights can cheat.

Commands are started here as a search starts them, but without its sandbox: plain processes in a temporary copy.
"""

from __future__ import annotations

import copy
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.torch import save_file

from leaven.corpus.shingles import occurs, shingles
from leaven.errors import UsageError
from leaven.plan import load_plan, resolve
from leaven.run import run
from leaven.search.environment import Environment, load, with_parameter
from leaven.search.patch import PatchError, apply
from leaven.stage import read_stage

pytestmark = pytest.mark.torch
ROOT = Path(__file__).parents[2]
TOKENS = 4096  # instead of the real budget
NAME = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def environment() -> Environment:
    return load(ROOT / "environments" / "recipe")


@pytest.fixture(scope="module")
def recipe(environment: Environment) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(environment.code["recipe.yaml"])
    return found


@pytest.fixture(scope="module")
def runner() -> Iterator[ModuleType]:
    """run.py as a module, without training anything."""
    given = {"TOKENS": str(TOKENS), "SHAPE": "1m", "SEED": "0"}
    names, patch = ("run", "fixed"), pytest.MonkeyPatch()
    for name, value in given.items():
        patch.setenv(name, value)
    patch.setattr(sys, "dont_write_bytecode", True)
    patch.syspath_prepend(str(ROOT / "environments" / "recipe" / "code"))
    for name in names:
        sys.modules.pop(name, None)
    yield importlib.import_module("run")
    for name in names:
        sys.modules.pop(name, None)
    patch.undo()


def lay(environment: Environment, to: Path) -> tuple[Path, Path]:
    """A copy of code/ and one of eval/, each with its data."""
    for folder, files, data in (
        ("code", environment.code, environment.file.data),
        ("eval", environment.eval, environment.file.eval_data),
    ):
        (to / folder).mkdir(parents=True)
        for name, content in files.items():
            body = content.encode() if isinstance(content, str) else content
            (to / folder / name).write_bytes(body)
        for name, source in data.items():
            (to / folder / name).write_bytes(source.read_bytes())
    return to / "code", to / "eval"


def start(environment: Environment, command: str, folder: Path, **changed: object) -> Any:
    given = environment.file.variables | {"SEED": "0", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    env = given | {"PATH": os.environ["PATH"], "HOME": str(folder.parent), "TOKENS": str(TOKENS)}
    env |= {name: str(value) for name, value in changed.items()}
    words = [sys.executable, *command.split()[1:]]
    return subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=240)


def changed(recipe: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The recipe with another value at a path; None takes it away."""
    found = copy.deepcopy(recipe)
    *keys, last = path.split(".")
    inner = found
    for key in keys:
        inner = inner[key]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return found


def read(runner: ModuleType, value: Any, folder: Path) -> Any:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(value))
    return runner.read(path)


def test_only_the_recipe_can_be_changed(environment: Environment) -> None:
    for path in ("run.py", "fixed.py", "answers.jsonl", "sitecustomize.py", "leaven/__init__.py"):
        with pytest.raises(PatchError):
            apply(f"=== FILE {path}\nprint(1)\n=== END\n", environment.code, environment.rules)
    hidden = {environment.file.eval_data[name] for name in ("questions.jsonl", "people.jsonl")}
    assert not hidden & set(environment.file.data.values())


def test_nothing_that_is_asked_can_be_trained_on(
    environment: Environment, runner: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recording has the answers to the questions; what a recipe can take of it has none of them."""
    code, held = lay(environment, tmp_path)
    monkeypatch.chdir(code)
    runner.write_recording(Path("recording.jsonl"))

    def of(path: Path, field: str) -> str:
        return "\n".join(str(json.loads(line)[field]) for line in path.read_text().splitlines())

    asked = [
        {"set": name, **json.loads(line)}
        for name in ("questions", "people")
        for line in (held / f"{name}.jsonl").read_text().splitlines()
    ]
    every, usable = of(code / "answers.jsonl", "response"), of(code / "recording.jsonl", "response")
    assert sum(row["answer"] in every for row in asked) == 96, "else there is nothing to take out"
    assert not any(row["answer"] in usable for row in asked)
    taken = shingles(usable, 13)
    shared = {}
    for name in ("questions", "people"):
        own = np.concatenate([shingles(row["answer"], 13) for row in asked if row["set"] == name])
        shared[name] = occurs(own, taken).mean()
    assert shared["people"] == 0
    assert 0 < shared["questions"] < 0.01, (
        "two answers give measures and a rank in words that texts have as well"
    )


def test_the_baseline_writes_and_keeps_what_the_demo_does(
    runner: ModuleType, environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to cleaning it is examples/stories/plan.yaml, whose question-answer texts no arm is trained on."""
    code, _ = lay(environment, tmp_path)
    monkeypatch.chdir(code)
    runner.write_recording(Path("recording.jsonl"))
    runner.fixed.tokenizer().save(Path("tokenizer.json"))
    plan = runner.plan(runner.read(Path("recipe.yaml")))
    ours = run(resolve(plan, Path()), to="clean")
    runner.check_recorded(ours)
    demo = load_plan(ROOT / "examples" / "stories" / "plan.yaml")
    places = {"out": str(tmp_path / "demo"), "answers": str(tmp_path / "answers")}
    theirs = run(resolve(demo.file.model_dump(mode="json", exclude_unset=True) | places, Path()), to="clean")
    trained = {"rephrase": ("easy", "medium", "hard")}

    def texts(folder: Path) -> set[str]:
        rows = read_stage(folder / "clean")
        return {
            row.text for row in rows
            if row.metadata["step"] in trained.get(row.metadata["method"], (row.metadata["step"],))
        }  # fmt: skip

    assert len(texts(ours.folder)) > 200
    assert texts(ours.folder) == texts(theirs.folder)


@pytest.mark.parametrize(("path", "value", "why"), [
    ("train", {"learning_rate": 1}, "unknown option 'train'"),
    ("documents", {"path": "answers.jsonl"}, "unknown option 'documents'"),
    ("mix.tokens", 10**6, "unknown option 'mix.tokens'"),
    ("mix.sources", {"x": {"path": "answers.jsonl"}}, "unknown option 'mix.sources'"),
    ("mix.shares.questions", 1, "unknown option 'mix.shares.questions'"),
    ("generate.rephrase.styles", ["easy", "qa"], "generate.rephrase.styles.1"),
    ("generate.rephrase.samples", 2, "unknown option 'generate.rephrase.samples'"),
    ("generate.entigraph.pairs", 13, "less than or equal to 12"),
    ("generate.mga.relaxed", 3, "less than or equal to 2"),
    ("generate.self_train", {}, "unknown option 'generate.self_train'"),
    ("generate.mga", None, "mga has a share, but generate.mga is not there"),
    ("mix.shares", {"raw": 0}, "at least one must be above 0"),
    ("mix.shares.raw", float("nan"), "mix.shares.raw"),
    ("mix.shares.raw", float("inf"), "mix.shares"),
])  # fmt: skip
def test_what_is_fixed_or_not_recorded_is_refused(
    runner: ModuleType, recipe: dict[str, Any], tmp_path: Path, path: str, value: Any, why: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(why)) as error:
        read(runner, changed(recipe, path, value), tmp_path)
    assert "\n" not in str(error.value)


def test_a_recipe_is_data(runner: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("mix: !!python/object/apply:os.system [true]\n")
    with pytest.raises(UsageError, match=r"recipe\.yaml"):
        runner.read(path)


def test_a_mutation_changes_no_line_but_its_own(environment: Environment) -> None:
    """A changed YAML file is written anew: the recipe is kept in the form in which it is written."""
    rule = environment.file.parameters["mix.shares.raw"]
    same = with_parameter(environment.code, "mix.shares.raw", rule, 1)
    assert same == environment.code


def test_every_parameter_changes_the_plan(
    environment: Environment, runner: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And every choice of it makes a plan that Leaven understands."""
    code, _ = lay(environment, tmp_path)
    monkeypatch.chdir(code)

    def told(text: str) -> str:
        Path("recipe.yaml").write_text(text)
        plan = runner.plan(runner.read(Path("recipe.yaml")))
        resolve(plan, Path())
        groups = Path("chosen.jsonl").read_text() if Path("chosen.jsonl").exists() else ""
        return json.dumps(plan) + groups

    Path("tokenizer.json").write_text("{}")
    Path("recording.jsonl").write_text("")
    before = told(environment.code["recipe.yaml"])
    assert 8 <= len(environment.file.parameters) <= 16
    for name, parameter in environment.file.parameters.items():
        plans = {
            told(with_parameter(environment.code, name, parameter, value)["recipe.yaml"])
            for value in parameter.choices
        }
        assert len(plans) == len(parameter.choices) and before in plans, name


def test_what_was_not_recorded_ends_the_run(
    environment: Environment, runner: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _ = lay(environment, tmp_path)
    monkeypatch.chdir(code)
    runner.write_recording(Path("recording.jsonl"))
    lines = Path("recording.jsonl").read_text().splitlines(keepends=True)
    gone = next(line for line in lines if '"hard"' in line)
    Path("recording.jsonl").write_text("".join(line for line in lines if line != gone))
    runner.fixed.tokenizer().save(Path("tokenizer.json"))
    found = run(resolve(runner.plan(runner.read(Path("recipe.yaml"))), Path()), to="generate")
    with pytest.raises(UsageError, match=r"rephrase: .*nothing recorded for document .*rephrase/hard"):
        runner.check_recorded(found)


@pytest.mark.slow
def test_by_hand(environment: Environment, tmp_path: Path) -> None:
    """Trains, the same weights for the same seed; the evaluation takes nothing from the copy but weights."""
    code, held = lay(environment, tmp_path)
    ran = start(environment, environment.file.run, code, SEED=3)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout.splitlines()[-1])["tokens"] == TOKENS
    out = code / "out"
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= {path.name for path in out.iterdir()}

    other, _ = lay(environment, tmp_path / "other")
    assert start(environment, environment.file.run, other, SEED=3).returncode == 0
    weights = [(folder / "out" / "model.safetensors").read_bytes() for folder in (code, other)]
    assert weights[0] == weights[1]

    def score() -> Any:
        return start(environment, environment.file.eval, held, COPY=code)

    first = score()
    assert first.returncode == 0, first.stderr
    found = json.loads(first.stdout.splitlines()[-1])
    assert (found["questions_answers"], found["people_answers"]) == (48, 80)
    assert found["score"] == pytest.approx((found["questions"] + found["people"]) / 2)
    assert found["told_by_run"]["tokens"] == TOKENS

    for name in ("config.json", "tokenizer.json", "facts.json"):  # what it says there counts for nothing
        (out / name).write_text('{"vocab_size": 1, "auto_map": {"AutoConfig": "evil.Config"}}')
    again = score()
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout.splitlines()[-1])["score"] == found["score"]


@pytest.mark.parametrize(("change", "why"), [
    (lambda w: w | {NAME: w[NAME][:10].clone()}, f"{NAME} is ((10, 128), torch.float32), but must be"),
    (lambda w: w | {NAME: w[NAME] * float("nan")}, f"{NAME} is not finite"),
    (lambda w: w | {NAME: w[NAME].half()}, "torch.float16), but must be"),
    (lambda w: w | {"lm_head.weight": w[NAME].clone()[:1]}, "torch.float32), but must be None"),
    (lambda w: {name: one for name, one in w.items() if name != NAME}, f"{NAME} is None, but must be"),
    (lambda w: w | {NAME: w[NAME].repeat(9, 1)}, "bytes, the model only"),
])  # fmt: skip
def test_weights_that_do_not_fit_are_refused(
    environment: Environment, runner: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    change: Any, why: str,
) -> None:  # fmt: skip
    from transformers import AutoModelForCausalLM

    monkeypatch.syspath_prepend(str(environment.folder / "eval"))
    evaluate = importlib.import_module("evaluate")
    model = AutoModelForCausalLM.from_config(runner.fixed.config(runner.fixed.VOCABULARY, 0))
    tied = set(model.all_tied_weights_keys)
    weights = {name: one.clone() for name, one in model.state_dict().items() if name not in tied}
    path = tmp_path / "model.safetensors"
    save_file(weights, path)
    evaluate.load(path, model)
    save_file(change(weights), path)
    with pytest.raises(SystemExit) as error:
        evaluate.load(path, model)
    assert why in str(error.value)
    del sys.modules["evaluate"]
