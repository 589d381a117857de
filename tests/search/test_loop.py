"""The search adds up: algorithm 1's shares, the budget, failures that stay failures, kills that lose nothing."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from searching import line_env

from leaven.errors import UsageError
from leaven.search.archive import Archive, Attempt, Idea
from leaven.search.attempt import Outcome
from leaven.search.environment import Code, Environment
from leaven.search.folder import search
from leaven.search.loop import Options, Search, exploit_share, parts
from leaven.search.mutate import Mutations
from leaven.search.sandbox import Sandbox
from leaven.search.workers import Local

POLYNOMIAL = """
import json, os
LEARNING_RATE = 0.5
STEPS = 20
open("model.json", "w").write(json.dumps([LEARNING_RATE, STEPS, int(os.environ["SEED"])]))
"""
DISTANCE = """
import json, os
rate, steps, seed = json.load(open(os.path.join(os.environ["COPY"], "model.json")))
assert steps != 13, "bad luck"
print(json.dumps({"score": (rate - 0.3) ** 2 + (steps / 100 - 1) ** 2 + seed * 1e-6}))
"""


def test_shares_are_those_of_the_algorithm() -> None:
    assert [exploit_share(t) for t in range(1, 12)] == pytest.approx([0.5, 0.6, 0.6, 0.7, 0.7, *[0.8] * 6])
    evolve, best = Options(batch=8, budget=30), Options("best-of-n", batch=8, budget=30)
    assert parts(evolve, 0, 0) == [("fresh", 8)] == parts(best, 0, 0) == parts(best, 2, 5)
    assert parts(evolve, 1, 3) == [("exploit", 4), ("explore", 4)]
    assert parts(evolve, 1, 0) == [("explore", 8)], "there is nothing to exploit"
    assert parts(evolve, 3, 1) == [("exploit", 3), ("explore", 3)], "six are left, floor(.6 x 6)"
    assert parts(Options("random", batch=8, budget=3), 0, 0) == [("random", 3)]


class Counted:
    """Workers that compute instead of running, and count."""

    count = 4

    def __init__(self) -> None:
        self.runs: Counter[tuple[str, int]] = Counter()

    async def value(self, environment: Environment, code: Code, seed: int) -> Outcome:
        self.runs[code["train.py"], seed] += 1
        await asyncio.sleep(0)
        namespace: dict[str, Any] = {}
        exec(code["train.py"].split("open(")[0], namespace)
        if namespace["STEPS"] % 10 == 3:
            return Outcome(None, "bad luck")
        return Outcome(
            (namespace["LEARNING_RATE"] - 0.3) ** 2 + (namespace["STEPS"] / 100 - 1) ** 2 + seed * 1e-6
        )


class Watched(Mutations):
    """Mutations that remember what they were shown."""

    def __init__(self, environment: Environment, seed: int = 0) -> None:
        super().__init__(environment, seed)
        self.calls: list[tuple[str, int, list[Attempt], list[str]]] = []

    async def ideas(
        self, kind: Any, count: int, epoch: int, shown: Sequence[Attempt], avoid: Sequence[str]
    ) -> list[Idea]:
        self.calls.append((kind, count, list(shown), list(avoid)))
        return await super().ideas(kind, count, epoch, shown, avoid)


def searched(folder: Path, **options: Any) -> tuple[Archive, Counted, Watched]:
    environment = line_env(folder / "env", {"train.py": POLYNOMIAL}, DISTANCE)
    archive, workers, ideator = (
        Archive(folder / "a.sqlite"),
        Counted(),
        Watched(environment, options.get("seed", 0)),
    )
    asyncio.run(Search(environment, archive, ideator, workers, Options(**options)).run())
    return archive, workers, ideator


def test_the_budget_is_spent_and_everything_is_in_the_archive(tmp_path: Path) -> None:
    archive, workers, ideator = searched(tmp_path, budget=30, batch=8)
    attempts = archive.attempts()
    assert Counter(one.epoch for one in attempts) == {-1: 3, 0: 8, 1: 8, 2: 8, 3: 6}
    assert sum(workers.runs.values()) == 33 and max(workers.runs.values()) == 1
    assert {one.seed for one in attempts if one.kind == "baseline"} == {0, 1, 2}
    assert {one.status for one in attempts} == {"done", "failed"}
    failed = [one for one in attempts if one.status == "failed"]
    assert failed and all(one.reason == "bad luck" and one.score is None for one in failed)
    beta = sum(one.score or 0 for one in attempts if one.kind == "baseline") / 3
    for kind, _, shown, _ in ideator.calls:
        if kind == "fresh":
            assert not shown
        if kind == "exploit":
            assert shown and all(one.score is not None and one.score < beta for one in shown), (
                "what beat the baseline"
            )
        if kind == "explore":
            last = max(one.epoch for one in shown)
            assert [one.number for one in shown] == [
                one.number for one in attempts if 0 <= one.epoch <= last
            ], "all that was tried, failures too"
    assert any(one.score is None for *_, shown, _ in ideator.calls for one in shown)


def test_learning_from_what_was_run_beats_luck(tmp_path: Path) -> None:
    best: dict[str, list[float]] = {}
    for strategy in ("evolve", "random"):
        for seed in range(5):
            archive, *_ = searched(tmp_path / f"{strategy}{seed}", strategy=strategy, budget=64, seed=seed)
            scores = [one.score for one in archive.attempts() if one.epoch >= 0 and one.score is not None]
            best.setdefault(strategy, []).append(min(scores))
    assert sum(best["evolve"]) < sum(best["random"])


def test_another_search_is_not_mixed_in_and_a_larger_budget_goes_on(tmp_path: Path) -> None:
    archive, workers, _ = searched(tmp_path, budget=8)
    environment = line_env(tmp_path / "same", {"train.py": POLYNOMIAL}, DISTANCE)

    def again(environment: Environment, **options: Any) -> None:
        ideator = Mutations(environment, options.get("seed", 0))
        asyncio.run(Search(environment, archive, ideator, workers, Options(**options)).run())

    (number,) = archive.add([Idea("confirmation", "confirm", (0,))], -2, [1000])
    archive.ended(number, Outcome(-1.0))  # better than any score: the baseline on a lucky seed
    again(environment, budget=12)
    assert len([one for one in archive.attempts() if one.tried]) == 12 and max(workers.runs.values()) == 1
    assert not any(number in one.parents for one in archive.attempts()), (
        "a confirmation is nothing to go on from"
    )
    with pytest.raises(UsageError, match=r"holds another search \(strategy: evolve there, random now\)"):
        again(environment, strategy="random", budget=12)
    other = line_env(tmp_path / "other", {"train.py": POLYNOMIAL + "#"}, DISTANCE)
    with pytest.raises(UsageError, match=r"its files were changed"):
        again(other, budget=12)


def test_a_baseline_that_fails_ends_it_before_any_idea(tmp_path: Path) -> None:
    line_env(tmp_path / "env", {"train.py": POLYNOMIAL.replace("20", "13")}, DISTANCE)
    with pytest.raises(UsageError, match=r"the baseline fails: .*; mend it before ideas are paid for"):
        search(tmp_path / "env", tmp_path / "out", Options(budget=4))
    assert not (tmp_path / "out" / "results.md").exists()
    (tmp_path / "env" / "code" / "train.py").write_text(POLYNOMIAL)
    archive = search(tmp_path / "env", tmp_path / "out", Options(budget=4))
    assert len(archive.attempts()) == 7, "it was mended"


def test_attempts_run_side_by_side_and_cost_little_beside_themselves(tmp_path: Path) -> None:
    sleep = POLYNOMIAL + "import time\ntime.sleep(0.5)\n"
    environment = line_env(tmp_path / "env", {"train.py": sleep}, DISTANCE)
    archive = Archive(tmp_path / "a.sqlite")
    workers = Local(tmp_path / "work", environment, Sandbox.find(), 2)
    started = time.monotonic()
    try:
        asyncio.run(
            Search(
                environment, archive, Mutations(environment), workers, Options(budget=8, baselines=1)
            ).run()
        )
    finally:
        workers.stop()
    taken, alone = time.monotonic() - started, sum(one.seconds for one in archive.attempts())
    assert taken < 0.85 * alone, "two at a time"


def test_kills_lose_nothing_and_change_nothing(tmp_path: Path) -> None:
    line_env(tmp_path / "env", {"train.py": POLYNOMIAL + "import time\ntime.sleep(0.05)\n"}, DISTANCE)
    search(tmp_path / "env", tmp_path / "whole", Options(budget=24, batch=6)).close()
    command = [
        *(
            sys.executable,
            "-m",
            "leaven.cli",
            "search",
            str(tmp_path / "env"),
            "--out",
            str(tmp_path / "killed"),
        ),
        *("--budget", "24", "--batch", "6"),
    ]
    kills = 0
    for wanted in (1, 3, 8, 9, 14, 20, 25):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while process.poll() is None and ended(tmp_path / "killed") < wanted:
            time.sleep(0.01)
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert kills >= 5
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    whole, killed = (
        [
            (one.epoch, one.kind, one.idea, one.patch, one.parents, one.seed, one.status, one.score)
            for one in Archive(tmp_path / name / "search.sqlite").attempts()
        ]
        for name in ("whole", "killed")
    )
    assert whole == killed
    with sqlite3.connect(tmp_path / "killed" / "search.sqlite") as file:
        assert file.execute("SELECT count(*) FROM attempts").fetchone() == (27,)
    assert not list((tmp_path / "killed" / "work").glob("*/*"))
    assert (
        json.loads((tmp_path / "killed" / "events.jsonl").read_text().splitlines()[0])["event"]
        == "stage started"
    )


def test_ctrl_c_ends_it_with_what_it_runs(tmp_path: Path) -> None:
    def as_in_a_terminal() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs inherit that it is ignored

    marker = f"sleep {500 + time.time_ns() % 90}.{time.time_ns() % 10**6}"
    line_env(
        tmp_path / "env",
        {"train.py": POLYNOMIAL},
        DISTANCE,
        run=f"python train.py; test $SEED != 2 || {marker}",
    )
    command = [
        sys.executable,
        "-m",
        "leaven.cli",
        "search",
        str(tmp_path / "env"),
        "--out",
        str(tmp_path / "out"),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=as_in_a_terminal)
    deadline = time.monotonic() + 60
    while not running(marker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert running(marker), "it has begun"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and "run the same command again" in errors and "Traceback" not in errors
    assert not running(marker)


def running(marker: str) -> bool:
    return any(" ".join(one.info["cmdline"] or ()) == marker for one in psutil.process_iter(["cmdline"]))


def ended(out: Path) -> int:
    if not (out / "search.sqlite").exists():
        return 0
    try:
        with sqlite3.connect(f"file:{out / 'search.sqlite'}?mode=ro", uri=True, timeout=5) as file:
            return int(
                file.execute("SELECT count(*) FROM attempts WHERE status IN ('done', 'failed')").fetchone()[0]
            )
    except sqlite3.Error:
        return 0
