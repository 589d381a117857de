"""The response store: every answer ever received, kept before anything looks at it.

SQLite in WAL mode. An answer is committed the moment it arrives and before it is parsed, so no parser,
filter, plan or crash can cost it; the program never deletes one. It belongs to the user's project, not
to a run. Several writers (processes, ranks) each have a file of their own, ``answers-NNN.sqlite``,
held by a lock; all files of the folder are read as one.

An answer is found by the hash of everything that decided it: messages, sampling, schema, sample index
and the backend's identity. `max_tokens` is kept beside the key rather than in it, because it only
matters to answers that ran into it: one that ended by itself is the same under any limit that it fits,
and one that was cut off serves only limits up to its own. Raising the limit therefore asks again only
for the rows that were cut off.

The document at the head of a prompt is stored once however many requests begin with it (120 for one
EntiGraph document), which keeps the store near the size of the answers.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

from leaven.document import from_json, to_json
from leaven.errors import Stopped, UsageError
from leaven.lm.base import Answer, Request, Usage

_SCHEMA = """
CREATE TABLE IF NOT EXISTS texts (hash BLOB PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS answers (
  key TEXT NOT NULL, max_tokens INTEGER NOT NULL, run TEXT NOT NULL, model TEXT NOT NULL,
  method TEXT NOT NULL, step TEXT NOT NULL, document TEXT NOT NULL, finish TEXT NOT NULL,
  prompt INTEGER NOT NULL, cached INTEGER NOT NULL, completion INTEGER NOT NULL, estimated INTEGER NOT NULL,
  seconds REAL NOT NULL, created REAL NOT NULL, identity TEXT NOT NULL, head BLOB, request BLOB NOT NULL,
  answer BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS answers_key ON answers (key);
"""
_SELECT = (
    "SELECT max_tokens, finish, prompt, cached, completion, estimated, answer FROM answers WHERE key = ?"
)
_SHARED_FROM = 2000  # characters; a shorter head is stored with each request, which is cheaper
_MOST_KEYS = 2_000_000  # held in memory (65 bytes each), to know a new request without asking SQLite
_INSERT_ROWS = 100  # in one statement
_BATCH = 512  # most answers in one commit; a commit costs one fsync however many it holds


@dataclass(slots=True)
class _Pending:
    key: str
    request: Request
    answer: Answer
    model: str
    identity: str
    seconds: float
    done: asyncio.Future[None]


@dataclass(frozen=True, slots=True)
class Seen:
    """A stored answer as planning needs it: what kind of request it answered and how long both were.

    Args:
        turns: messages of the request; more than one after a correction or a continuation.
        characters: of the whole prompt.
    """

    method: str
    step: str
    turns: int
    characters: int
    answer: Answer
    seconds: float


class ResponseStore:
    """Answers of one project.

    Args:
        folder: created if missing.
        run: name under which new answers are entered in the ledger.

    Raises:
        UsageError: the folder cannot be written or a file is not a store.
    """

    def __init__(self, folder: Path, run: str = "") -> None:
        self.folder, self.run = folder, run
        self.failure: Stopped | None = None  # set once writing failed: nothing more may be asked
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._path, self._lock = _claim(folder)
            self._writer = _connect(self._path)
            self._writer.executescript(_SCHEMA)
            others = (path for path in sorted(folder.glob("answers-*.sqlite")) if path != self._path)
            self._own = _connect(self._path)
            self._readers = [self._own, *map(_connect, others)]
            keys = self._own.execute("SELECT key FROM answers LIMIT ?", (_MOST_KEYS + 1,))
            found = {hash(key) for (key,) in keys}
            self._own_keys: set[int] | None = found if len(found) <= _MOST_KEYS else None
        except (OSError, sqlite3.Error) as error:
            raise UsageError(f"cannot use the response store {folder}: {error}") from error
        self._queue: queue.SimpleQueue[_Pending | None] = queue.SimpleQueue()
        self._heads: set[bytes] = set()
        self._compressor = zstandard.ZstdCompressor(level=1)
        self._decompress = zstandard.ZstdDecompressor().decompress
        self._thread = threading.Thread(target=self._write_loop, name="leaven-store", daemon=True)
        self._thread.start()

    def find(self, key: str, max_tokens: int) -> Answer | None:
        """The stored answer for this key that is valid under `max_tokens`, else None."""
        best: tuple[Any, ...] | None = None
        for reader, held in self._readers_and_keys():
            if held is not None and hash(key) not in held:
                continue
            for row in reader.execute(_SELECT, (key,)):
                limit, finish = row[:2]
                if finish != "length":
                    best = row
                    break
                if limit >= max_tokens and (best is None or limit < best[0]):
                    best = row  # cut off, but by a limit that is no smaller than today's
        if best is None:
            return None
        _, finish, prompt, cached, completion, estimated, body = best
        text, reasoning = from_json(self._decompress(body))
        return Answer(text, finish, Usage(prompt, cached, completion, bool(estimated)), reasoning)

    def _readers_and_keys(self) -> Iterator[tuple[sqlite3.Connection, set[int] | None]]:
        """The own file with (hashes of) all keys it holds, and other writers' files, which grow unseen."""
        for reader in self._readers:
            yield reader, self._own_keys if reader is self._own else None

    async def add(
        self, key: str, request: Request, answer: Answer, *, model: str, identity: str, seconds: float
    ) -> None:
        """Store one answer; returns when it is on disk.

        Raises:
            Stopped: it could not be written (disk full, folder gone).
        """
        if self.failure:
            raise self.failure
        if self._own_keys is not None:
            self._own_keys.add(hash(key))
            if len(self._own_keys) > _MOST_KEYS:
                self._own_keys = None
        done = asyncio.get_running_loop().create_future()
        self._queue.put(_Pending(key, request, answer, model, identity, seconds, done))
        await done

    def spent(self) -> dict[str, Usage]:
        """Usage of all answers entered under this run's name, by model: the ledger, across resumes."""
        return {entry["model"]: entry["usage"] for entry in self._totals("model")}

    def spent_by_step(self) -> dict[tuple[str, str], tuple[int, Usage]]:
        """(method, step) -> (number of answers, usage) under this run's name."""
        found: dict[tuple[str, str], tuple[int, Usage]] = {}
        for entry in self._totals("method, step"):
            found[(entry["method"], entry["step"])] = (entry["answers"], entry["usage"])
        return found

    def _totals(self, columns: str) -> Iterator[dict[str, Any]]:
        names = columns.split(", ")
        sums: dict[tuple[str, ...], tuple[int, Usage]] = {}
        query = (
            f"SELECT {columns}, count(*), sum(prompt), sum(cached), sum(completion), max(estimated) "
            f"FROM answers WHERE run = ? GROUP BY {columns}"
        )
        for reader in self._readers:
            for row in reader.execute(query, (self.run,)):
                group, (count, prompt, cached, completion, estimated) = row[: len(names)], row[len(names) :]
                seen, usage = sums.get(group, (0, Usage()))
                sums[group] = (seen + count, usage + Usage(prompt, cached, completion, bool(estimated)))
        for group, (count, usage) in sums.items():
            yield dict(zip(names, group, strict=True)) | {"answers": count, "usage": usage}

    def lookup(self, key: str) -> dict[str, Any] | None:
        """Everything known about one answer: the request as sent, the answer, usage, model and time."""
        query = (
            "SELECT run, model, method, step, document, finish, max_tokens, prompt, cached, completion, "
            "seconds, created, head, request, answer FROM answers WHERE key = ? ORDER BY max_tokens DESC"
        )
        for reader in self._readers:
            cursor = reader.execute(query, (key,))
            row = cursor.fetchone()
            if row is None:
                continue
            found = dict(zip([column[0] for column in cursor.description], row, strict=True))
            rendered = from_json(self._decompress(found.pop("request")))
            head = found.pop("head")
            if head is not None:
                body = reader.execute("SELECT body FROM texts WHERE hash = ?", (head,)).fetchone()[0]
                rendered["messages"][0][1] = (
                    self._decompress(body).decode("utf-8", "surrogatepass") + rendered["messages"][0][1]
                )
            text, reasoning = from_json(self._decompress(found.pop("answer")))
            return found | {"request": rendered, "text": text, "reasoning": reasoning}
        return None

    def seen(self, identity: str, most: int = 500) -> Iterator[Seen]:
        """The latest answers of one backend, at most `most` of a step and file, for planning.

        Those of this run if it has any: other plans may have asked for other lengths.
        """
        own = any(
            reader.execute(
                "SELECT 1 FROM answers WHERE identity = ? AND run = ?", (identity, self.run)
            ).fetchone()
            for reader in self._readers
        )
        query = """
            SELECT method, step, finish, prompt, cached, completion, estimated, seconds, request, head, answer
            FROM answers WHERE rowid IN (
              SELECT id FROM (
                SELECT rowid AS id, row_number() OVER (PARTITION BY method, step ORDER BY rowid DESC) AS place
                FROM answers WHERE identity = ? AND (run = ? OR ?))
              WHERE place <= ?)"""
        heads: dict[bytes, int] = {}
        for reader in self._readers:
            for row in reader.execute(query, (identity, self.run, not own, most)):
                method, step, finish, prompt, cached, completion, estimated, seconds, request, head, body = (
                    row
                )
                rendered = from_json(self._decompress(request))
                if head is not None and head not in heads:
                    text = reader.execute("SELECT body FROM texts WHERE hash = ?", (head,)).fetchone()[0]
                    heads[head] = len(self._decompress(text).decode("utf-8", "surrogatepass"))
                characters = sum(len(content) for _, content in rendered["messages"]) + heads.get(head, 0)
                text, reasoning = from_json(self._decompress(body))
                usage = Usage(prompt, cached, completion, bool(estimated))
                answer = Answer(text, finish, usage, reasoning)
                yield Seen(method, step, len(rendered["messages"]), characters, answer, seconds)

    def __len__(self) -> int:
        return sum(reader.execute("SELECT count(*) FROM answers").fetchone()[0] for reader in self._readers)

    def close(self) -> None:
        """Write what is queued and let go of the file."""
        self._queue.put(None)
        self._thread.join()
        for connection in (self._writer, *self._readers):
            connection.close()
        os.close(self._lock)

    # -- the writer thread: one commit for all answers that arrived during the last one -------------

    def _write_loop(self) -> None:
        while True:
            batch = [self._queue.get()]
            with suppress(queue.Empty):
                while len(batch) < _BATCH:
                    batch.append(self._queue.get_nowait())
            pending = [item for item in batch if item is not None]
            if pending:
                self._commit(pending)
            if len(pending) < len(batch):
                return

    def _commit(self, pending: list[_Pending]) -> None:
        failure = self.failure
        if failure is None:
            try:
                with self._writer:  # one transaction
                    self._insert(pending)
            except (sqlite3.Error, OSError) as error:
                failure = Stopped(
                    f"cannot write to the response store {self._path}: {error}; no more was asked"
                )
                self.failure = failure
        loop = pending[0].done.get_loop()
        with suppress(RuntimeError):  # the loop was closed by Ctrl+C: what was committed stays
            loop.call_soon_threadsafe(_resolve, [item.done for item in pending], failure)

    def _insert(self, pending: list[_Pending]) -> None:
        """Compress and insert a batch in few calls: each call into zstd or SQLite lets the event loop's
        thread take the interpreter, and a call per row would make the two threads wait for each other."""
        bodies: Any = []
        heads: dict[bytes, bytes] = {}
        rows: list[list[Any]] = []
        for item in pending:
            row, request, answer = self._row(item, heads)
            rows.append(row)
            bodies += (request, answer)
        bodies += heads.values()
        buffers: Any = self._compressor.multi_compress_to_buffer(bodies)  # typed for mutable buffers only
        packed = [bytes(buffers[i]) for i in range(len(buffers))]
        for number, row in enumerate(rows):
            row += packed[2 * number : 2 * number + 2]
        for digest, body in zip(heads, packed[2 * len(rows) :], strict=True):
            self._writer.execute("INSERT OR IGNORE INTO texts VALUES (?, ?)", (digest, body))
        for start in range(0, len(rows), _INSERT_ROWS):
            some = rows[start : start + _INSERT_ROWS]
            values = ",".join(["(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"] * len(some))
            self._writer.execute(
                f"INSERT INTO answers VALUES {values}", [cell for row in some for cell in row]
            )
        self._heads.update(heads)

    def _row(self, item: _Pending, heads: dict[bytes, bytes]) -> tuple[list[Any], bytes, bytes]:
        """(cells without the two bodies, request body, answer body); a head not stored yet joins `heads`."""
        request, answer, digest = item.request, item.answer, None
        rendered = request.rendered()
        if request.shared >= _SHARED_FROM:
            role, content = request.messages[0]
            shared = content[: request.shared].encode("utf-8", "surrogatepass")
            digest = hashlib.blake2b(shared, digest_size=16).digest()
            rendered["messages"] = ((role, content[request.shared :]), *request.messages[1:])
            if digest not in self._heads:
                heads[digest] = shared
        origin, usage = request.origin, answer.usage
        rendered["variables"] = origin.variables
        cells = [
            *(item.key, request.sampling.max_tokens, self.run, item.model),
            *(origin.method, origin.step, origin.document, answer.finish),
            *(usage.prompt, usage.cached, usage.completion, int(usage.estimated)),
            *(item.seconds, time.time(), item.identity, digest),
        ]
        return cells, to_json(rendered), to_json([answer.text, answer.reasoning])


def _resolve(waiting: list[asyncio.Future[None]], failure: Stopped | None) -> None:
    for future in waiting:
        if not future.done():  # cancelled while it waited
            if failure is None:
                future.set_result(None)
            else:
                future.set_exception(failure)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, check_same_thread=False, timeout=60)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA mmap_size=1073741824")  # look-ups read memory, not files
    connection.execute("PRAGMA synchronous=FULL")  # a commit survives a power cut, not only a crash
    return connection


def _claim(folder: Path) -> tuple[Path, int]:
    """Lock and name the first file of the folder that no other process is writing."""
    for number in range(100_000):
        path = folder / f"answers-{number:03d}.sqlite"
        descriptor = os.open(path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            continue
        return path, descriptor
    raise OSError("no free store file")
