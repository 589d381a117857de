"""Workers run as many attempts as there is room for, each in a place of its own; on a Ray cluster the same."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from searching import line_env

from leaven.errors import UsageError
from leaven.search.sandbox import Sandbox
from leaven.search.workers import Local, gpu_ids, workers

SLEEP = "import time\ntime.sleep(0.6)\nimport json\njson.dump({'slope': 3, 'height': 1}, open('model.json', 'w'))\n"


def test_room_is_what_the_machine_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,7")
    assert gpu_ids() == ["3", "5", "7"]
    for number, (resources, most, count) in enumerate(
        [
            ({"cpus": 3}, None, 2),
            ({"cpus": 3}, 1, 1),
            ({"cpus": 1, "gpus": 1}, None, 3),
            ({"gpus": 2}, None, 1),
        ]
    ):
        environment = line_env(tmp_path / str(number), resources=resources)
        assert Local(tmp_path, environment, Sandbox("none"), most).count == count
    with pytest.raises(UsageError, match=r"16 CPUs and 0 GPUs are asked for, this machine has 8 and 3"):
        Local(tmp_path, line_env(tmp_path / "many", resources={"cpus": 16}), Sandbox("none"))


def test_each_has_gpus_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,7")
    show = SLEEP + "import os\nprint('GPUs', os.environ['CUDA_VISIBLE_DEVICES'])\n"
    environment = line_env(tmp_path / "env", {"train.py": show}, resources={"gpus": 1}, parameters={})

    async def main() -> list[str]:
        with workers(tmp_path / "work", environment, Sandbox.find()) as some:
            found = await asyncio.gather(*(some.value(environment, environment.code, 0) for _ in range(3)))
        return sorted(one.log.splitlines()[0] for one in found)

    assert asyncio.run(main()) == ["GPUs 3", "GPUs 5", "GPUs 7"]


def test_what_runs_ends_with_the_search(tmp_path: Path) -> None:
    marker = f"sleep {900 + os.getpid() % 90}.{time.time_ns() % 10**6}"
    environment = line_env(tmp_path / "env", run=marker)

    async def main() -> None:
        with workers(tmp_path / "work", environment, Sandbox.find(), 1) as some:
            task = asyncio.ensure_future(some.value(environment, environment.code, 0))
            while not running(marker):
                await asyncio.sleep(0.05)
            task.cancel()

    started = time.monotonic()
    asyncio.run(main())
    assert not running(marker) and time.monotonic() - started < 20


def running(marker: str) -> list[int]:
    return [
        one.pid for one in psutil.process_iter(["cmdline"]) if " ".join(one.info["cmdline"] or ()) == marker
    ]


@pytest.mark.slow  # starts a Ray cluster
def test_ray_runs_the_same(tmp_path: Path) -> None:
    import ray

    environment = line_env(tmp_path / "env")
    sandbox = Sandbox.find()

    async def scores(address: str | None) -> list[Any]:
        with workers(tmp_path / "work", environment, sandbox, ray=address) as some:
            assert some.count >= 1
            found = await asyncio.gather(
                *(some.value(environment, environment.code, seed) for seed in range(4))
            )
        return [one.score for one in found]

    with pytest.raises(UsageError, match=r"--ray auto: "):
        asyncio.run(scores("auto"))
    here, there = asyncio.run(scores(None)), asyncio.run(scores("local"))
    assert here == there and None not in here
    assert not ray.is_initialized() and os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
