"""Mutations are real patches of declared parameters, never tried twice, and decided by the seed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from searching import attempt_of, line_env

from leaven.errors import UsageError
from leaven.search.archive import Idea
from leaven.search.environment import Environment, Parameter, read_parameter
from leaven.search.mutate import Mutations
from leaven.search.patch import apply

PARAMETERS = {
    "LEARNING_RATE": {"file": "train.py", "low": 0.0001, "high": 1.0, "log": True},
    "STEPS": {"file": "train.py", "low": 1, "high": 200, "whole": True},
    "KIND": {"file": "train.py", "choices": ["plain", "squared", [1, 2]]},
}


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    code = "LEARNING_RATE = 0.01\nSTEPS = 20\nKIND = 'plain'\n"
    return line_env(tmp_path / "env", {"train.py": code}, parameters=PARAMETERS)


def had(
    environment: Environment, kind: Any, count: int, seed: int = 0, shown: Any = (), avoid: Any = ()
) -> list[Idea]:
    return asyncio.run(Mutations(environment, seed).ideas(kind, count, 1, shown, avoid))


def values(environment: Environment, idea: Idea) -> dict[str, Any]:
    code = apply(idea.patch, environment.code, environment.rules)
    return {name: read_parameter(code, name, Parameter(**PARAMETERS[name])) for name in PARAMETERS}  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["fresh", "explore", "exploit", "random"])
def test_an_idea_is_its_patch(environment: Environment, kind: str) -> None:
    shown = [
        attempt_of(number=1, settings={"STEPS": 50}, score=0.1),
        attempt_of(number=2, settings={"KIND": "squared"}, score=0.2),
    ]
    ideas = had(environment, kind, 12, shown=shown)
    assert len(ideas) == 12
    start = {"LEARNING_RATE": 0.01, "STEPS": 20, "KIND": "plain"}
    seen = []
    for idea in ideas:
        now = values(environment, idea)
        assert {name: value for name, value in now.items() if value != start[name]} == dict(idea.settings)
        assert 0.0001 <= now["LEARNING_RATE"] <= 1 and now["STEPS"] in range(1, 201)
        assert idea.kind == kind and all(name in idea.text for name in idea.settings)
        assert now != start and now not in seen and now not in [start | one.settings for one in shown]
        seen.append(now)
    assert (kind == "exploit") == all(idea.parents for idea in ideas)


def test_the_seed_decides(environment: Environment) -> None:
    texts = [[one.text for one in had(environment, "fresh", 8, seed)] for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]


def test_a_fresh_idea_changes_some_parameters_and_a_random_one_all(environment: Environment) -> None:
    assert {len(one.settings) for one in had(environment, "fresh", 40)} == {1, 2, 3}
    changed = [len(one.settings) for one in had(environment, "random", 40)]
    assert min(changed) >= 2 and np.mean(changed) > 2.5, "a choice may fall on what was there"


def test_exploring_keeps_away_from_what_was_tried(environment: Environment) -> None:
    shown = [attempt_of(number=n, settings={"STEPS": 20 + n}, score=1.0) for n in range(1, 20)]
    near = {
        kind: sum(set(one.settings) == {"STEPS"} for one in had(environment, kind, 40, shown=shown))
        for kind in ("fresh", "explore")
    }
    assert near["explore"] < near["fresh"] / 2, (
        "another number of steps is not far from other numbers of steps"
    )


def test_exploiting_goes_on_from_the_best(environment: Environment) -> None:
    good = attempt_of(number=7, settings={"STEPS": 100, "KIND": "squared"}, score=0.01)
    poor = [attempt_of(number=n, settings={"STEPS": n}, score=1.0 + n) for n in range(8, 14)]
    ideas = had(environment, "exploit", 40, shown=[*poor, good])
    assert sum(7 in one.parents for one in ideas) > 25
    assert sum(one.settings.get("KIND") == "squared" for one in ideas) > 8
    alone = had(environment, "exploit", 10, shown=[good])
    for one in alone:
        apart = [name for name in PARAMETERS if one.settings.get(name, "-") != good.settings.get(name, "-")]
        assert len(apart) == 1, "one parameter was moved"


def test_it_ends_when_nothing_is_left(tmp_path: Path) -> None:
    parameters = {"STEPS": {"file": "train.py", "choices": [20, 30, 40]}}
    environment = line_env(tmp_path / "env", parameters=parameters)
    assert {one.text for one in had(environment, "random", 10)} == {"STEPS 20 -> 30", "STEPS 20 -> 40"}
    assert not had(environment, "random", 10, avoid=["STEPS 20 -> 30", "STEPS 20 -> 40"])


def test_without_parameters_there_is_nothing_to_mutate(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="declares no 'parameters', so there is nothing to mutate"):
        Mutations(line_env(tmp_path / "env", parameters={}))


@given(st.floats(1e-6, 1e6), st.floats(1.001, 1e6), st.floats(0, 1), st.booleans())
def test_a_place_in_a_range_is_in_the_range(low: float, factor: float, place: float, log: bool) -> None:
    one = Parameter(file="x", low=low, high=low * factor, log=log)
    value = Mutations._at(one, place)
    assert low <= value <= low * factor
    back = Mutations._where(one, value)
    assert -1e-9 <= back <= 1 + 1e-9
