"""What runs in the sandbox cannot get at anything, cannot take more than it may, and leaves nothing behind.

Every test runs in each kind of walls that this machine has; at least one kind must work wherever tests run on Linux.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from leaven.errors import UsageError
from leaven.search.environment import Limits, Resources
from leaven.search.sandbox import Finished, Sandbox, occupied, remove

KINDS = ("unshare", "bwrap")
SMALL = Limits(seconds=20, memory_gb=0.5, disk_gb=0.02, processes=40)


@pytest.fixture(params=KINDS)
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    one = Sandbox(request.param)
    if not one.works():
        pytest.skip(f"{request.param} does not work on this machine")
    return one


def run(sandbox: Sandbox, folder: Path, code: str, seconds: float = SMALL.seconds) -> tuple[Finished, str]:
    copy = folder / "copy"
    copy.mkdir(exist_ok=True)
    (copy / "attack.py").write_text(textwrap.dedent(code))
    with (folder / "log").open("wb") as log:
        limits = SMALL.model_copy(update={"seconds": seconds})
        ended = sandbox.run("python attack.py", copy, limits, Resources(), {"SEED": "7"}, log)
    return ended, (folder / "log").read_text(errors="replace")


def test_there_are_walls_where_tests_run() -> None:
    assert sys.platform != "linux" or Sandbox.find().walls in KINDS


def test_a_program_runs_with_its_python_and_its_own_files(sandbox: Sandbox, tmp_path: Path) -> None:
    ended, printed = run(
        sandbox, tmp_path,
        """
        import os, numpy, tempfile
        open("made.txt", "w").write("x" * 100)
        tempfile.TemporaryFile(dir="/tmp").write(b"y")
        print(numpy.arange(3).sum(), os.environ["SEED"])
        """,
    )  # fmt: skip
    assert (ended.code, ended.reason, printed) == (0, "", "3 7\n")
    assert (tmp_path / "copy" / "made.txt").stat().st_size == 100


def test_how_it_ends_is_told(sandbox: Sandbox, tmp_path: Path) -> None:
    assert run(sandbox, tmp_path, "raise SystemExit(5)")[0].code == 5
    assert run(sandbox, tmp_path, "import os; os.kill(os.getpid(), 11)")[0].code == 128 + 11
    ended, printed = run(sandbox, tmp_path, "1 / 0")
    assert ended.code == 1 and "ZeroDivisionError" in printed
    with (tmp_path / "log").open("wb") as log:
        gone = sandbox.run("no-such-program", tmp_path / "copy", SMALL, Resources(), {}, log)
    assert gone.code == 127 and "not found" in (tmp_path / "log").read_text()


def test_a_key_in_the_environment_is_not_there(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-verysecret")
    _, printed = run(
        sandbox, tmp_path,
        """
        import glob, os
        print(dict(os.environ))
        for place in glob.glob("/proc/[0-9]*/environ") + glob.glob("/proc/[0-9]*/cmdline"):
            try:
                print(open(place).read())
            except OSError as error:
                print(error)
        """,
    )  # fmt: skip
    assert "SEED" in printed and "verysecret" not in printed


def test_files_of_the_user_are_not_there(sandbox: Sandbox, tmp_path: Path) -> None:
    secret = tmp_path / "eval" / "answers.txt"
    secret.parent.mkdir()
    secret.write_text("42")
    _, printed = run(
        sandbox, tmp_path,
        f"""
        import os
        for place in ({str(secret)!r}, "/root/.ssh", "/home", "/etc/shadow", "/var/log",
                      {str(Path.home() / ".bashrc")!r}, {str(Path.home() / ".cache")!r},
                      "/proc/1/root{secret}", {str(Path(__file__))!r}):
            print(place, os.path.exists(place))
        print(os.listdir({str(tmp_path)!r}))
        """,
    )  # fmt: skip
    assert "True" not in printed and printed.endswith("['copy']\n"), printed


def test_nothing_but_the_copy_can_be_written(sandbox: Sandbox, tmp_path: Path) -> None:
    _, printed = run(
        sandbox, tmp_path,
        f"""
        import os, subprocess, sys
        import leaven
        for place in ("/usr/attack", "/etc/attack", "/attack", sys.prefix + "/attack",
                      os.path.dirname(leaven.__file__) + "/attack"):
            try:
                open(place, "w").write("x")
                print("WROTE", place)
            except OSError as error:
                print(error)
        for line in ("mount -o remount,rw,bind /usr", "mount -o remount,rw /", "umount -l /usr",
                     "unshare --user --map-root-user --mount mount -o remount,rw,bind /usr",
                     "/usr/sbin/chroot /proc/1/root true"):
            print("DID" if subprocess.run(line.split(), capture_output=True).returncode == 0 else "refused", line)
        try:  # a place of that name is there, in memory, and goes with the run
            open({str(tmp_path)!r} + "/../attack", "w").write("x")
        except OSError:
            pass
        """,
    )  # fmt: skip
    assert not (tmp_path.parent / "attack").exists()
    assert "WROTE" not in printed and "DID" not in printed and printed.count("refused") == 5, printed
    assert not Path("/usr/attack").exists() and not (Path(sys.prefix) / "attack").exists()


@pytest.fixture
def listener() -> Iterator[tuple[int, list[str]]]:
    """A server of the user's, on this machine, and who came."""
    came: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    server.accept()[0].close()
                except OSError:
                    return
                came.append("somebody")

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1], came


def test_there_is_no_network(sandbox: Sandbox, tmp_path: Path, listener: tuple[int, list[str]]) -> None:
    port, came = listener
    socket.create_connection(("127.0.0.1", port)).close()
    time.sleep(0.1)
    assert came.pop(), "it can be reached from here"
    _, printed = run(
        sandbox, tmp_path,
        f"""
        import socket
        for address in (("127.0.0.1", {port}), ("1.1.1.1", 53), ("8.8.8.8", 443)):
            try:
                socket.create_connection(address, timeout=2)
                print("REACHED", address)
            except OSError as error:
                print(error)
        print([name for _, name in socket.if_nameindex()])
        """,
    )  # fmt: skip
    assert "REACHED" not in printed and not came
    assert "['lo']" in printed


def test_a_run_that_outlives_its_limit_is_killed_with_its_children(sandbox: Sandbox, tmp_path: Path) -> None:
    marker = f"sleep {600 + os.getpid() % 100}.{time.time_ns() % 10**6}"
    started = time.monotonic()
    ended, _ = run(
        sandbox, tmp_path,
        f"""
        import subprocess, signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        subprocess.Popen({marker.split()!r}, start_new_session=True)
        subprocess.Popen(["sh", "-c", "trap '' TERM HUP INT; ({marker}) & {marker}"], start_new_session=True)
        time.sleep(600)
        """,
        seconds=1.5,
    )  # fmt: skip
    assert ended.reason == "the time limit" and time.monotonic() - started < 8
    assert not left(marker)


def test_what_it_leaves_running_is_killed(sandbox: Sandbox, tmp_path: Path) -> None:
    marker = f"sleep {700 + os.getpid() % 100}.{time.time_ns() % 10**6}"
    ended, _ = run(
        sandbox, tmp_path,
        f"import subprocess; subprocess.Popen({marker.split()!r}, start_new_session=True)",
    )  # fmt: skip
    assert ended.code == 0 and not ended.reason
    assert not left(marker)


def left(marker: str) -> list[int]:
    time.sleep(0.3)
    return [
        one.pid for one in psutil.process_iter(["cmdline"]) if " ".join(one.info["cmdline"] or ()) == marker
    ]


def test_when_the_search_is_killed_so_is_what_it_runs(sandbox: Sandbox, tmp_path: Path) -> None:
    marker = f"sleep {800 + os.getpid() % 100}.{time.time_ns() % 10**6}"
    script = f"""
from pathlib import Path
from leaven.search.sandbox import Sandbox
from leaven.search.environment import Limits, Resources
with open({str(tmp_path / "log")!r}, "wb") as log:
    Sandbox({sandbox.walls!r}).run({marker!r}, Path({str(tmp_path)!r}), Limits(), Resources(), {{}}, log)
"""
    parent = subprocess.Popen([sys.executable, "-c", script])
    deadline = time.monotonic() + 20
    while not left(marker) and time.monotonic() < deadline:
        assert parent.poll() is None
    assert left(marker)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert not left(marker)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("block = []\nwhile True: block.append(bytearray(1 << 24)); import time; time.sleep(.02)", "memory"),
        (
            "import subprocess, sys\nwhile True:\n"
            "  subprocess.Popen([sys.executable, '-c', 'b = bytearray(120_000_000); import time; time.sleep(60)'])\n"
            "  import time; time.sleep(.2)",
            "memory",
        ),
        ("import os\nos.execvp('sh', ['sh', '-c', 'while :; do sleep 60 & done'])", "processes"),
        ("import time\nfor i in range(10**6):\n  open(f'f{i}', 'wb').write(bytes(10**6)); time.sleep(.02)", "disk"),
        ("open('large', 'wb').write(bytes(10**8))", ""),
        ("while True: print('x' * 1000)", "printed text"),
        ("import tempfile\nopen(tempfile.mkstemp()[1], 'wb').write(bytes(10**8))", ""),
    ],
    ids=["memory", "memory of children", "fork bomb", "many files", "one large file", "print", "temporary file"],
)  # fmt: skip
def test_a_run_that_takes_too_much_fails(sandbox: Sandbox, tmp_path: Path, code: str, reason: str) -> None:
    started = time.monotonic()
    ended, printed = run(sandbox, tmp_path, code)
    assert ended.code != 0 and time.monotonic() - started < 19
    # One process meets its own limit as an error of its own; sums are seen from outside.
    met = reason in ended.reason if ended.reason else any(
        word in printed for word in ("MemoryError", "File too large", "No space left", "unavailable")
    ) or ended.code == 128 + signal.SIGXFSZ  # fmt: skip
    assert met, (ended, printed[-500:])
    assert occupied(tmp_path)[0] < 3 * SMALL.disk_gb * 1e9
    assert psutil.virtual_memory().available > 1e9


def test_a_folder_without_rights_is_removed(tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "file").write_text("x")
    deep.chmod(0)
    deep.parent.chmod(0o500)
    remove(tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_without_walls_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UsageError, match=r"there is no sandbox here: .* at your own risk: --unsafe-local"):
        Sandbox.find()
    monkeypatch.undo()
    monkeypatch.setenv("OPENAI_API_KEY", "sk-verysecret")
    ended, printed = run(Sandbox.find(unsafe=True), tmp_path, "import os; print(dict(os.environ))")
    assert ended.code == 0 and "verysecret" not in printed, "even then"
