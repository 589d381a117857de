"""The one record that flows through every stage, and how a row is traced back to its source.

`Document` is datatrove's own ``Document(text, id, metadata)``, so any datatrove step works on it.
Leaven's lineage lives in ``metadata`` under the names in `LINEAGE`; the rest of ``metadata`` is the
user's (title, author, ...). On disk a document is one Parquet row of `COLUMNS`: lineage as real
columns that DuckDB can filter, the remaining metadata as one JSON column, so that rows of different
methods share one schema.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from datatrove.data import Document

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "Document",
    "child",
    "child_id",
    "content_id",
    "field_of",
    "read_parquet",
    "reject",
    "write_parquet",
]

# Metadata of a written document. `sources`: ids of the documents it was written from; `variables`:
# what was varied (entities, genre, style, ...); `request`: key of its answer in the response store.
LINEAGE = ("sources", "method", "step", "variables", "sample", "model", "request", "tokens")
COLUMNS = ("id", "text", "title", "author", *LINEAGE, "metadata")
REJECT_COLUMNS = (*COLUMNS, "reason", "detail")


def to_json(value: Any) -> bytes:
    """Compact JSON with sorted keys, the same bytes for equal values.

    A text may hold half a surrogate pair (cut-off emoji in scraped JSON), which UTF-8 cannot: such a value
    is written with escapes instead.
    """
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError:
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def from_json(body: bytes) -> Any:
    """What `to_json` wrote."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return json.loads(body)


def content_id(text: str) -> str:
    """Id of a document that came without one: 32 hex digits of a hash of its text."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def child_id(
    sources: Sequence[str], method: str, step: str, variables: dict[str, Any], sample: int = 0
) -> str:
    """Stable id of a written document: it names what was asked for, not what came back.

    Returns:
        32 hex digits. The same (sources, method, step, variables, sample) always gives the same id.
    """
    body = to_json([list(sources), method, step, variables, sample])
    return hashlib.blake2b(body, digest_size=16).hexdigest()


def child(
    source: Document,
    text: str,
    *,
    method: str,
    step: str,
    variables: dict[str, Any],
    sample: int = 0,
    model: str = "",
    request: str = "",
    tokens: int = 0,
    **metadata: Any,
) -> Document:
    """A document written from `source`, carrying its lineage and its title and author.

    Where `source` is a piece cut from a row only for this method, its metadata names that row as ``row``;
    the row is then what `sources` leads to, and the piece's id still keeps the children of pieces apart.
    """
    inherited = {k: source.metadata[k] for k in ("title", "author") if source.metadata.get(k)}
    lineage = {
        "sources": [source.metadata.get("row", source.id)],
        "method": method,
        "step": step,
        "variables": variables,
        "sample": sample,
        "model": model,
        "request": request,
        "tokens": tokens,
    }
    identifier = child_id([source.id], method, step, variables, sample)
    return Document(text=text, id=identifier, metadata=inherited | lineage | metadata)


def field_of(document: Document, name: str) -> str:
    """A field of the metadata as text, by a dotted path (``variables.strictness``); empty if missing."""
    value: Any = document.metadata
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return "" if value is None else str(value)


def reject(document: Document, reason: str, detail: str = "") -> Document:
    """Mark a document as rejected; it is then written under ``rejected/`` instead of ``data/``."""
    document.metadata["reason"] = reason
    document.metadata["detail"] = detail
    return document


def _schema(columns: Sequence[str]) -> pa.Schema:
    import pyarrow as pa

    types = {"sources": pa.list_(pa.string()), "sample": pa.int32(), "tokens": pa.int64()}
    return pa.schema([(name, types.get(name, pa.string())) for name in columns])


def _row(document: Document, columns: Sequence[str]) -> dict[str, Any]:
    rest = dict(document.metadata)
    row: dict[str, Any] = {"id": document.id, "text": document.text}
    for name in columns:
        if name not in ("id", "text", "metadata"):
            row[name] = rest.pop(name, None)
    row["sources"] = list(row["sources"] or [])
    row["variables"] = json.dumps(row["variables"] or {}, ensure_ascii=False, sort_keys=True)
    row["metadata"] = json.dumps(rest, ensure_ascii=False, sort_keys=True)
    return row


def write_parquet(path: Path, documents: Iterable[Document], *, rejected: bool = False) -> int:
    """Write documents as one Parquet file, whole or not at all.

    The file appears under its name only when it is complete (written beside, then renamed).

    Args:
        rejected: write the reject columns (``reason``, ``detail``) as well.

    Returns:
        number of rows.
    """
    import os

    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = REJECT_COLUMNS if rejected else COLUMNS
    schema = _schema(columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    count = 0
    with pq.ParquetWriter(partial, schema, compression="zstd") as writer:
        rows: list[dict[str, Any]] = []
        for document in documents:
            rows.append(_row(document, columns))
            count += 1
            if len(rows) == 2000:
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
                rows = []
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    os.replace(partial, path)
    return count


def read_parquet(path: Path) -> Iterator[Document]:
    """Read back what `write_parquet` wrote, in order, holding one batch in memory."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=2000):
            for row in batch.to_pylist():
                metadata = json.loads(row.pop("metadata"))
                text, identifier = row.pop("text"), row.pop("id")
                row["variables"] = json.loads(row["variables"])
                metadata.update({k: v for k, v in row.items() if v is not None})
                yield Document(text=text, id=identifier, metadata=metadata)
