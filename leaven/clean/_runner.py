"""Apply filters to the shards of finished stages, in segments.

    inputs --segment 0--> parts/1/ --segment 1--> ... --last segment--> data/ and rejected/

Filters run one after another on a row. A filter that must first see all rows starts a new segment: what
passed before it is spilled shard by shard under ``parts/``, so that it surveys exactly the rows it will
judge, every filter sees each row once, and a restart takes up the finished shards of any segment.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from leaven.clean.base import Filter, Place, Rows, Sources
from leaven.document import Document, read_parquet, reject, write_parquet
from leaven.errors import UsageError
from leaven.stage import Stage, read_manifest, shards

Segment = list[Filter]


def run(
    inputs: Sequence[Path],
    sources: Path,
    out: Path,
    filters: Sequence[Filter],
    count_tokens: Callable[[list[str]], list[int]] | None,
    progress: Callable[[int, int], None] | None,
) -> dict[str, Any]:
    """See `leaven.clean.clean`."""
    if not inputs:
        raise UsageError("clean: no folder of written documents was given")
    if len({path.resolve() for path in inputs}) < len(inputs):
        raise UsageError("clean: a folder of written documents is given twice")
    paths = [path for folder in inputs for path in shards(folder)]
    source_paths = shards(sources)
    stage = Stage(out, {"filters": [one.describe() for one in filters]}, _fingerprints(inputs, sources))
    if stage.manifest is not None:
        return stage.manifest
    opened = Sources(source_paths, sources)
    opened.require(paths)
    for one in filters:
        one.open(opened)
    stage.prepare()
    work = _Work(stage, segments(filters), _rows_in(paths), count_tokens, progress)
    for number in range(len(work.segments) - 1):
        paths = work.spill(number, paths)
    work.finish(paths)
    manifest = stage.finish(filters={one.name: found for one in filters if (found := one.report())})
    for number in range(1, len(work.segments)):
        shutil.rmtree(stage.folder / "parts" / str(number))
    return manifest


def segments(filters: Iterable[Filter]) -> list[Segment]:
    """The filters in order, cut before each that surveys all rows."""
    found: list[Segment] = [[]]
    for one in filters:
        if one.surveys_rows and found[-1]:
            found.append([])
        found[-1].append(one)
    return found


def _fingerprints(inputs: Sequence[Path], sources: Path) -> dict[str, str]:
    named = {"sources": sources} | {f"written {i:03d} {path.name}": path for i, path in enumerate(inputs)}
    manifests = {name: read_manifest(path) for name, path in named.items()}
    return {
        name: str(manifest["fingerprint"]) for name, manifest in manifests.items() if manifest is not None
    }


def _rows_in(paths: Iterable[Path]) -> int:
    import pyarrow.parquet as pq

    return sum(pq.read_metadata(path).num_rows for path in paths)


class _Work:
    def __init__(
        self,
        stage: Stage,
        segments: list[Segment],
        rows: int,
        count_tokens: Callable[[list[str]], list[int]] | None,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.stage, self.segments = stage, segments
        self._count_tokens, self._progress = count_tokens, progress
        self._total, self._done, self._rows = rows * len(segments), 0, rows

    def spill(self, number: int, paths: Sequence[Path]) -> list[Path]:
        """Apply one segment; returns the shards of what passed."""
        folder = self.stage.folder / "parts" / str(number + 1)
        targets = [folder / f"{shard:05d}.parquet" for shard in range(len(paths))]
        self._survey(number, paths)
        for shard, (path, target) in enumerate(zip(paths, targets, strict=True)):
            if not target.exists():
                kept, rejected = self._apply(number, shard, path)
                write_parquet(target.with_suffix(".rejected"), rejected, rejected=True)
                write_parquet(target, kept)  # last: its existence means that the shard is complete
        self._advance(self._rows * (number + 1))
        return targets

    def finish(self, paths: Sequence[Path]) -> None:
        """Apply the last segment and write the stage's shards."""
        last = len(self.segments) - 1
        self._survey(last, paths)
        for shard, path in enumerate(paths):
            if self.stage.part(shard) is not None:
                continue
            kept, rejected = self._apply(last, shard, path)
            rejected += itertools.chain.from_iterable(map(read_parquet, self._rejected_before(shard)))
            edited = self._recount(kept)
            counts = {"read": len(kept) + len(rejected), "edited": edited}
            self.stage.write(shard, kept, rejected, **counts)
        self._advance(self._total)

    def _rejected_before(self, shard: int) -> list[Path]:
        parts = self.stage.folder / "parts"
        return [parts / str(n) / f"{shard:05d}.rejected" for n in range(1, len(self.segments))]

    def _survey(self, number: int, paths: Sequence[Path]) -> None:
        """Let the segment's first filter see all rows; after a restart again, for what it reports."""
        if self.segments[number] and self.segments[number][0].surveys_rows:
            self.segments[number][0].survey(_rows_of(paths))

    def _apply(self, number: int, shard: int, path: Path) -> tuple[list[Document], list[Document]]:
        kept: list[Document] = []
        rejected: list[Document] = []
        for row, document in enumerate(read_parquet(path)):
            (kept if _passes(document, self.segments[number], (shard, row)) else rejected).append(document)
            if row % 100 == 99:
                self._advance(self._done + 100)
        return kept, rejected

    def _advance(self, done: int) -> None:
        self._done = min(done, self._total)
        if self._progress is not None:
            self._progress(self._done, self._total)

    def _recount(self, kept: list[Document]) -> int:
        """Count the tokens of edited rows anew; returns how many were edited."""
        names = [one.name for segment in self.segments for one in segment]  # not those of an earlier cleaning
        edited = [d for d in kept if any(d.metadata["checks"][name].get("edited") for name in names)]
        if self._count_tokens is not None:
            for document, tokens in zip(edited, self._count_tokens([d.text for d in edited]), strict=True):
                document.metadata["tokens"] = tokens
        else:
            for document in edited:
                document.metadata.pop("tokens", None)
        return len(edited)


def _rows_of(paths: Sequence[Path]) -> Rows:
    def rows() -> Iterator[tuple[Place, Document]]:
        for shard, path in enumerate(paths):
            for row, document in enumerate(read_parquet(path)):
                yield (shard, row), document

    return rows


def _passes(document: Document, segment: Segment, place: Place) -> bool:
    for one in segment:
        verdict = one.apply(document, place)
        if not verdict.keep:
            reject(document, one.name, verdict.detail)
            return False
    return True
