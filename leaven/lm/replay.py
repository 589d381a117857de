"""Recorded answers instead of a model: for demos, tests and classes, without key or network.

A recording is a JSONL file of rows with `doc_id`, `method`, `step`, `variables`, `response` and
optionally `sample`. A row answers a request of the same method, step and document if every variable it
names has the same value in the request, so that a recording need not repeat derived variables.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from leaven.config import PlanPath
from leaven.errors import UsageError
from leaven.lm.base import Answer, Refused, Request, Usage


class Config(BaseModel):
    """Recorded answers.

    Args:
        path: the recording (JSONL); relative to the plan.
        name: shown as the model of every row, so that recorded text is always labelled as such.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    backend: Literal["replay"] = "replay"
    path: PlanPath
    name: str = "recorded"

    def open(self) -> Replay:
        return Replay(self)


class Replay:
    """See `Config`."""

    concurrency = 64
    paid = False

    def __init__(self, config: Config) -> None:
        self.model = config.name
        self._path = config.path
        try:
            content = config.path.read_bytes()
        except OSError as error:
            raise UsageError(f"recording {config.path}: {error.strerror}") from error
        self.identity = f"replay {hashlib.blake2b(content, digest_size=16).hexdigest()}"
        self._rows: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
        for number, line in enumerate(content.split(b"\n"), 1):
            if line.strip():
                row = _row(line, f"{config.path}:{number}")
                self._rows.setdefault((row["doc_id"], row["method"], row["step"]), []).append(row)

    async def generate(self, request: Request) -> Answer:
        """The recorded answer; Refused if there is none."""
        if request.score:
            raise Refused(f"{self._path}: a recording holds no log-probabilities")
        origin = request.origin
        rows = self._rows.get((origin.document, origin.method, origin.step), [])
        for row in rows:
            same = all(origin.variables.get(name) == value for name, value in row["variables"].items())
            if same and row.get("sample", 0) == request.sample:
                prompt = sum(len(content) for _, content in request.messages) // 4
                text = row["response"]
                return Answer(text, "stop", Usage(prompt, 0, len(text) // 4, estimated=True))
        shown = json.dumps(origin.variables, ensure_ascii=False)[:200]
        raise Refused(
            f"{self._path}: nothing recorded for document {origin.document!r}, "
            f"{origin.method}/{origin.step}, variables {shown}, sample {request.sample}"
        )

    def variables(self, document: str, method: str, step: str) -> list[dict[str, Any]]:
        """Variables of all rows recorded for one step on one document, in file order."""
        return [row["variables"] for row in self._rows.get((document, method, step), [])]

    async def close(self) -> None:
        """Nothing is open."""


def _row(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:  # not JSON, or not UTF-8
        raise UsageError(f"recording {where}: broken JSON: {error}") from error
    if not isinstance(row, dict) or not isinstance(row.get("variables", {}), dict):
        raise UsageError(f"recording {where}: not a JSON object with an object of variables")
    missing = {"doc_id", "method", "step", "variables", "response"} - set(row)
    if missing:
        raise UsageError(f"recording {where}: missing {', '.join(sorted(missing))}")
    return row
