"""Start `openai_server.py` as a process and talk to its controls."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Server:
    """A running server; `url` is what a plan's model needs."""

    process: subprocess.Popen[str]
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def stats(self) -> dict[str, Any]:
        return self._get("stats")

    def last(self) -> dict[str, Any]:
        """Path, headers and body of the last request."""
        return self._get("last")

    def fault(self, kind: str, times: int = 1, **details: Any) -> None:
        self._post("fault", {"kind": kind, "times": times, **details})

    def reset(self) -> None:
        self._post("reset", {})

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    def _get(self, path: str) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/{path}", timeout=10) as response:
            return dict(json.load(response))

    def _post(self, path: str, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        urllib.request.urlopen(f"http://127.0.0.1:{self.port}/{path}", data=data, timeout=10).close()


def start_server(*arguments: object) -> Server:
    """A new server process on a free port; it ends with this process."""
    command = [sys.executable, str(Path(__file__).with_name("openai_server.py")), *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return Server(process, int(process.stdout.readline().split()[1]))
