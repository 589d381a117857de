"""Reading: every format and place, and nothing lost when rows are bad."""

from __future__ import annotations

import csv
import datetime
import gzip
import io
import json
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from leaven.corpus.read import Input, find_files, input_fingerprints, read_documents
from leaven.corpus.rows import decompress
from leaven.document import Document, content_id
from leaven.errors import UsageError

ROWS = [
    {"id": "a", "title": "One", "author": "Ann", "text": "First text.", "year": 1900},
    {"text": "Second text."},
]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def read(path: Path | str, **fields: Any) -> tuple[list[Document], list[Document]]:
    rejects: list[Document] = []
    return list(read_documents(Input(path=str(path), **fields), rejects.append)), rejects


def check_rows(documents: list[Document]) -> None:
    first, second = documents
    assert (first.id, first.text) == ("a", "First text.")
    assert {"title": "One", "author": "Ann", "year": 1900}.items() <= first.metadata.items()
    assert (second.id, second.text) == (content_id("Second text."), "Second text.")
    assert "title" not in second.metadata


@pytest.mark.parametrize("name", ["x.jsonl", "x.ndjson", "x.jsonl.gz", "x.jsonl.zst"])
def test_jsonl_plain_and_compressed(tmp_path: Path, name: str) -> None:
    pack = {"gz": gzip.compress, "zst": zstandard.ZstdCompressor().compress}.get(
        name.rpartition(".")[2], bytes
    )
    (tmp_path / name).write_bytes(pack(LINES))
    documents, rejects = read(tmp_path / name)
    check_rows(documents)
    assert not rejects


def test_zstd_and_gzip_of_several_frames_are_read_to_the_end(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"document {i}"}).encode() + b"\n" for i in range(5)]
    for name, pack in (("x.jsonl.zst", zstandard.ZstdCompressor().compress), ("x.jsonl.gz", gzip.compress)):
        (tmp_path / name).write_bytes(b"".join(map(pack, lines)))
        assert len(read(tmp_path / name)[0]) == 5


@pytest.mark.parametrize("name", ["x.jsonl.zst", "x.jsonl.gz"])
def test_compressed_file_cut_short_is_an_error_naming_it(tmp_path: Path, name: str) -> None:
    pack = zstandard.ZstdCompressor().compress if name.endswith("zst") else gzip.compress
    data = pack(b"".join(json.dumps({"text": content_id(str(i))}).encode() + b"\n" for i in range(20000)))
    (tmp_path / name).write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(UsageError, match=f"{name} cannot be read to its end"):
        read(tmp_path / name)


@given(st.lists(st.binary(max_size=2000), max_size=5), st.integers(1, 5000))
def test_zstd_reader_gives_back_the_bytes(frames: list[bytes], size: int) -> None:
    data = b"".join(map(zstandard.ZstdCompressor().compress, frames))
    reader = decompress(io.BytesIO(data), "x.zst")
    assert b"".join(iter(lambda: reader.read(size), b"")) == b"".join(frames)


def test_bad_rows_become_rejects_with_their_place(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    lines = [
        b'{"text": "good", "id": "a"}',
        b'{"text": "cut off',
        b"",
        b'["a list"]',
        b'{"text": "  "}',
        b'{"id": "n"}',
        b'{"text": 5, "id": 7}',
        b'{"text": "again", "id": "a"}',
        b'{"text": "caf\xe9"}',
        b'{"text": "half \\ud83d pair"}',
        b'{"text": "whole \\ud83d\\ude00 pair"}',
    ]
    path.write_bytes(b"\n".join(lines))
    documents, rejects = read(path)
    assert [d.text for d in documents] == ["good", "whole \N{GRINNING FACE} pair"]
    found = [(d.metadata["reason"], d.metadata["detail"].split(": ")[0]) for d in rejects]
    reasons = {2: "broken json", 4: "broken json", 5: "empty text", 6: "empty text", 7: "empty text"}
    reasons |= {8: "duplicate id", 9: "broken encoding", 10: "broken encoding"}
    assert found == [(reason, f"{path}:{line}") for line, reason in reasons.items()]
    assert rejects[0].text == '{"text": "cut off'
    assert rejects[4].id == "7" and rejects[4].text == "5"
    assert rejects[5].text == "again" and f"{path}:1" in rejects[5].metadata["detail"]
    for document in rejects:
        document.text.encode()


@given(
    st.lists(
        st.one_of(st.binary(max_size=30), st.text(min_size=1).map(lambda t: json.dumps({"text": t}).encode()))
    )
)
def test_no_line_is_lost(lines: list[bytes]) -> None:
    lines = [line.replace(b"\n", b" ") for line in lines]
    expected = sum(
        bool(line.removeprefix(b"\xef\xbb\xbf" if n == 0 else b"").strip()) for n, line in enumerate(lines)
    )
    with fsspec.open("memory://lost/x.jsonl", "wb") as file:
        file.write(b"\n".join(lines))
    rejects: list[Document] = []
    documents: list[Document] = []
    try:
        documents.extend(read_documents(Input(path="memory://lost/x.jsonl"), rejects.append))
    except UsageError as error:
        assert "no usable document" in str(error) or "no column" in str(error)
        return
    assert len(documents) + len(rejects) == expected


def test_same_text_without_ids_is_a_duplicate(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "same"}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "same"}\n')
    documents, rejects = read(tmp_path)
    assert len(documents) == len(rejects) == 1
    assert str(tmp_path / "a.jsonl") + ":1" in rejects[0].metadata["detail"]


def test_csv_with_quoted_newlines_bom_long_fields_and_bad_rows(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    long = "word " * 60_000
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows(
            [["text", "title"], ['two\nlines, "quoted"', "T"], [long, ""], ["a", "b", "c"]]
        )
    with path.open("ab") as raw:
        raw.write(b"caf\xe9,latin\r\n")
    documents, rejects = read(path)
    assert [d.text for d in documents] == ['two\nlines, "quoted"', long]
    assert documents[0].metadata["title"] == "T" and "title" not in documents[1].metadata
    assert [r.metadata["reason"] for r in rejects] == ["broken csv", "broken encoding"]
    assert rejects[1].metadata["detail"].startswith(f"{path}:6")
    path.write_text('text\n"never closed\nmore\n')
    with pytest.raises(UsageError, match="cannot be read to its end"):
        read(path)


def test_parquet_keeps_metadata_as_json(tmp_path: Path) -> None:
    row = {
        "text": "t",
        "id": 5,
        "when": datetime.date(2020, 1, 2),
        "raw": b"\x00\xff",
        "score": float("nan"),
        "tokens": 9,
        "metadata": {"lang": "en", "sources": ["x"]},
        "media": [{"media_bytes": None}],
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "x.parquet")
    (document,), _ = read(tmp_path / "x.parquet")
    assert document.id == "5"
    expected = {
        "when": "2020-01-02",
        "raw": "AP8=",
        "score": None,
        "lang": "en",
        "media": [{"media_bytes": None}],
    }
    assert document.metadata == expected | {"original_tokens": 9, "original_sources": ["x"]}
    json.dumps(document.metadata, allow_nan=False)
    (tmp_path / "x.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(UsageError, match="not a whole Parquet file"):
        read(tmp_path / "x.parquet")


def test_folder_of_texts(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a note.md").write_text("Intro line\n\n## The *Heading* ##\n\nBody\n")
    (tmp_path / "sub" / "b.txt").write_text("# not a heading\n")
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "d.txt").write_text(" \n")
    (tmp_path / "picture.png").write_bytes(b"x")
    documents, rejects = read(tmp_path)
    assert [d.metadata["title"] for d in documents] == ["The *Heading*", "b"]
    assert documents[1].id == content_id("# not a heading\n")
    assert [r.metadata["reason"] for r in rejects] == ["broken encoding", "empty text"]
    assert find_files(Input(path=str(tmp_path))).skipped == ["picture.png"]


def test_readme_beside_data_is_skipped_and_reported(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# about")
    (tmp_path / "x.jsonl").write_bytes(LINES)
    check_rows(read(tmp_path)[0])
    assert find_files(Input(path=str(tmp_path))).skipped == ["README.md"]
    assert find_files(Input(path=str(tmp_path), format="text")).names == ["README.md"]


def test_globs_and_urls(tmp_path: Path) -> None:
    for name in ("b1.jsonl", "b2.jsonl", "c.jsonl"):
        (tmp_path / name).write_text(json.dumps({"text": name}) + "\n")
    assert [d.text for d in read(tmp_path / "b*.jsonl")[0]] == ["b1.jsonl", "b2.jsonl"]
    assert [d.text for d in read(f"file://{tmp_path}/c.jsonl")[0]] == ["c.jsonl"]
    for name in ("x.jsonl", "deep/y.jsonl.gz"):
        with fsspec.open(f"memory://corpus/{name}", "wb", compression="infer") as file:
            file.write(json.dumps({"text": name}).encode())
    assert sorted(d.text for d in read("memory://corpus")[0]) == ["deep/y.jsonl.gz", "x.jsonl"]
    assert [d.text for d in read("memory://corpus/**/*.gz")[0]] == ["deep/y.jsonl.gz"]
    assert len(input_fingerprints(Input(path="memory://corpus"))) == 2


def test_named_columns_and_limit(tmp_path: Path) -> None:
    rows = [{"key": i, "body": f"text {i}", "by": "A", "head": "H"} for i in range(5)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    documents, _ = read(tmp_path / "x.jsonl", text="body", id="key", title="head", author="by", limit=3)
    assert [d.id for d in documents] == ["0", "1", "2"]
    assert documents[0].metadata == {"title": "H", "author": "A"}


@pytest.mark.parametrize(
    ("files", "path", "fields", "message"),
    [
        ({"corpus.jsonl": LINES}, "corpis.jsonl", {}, "no such file or folder; did you mean 'corpus.jsonl'"),
        ({}, "*.jsonl", {}, "no file matches"),
        ({}, "", {}, "is an empty folder"),
        ({"x.pdf": b"%PDF"}, "x.pdf", {}, "cannot tell the format of 'x.pdf'"),
        ({"x.pdf": b"%PDF"}, "", {}, "cannot tell the format of 'x.pdf'"),
        (
            {"x.jsonl": LINES},
            "x.jsonl",
            {"text": "txt"},
            "no column 'txt' for the text; it has id, title, .*'text'",
        ),
        ({"x.csv": b"body,id\na,1\n"}, "x.csv", {}, "no column 'text' for the text; it has body, id$"),
        ({"x.jsonl": LINES}, "x.jsonl", {"author": "writer"}, "no column 'writer' for the author"),
        ({"x.jsonl": b""}, "x.jsonl", {}, "no usable document"),
        ({"x.jsonl": b'{"text": ""}\n'}, "x.jsonl", {}, "no usable document"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    tmp_path: Path, files: dict[str, bytes], path: str, fields: dict[str, Any], message: str
) -> None:
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(UsageError, match=message) as error:
        read(tmp_path / path, **fields)
    assert "\n" not in str(error.value)


def test_secrets_are_not_taken_as_options() -> None:
    with pytest.raises(ValidationError, match="environment"):
        Input(path="s3://bucket/x", options={"secret": "hush"})


def test_fingerprint_follows_content_not_time(tmp_path: Path) -> None:
    source = Input(path=str(tmp_path / "x.jsonl"))
    (tmp_path / "x.jsonl").write_bytes(LINES)
    first = input_fingerprints(source)
    (tmp_path / "x.jsonl").write_bytes(LINES)
    assert input_fingerprints(source) == first
    (tmp_path / "x.jsonl").write_bytes(LINES + b"\n")
    assert input_fingerprints(source) != first


def test_saved_huggingface_dataset(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_list([*ROWS, {"text": None}])
    dataset.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(train=dataset, test=dataset).save_to_disk(str(tmp_path / "two"))
    documents, rejects = read(tmp_path / "one")
    check_rows(documents)
    assert rejects[0].metadata["detail"] == f"{tmp_path / 'one'}:3: no text"
    check_rows(read(tmp_path / "two", split="test", format="hf")[0])
    assert input_fingerprints(Input(path=str(tmp_path / "one")))
    with pytest.raises(UsageError, match="did you mean 'train'"):
        read(tmp_path / "two", split="trian")
    with pytest.raises(UsageError, match="known: train, test"):
        read(tmp_path / "two")


@pytest.mark.torch  # datasets imports it for streaming
def test_dataset_loaded_by_name(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "x.jsonl").write_bytes(LINES)
    fields: dict[str, Any] = {"format": "hf", "options": {"data_files": str(tmp_path / "x.jsonl")}}
    check_rows(read("json", **fields)[0])
    before = input_fingerprints(Input(path="json", **fields))
    (tmp_path / "x.jsonl").write_bytes(LINES + b'{"text": "third"}')
    assert input_fingerprints(Input(path="json", **fields)) != before


def test_missing_datasets_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UsageError, match=r"pip install 'leaven\[hf\]'"):
        read("org/name", format="hf")
