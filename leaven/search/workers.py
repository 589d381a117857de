"""Who runs attempts: as many at a time as the machine has room for, or as a Ray cluster has.

A local worker is a place on this machine: a folder to work in and GPUs of its own. Ray's workers are its tasks, with
the processors and GPUs that the environment asks for; Ray starts a task again whose node has gone. The environment's
files under `data` and `eval_data` must lie where every node can read them.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from leaven.errors import UsageError
from leaven.search.attempt import Outcome, value
from leaven.search.environment import Code, Environment
from leaven.search.patch import PatchError, apply
from leaven.search.sandbox import Sandbox

SEED = 0  # of every attempt, so that attempts differ by their patches alone


class Workers(Protocol):
    """What the search needs of them."""

    @property
    def count(self) -> int:
        """How many attempts run at a time, as far as is known."""

    async def value(self, environment: Environment, code: Code, seed: int) -> Outcome:
        """Run and evaluate a codebase as soon as there is room."""


async def execute(workers: Workers, environment: Environment, patch: str) -> Outcome:
    """What a patch of the baseline is worth; one that does not apply has failed."""
    try:
        code = apply(patch, environment.code, environment.rules)
    except PatchError as error:
        return Outcome(None, f"patch: {' '.join(str(error).split())}")
    return await workers.value(environment, code, SEED)


class Local:
    """Workers on this machine.

    Args:
        folder: to work in.
        environment: what an attempt needs.
        most: no more than so many; None is as many as there are processors and GPUs for.

    Raises:
        UsageError: not one attempt fits.
    """

    def __init__(
        self, folder: Path, environment: Environment, sandbox: Sandbox, most: int | None = None
    ) -> None:
        need, cpus, gpus = environment.file.resources, os.cpu_count() or 1, gpu_ids()
        room = cpus // need.cpus
        if need.gpus:
            room = min(room, len(gpus) // need.gpus)
        self.count = min(room, most or room)
        if self.count < 1:
            raise UsageError(
                f"{environment.folder / 'env.yaml'}: resources: {need.cpus} CPUs and {need.gpus} GPUs are asked for, "
                f"this machine has {cpus} and {len(gpus)}; choose another --setting"
            )
        self._sandbox, self._folder = sandbox, folder
        self._pool = ThreadPoolExecutor(self.count, "attempt")
        self._free: asyncio.Queue[tuple[Path, str]] = asyncio.Queue()
        for number in range(self.count):
            devices = ",".join(gpus[number * need.gpus : (number + 1) * need.gpus])
            self._free.put_nowait((folder / f"worker-{number}", devices))

    async def value(self, environment: Environment, code: Code, seed: int) -> Outcome:
        place, devices = await self._free.get()
        try:
            run = asyncio.get_running_loop().run_in_executor
            return await run(self._pool, value, environment, code, self._sandbox, place, seed, devices)
        finally:
            self._free.put_nowait((place, devices))

    def stop(self) -> None:
        """Kill what runs and wait for the threads."""
        self._sandbox.stop()
        self._pool.shutdown(cancel_futures=True)


class Ray:
    """Workers of a Ray cluster.

    Args:
        address: of the cluster; ``auto`` is the one this machine belongs to, ``local`` starts one here.

    Raises:
        UsageError: Ray is not installed, or there is no such cluster.
    """

    def __init__(self, environment: Environment, sandbox: Sandbox, address: str) -> None:
        try:
            import ray
        except ImportError as error:
            raise UsageError(f"--ray needs pip install 'leaven[ray]' ({error})") from error
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody is told what is run
        try:
            ray.init(address=address, log_to_driver=False, ignore_reinit_error=True)
        except (ConnectionError, ValueError) as error:
            raise UsageError(f"--ray {address}: {' '.join(str(error).split())}") from error
        need = environment.file.resources
        self._sandbox = sandbox
        self._task = ray.remote(num_cpus=need.cpus, num_gpus=need.gpus, max_retries=3)(_in_a_task)
        have = ray.cluster_resources()
        room = int(have.get("CPU", 0)) // need.cpus
        self.count = min(room, int(have.get("GPU", 0)) // need.gpus) if need.gpus else room
        if self.count < 1:
            raise UsageError(
                f"--ray {address}: the cluster has no room for {need.cpus} CPUs and {need.gpus} GPUs: {have}"
            )

    async def value(self, environment: Environment, code: Code, seed: int) -> Outcome:
        found: Outcome = await asyncio.wrap_future(
            self._task.remote(environment, dict(code), self._sandbox.walls, seed).future()
        )
        return found

    def stop(self) -> None:
        """Let the cluster go; tasks of this search end with it."""
        import ray

        ray.shutdown()


def _in_a_task(environment: Environment, code: dict[str, str], walls: Any, seed: int) -> Outcome:
    with TemporaryDirectory(prefix="leaven-attempt-") as place:
        devices = os.environ.get("CUDA_VISIBLE_DEVICES", "")  # Ray has chosen them
        return value(environment, code, Sandbox(walls), Path(place) / "worker", seed, devices)


@contextmanager
def workers(
    folder: Path, environment: Environment, sandbox: Sandbox, most: int | None = None, ray: str | None = None
) -> Iterator[Workers]:
    """Workers for a while; what still runs at the end of the block is killed."""
    found = Ray(environment, sandbox, ray) if ray else Local(folder, environment, sandbox, most)
    try:
        yield found
    finally:
        found.stop()


def gpu_ids() -> list[str]:
    """Of the GPUs this process may use."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [one for one in given.split(",") if one]
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return listed.stdout.split() if listed.returncode == 0 else []
