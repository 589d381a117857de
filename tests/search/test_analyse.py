"""What a search claims is what its scores bear: noise, progress, kinds of change, confirmation."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from searching import attempt_of, line_env

from leaven.errors import UsageError
from leaven.search.analyse import (
    FIRST_FRESH_SEED,
    best_of,
    confirm,
    confirmed,
    epochs,
    kind_of_change,
    noise_floor,
    paired,
)
from leaven.search.archive import Archive, Idea
from leaven.search.attempt import Outcome
from leaven.search.environment import Code, Environment, Metric
from leaven.search.folder import Summary, confirmation_line, summary
from leaven.search.patch import as_diff

LOWER, HIGHER = Metric(name="loss", direction="lower"), Metric(name="accuracy", direction="higher")


def test_progress_epoch_by_epoch() -> None:
    attempts = [
        attempt_of(epoch=-1, kind="baseline", score=0.1), attempt_of(epoch=0, score=3.0), attempt_of(epoch=0),
        attempt_of(epoch=0, score=2.0), attempt_of(epoch=1, score=2.5), attempt_of(epoch=2),
        attempt_of(epoch=2, status="patched"), attempt_of(epoch=3, score=1.0),
    ]  # fmt: skip
    found = epochs(attempts, LOWER)
    assert [(one.number, one.ideas, one.completed, one.mean, one.best, one.so_far) for one in found] == [
        (0, 3, 2, 2.5, 2.0, 2.0), (1, 1, 1, 2.5, 2.5, 2.0), (2, 1, 0, None, None, 2.0), (3, 1, 1, 1.0, 1.0, 1.0),
    ]  # fmt: skip
    assert [one.so_far for one in epochs(attempts, HIGHER)] == [3.0, 3.0, 3.0, 3.0]
    best, worst = best_of(attempts, LOWER), best_of(attempts, HIGHER)
    assert best is not None and best.score == 1.0, "the baseline is no attempt"
    assert worst is not None and worst.score == 3.0 and best_of([], LOWER) is None


def test_the_noise_floor_holds_what_it_promises() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(2000):
        *seen, new = rng.normal(5, 2, size=4)
        floor = noise_floor(seen)
        assert floor is not None
        inside += abs(new - np.mean(seen)) <= floor
    assert 0.935 < inside / 2000 < 0.965
    assert noise_floor([1.0]) is None


def test_a_difference_is_taken_seed_by_seed() -> None:
    found = paired([1.0, 2.0, 3.0], [0.5, 1.6, 2.4])
    assert found.value == pytest.approx(0.5) and (found.first, found.second) == (2.0, 1.5)
    half = 4.302652729911275 * np.std([0.5, 0.4, 0.6], ddof=1) / math.sqrt(3)
    assert found.low == pytest.approx(0.5 - half) and found.high == pytest.approx(0.5 + half)
    assert paired([1.0], [2.0]).low is None


PYTHON = "RATE = -0.5\nSIZES = [1, 2]\n\n\ndef loss(x):\n    return RATE * x + 3  # three\n"


@pytest.mark.parametrize(
    ("after", "kind"),
    [
        (PYTHON.replace("-0.5", "0.25"), "hyper-parameter"),
        (PYTHON.replace("[1, 2]", "[1, 2, 3]"), "hyper-parameter"),
        (PYTHON.replace("+ 3  # three", "+ 4"), "hyper-parameter"),
        (PYTHON.replace("-0.5", "None"), "hyper-parameter"),
        (PYTHON.replace("RATE * x", "RATE * x * x"), "algorithmic"),
        (PYTHON.replace("[1, 2]", "[1, loss]"), "algorithmic"),
        (PYTHON + "import os\n", "algorithmic"),
        (PYTHON + "this is no python\n", "algorithmic"),
    ],
)
def test_a_patch_of_values_tunes_and_another_computes(after: str, kind: str) -> None:
    assert kind_of_change({"a.py": PYTHON, "b.py": "X = 1"}, {"a.py": after, "b.py": "X = 1"}) == kind


def test_kinds_of_change_in_other_files() -> None:
    before = {"plan.yaml": "a: {b: 1, c: [x]}\n", "note.txt": "hello"}
    assert kind_of_change(before, before | {"plan.yaml": "a: {b: 2, c: [x, y]}"}) == "hyper-parameter"
    assert kind_of_change(before, before | {"plan.yaml": "a: {b: 2, d: [x, y]}"}) == "algorithmic"
    assert kind_of_change(before, before | {"note.txt": "bye"}) == "algorithmic"
    assert kind_of_change(before, before | {"new.py": ""}) == "algorithmic"


class Noisy:
    """Workers whose scores depend on the code and, more, on the seed."""

    count = 2

    def __init__(self, gain: float) -> None:
        self.gain, self.seeds, self.calls = gain, set[int](), 0

    async def value(self, environment: Environment, code: Code, seed: int) -> Outcome:
        self.calls += 1
        self.seeds.add(seed)
        if seed == FIRST_FRESH_SEED + 99:
            return Outcome(None, "broke")
        noise = float(np.random.default_rng([seed, len(code["train.py"])]).normal())
        return Outcome(noise + (self.gain if "STEPS = 21" in code["train.py"] else 0.0))


def search_with(folder: Path, environment: Environment, scores: list[float]) -> Archive:
    archive = Archive(folder / "a.sqlite")
    archive.note("metric", {"name": "gain", "direction": "higher"})
    numbers = archive.add([Idea("the baseline", "baseline")] * 3, -1, [0, 1, 2])
    for number, score in zip(numbers, (0.9, 1.0, 1.1), strict=True):
        archive.ended(number, Outcome(score))
    after = {**environment.code, "train.py": environment.code["train.py"].replace("STEPS = 20", "STEPS = 21")}
    numbers = archive.add(
        [Idea(f"idea {n}", "fresh", patch=as_diff(environment.code, after)) for n in range(len(scores))], 0
    )
    for number, score in zip(numbers, scores, strict=True):
        archive.ended(number, Outcome(score))
    return archive


@pytest.mark.parametrize(
    ("gain", "word"), [(50.0, "a gain"), (-50.0, "a loss"), (0.0, "no difference shown")]
)
def test_a_winner_is_believed_on_fresh_seeds_only(tmp_path: Path, gain: float, word: str) -> None:
    environment = line_env(tmp_path / "env")
    archive = search_with(tmp_path, environment, [3.0, 9.0])
    best = best_of(archive.attempts(), HIGHER)
    assert best is not None and best.score == 9.0
    workers = Noisy(gain)
    found = asyncio.run(confirm(environment, archive, best, workers, 6))
    assert workers.seeds == set(range(FIRST_FRESH_SEED, FIRST_FRESH_SEED + 6)) and workers.calls == 12
    assert confirmation_line(HIGHER, "", found).endswith(word)
    assert confirmed(archive, best) == found
    asyncio.run(confirm(environment, archive, best, workers, 8))
    assert workers.calls == 16, "what was run is not run again"
    asyncio.run(confirm(environment, archive, best, workers, 2, "larger"))
    assert workers.calls == 20 and set(summary(archive).confirmations) == {"", "larger"}
    with pytest.raises(UsageError, match=r"fails with seed 1099"):
        asyncio.run(confirm(environment, archive, best, workers, 100))


@pytest.mark.parametrize(
    ("scores", "verdict"),
    [
        ([9.0], "beyond the noise of the baseline (0.4968), but not confirmed on fresh seeds"),
        ([1.3], "within the noise of the baseline (one run may be 0.4968 off): no gain is shown"),
        ([0.5], "no attempt beats the baseline"),
        ([], "no attempt has a score yet"),
    ],
)
def test_the_verdict_is_no_more_than_what_is_known(tmp_path: Path, scores: list[float], verdict: str) -> None:
    found: Summary = summary(search_with(tmp_path, line_env(tmp_path / "env"), scores))
    assert found.verdict.endswith(verdict), found.verdict


def test_an_archive_is_one_file_and_keeps_what_it_was_told(tmp_path: Path) -> None:
    archive = Archive(tmp_path / "a.sqlite")
    idea: Any = Idea("try é", "exploit", (1, 2), {"STEPS": 3, "SIZES": [1, 2]}, "")
    (number,) = archive.add([idea], 4)
    archive.patched(number, None, "sample 0: no diff\nsample 1: nothing to change")
    archive.close()
    (found,) = Archive(tmp_path / "a.sqlite").attempts("exploit", epoch=4)
    assert (found.idea, found.parents, found.settings) == ("try é", (1, 2), {"STEPS": 3, "SIZES": [1, 2]})
    assert found.status == "failed" and found.reason == "no patch: sample 1: nothing to change"
    (tmp_path / "b.sqlite").write_text("no database, but long enough to be taken for one" * 100)
    with pytest.raises(UsageError, match=r"b\.sqlite cannot be used as an archive of attempts"):
        Archive(tmp_path / "b.sqlite")
