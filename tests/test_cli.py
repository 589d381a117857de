"""The command line as a user meets it: exit codes, one-line errors, nothing half-written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

STORIES = Path(__file__).parents[1] / "examples" / "stories"


def leaven(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "leaven.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=cwd)


def fails(*arguments: object, code: int = 2) -> str:
    """The one line on stderr of a command that must fail with `code`."""
    done = leaven(*arguments)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("leaven: "), done.stderr
    return lines[0]


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """The stories' plan, shortened and writing into tmp_path."""
    value = yaml.safe_load((STORIES / "plan.yaml").read_text())
    value["documents"]["path"] = str(STORIES / "documents.jsonl")
    value["model"]["path"] = str(STORIES / "answers.jsonl")
    for section in ("measure", "mix", "train", "evaluate"):  # they have tests of their own
        del value[section]
    value["generate"] = [{"rephrase": {"styles": ["easy", "hard"]}}]
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(value))
    return path


def change(plan: Path, **changes: object) -> Path:
    plan.write_text(yaml.safe_dump(yaml.safe_load(plan.read_text()) | changes))
    return plan


def test_a_run_prints_counts_that_add_up_and_a_second_one_changes_nothing(plan: Path) -> None:
    first = leaven("run", plan, "--pairs", "1")
    assert first.returncode == 0, first.stderr
    assert "SOURCE gutenberg-" in first.stdout and "WRITTEN by recorded large language model" in first.stdout
    run = plan.parent / "runs" / "stories"
    manifests = {p.parent.name: json.loads(p.read_text()) for p in run.rglob("manifest.json")}
    for name in ("rephrase", "clean"):
        counts = manifests[name]["counts"]
        assert counts["read"] == counts["kept"] + counts["rejected"] == 16
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*.parquet")}
    second = leaven("run", plan)
    assert second.returncode == 0
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*.parquet")} == before


def test_another_filter_redoes_only_the_cleaning(plan: Path) -> None:
    leaven("run", plan)
    run = plan.parent / "runs" / "stories"
    written = {p: p.stat().st_mtime_ns for p in (run / "generate").rglob("*.parquet")}
    change(plan, clean=[{"length": {"min_words": 420}}])
    assert leaven("run", plan).returncode == 0
    assert {p: p.stat().st_mtime_ns for p in (run / "generate").rglob("*.parquet")} == written
    counts = json.loads((run / "clean" / "manifest.json").read_text())["counts"]
    assert 0 < counts["rejected"] < 16 and counts["read"] == counts["kept"] + counts["rejected"] == 16


def test_events_tell_every_stage_in_json_lines(plan: Path) -> None:
    leaven("run", plan)
    lines = (plan.parent / "runs" / "stories" / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    done = [event["stage"] for event in events if event["event"] == "stage done"]
    assert done == ["corpus", "generate/rephrase", "clean"]
    ended = next(
        event for event in events if event["event"] == "stage ended" and event["stage"] == "rephrase"
    )
    assert ended["requests"] == 16 and ended["done"] == ended["total"] == 8


def test_planning_sends_nothing_and_knows_what_is_stored(plan: Path) -> None:
    before = leaven("plan", plan)
    assert before.returncode == 0, before.stderr
    assert "money: unknown" in before.stdout and "time: unknown" in before.stdout
    assert not list((plan.parent / "runs" / "stories").glob("generate"))
    leaven("run", plan)
    after = leaven("plan", plan)
    assert "to be sent: 16 requests" in before.stdout
    assert "to be sent: 0 requests, 0 prompt tokens" in after.stdout


def test_generate_and_clean_work_without_a_plan(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = leaven(
        "generate", "entigraph", STORIES / "documents.jsonl", "--model", STORIES / "answers.jsonl",
        "--out", out, "--option", f"groups: {STORIES / 'groups.jsonl'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = leaven(
        "clean", out / "generate" / "entigraph", "--sources", out / "corpus", "--out", tmp_path / "cleaned",
        "--filter", "length: {min_words: 100}", "--filter", "near_duplicates",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("read 136 = kept ")


def test_methods_lists_every_method_with_its_paper_and_options() -> None:
    shown = leaven("methods").stdout
    assert all(
        name in shown for name in ("entigraph", "mga", "rephrase", "strictness", "tokens_per_document")
    )


def test_a_missing_document_file_is_named(plan: Path) -> None:
    line = fails("run", change(plan, documents={"path": "nowhere.jsonl"}))
    assert "nowhere.jsonl: no such file or folder" in line
    assert not (plan.parent / "answers").exists()


def test_a_wrong_column_is_answered_with_those_there_are(plan: Path) -> None:
    line = fails("run", change(plan, documents={"path": str(STORIES / "documents.jsonl"), "text": "txt"}))
    assert "no column 'txt'" in line and "id, title, author, text" in line


def test_broken_lines_empty_texts_and_duplicate_ids_are_counted_rejects(plan: Path) -> None:
    good = (STORIES / "documents.jsonl").read_text().splitlines()
    lines = [*good, '{"id": "x", "text": ', json.dumps({"id": "y", "text": " "}), good[0]]
    (plan.parent / "documents.jsonl").write_text("\n".join(lines) + "\n")
    done = leaven("run", change(plan, documents={"path": "documents.jsonl"}))
    assert done.returncode == 0, done.stderr
    manifest = json.loads((plan.parent / "runs" / "stories" / "corpus" / "manifest.json").read_text())
    assert manifest["reasons"] == {"broken json": 1, "empty text": 1, "duplicate id": 1}
    counts = manifest["counts"]
    assert (counts["documents_read"], counts["documents_kept"], counts["documents_rejected"]) == (11, 8, 3)


def test_an_unreachable_server_is_one_line(plan: Path) -> None:
    model = {"backend": "openai", "name": "m", "url": "http://127.0.0.1:9/v1"}
    line = fails("run", change(plan, model=model))
    assert "cannot get an answer from m" in line and "127.0.0.1:9" in line


def test_a_missing_key_is_named_but_never_a_key(plan: Path) -> None:
    model = {"backend": "openai", "name": "m", "url": "http://127.0.0.1:9/v1", "key_env": "NO_SUCH_KEY"}
    assert "environment variable NO_SUCH_KEY (the API key) is not set" in fails(
        "run", change(plan, model=model)
    )


def test_a_run_folder_that_cannot_be_written_is_named(plan: Path) -> None:
    (plan.parent / "runs").write_text("in the way")
    assert "cannot write to run folder" in fails("run", plan)


def test_too_many_failed_documents_end_with_one(plan: Path) -> None:
    rows = [json.loads(line) for line in (STORIES / "answers.jsonl").read_text().splitlines()]
    kept = [row for row in rows if row["doc_id"] != rows[0]["doc_id"]]
    (plan.parent / "some.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    change(plan, model={"backend": "replay", "path": "some.jsonl"})
    line = fails("run", plan, code=1)
    assert "nothing could be written from 1 of 8 documents" in line
    assert leaven("run", change(plan, max_failed=0.2)).returncode == 0


def test_a_second_run_on_the_same_folder_is_refused(plan: Path) -> None:
    import fcntl

    folder = plan.parent / "runs" / "stories"
    folder.mkdir(parents=True)
    with (folder / "run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "in use by another run" in fails("run", plan)
