"""Where model-written code runs: behind walls, under limits, with nothing of the user's in sight.

    command -> namespaces (unshare, else bubblewrap) -> _jail.py: an own root directory, no privileges -> the command

Inside there is no network, no other process, no variable of the user's environment, and of the file system only the
system, the Python environment (both read-only), and the copy that the command works in. From outside the run is
watched: seconds, memory and processes of all it started, and the size of its copy. Whatever is left of it is killed
when it ends, and all of it when the program that started it ends, ``kill -9`` included.

Neither unshare nor bubblewrap to be had (Linux allows it to ordinary users, some distributions do not): `Sandbox.find`
refuses, unless the user takes the risk (``--unsafe-local``), and then only the limits are left.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Literal

from leaven.errors import UsageError
from leaven.search.environment import Limits, Resources

Walls = Literal["unshare", "bwrap", "none"]

WALLS: tuple[Walls, ...] = ("unshare", "bwrap")  # in order of preference
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32",
          "/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime")  # fmt: skip
JAIL = Path(__file__).with_name("_jail.py")
UNSHARE = ("setpriv", "--pdeathsig", "KILL", "unshare", "--user", "--map-root-user", "--mount", "--net", "--pid",
           "--ipc", "--uts", "--fork", "--kill-child", "--")  # fmt: skip
POLL_SECONDS = 0.1
SIZE_SECONDS = 1.0  # between two looks at the size of the copy
MOST_OUTPUT = 64 << 20  # bytes a command may print
MOST_FILES = 100_000


@dataclass(frozen=True)
class Finished:
    """How a command ended.

    Args:
        code: exit status; that of a signal is 128 plus its number.
        reason: why it was killed; empty if it ended by itself.
    """

    code: int
    seconds: float
    reason: str = ""


@dataclass(frozen=True)
class Sandbox:
    """One kind of walls. `find` gives the one that works here."""

    walls: Walls
    _running: set[subprocess.Popen[bytes]] = field(default_factory=set, compare=False, repr=False)

    @classmethod
    def find(cls, unsafe: bool = False) -> Sandbox:
        """The walls that this machine has.

        Args:
            unsafe: the user wants none.

        Raises:
            UsageError: there are none.
        """
        if unsafe:
            return cls("none")
        for walls in WALLS:
            one = cls(walls)
            if one.works():
                return one
        raise UsageError(
            "there is no sandbox here: neither user namespaces nor bubblewrap work. Install bubblewrap, allow user "
            "namespaces (sysctl kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns), or "
            "run what models write without walls, at your own risk: --unsafe-local"
        )

    def works(self) -> bool:
        """Whether a command can be run in it."""
        program = {"unshare": "unshare", "bwrap": "bwrap", "none": sys.executable}[self.walls]
        if shutil.which(program) is None:
            return False
        with TemporaryDirectory() as folder, open(os.devnull, "wb") as nowhere:
            ended = self.run("true", Path(folder), Limits(seconds=20), Resources(), {}, nowhere)
        return ended.code == 0

    def run(
        self,
        command: str,
        cwd: Path,
        limits: Limits,
        resources: Resources,
        variables: Mapping[str, str],
        output: IO[bytes],
    ) -> Finished:
        """Run a shell command to its end, or to its limit.

        Args:
            cwd: its current directory, the only place it may write to.
            variables: all it finds in its environment, but for a few of the system's.
            output: open file for what it prints, errors included.
        """
        with self.started(
            command, cwd, limits, resources, variables, stdout=output, stderr=subprocess.STDOUT
        ) as process:
            return Watch([process], limits, cwd, output).until(process)

    @contextmanager
    def started(
        self,
        command: str,
        cwd: Path,
        limits: Limits,
        resources: Resources,
        variables: Mapping[str, str],
        *,
        stdin: int | None = subprocess.DEVNULL,
        stdout: int | IO[bytes] | None = None,
        stderr: int | IO[bytes] | None = None,
        pass_fds: Sequence[int] = (),
        show: Sequence[Path] = (),
    ) -> Iterator[subprocess.Popen[bytes]]:
        """The command as a process; killed with all it started when the block ends.

        Args:
            show: more to be seen there, read-only.
        """
        with TemporaryDirectory(prefix="leaven-root-") as root:
            process = subprocess.Popen(
                self._line(root, command, cwd, limits, resources, variables, show),
                stdin=stdin, stdout=stdout, stderr=stderr, pass_fds=pass_fds, start_new_session=True,
                env={"PATH": os.defpath + ":/usr/sbin:/sbin"} if self.walls != "none" else {"PATH": os.environ["PATH"]},
            )  # fmt: skip
            self._running.add(process)
            try:
                yield process
            finally:
                kill(process)
                self._running.discard(process)

    def stop(self) -> None:
        """Kill everything that runs in it."""
        for process in list(self._running):
            process.kill()

    def _line(
        self, root: str, command: str, cwd: Path, limits: Limits, resources: Resources,
        variables: Mapping[str, str], show: Sequence[Path],
    ) -> list[str]:  # fmt: skip
        python = [sys.executable, "-I", "-S", str(JAIL)]
        seen = [*SYSTEM, *map(str, _python()), *(["/sys"] if resources.gpus else []), *map(str, show)]
        disk = int(limits.disk_gb * 1e9)
        spec = {
            "new_root": root if self.walls == "unshare" else None,
            "show": seen, "write": [str(cwd)], "cwd": str(cwd), "disk": disk,
            "processes": limits.processes,
            "memory": None if resources.gpus else int(limits.memory_gb * 1e9),  # a GPU's driver reserves far more
            "variables": self._variables(cwd, resources) | dict(variables),
        }  # fmt: skip
        inner = [*python, json.dumps(spec), "/bin/sh", "-c", command]
        if self.walls == "unshare":
            return [*UNSHARE, *inner]
        if self.walls == "none":
            return inner if shutil.which("setpriv") is None else ["setpriv", "--pdeathsig", "KILL", *inner]
        line = ["bwrap", "--unshare-all", "--die-with-parent", "--cap-drop", "ALL"]
        line += ["--dev", "/dev", "--proc", "/proc"]
        line += ["--size", str(disk), "--tmpfs", "/tmp"]  # before the rest: what is shown may lie there
        for place in seen:
            if Path(place).is_symlink():
                line += ["--symlink", os.readlink(place), place]
            else:
                line += ["--ro-bind-try", place, place]
        for device in map(str, Path("/dev").glob("nvidia*")):
            line += ["--dev-bind-try", device, device]
        return [*line, "--bind", str(cwd), str(cwd), "--remount-ro", "/", "--", *inner]

    def _variables(self, cwd: Path, resources: Resources) -> dict[str, str]:
        home = str(cwd) if self.walls == "none" else "/tmp"
        return {
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin", "HOME": home, "TMPDIR": home,
            "LANG": "C.UTF-8", "USER": "nobody", "LOGNAME": "nobody", "HF_HUB_OFFLINE": "1",
            "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": str(resources.cpus),
        }  # fmt: skip


def _python() -> list[Path]:
    """The folders of this Python environment, Leaven's own among them."""
    import leaven

    places = [Path(sys.prefix), Path(sys.base_prefix), Path(leaven.__file__).parent]
    real = Path(sys.executable).resolve()
    places += [real.parent.parent] if real.parent.name == "bin" else []
    found = [one for one in dict.fromkeys(places) if not str(one).startswith("/usr/")]
    return [one for one in found if one != Path("/usr")]


class Watch:
    """Looks at what running commands take.

    Args:
        processes: each is watched with all it started.
        limits: of each of them.
        copy: folder whose size is watched.
        output: open file whose size is watched.
    """

    def __init__(
        self, processes: Sequence[subprocess.Popen[bytes]], limits: Limits, copy: Path, output: IO[bytes]
    ) -> None:
        self._processes, self._limits, self._copy, self._output = processes, limits, copy, output
        self._started = self._looked = time.monotonic()

    def until(self, process: subprocess.Popen[bytes]) -> Finished:
        """Wait for the process to end, or for something to have taken too much; then it is killed."""
        reason = None
        while reason is None:
            try:
                process.wait(POLL_SECONDS)
                reason = self._too_large() or ""
            except subprocess.TimeoutExpired:
                late = time.monotonic() > self._started + self._limits.seconds
                reason = "the time limit" if late else self._too_much()
        kill(process)
        code = process.returncode
        return Finished(code if code >= 0 else 128 - code, time.monotonic() - self._started, reason)

    def _too_much(self) -> str | None:
        limits = self._limits
        for process in self._processes:
            memory, processes = taken(process.pid)
            if memory > limits.memory_gb * 1e9:
                return f"the memory limit of {limits.memory_gb:g} GB"
            if processes > limits.processes:
                return f"the limit of {limits.processes} processes"
        if time.monotonic() - self._looked > SIZE_SECONDS:
            self._looked = time.monotonic()
            return self._too_large()
        return None

    def _too_large(self) -> str | None:
        room = self._limits.disk_gb * 1e9
        most = min(MOST_OUTPUT, int(room))
        if os.fstat(self._output.fileno()).st_size >= most:
            return f"the limit of {most / 1e6:g} MB of printed text"
        size, files = occupied(self._copy)
        if size > room:
            return f"the disk limit of {self._limits.disk_gb:g} GB"
        return f"the limit of {MOST_FILES:,} files" if files > MOST_FILES else None


def taken(pid: int) -> tuple[int, int]:
    """(bytes of resident memory, number of processes) of a process and all it started."""
    import psutil

    memory = processes = 0
    try:
        top = psutil.Process(pid)
        family = [top, *top.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0, 0
    for one in family:
        try:
            memory += one.memory_info().rss
            processes += 1
        except psutil.Error:
            continue
    return memory, processes


def occupied(folder: Path) -> tuple[int, int]:
    """(bytes on disk, number of entries) of a folder; what cannot be looked at counts as nothing."""
    size = entries = 0
    stack = [str(folder)]
    while stack:
        try:
            with os.scandir(stack.pop()) as found:
                for entry in found:
                    entries += 1
                    if entry.is_dir(follow_symlinks=False):
                        stack.append(entry.path)
                    else:
                        size += entry.stat(follow_symlinks=False).st_blocks * 512
        except OSError:
            continue
    return size, entries


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a process, everything it started, and everything that these started."""
    import psutil

    try:
        top = psutil.Process(process.pid)
        family = [top, *top.children(recursive=True)]  # the walls first: they take the rest with them
    except psutil.NoSuchProcess:
        family = []
    for one in family:
        try:
            one.kill()
        except psutil.Error:
            continue
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def remove(folder: Path) -> None:
    """Delete a folder in which a run may have taken rights away."""

    def again(function: object, path: str, _: object) -> None:
        os.chmod(Path(path).parent, 0o700)
        if os.path.isdir(path) and not os.path.islink(path):
            os.chmod(path, 0o700)
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.unlink(path)

    if folder.exists():
        shutil.rmtree(folder, onerror=again)
