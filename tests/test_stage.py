"""A stage's folder: complete or resumable, never in between, and never somebody else's files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from leaven.document import Document, reject
from leaven.errors import UsageError
from leaven.stage import Stage, fingerprint, read_manifest, read_stage, shards


def rows(*texts: str) -> list[Document]:
    return [Document(text=text, id=text, metadata={"tokens": len(text)}) for text in texts]


def stage(folder: Path, option: int = 1, source: str = "a") -> Stage:
    return Stage(folder / "stage", {"option": option}, {"corpus": source})


def write(one: Stage) -> None:
    one.prepare()
    bad = [reject(row, "too short") for row in rows("c")]
    one.write(0, rows("aa", "bb"), bad, read=3)
    one.write(1, rows("dd"), [], read=1)
    one.finish(model="m")


def test_a_fingerprint_ignores_the_order_of_keys_only() -> None:
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": [1, 2]}) != fingerprint({"a": [2, 1]})


def test_the_manifest_adds_up_what_was_written(tmp_path: Path) -> None:
    write(stage(tmp_path))
    manifest = stage(tmp_path).manifest
    assert manifest is not None
    assert manifest["counts"] == {"kept": 3, "rejected": 1, "tokens": 6, "read": 4}
    assert manifest["reasons"] == {"too short": 1} and manifest["model"] == "m"
    assert [row.text for row in read_stage(tmp_path / "stage")] == ["aa", "bb", "dd"]
    assert [row.text for row in read_stage(tmp_path / "stage", "rejected")] == ["c"]
    assert [path.name for path in shards(tmp_path / "stage")] == ["00000.parquet", "00001.parquet"]


def test_another_config_or_input_is_another_stage_and_clears_the_folder(tmp_path: Path) -> None:
    write(stage(tmp_path))
    assert stage(tmp_path, option=2).manifest is None and stage(tmp_path, source="b").manifest is None
    stage(tmp_path, option=2).prepare()
    assert not list((tmp_path / "stage" / "data").iterdir()) and read_manifest(tmp_path / "stage") is None


def test_finished_parts_of_the_same_stage_survive_a_restart(tmp_path: Path) -> None:
    first = stage(tmp_path)
    first.prepare()
    first.write(0, rows("aa"), [], read=1)
    again = stage(tmp_path)
    again.prepare()
    assert again.part(0) == {"kept": 1, "rejected": 0, "tokens": 2, "reasons": {}, "read": 1}
    assert again.part(1) is None
    with pytest.raises(UsageError, match="not a finished Leaven folder"):
        shards(tmp_path / "stage")


def test_counts_that_do_not_add_up_are_never_written(tmp_path: Path) -> None:
    one = stage(tmp_path)
    one.prepare()
    one.write(0, rows("aa"), [], read=2)
    with pytest.raises(AssertionError, match="do not add up"):
        one.finish()
    assert one.manifest is None


def test_a_folder_of_other_files_is_never_cleared(tmp_path: Path) -> None:
    (tmp_path / "stage").mkdir()
    (tmp_path / "stage" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="choose another folder"):
        stage(tmp_path).prepare()
    assert (tmp_path / "stage" / "thesis.txt").read_text() == "years of work"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "stage").write_text("a file")
    with pytest.raises(UsageError, match="stage"):
        stage(tmp_path).prepare()


def test_the_manifest_is_plain_json_with_versions(tmp_path: Path) -> None:
    write(stage(tmp_path))
    manifest = json.loads((tmp_path / "stage" / "manifest.json").read_text())
    assert set(manifest["versions"]) == {"leaven", "datatrove", "python"}
    assert manifest["inputs"] == {"corpus": "a"} and manifest["config"] == {"option": 1}
