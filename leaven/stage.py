"""A stage's folder: shards of kept rows, shards of rejected rows, and a manifest written last.

    STAGE/data/00000.parquet       what was kept, one file per shard
    STAGE/rejected/00000.parquet   what was not, with the reason
    STAGE/parts/00000.json         counts of a finished shard, so that a restart skips it
    STAGE/manifest.json            config, inputs' hashes, counts, seconds, versions; existence means complete

The fingerprint of a stage is a hash of its config and its inputs' fingerprints. Same fingerprint =
done, skipped. A different one = the folder is cleared and redone. Every count is read back from what
was written, and a manifest whose counts do not add up is never written.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from leaven import __version__
from leaven.document import Document, read_parquet, write_parquet
from leaven.errors import Stopped, UsageError

FORMAT = 1  # raise when the meaning of stored rows changes, so that old folders are redone


def fingerprint(value: Any) -> str:
    """Hash of any JSON-able value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
    os.replace(partial, path)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run folder for this process alone."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "run.lock").open("w")
    except OSError as error:
        raise UsageError(f"cannot write to run folder {folder}: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                f"{folder} is in use by another run; wait for it or give this plan another name"
            ) from error
        yield


class Stage:
    """One stage's folder.

    Args:
        folder: where it lives.
        config: everything that decides the output; JSON-able.
        inputs: fingerprints of the folders it reads, by name.
    """

    def __init__(self, folder: Path, config: dict[str, Any], inputs: dict[str, str]) -> None:
        self.folder = folder
        self.config = config
        self.inputs = inputs
        self.fingerprint = fingerprint({"format": FORMAT, "config": config, "inputs": inputs})
        self.started = time.time()

    @property
    def manifest(self) -> dict[str, Any] | None:
        """The manifest if this very stage (same config, same inputs) is complete, else None."""
        manifest = read_manifest(self.folder)
        return manifest if manifest and manifest["fingerprint"] == self.fingerprint else None

    def prepare(self, rows: bool = True) -> None:
        """Make the folder ready to write: clear it unless it holds parts of this very stage.

        Args:
            rows: the stage keeps and rejects rows; make the folders for them.
        """
        try:
            marker = self.folder / "parts" / "fingerprint"
            if not marker.exists() or marker.read_text() != self.fingerprint:
                if (
                    self.folder.exists()
                    and any(self.folder.iterdir())
                    and not (self.folder / "parts").is_dir()
                ):
                    raise UsageError(
                        f"{self.folder} holds files that are not a stage of Leaven; choose another folder"
                    )
                shutil.rmtree(self.folder, ignore_errors=True)
                for name in ("parts", "data", "rejected") if rows else ("parts",):
                    (self.folder / name).mkdir(parents=True, exist_ok=True)
                marker.write_text(self.fingerprint)
            (self.folder / "manifest.json").unlink(missing_ok=True)
        except OSError as error:
            raise UsageError(f"cannot write to {self.folder}: {error.strerror or error}") from error

    def part(self, shard: int) -> dict[str, Any] | None:
        """Counts of a shard that is already written, else None."""
        path = self.folder / "parts" / f"{shard:05d}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def write(
        self, shard: int, kept: Iterable[Document], rejected: Iterable[Document], **counts: Any
    ) -> dict[str, Any]:
        """Write one shard, its rejects, and then its part file.

        Args:
            counts: further counts of this shard; numbers are summed into the manifest.
        """
        reasons: Counter[str] = Counter()
        tokens = 0

        def count_tokens(rows: Iterable[Document]) -> Iterator[Document]:
            nonlocal tokens
            for row in rows:
                tokens += int(row.metadata.get("tokens") or 0)
                yield row

        def count_reasons(rows: Iterable[Document]) -> Iterator[Document]:
            for row in rows:
                reasons[row.metadata["reason"]] += 1
                yield row

        try:
            n_kept = write_parquet(self.folder / "data" / f"{shard:05d}.parquet", count_tokens(kept))
            n_rejected = write_parquet(
                self.folder / "rejected" / f"{shard:05d}.parquet", count_reasons(rejected), rejected=True
            )
            part = {
                "kept": n_kept,
                "rejected": n_rejected,
                "tokens": tokens,
                "reasons": dict(reasons),
                **counts,
            }
            write_json(self.folder / "parts" / f"{shard:05d}.json", part)
        except OSError as error:
            raise Stopped(
                f"cannot write to {self.folder}: {error.strerror or error}; nothing more was asked"
            ) from error
        return part

    def finish(self, **extra: Any) -> dict[str, Any]:
        """Add up the parts and write the manifest, last of all.

        Raises:
            AssertionError: rows read differ from rows kept plus rejected (a bug in Leaven).
        """
        from importlib.metadata import version

        counts: Counter[str] = Counter()
        reasons: Counter[str] = Counter()
        for path in sorted((self.folder / "parts").glob("*.json")):
            part = json.loads(path.read_text())
            reasons.update(part.pop("reasons"))
            counts.update(part)
        if "read" in counts:
            assert counts["read"] == counts["kept"] + counts["rejected"], (
                f"{self.folder}: counts do not add up: {counts}"
            )
        manifest = {
            "stage": self.folder.name,
            "fingerprint": self.fingerprint,
            "config": self.config,
            "inputs": self.inputs,
            "counts": dict(counts),
            "reasons": dict(reasons.most_common()),
            **extra,
            "seconds": round(time.time() - self.started, 3),
            "versions": {
                "leaven": __version__,
                "datatrove": version("datatrove"),
                "python": platform.python_version(),
            },
        }
        write_json(self.folder / "manifest.json", manifest)
        return manifest


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a finished stage's folder, or None."""
    path = folder / "manifest.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def shards(folder: Path, kind: str = "data") -> list[Path]:
    """Parquet shards of a stage's folder in order; `kind` is ``"data"`` or ``"rejected"``.

    Raises:
        UsageError: `folder` is not a finished stage.
    """
    if read_manifest(folder) is None:
        raise UsageError(f"{folder} is not a finished Leaven folder (no manifest.json)")
    return sorted((folder / kind).glob("*.parquet"))


def read_stage(folder: Path, kind: str = "data") -> Iterator[Document]:
    """All documents of a finished stage's folder, shard by shard."""
    for path in shards(folder, kind):
        yield from read_parquet(path)
