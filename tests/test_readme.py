"""The README stays true: its commands exist, its plan is valid, its tree and figures are the real ones."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
import yaml

from leaven.cli import app
from leaven.config import validated
from leaven.plan import PlanFile, load_plan, resolve

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)


def commands(program: str) -> list[list[str]]:
    lines = [line for _, block in BLOCKS for line in block.splitlines() if line.startswith(f"{program} ")]
    return [shlex.split(line, comments=True) for line in lines]


def test_its_make_targets_exist() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = [words[1] for words in commands("make")]
    assert named == ["demo", "test"] and set(named) <= set(targets)


@pytest.mark.parametrize("words", commands("leaven"), ids=" ".join)
def test_its_commands_are_understood(words: list[str]) -> None:
    group = typer.main.get_command(app)
    command = group.commands[words[1]]  # type: ignore[attr-defined]
    name, rest = words[1], words[2:]
    if hasattr(command, "commands"):  # `leaven search`
        with command.make_context(name, []) if not rest else command.make_context(name, rest) as outer:
            name, command, rest = command.resolve_command(outer, rest)
    with command.make_context(name, rest) as context:  # raises for what it does not know
        assert context.command.name == name


def test_its_plan_is_valid() -> None:
    plan, more, own, _ = [block for kind, block in BLOCKS if kind == "yaml"]
    assert resolve(yaml.safe_load(own), ROOT).file.method == "sbp"
    resolved = resolve(yaml.safe_load(plan), ROOT)
    assert [stage.name for stage in resolved.generate] == ["rephrase", "mga", "entigraph"]
    # The rest names files of the reader's, so that only its options can be checked.
    whole = validated(PlanFile, yaml.safe_load(plan) | yaml.safe_load(more), "README", ROOT)
    assert whole.mix and whole.train and whole.evaluate and whole.evaluate.sets["open"].kind == "sampled"


def test_its_environment_is_the_one_that_new_env_writes() -> None:
    template = ROOT / "leaven" / "search" / "template"
    assert [block for kind, block in BLOCKS if kind == "yaml"][-1] == (template / "env.yaml").read_text()
    (evaluation,) = [block for kind, block in BLOCKS if kind == "python" and "COPY" in block]
    assert (template / "eval" / "evaluate.py").read_text().endswith(evaluation)


def test_the_demo_trains_on_nothing_it_is_asked() -> None:
    plan = load_plan(ROOT / "examples" / "stories" / "plan.yaml")
    assert plan.file.mix and plan.file.train and plan.file.evaluate
    assert list(plan.file.mix.arms) == ["raw", "rephrased", "mga", "entigraph"]
    taken = plan.file.mix.sources["rephrased"].only["variables.style"]
    assert "qa" not in taken, "its questions are the evaluation"
    blocks = plan.file.mix.tokens // plan.file.mix.context * plan.file.mix.context
    assert f"{blocks:,} tokens" in README


def test_its_tree_is_the_tree() -> None:
    (tree,) = [block for _, block in BLOCKS if block.startswith("leaven/\n")]
    for line in tree.splitlines():
        name = line.split()[0]
        path = ROOT / "leaven" / name if line.startswith("  ") else ROOT / name
        assert path.exists(), f"README names {name}"
    inside = {path.name for path in (ROOT / "leaven").iterdir()} - {
        "__init__.py",
        "__pycache__",
        "py.typed",
        "errors.py",
    }
    assert inside == {line.split()[0].rstrip("/") for line in tree.splitlines() if line.startswith("  ")}


@pytest.mark.torch
def test_the_demo_prints_the_figures_it_shows(tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("runs", "answers", "embeddings")
    shutil.copytree(ROOT / "examples" / "stories", tmp_path / "stories", ignore=ignored)
    command = [
        sys.executable,
        "-m",
        "leaven.cli",
        "run",
        str(tmp_path / "stories" / "plan.yaml"),
        "--pairs",
        "3",
        "--to",
        "mix",
    ]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (stages,) = [block for _, block in BLOCKS if block.startswith(" stage")]
    for line in stages.splitlines()[1:]:
        for figure in re.findall(r"[\d,.]*\d", line):
            assert figure in shown, f"the demo no longer prints {figure} ({line.strip()})"
    assert shown.count("SOURCE ") == shown.count("WRITTEN by recorded ") == 3
    (figures,) = [block for _, block in BLOCKS if block.startswith(" figure")]
    printed = {line.split()[0]: line for line in shown.splitlines() if line.strip()}
    named = [line for line in figures.splitlines()[1:] if "_" in line.split()[0]]
    assert len(named) >= 4
    for line in named:
        # Embeddings are not the same to the last digit on every processor.
        ours, theirs = (_numbers(one) for one in (line, printed[line.split()[0]]))
        assert ours == pytest.approx(theirs, rel=0.02), line


@pytest.mark.slow
@pytest.mark.torch
def test_the_demo_trains_models_that_differ_as_it_shows(tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("runs", "answers", "embeddings")
    shutil.copytree(ROOT / "examples" / "stories", tmp_path / "stories", ignore=ignored)
    command = [sys.executable, "-m", "leaven.cli", "run", str(tmp_path / "stories" / "plan.yaml")]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (results,) = [block for _, block in BLOCKS if block.startswith(" set")]
    printed = [line.split() for line in shown.splitlines()]
    for line in results.splitlines()[1:]:
        words = line.split()
        (same,) = [found for found in printed if found[:4] == words[:4]]
        # Processors round differently, and training carries that on.
        assert float(same[4]) == pytest.approx(float(words[4]), rel=0.03), line
        if words[3] == "entigraph":
            assert float(same[5]) < -0.1, "the one difference that is certain wherever it was measured"


def _numbers(line: str) -> list[float]:
    return [float(one.replace(",", "")) for one in re.findall(r"(?<=\s)[\d,]*\.?\d+(?=\s|$)", line)]
