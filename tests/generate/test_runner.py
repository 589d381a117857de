"""The machinery around methods: found by name, resumable, chunking, counts that add up."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from leaven.corpus.chunk import chunk_document
from leaven.corpus.tokens import load_tokenizer
from leaven.errors import UsageError
from leaven.generate import load_method, method_names
from leaven.stage import read_stage


def test_methods_are_found_by_file_name_and_open_with_their_paper() -> None:
    assert method_names() == ["entigraph", "mga", "rephrase", "sbp", "self_train"]
    for name in method_names():
        method = load_method(name)
        assert "Paper" in method.header and method.steps and method.Config().model_config["frozen"]


def test_an_unknown_method_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'entigraph'"):
        load_method("entigraf")


def test_a_finished_stage_is_skipped_and_an_unfinished_one_redone_alike(expand: Any) -> None:
    manifest, folder = expand("rephrase")
    before = [(row.id, row.text) for row in read_stage(folder)]
    again, _ = expand("rephrase")
    assert again == manifest
    (folder / "manifest.json").unlink()
    shutil.rmtree(folder / "data")
    shutil.rmtree(folder / "parts")
    with pytest.raises(UsageError, match="not a stage"):
        expand("rephrase")  # it will not clear a folder that it cannot recognise as its own
    shutil.rmtree(folder)
    expand("rephrase")
    assert [(row.id, row.text) for row in read_stage(folder)] == before


def test_other_options_redo_the_stage(expand: Any) -> None:
    first, _ = expand("rephrase", styles=("easy",))
    second, _ = expand("rephrase", styles=("easy", "hard"))
    assert first["fingerprint"] != second["fingerprint"]
    assert second["counts"]["kept"] == 16


def test_long_documents_are_chunked_for_this_method_only(expand: Any, corpus: Path, tmp_path: Path) -> None:
    count = load_tokenizer(str(corpus / "tokenizer.json")).count
    sources = {row.id: row for row in read_stage(corpus)}
    pieces = [piece for row in sources.values() for piece in chunk_document(row, 700, count)]
    assert len(pieces) >= 3 * len(sources)
    recording = tmp_path / "recording.jsonl"
    rows = [
        {
            "doc_id": piece.id,
            "method": "rephrase",
            "step": "easy",
            "variables": {},
            "response": f"of {piece.id}",
        }
        for piece in pieces
    ]
    recording.write_text("".join(json.dumps(row) + "\n" for row in rows))
    manifest, folder = expand("rephrase", recording=recording, styles=("easy",), chunk_tokens=700)
    assert manifest["counts"]["documents_read"] == manifest["counts"]["documents_expanded"] == 8
    written = list(read_stage(folder))
    assert [row.text for row in written] == [f"of {piece.id}" for piece in pieces]
    assert len({row.id for row in written}) == len(pieces)
    assert {row.metadata["sources"][0] for row in written} == set(sources), (
        "children lead to rows of the corpus"
    )
