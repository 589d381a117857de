"""Draw samples, measure them, write the stage's folder.

MEASURE/figures.json         every figure with interval, seed, sample size, histograms
MEASURE/figures.md           the same as a table
MEASURE/map.parquet          texts on a plane
MEASURE/similarity.parquet   each text beside its own and its nearest source
MEASURE/verdicts.parquet     what judges said of which text
MEASURE/manifest.json
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leaven.corpus.locate import SOURCE, Corpus
from leaven.document import field_of
from leaven.errors import UsageError
from leaven.measure import Measure
from leaven.measure.base import Context, Drawer, Sample
from leaven.measure.report import Bounds, Report, demands, differences, markdown
from leaven.stage import Stage, write_json

MOST_GROUPS = 8


async def run(
    corpus: Corpus,
    out: Path,
    measures: Sequence[Measure],
    *,
    sources: Corpus | None,
    against: Corpus | None,
    by: str | None,
    sample: int,
    bounds: Mapping[str, Bounds],
    context: Context,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Measure and write; returns the manifest. Skipped when the same was measured before.

    Args:
        by: a lineage field (``method``, ``step``, ``model``, ``variables.NAME``) to show groups by; None for
            none.
        about: further parts of the config that decide the outcome (the judging model's identity).
    """
    config = {
        "measures": {one.name: one.config.model_dump(mode="json") for one in measures},
        "by": by, "sample": sample, "seed": context.seed,
        "require": {name: one.model_dump() for name, one in bounds.items()}, "code": _code(), **about,
    }  # fmt: skip
    named = {"corpus": corpus, "sources": sources, "against": against}
    inputs = {name: one.fingerprint() for name, one in named.items() if one is not None}
    stage = Stage(out, config, inputs)
    if stage.manifest is not None:
        return stage.manifest
    stage.prepare(rows=False)
    columns = draw(corpus, sources, against, by, sample, context)
    figures = [
        figure for one in measures for figure in await one.module.measure(columns, one.config, context)
    ]
    report = Report(
        context.seed,
        {name: (len(one), one.population, one.part_of) for name, one in columns.items()},
        figures,
        demands=demands(figures, corpus.name, bounds),
        notes=[*_places(corpus, against), *_notes(columns, corpus.name)],
    )
    if against is not None:
        report.differences = differences(columns, figures, corpus.name, against.name, context.seed)
    write_json(out / "figures.json", report.to_json())
    (out / "figures.md").write_text(markdown(report), encoding="utf-8")
    for name, rows in context.tables.items():
        _write_table(out / f"{name}.parquet", rows)
    counts = {"read": columns[corpus.name].population, "measured": len(columns[corpus.name])}
    failed = [one.figure for one in report.demands if not one.met]
    return stage.finish(counts=counts, reasons={}, failed=failed)


def _code() -> str:
    """Hash of the measures' source: a mended measure is taken anew."""
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def draw(
    corpus: Corpus,
    sources: Corpus | None,
    against: Corpus | None,
    by: str | None,
    most: int,
    context: Context,
) -> dict[str, Sample]:
    """The columns: the corpus, its groups, the corpus it is held against, and the sources.

    Raises:
        UsageError: a corpus is empty, or no row has a source in `sources`.
    """
    whole = _drawn(corpus, most, context)
    columns = {whole.name: whole}
    known = None if sources is None else _sources(sources, whole)
    if known is not None:
        whole.sources = {document.id: document for document in known.documents}
        if not whole.sources:
            raise UsageError(
                f"no row of {corpus.name} names a source that is among the source documents; give the corpus "
                "they were written from (rows name theirs in 'sources', a list of ids)"
            )
    if by is not None:
        columns |= _groups(whole, by)
    if against is not None:
        other = _drawn(against, most, context)
        if sources is not None:
            other.sources = {document.id: document for document in _sources(sources, other).documents}
        columns[other.name] = other
    if known is not None:
        columns[SOURCE] = known.first(most)
    return columns


def _drawn(corpus: Corpus, most: int, context: Context) -> Sample:
    drawer = Drawer(most, context.seed)
    for number, document in enumerate(corpus.read()):
        drawer.add(document)
        if number % 1000 == 0:
            context.progress(f"reading {corpus.name}", number, None)
    if not drawer.seen:
        raise UsageError(f"{corpus.name}: there are no documents in {corpus.place}")
    return drawer.sample(corpus.name)


def _sources(sources: Corpus, sample: Sample) -> Sample:
    """The sources of this sample's rows."""
    wanted = {name for row in sample.documents for name in row.metadata.get("sources") or ()}
    kept = [document for document in sources.read() if document.id in wanted]
    return Sample(SOURCE, sorted(kept, key=lambda document: document.id))


def _groups(whole: Sample, by: str) -> dict[str, Sample]:
    rows: dict[str, list[int]] = {}
    for row, document in enumerate(whole.documents):
        rows.setdefault(field_of(document, by), []).append(row)
    rows.pop("", None)
    if not rows and by != "method":
        known = Counter(name for document in whole.documents for name in document.metadata)
        raise UsageError(f"--by {by}: no row has it; rows have {', '.join(sorted(known))}")
    if len(rows) > MOST_GROUPS:
        raise UsageError(f"--by {by}: {len(rows)} different values, which is more than {MOST_GROUPS} columns")
    if len(rows) < 2:
        return {}
    found: dict[str, Sample] = {}
    for name, places in sorted(rows.items()):
        part = whole.chosen(places)
        found[name] = Sample(name, part.documents, len(places), whole.sources, whole.name)
    return found


def _places(corpus: Corpus, against: Corpus | None) -> list[str]:
    """Where the columns come from, if there is more than one corpus."""
    return [] if against is None else [f"{one.name}: {one.place}" for one in (corpus, against)]


def _notes(columns: Mapping[str, Sample], name: str) -> list[str]:
    whole = columns[name]
    if SOURCE not in columns:
        return ["no sources: figures that compare a text with its source are left out (give --source)"]
    lost = sum(source is None for source in whole.source_of)
    return [f"{lost:,} of {len(whole):,} rows name no known source"] if lost else []


def _write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if rows:
        plain = [{k: str(v) if k == "label" else v for k, v in row.items()} for row in rows]
        names = list(dict.fromkeys(name for row in plain for name in row))
        pq.write_table(pa.Table.from_pylist([{n: row.get(n) for n in names} for row in plain]), path)
