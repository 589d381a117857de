"""Runs inside the sandbox, before the untrusted command: what namespaces and limits alone do not do.

    unshare ... python -I -S _jail.py '{"new_root": ..., "show": [...], ...}' COMMAND...

Standard library only, because it starts with every attempt. It builds a root directory that holds nothing but what is
shown, makes it read-only but for the copy, gives up every privilege, and starts the command as a child, so that the
first process of the process namespace is ours: when it ends, the kernel kills all that is left.

`new_root` is None where bubblewrap has built the root already, or where the user wants no walls at all.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import resource
import socket
import struct
import sys
from pathlib import Path
from typing import Any

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_MOVE, MS_REC, MS_PRIVATE = (
    1, 2, 4, 32, 4096, 8192, 16384, 1 << 18,
)  # fmt: skip
MS_LOCKED = (
    MS_NOSUID | MS_NODEV | 8 | 1024 | 2048 | (1 << 21)
)  # what a user namespace may not take off a mount again
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 24, 38
DEVICES = ("null", "zero", "full", "random", "urandom")
_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2), with its error."""
    arguments = [one.encode() or None for one in (source, target, kind)]
    if _libc.mount(*arguments, ctypes.c_ulong(flags), data.encode() or None):
        number = ctypes.get_errno()
        raise OSError(number, f"mount {source or kind} at {target}: {os.strerror(number)}")


def bind(source: str, root: str, *, writable: bool = False) -> None:
    """Show a file or folder at its own place below `root`."""
    target = root + source
    if Path(source).is_dir():
        Path(target).mkdir(parents=True, exist_ok=True)
    else:
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        Path(target).touch()
    mount(source, target, flags=MS_BIND | MS_REC)
    locked = os.statvfs(target).f_flag & MS_LOCKED
    flags = MS_BIND | MS_REMOUNT | MS_NOSUID | locked
    mount("", target, flags=flags | (0 if writable else MS_RDONLY))


def build(root: str, spec: dict[str, Any]) -> None:
    """Make `root` the root directory: the system and what is shown read-only, `write` writable, a /tmp of its own."""
    mount("", "/", flags=MS_REC | MS_PRIVATE)
    mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "size=16m,mode=755")
    for name in ("proc", "tmp", "dev/shm"):
        (Path(root) / name).mkdir(parents=True, exist_ok=True)
    mount("proc", f"{root}/proc", "proc", MS_NOSUID | MS_NODEV)
    room = f"size={spec['disk']},mode=1777"
    mount("tmpfs", f"{root}/tmp", "tmpfs", MS_NOSUID | MS_NODEV, room)
    mount("tmpfs", f"{root}/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, room)
    for place in spec["show"]:
        if Path(place).is_symlink():  # /lib -> usr/lib
            Path(root + place).parent.mkdir(parents=True, exist_ok=True)
            Path(root + place).symlink_to(os.readlink(place))
        elif Path(place).exists():
            bind(place, root)
    for device in (*(f"/dev/{name}" for name in DEVICES), *map(str, Path("/dev").glob("nvidia*"))):
        if Path(device).exists():
            bind(device, root, writable=True)
    for place in spec["write"]:
        bind(place, root, writable=True)
    mount("", root, flags=MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)
    os.chdir(root)
    mount(root, "/", flags=MS_MOVE)
    os.chroot(".")


def loopback() -> None:
    """Bring 127.0.0.1 up in the empty network namespace: libraries talk to themselves over it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        request = struct.pack("16sh", b"lo", 0x1 | 0x40)  # IFF_UP, IFF_RUNNING
        fcntl.ioctl(one, 0x8914, request)  # SIOCSIFFLAGS


def limit(spec: dict[str, Any]) -> None:
    """What one process may take; the sums over all processes are watched from outside."""
    for what, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, spec["disk"]),
        (resource.RLIMIT_NPROC, spec["processes"]),
        (resource.RLIMIT_DATA, spec["memory"]),
    ):
        hard = resource.getrlimit(what)[1]
        if most is not None:
            most = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(what, (most, most))


def give_up_privileges() -> None:
    """No capability can be had again, not by any program that is started."""
    if _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "cannot give up privileges")
    for number in range(64):
        _libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0)  # fails beyond the last capability, and without any


def main() -> int:
    spec, command = json.loads(sys.argv[1]), sys.argv[2:]
    if spec["new_root"]:
        loopback()
        Path("/proc/sys/user/max_user_namespaces").write_text(
            "0"
        )  # of this namespace: no walls within the walls
        build(spec["new_root"], spec)
    os.chdir(spec["cwd"])
    child = os.fork()
    if not child:
        limit(spec)
        give_up_privileges()
        try:
            os.execvpe(command[0], command, spec["variables"])
        except OSError as error:
            print(f"{command[0]}: {error.strerror}", file=sys.stderr)
            os._exit(127)
    for number in (0, 1):  # the child's: who reads or writes the other end must see it end
        os.dup2(os.open("/dev/null", os.O_RDWR), number)
    while True:  # as the first process, reap whatever is left behind
        ended, status = os.wait()
        if ended == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
