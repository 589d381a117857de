"""From a completion to a reward: what is an idea, what is run once, what a failure is worth."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from measuring import Scripted
from rewarding import RATES, STEPS, Computed, few_values
from searching import line_env

from leaven.errors import UsageError
from leaven.lm.client import LanguageModel
from leaven.lm.store import ResponseStore
from leaven.search.archive import Archive, Attempt
from leaven.search.environment import Environment, Metric, read_parameter
from leaven.search.implement import Implementer
from leaven.search.patch import PatchError, apply, as_diff
from leaven.search.reward import Completion, Group, idea_of, prompt, reward

LOWER, HIGHER = Metric(name="loss", direction="lower"), Metric(name="accuracy", direction="higher")


def test_a_failure_is_worth_nothing_and_any_score_more() -> None:
    assert reward(LOWER, 4.0) == 0.25 and reward(HIGHER, 0.4) == 0.4
    assert reward(LOWER, None) == reward(HIGHER, None) == reward(HIGHER, 0.0) == 0.0
    for metric, score in ((LOWER, 0.0), (LOWER, -1.0), (LOWER, 1e-300), (HIGHER, -0.1), (HIGHER, 1e30)):
        with pytest.raises(UsageError, match=rf"{metric.name} .*score .* cannot be a reward"):
            reward(metric, score)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return few_values(tmp_path_factory.mktemp("few") / "env")


@pytest.fixture(scope="module")
def bounded(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return line_env(tmp_path_factory.mktemp("bounded") / "env")


@given(st.sampled_from(RATES), st.sampled_from(STEPS), st.sampled_from(["\n", "\n\n", " \n "]))
def test_assignments_become_the_patch_that_sets_them(
    environment: Environment, rate: float, steps: int, between: str
) -> None:
    text = f"LEARNING_RATE = {rate}{between}STEPS={steps}"
    if (rate, steps) == (0.01, 20):
        with pytest.raises(PatchError, match="values of the baseline"):
            idea_of(text, environment)
        return
    idea = idea_of(text, environment)
    assert idea.settings == {"LEARNING_RATE": rate, "STEPS": steps} and idea.kind == "rl"
    after = apply(idea.patch, environment.code, environment.rules)
    values = {name: read_parameter(after, name, one) for name, one in environment.file.parameters.items()}
    assert values == idea.settings and isinstance(values["STEPS"], int)


@given(st.floats(allow_nan=False) | st.integers() | st.booleans() | st.text())
def test_values_stay_within_their_bounds(bounded: Environment, value: Any) -> None:
    try:
        idea = idea_of(f"STEPS = {value!r}", bounded)
    except PatchError:
        assert isinstance(value, bool | str) or not 1 <= value <= 200 or value != int(value) or value == 20
    else:
        assert idea.settings == {"STEPS": value} and isinstance(idea.settings["STEPS"], int)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("LEARNINGRATE = 0.1", r"there is no parameter 'LEARNINGRATE'; did you mean 'LEARNING_RATE'\?"),
        ("STEPS = 10\nSTEPS = 5", "STEPS is set twice"),
        ("STEPS = 11", "STEPS must be one of 1, 2, 5, 10, 20, 50, 100, 200, not 11"),
        ("STEPS = True", "STEPS must be one of .* not True"),
        ("STEPS = 1and", "STEPS must be one of"),
        ("STEPS = print()", "STEPS must be one of"),
        ("More steps.\nSTEPS = 10", "it holds no diff and no whole file"),
        ("", "it holds no diff and no whole file"),
    ],
)
def test_what_is_no_idea_is_told(environment: Environment, text: str, why: str) -> None:
    with pytest.raises(PatchError, match=why):
        idea_of(text, environment)


def test_a_patch_is_an_idea_and_the_prompt_says_what_may_be_answered(
    environment: Environment, bounded: Environment
) -> None:
    code = {"train.py": environment.code["train.py"].replace("slope = height = 0.0", "slope = height = 2.0")}
    patch = as_diff(environment.code, code)
    assert idea_of(f"Start elsewhere.\n```diff\n{patch}```\n", environment).patch == patch
    assert "STEPS: one of 1, 2, 5," in prompt(environment, in_words=False)
    assert "STEPS: a whole number from 1 to 200" in prompt(bounded, in_words=False)
    assert "STEPS: " not in prompt(environment, in_words=True)
    assert all(environment.code["train.py"].strip() in prompt(environment, words) for words in (True, False))


def done(group: Group, epoch: int, *said: str, cut: bool = False) -> list[Attempt]:
    return asyncio.run(group.attempts(epoch, [Completion(one, cut) for one in said]))


def test_identical_patches_run_once_and_everything_is_in_the_archive(
    environment: Environment, tmp_path: Path
) -> None:
    archive, workers = Archive(tmp_path / "a.sqlite"), Computed()
    group = Group(environment, archive, workers)
    one, two = "LEARNING_RATE = 0.3\nSTEPS = 100", "STEPS = 100\n\nLEARNING_RATE = 0.3"
    found = done(group, 0, one, f"<think>STEPS = 5?</think>\n{two}", one, "STEPS = 2", "STEPS = 2", "nothing")
    assert workers.runs == {(0.3, 100): 1, (0.01, 2): 1}
    assert [found[0].score, found[1].score, found[2].score] == [pytest.approx(0.01)] * 3
    assert found[1].idea == two and found[1].facts == found[0].facts == {"steps": 100}
    assert sum(attempt.seconds for attempt in found) == 2.0, "what was not run has cost nothing"
    assert [attempt.reason for attempt in found[3:]] == [
        "bad luck",
        "bad luck",
        "no patch: the answer changes nothing: it holds no diff and no whole file",
    ]
    assert found == archive.attempts("rl", epoch=0) and len({attempt.number for attempt in found}) == 6
    again = done(Group(environment, archive, workers), 1, two, "STEPS = 2", "STEPS = 50")
    assert workers.runs.total() == 3, "of an earlier run, too"
    assert again[0].score == found[0].score and again[0].epoch == 1
    assert "attempt 1 has the same patch" in again[0].log and again[1].reason == "bad luck"


def test_a_broken_epoch_is_gone_on_with(environment: Environment, tmp_path: Path) -> None:
    archive, broken = Archive(tmp_path / "a.sqlite"), Computed(OSError("power"), at=2)
    said = ["STEPS = 50", "STEPS = 100", "STEPS = 50", "STEPS = 1", "nonsense"]
    with pytest.raises(OSError, match="power"):
        done(Group(environment, archive, broken), 3, *said)
    workers = Computed()
    found = done(Group(environment, archive, workers), 3, *said)
    assert [one.idea for one in found] == said and len(archive.attempts()) == 5
    assert (broken.runs + workers.runs).most_common()[0][1] == 1 and {one.status for one in found} == {
        "done",
        "failed",
    }
    with pytest.raises(OSError, match="power"):
        done(Group(environment, archive, Computed(OSError("power"), at=1)), 4, "STEPS = 10", "STEPS = 200")
    other = done(Group(environment, archive, workers), 4, "STEPS = 5")
    first, second, last = archive.attempts(epoch=4)
    assert first.status == "failed" and first.reason.startswith("given up: "), "it had not ended"
    assert second.status == "done" and [one.number for one in other] == [last.number]


def test_what_was_cut_off_or_is_empty_is_never_tried(environment: Environment, tmp_path: Path) -> None:
    workers = Computed()
    group = Group(environment, Archive(tmp_path / "a.sqlite"), workers)
    (cut,) = done(group, 0, "STEPS = 10", cut=True)
    (empty,) = done(group, 1, "<think>What could I")
    assert cut.reason == "no patch: the completion was cut off before its end" and not workers.runs
    assert empty.reason == "no patch: the completion holds no idea" and empty.idea == ""


def test_ideas_in_words_go_through_the_implementer(environment: Environment, tmp_path: Path) -> None:
    before = "STEPS = 20"
    asked: list[str] = []

    def answer(request: Any) -> str:
        asked.append(request.messages[0][1].rsplit("The idea:", 1)[1].strip())
        if "impossible" in asked[-1]:
            return "I cannot."
        return f"```diff\n--- a/train.py\n+++ b/train.py\n@@ -8 +8 @@\n-{before}\n+STEPS = 100\n```"

    async def work() -> list[Attempt]:
        model = LanguageModel(Scripted(answer), ResponseStore(tmp_path / "answers", "test"))
        implementer = Implementer(
            model, environment.context(), environment.code, environment.rules, samples=2
        )
        group = Group(environment, Archive(tmp_path / "a.sqlite"), workers, implementer)
        said = ["<think>20 is few.</think>More steps.", "A hundred steps.", "impossible", "STEPS = 50"]
        return await group.attempts(0, list(map(Completion, said)))

    workers = Computed()
    found = asyncio.run(work())
    assert workers.runs == {(0.01, 100): 1}, "two ideas, one patch; the model alone writes patches"
    assert [one.score is None for one in found] == [False, False, True, False]
    assert found[2].reason.startswith("no patch: ") and "sample 1, revision 2" in found[2].patch_log
    assert set(asked) == {"More steps.", "A hundred steps.", "impossible", "STEPS = 50"}
