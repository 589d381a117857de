"""Every attempt of a search in one SQLite file: the idea, its patch, what came of it, and what was printed.

An attempt is entered when there is an idea, before anything is paid for it; its patch, its outcome or its failure
are committed the moment they are known. A search that was killed therefore finds its ideas again and goes on with those
that have no outcome. A failure stays in as a failure, with its reason, and ideators are shown it.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from leaven.errors import UsageError
from leaven.search.attempt import Outcome

Kind = Literal["baseline", "fresh", "explore", "exploit", "random", "confirm", "rl"]
Status = Literal["idea", "patched", "done", "failed"]

# Facts that are hashes, and what it means that one differs.
HASHES = {
    "fingerprint": "its files were changed",
    "parameters": "what may be mutated was changed",
    "reinforce": "its checkpoint or options were others",
}

_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS attempts (
  number INTEGER PRIMARY KEY, epoch INTEGER NOT NULL, kind TEXT NOT NULL, idea TEXT NOT NULL, parents TEXT NOT NULL,
  settings TEXT NOT NULL, seed INTEGER NOT NULL, status TEXT NOT NULL, patch TEXT NOT NULL, patch_log TEXT NOT NULL,
  score REAL, reason TEXT NOT NULL, facts TEXT NOT NULL, run_seconds REAL NOT NULL, eval_seconds REAL NOT NULL,
  seconds REAL NOT NULL, log TEXT NOT NULL, created REAL NOT NULL, ended REAL);
"""


@dataclass(frozen=True)
class Idea:
    """What somebody wants to try.

    Args:
        kind: why it was had: without knowing anything (fresh, random), to find something else (explore), or to go on
            from what was good (exploit).
        parents: numbers of the attempts it goes on from.
        settings: parameters by name, where the idea is nothing but these.
        patch: where the idea comes with one.
    """

    text: str
    kind: Kind
    parents: tuple[int, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    patch: str = ""


@dataclass(frozen=True)
class Attempt:
    """One row. `score` is None as long as there is none, and for ever if it failed, for the `reason` given."""

    number: int
    epoch: int
    kind: Kind
    idea: str
    parents: tuple[int, ...]
    settings: dict[str, Any]
    seed: int
    status: Status
    patch: str
    patch_log: str
    score: float | None
    reason: str
    facts: dict[str, Any]
    run_seconds: float
    eval_seconds: float
    seconds: float
    log: str
    created: float
    ended: float | None

    @property
    def tried(self) -> bool:
        """Whether it belongs to the search itself, and is neither a baseline nor a confirmation."""
        return self.epoch >= 0


_JSON = ("parents", "settings", "facts")
_COLUMNS = ", ".join(one.name for one in fields(Attempt))


class Archive:
    """The attempts of one search. Used from one process; its methods may be called from any thread.

    Args:
        path: SQLite file, made if it is not there.

    Raises:
        UsageError: it is something else, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._file.execute("PRAGMA journal_mode=WAL")
            self._file.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise UsageError(f"{path} cannot be used as an archive of attempts: {error}") from error

    def close(self) -> None:
        self._file.close()

    def fact(self, name: str) -> Any:
        """Something about the search itself; None if it was never said."""
        with self._lock:
            found = self._file.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if found is None else json.loads(found[0])

    def note(self, name: str, value: Any) -> None:
        """Keep a fact about the search."""
        with self._lock:
            self._file.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, json.dumps(value)))

    def check(self, own: Mapping[str, Any]) -> None:
        """Whether this archive can be that of a search with these facts: its own, or one without any yet.

        Raises:
            UsageError: it is another's.
        """
        for name, value in own.items():
            before = self.fact(name)
            if before is not None and before != value:
                plain = isinstance(value, str | int) and name not in HASHES
                said = f"{before} there, {value} now" if plain else HASHES.get(name, "it is another one")
                raise UsageError(
                    f"{self.path} holds another search ({name}: {said}); choose another --out, or undo the change"
                )

    def claim(self, own: Mapping[str, Any]) -> None:
        """Make the archive that of the search with these facts.

        Raises:
            UsageError: it is another's.
        """
        self.check(own)
        for name, value in own.items():
            self.note(name, value)

    def add(self, ideas: Sequence[Idea], epoch: int, seeds: Sequence[int] | None = None) -> list[int]:
        """Enter ideas, all or none; returns their numbers."""
        now, numbers = time.time(), []
        with self._lock, self._file:  # one transaction
            self._file.execute("BEGIN")
            for idea, seed in zip(ideas, seeds or [0] * len(ideas), strict=True):
                done = self._file.execute(
                    "INSERT INTO attempts VALUES "
                    "(NULL, ?, ?, ?, ?, ?, ?, ?, ?, '', NULL, '', '{}', 0, 0, 0, '', ?, NULL)",
                    (
                        epoch, idea.kind, idea.text, json.dumps(idea.parents), json.dumps(dict(idea.settings)), seed,
                        "patched" if idea.patch or idea.kind == "baseline" else "idea", idea.patch, now,
                    ),
                )  # fmt: skip
                numbers.append(int(done.lastrowid or 0))
        return numbers

    def patched(self, number: int, patch: str | None, log: str) -> None:
        """An idea has its patch, or None could be had and it has failed."""
        reason = "" if patch else "no patch: " + (log.strip().splitlines() or ["nothing was answered"])[-1]
        status = "patched" if patch else "failed"
        self._update(number, status=status, patch=patch or "", patch_log=log, reason=reason)

    def ended(self, number: int, outcome: Outcome) -> None:
        """An attempt has its outcome."""
        status = "failed" if outcome.score is None else "done"
        self._update(
            number, status=status, score=outcome.score, reason=outcome.reason, facts=json.dumps(outcome.facts),
            run_seconds=outcome.run_seconds, eval_seconds=outcome.eval_seconds, seconds=outcome.seconds,
            log=outcome.log, ended=time.time(),
        )  # fmt: skip

    def failed(self, number: int, reason: str) -> None:
        """An attempt has failed before it was run."""
        self._update(number, status="failed", reason=reason, ended=time.time())

    def _update(self, number: int, **columns: Any) -> None:
        names = ", ".join(f"{name} = ?" for name in columns)
        with self._lock:
            self._file.execute(f"UPDATE attempts SET {names} WHERE number = ?", (*columns.values(), number))

    def attempts(self, *kinds: Kind, epoch: int | None = None) -> list[Attempt]:
        """Attempts in the order of their entry, of certain kinds and of one epoch if given."""
        where, values = ["1"], []
        if kinds:
            where.append(f"kind IN ({', '.join('?' * len(kinds))})")
            values += list(kinds)
        if epoch is not None:
            where.append("epoch = ?")
            values.append(epoch)  # type: ignore[arg-type]
        with self._lock:
            rows = self._file.execute(
                f"SELECT {_COLUMNS} FROM attempts WHERE {' AND '.join(where)} ORDER BY number", values
            ).fetchall()
        names = [one.name for one in fields(Attempt)]
        found = []
        for row in rows:
            values_by_name = dict(zip(names, row, strict=True))
            values_by_name |= {name: json.loads(values_by_name[name]) for name in _JSON}
            found.append(Attempt(**{**values_by_name, "parents": tuple(values_by_name["parents"])}))
        return found
