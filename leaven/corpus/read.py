"""Documents from files, URLs and Hugging Face datasets, with nothing lost on the way.

Files are listed and opened through datatrove's DataFolder, so every fsspec path works (local, globs,
s3://, hf://, memory://, ...); rows.py reads their rows. What cannot become a document becomes a reject
that names its place as FILE:LINE (FILE:ROW, from 1, for Parquet and datasets).
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import itertools
import json
import math
import os.path
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from leaven.config import PlanLocation
from leaven.corpus.rows import READERS, Row, damage, decompress, one_line, uncompressed
from leaven.document import LINEAGE, Document, content_id, reject
from leaven.errors import UsageError, nearest

if TYPE_CHECKING:
    from datatrove.io import DataFolder

Format = Literal["auto", "jsonl", "parquet", "csv", "text", "hf"]
FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".csv": "csv",
    ".txt": "text",
    ".md": "text",
    ".markdown": "text",
}
# Names with a meaning of their own in Leaven's rows: a user's column of that name keeps its values under
# "original_<name>", so that it is not taken for lineage.
_RESERVED = frozenset({*LINEAGE, "reason", "detail", "parent", "chunk", "chunks", "metadata"})
_HEAD = 100  # rows of a file looked at to say that a column is missing from it


class Input(BaseModel):
    """Where documents come from. A column left out is used where a row has one of that name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # before `path`, which is anchored to the plan only where it does not name a hub dataset
    format: Format = Field(default="auto", description="auto: from the extension; hf: a hub dataset by name")
    path: PlanLocation = Field(
        description="file, folder, glob, fsspec URL, dataset saved to disk, or hub dataset name"
    )
    text: str = Field(default="text", description="column of the text")
    id: str | None = Field(
        default=None, description="column of the id; default `id`, else a hash of the text"
    )
    title: str | None = Field(default=None, description="column of the title; default `title`")
    author: str | None = Field(default=None, description="column of the author; default `author`")
    split: str | None = Field(default=None, description="split of a Hugging Face dataset")
    options: dict[str, Any] = Field(
        default_factory=dict, description="for datasets.load_dataset, or fsspec storage options for a URL"
    )
    limit: int | None = Field(default=None, ge=1, description="stop after this many good documents")

    @field_validator("options")
    @classmethod
    def _no_secrets(cls, options: dict[str, Any]) -> dict[str, Any]:
        """Options are written to the manifest; secrets must not be."""
        for name in options:
            if re.search("key|secret|token|password|credential", str(name), re.IGNORECASE):
                raise ValueError(f"{name!r} looks like a secret; give it by the environment instead")
        return options


class Files:
    """The files an input names, in order.

    Attributes:
        folder: datatrove's view of the folder they lie in.
        names: their paths relative to it, sorted.
        skipped: files in the same folder that are of no known kind, or notes beside data files.
    """

    def __init__(self, folder: DataFolder, names: list[str], skipped: list[str], label: str | None) -> None:
        self.folder, self.names, self.skipped, self._label = folder, names, skipped, label

    def label(self, name: str) -> str:
        """What a person calls this file: as given where one file was given, else its whole path."""
        return self._label or str(self.folder.resolve_paths(name))

    def fingerprint(self, name: str) -> str:
        """Hash of a local file's content; of what the server says of a remote one (ETag, size, time)."""
        from leaven.stage import fingerprint

        if self.folder.is_local():
            with self.folder.open(name, "rb") as file:
                return _hash(file)
        info = self.folder.info(name)
        known = ("ETag", "etag", "md5Hash", "sha256", "blob_id", "size", "mtime", "LastModified", "created")
        return fingerprint({key: info[key] for key in known if info.get(key) is not None})


def find_files(source: Input) -> Files:
    """The files that `source` names; not for datasets.

    Raises:
        UsageError: nothing there, no match, or no file of a known kind.
    """
    from datatrove.io import DataFolder
    from fsspec.core import url_to_fs

    path = source.path if "://" in source.path else os.path.expanduser(source.path)
    try:
        fs, root = url_to_fs(path, **source.options)
        if fs.isfile(root):
            parent, _, name = root.rpartition("/")
            _format_of(name, source)
            return Files(DataFolder(parent, fs=fs), [name], [], source.path)
        if match := re.search(r"[*?\[]", root):
            parent = root[: match.start()].rpartition("/")[0]
            pattern = root[len(parent) :].lstrip("/")
        elif fs.isdir(root):
            parent, pattern = root, None
        else:
            raise UsageError(_missing(source.path))
        folder = DataFolder(parent, fs=fs)
        names = folder.list_files(glob_pattern=pattern)
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(f"cannot read {source.path}: {one_line(error)}") from error
    if not names:
        raise UsageError(f"no file matches {source.path}" if pattern else f"{source.path} is an empty folder")
    kept = _known(names, source.format)
    if not kept:
        _format_of(names[0], source)
        kept = names  # a format was named: the extensions are the user's own
    return Files(folder, kept, sorted(set(names) - set(kept)), None)


def input_fingerprints(source: Input) -> dict[str, str]:
    """What decides the input's content, by file: a stage that saw the same is not redone."""
    if is_dataset(source) and not _is_saved(source.path):
        builder = _load_dataset(source, builder=True)
        return {source.path: f"{builder.config_id}-{builder.hash}"}
    if is_dataset(source):
        source = Input(path=os.path.join(source.path, "**"), format="parquet")
    files = find_files(source)
    return {files.label(name): files.fingerprint(name) for name in files.names}


def is_dataset(source: Input) -> bool:
    """Whether the `datasets` library reads it: asked for by ``hf``, or a folder it saved."""
    return source.format == "hf" or (source.format == "auto" and _is_saved(source.path))


def _is_saved(path: str) -> bool:
    return any((Path(path) / mark).is_file() for mark in ("state.json", "dataset_dict.json"))


def read_documents(source: Input, rejects: Callable[[Document], None]) -> Iterator[Document]:
    """All good documents of an input, in order of file name and line.

    Each row is either yielded or given to `rejects` with one of the reasons ``broken json``,
    ``broken encoding``, ``empty text``, ``duplicate id``. Ids are kept in memory to find duplicates
    (about 200 bytes a document).

    Raises:
        UsageError: files or columns that are not there, damaged files, or no good document at all.
    """
    seen: dict[str, str] = {}
    good = 0
    first_reject = ""
    for row in _with_columns(source, _rows(source)):
        document = _document(row, source)
        if "reason" not in document.metadata:
            if document.id not in seen:
                seen[document.id] = row.place
                good += 1
                yield document
                if good == source.limit:
                    return
                continue
            first = f"{row.place}: id {document.id!r} was first seen at {seen[document.id]}"
            reject(document, "duplicate id", first)
        first_reject = first_reject or f" ({document.metadata['reason']}: {document.metadata['detail']})"
        rejects(document)
    if not good:
        raise UsageError(
            f"{source.path} holds no usable document{first_reject}; check the text column ({source.text!r})"
        )


def _rows(source: Input) -> Iterator[Row]:
    if is_dataset(source):
        with damage(source.path):
            for number, values in enumerate(_load_dataset(source), start=1):
                yield Row(source.path, number, dict(values))
        return
    files = find_files(source)
    for name in files.names:
        label = files.label(name)
        reader = READERS[_format_of(name, source)]
        with damage(label), files.folder.open(name, "rb") as raw:
            yield from reader(decompress(raw, name), label)


def _with_columns(source: Input, rows: Iterable[Row]) -> Iterator[Row]:
    """The same rows; says so when a column that was asked for is in none of a file's first rows."""
    wanted = {"text": source.text, "id": source.id, "title": source.title, "author": source.author}
    for file, group in itertools.groupby(rows, key=lambda row: row.file):
        rest = iter(group)
        head = list(itertools.islice(rest, _HEAD))
        columns = list(dict.fromkeys(str(name) for row in head if row.values for name in row.values))
        for role, name in wanted.items():
            if columns and name is not None and name not in columns:
                hint = nearest(name, columns)
                close = f"; {hint}" if hint.startswith("did you mean") else ""
                raise UsageError(
                    f"{file} has no column {name!r} for the {role}; it has {', '.join(columns)}{close}"
                )
        yield from head
        yield from rest


def _document(row: Row, source: Input) -> Document:
    """A document, or a reject, from one row."""
    if row.values is None:
        identifier = content_id(f"{row.place}\n{row.raw}")
        return reject(Document(text=row.raw, id=identifier), row.reason, f"{row.place}: {row.detail}")
    values = dict(row.values)
    text = values.pop(source.text, None)
    given = _name(values.pop(source.id or "id", None))
    metadata = _metadata(values, source)
    if isinstance(text, str) and text.strip():
        return Document(text=text, id=given or content_id(text), metadata=metadata)
    what = "no text" if text is None else "blank text" if isinstance(text, str) else "text is not a string"
    empty = Document(text=_name(text), id=given or content_id(row.place), metadata=metadata)
    return reject(empty, "empty text", f"{row.place}: {what}")


def _metadata(values: dict[str, Any], source: Input) -> dict[str, Any]:
    """Title, author, and everything else of a row, as plain JSON values."""
    found: dict[str, Any] = {}
    for role, column in (("title", source.title or "title"), ("author", source.author or "author")):
        if value := _name(values.pop(column, None)):
            found[role] = value
    nested = values.get("metadata")
    if isinstance(nested, str) and nested.lstrip().startswith("{"):
        try:
            nested = json.loads(nested)
        except ValueError:
            nested = None  # not JSON after all: it stays a column like any other
    if isinstance(nested, dict):
        del values["metadata"]
        values = {**nested, **values}
    for key, value in values.items():
        name = str(key)
        taken = name in _RESERVED or name in ("title", "author")
        found[f"original_{name}" if taken else name] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    """A value as JSON has it: bytes as base64, times in ISO 8601, NaN as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return str(value)


def _name(value: Any) -> str:
    """A value as a string; empty for null and NaN."""
    plain = _plain(value)
    if isinstance(plain, str):
        return plain
    return "" if plain is None else json.dumps(plain, ensure_ascii=False)


def _known(names: list[str], wanted: Format) -> list[str]:
    """Files of the wanted format; for auto data files, or text files where there are none (a README beside
    data is a note)."""
    kinds = {name: FORMATS.get(os.path.splitext(uncompressed(name))[1].lower()) for name in names}
    visible = [name for name in names if kinds[name] and not os.path.basename(name).startswith((".", "_"))]
    if wanted != "auto":
        return [name for name in visible if kinds[name] == wanted]
    return [name for name in visible if kinds[name] != "text"] or visible


def _format_of(name: str, source: Input) -> Format:
    if source.format != "auto":
        return source.format
    extension = os.path.splitext(uncompressed(name))[1].lower()
    if extension not in FORMATS:
        raise UsageError(
            f"{source.path}: cannot tell the format of {name!r}; known extensions: {' '.join(FORMATS)} "
            f"(also with .gz or .zst), or set `format` to jsonl (one object a line), parquet, csv or text"
        )
    return FORMATS[extension]


def _missing(path: str) -> str:
    folder, name = os.path.split(path)
    message = f"{path}: no such file or folder"
    if "://" not in path and os.path.isdir(folder or "."):
        hint = nearest(name, os.listdir(folder or "."))
        return (
            f"{message}; {hint}"
            if hint.startswith("did you mean")
            else f"{message} (a hub dataset needs format: hf)"
        )
    return f"{message} (a hub dataset needs format: hf)"


def _load_dataset(source: Input, builder: bool = False) -> Any:
    """A dataset of the `datasets` library, or only its builder, which names its version."""
    try:
        import datasets
    except ImportError as error:
        raise UsageError(f"{source.path} needs the datasets library: pip install 'leaven[hf]'") from error
    options = dict(source.options)
    try:
        if builder:
            return datasets.load_dataset_builder(source.path, **options)
        if _is_saved(source.path):
            found = datasets.load_from_disk(source.path)
        else:
            found = datasets.load_dataset(source.path, streaming=True, **options)
    except Exception as error:  # offline, missing, private, wrong options: many kinds, all the user's to mend
        raise UsageError(
            f"dataset {source.path!r} cannot be loaded: {type(error).__name__}: {one_line(error)}"
        ) from error
    if not isinstance(found, dict):
        return found
    if source.split is None and len(found) == 1:
        return next(iter(found.values()))
    if source.split not in found:
        hint = nearest(source.split, found) if source.split else f"known: {', '.join(found)}"
        raise UsageError(f"dataset {source.path!r}: set `split`, not {source.split!r}; {hint}")
    return found[source.split]


def _hash(file: Any) -> str:
    digest = hashlib.blake2b(digest_size=16)
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
