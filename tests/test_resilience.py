"""What may go wrong with a real server, a real process and a real disk, and that no answer is lost to it."""

from __future__ import annotations

import hashlib
import json
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
import zstandard
from server import Server, start_server

from leaven.stage import read_stage

STORIES = Path(__file__).parents[1] / "examples" / "stories"
EVERYTHING = ["rephrase", "mga", {"entigraph": {"triples": 10}}]
CLEAN = ["boilerplate", {"length": {"min_words": 30}}, "copying", "coverage", "near_duplicates"]


def write_plan(folder: Path, server: Server, generate: list[Any], **model: Any) -> Path:
    """A plan on the stories whose answers are found again whatever port the server has."""
    folder.mkdir(parents=True, exist_ok=True)
    value = {
        "name": "try",
        "documents": {"path": str(STORIES / "documents.jsonl")},
        "model": {"backend": "openai", "name": "m", "url": server.url, "endpoint": "test", **model},
        "generate": generate,
        "clean": CLEAN,
    }
    (folder / "plan.yaml").write_text(yaml.safe_dump(value))
    return folder / "plan.yaml"


def start(plan: Path, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "leaven.cli", "run", str(plan)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def finish(plan: Path, **options: Any) -> tuple[int, str]:
    """Run to the end; (exit code, stderr)."""
    process = start(plan, **options)
    _, errors = process.communicate(timeout=120)
    assert "Traceback" not in errors, errors
    return process.returncode, errors.strip()


def outputs(plan: Path) -> dict[str, list[tuple[str, str, str]]]:
    """Every row of every stage: kept and rejected."""
    run = plan.parent / "runs" / "try"
    folders = [path.parent for path in sorted(run.rglob("manifest.json"))]
    return {
        f"{folder.relative_to(run)}/{kind}": [
            (row.id, row.text, json.dumps(row.metadata, sort_keys=True)) for row in read_stage(folder, kind)
        ]
        for folder in folders
        for kind in ("data", "rejected")
    }


def stored_answers(plan: Path) -> Iterator[str]:
    """Hash of the text of every answer on disk, read as another process would."""
    decompress = zstandard.ZstdDecompressor().decompress
    for path in (plan.parent / "answers").glob("*.sqlite"):
        with sqlite3.connect(path) as connection:
            for (answer,) in connection.execute("SELECT answer FROM answers"):
                text = orjson.loads(decompress(answer))[0]
                yield hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def manifest(plan: Path, stage: str) -> dict[str, Any]:
    return dict(json.loads((plan.parent / "runs" / "try" / stage / "manifest.json").read_text()))


def test_twenty_kills_lose_nothing_and_change_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    server = start_server("--delay", 0.1, "--log", log)
    try:
        undisturbed = write_plan(tmp_path / "undisturbed", server, EVERYTHING, concurrency=64)
        assert finish(undisturbed)[0] == 0
        log.write_text("")
        server.reset()

        plan = write_plan(tmp_path / "killed", server, EVERYTHING, concurrency=8)
        draw = random.Random(0)
        forbidden: set[str] = set()  # bodies whose answers were on disk at the last kill
        kills = read = 0
        while kills < 20 or len(forbidden) < 200:  # a slow machine gets less done between two kills
            assert kills < 60, "the kills came before the work"
            # At a random place in the work, however fast the machine is just now.
            answered = server.stats().get("answered", 0) + draw.choice([0, 20, draw.randint(1, 60)])
            process = start(plan)
            while process.poll() is None and server.stats().get("answered", 0) < answered:
                time.sleep(draw.uniform(0.0, 0.02))
            time.sleep(draw.uniform(0.0, 0.1))
            process.send_signal(signal.SIGKILL)
            kills += 1
            process.communicate()
            assert process.returncode in (0, -signal.SIGKILL)
            lines = [json.loads(line) for line in log.read_text().splitlines()]
            assert not forbidden & {line["body"] for line in lines[read:]}, (
                "a stored answer was asked for again"
            )
            read = len(lines)
            bodies = defaultdict(set)
            for line in lines:
                bodies[line["answer"]].add(line["body"])
            for answer in stored_answers(plan):
                if len(bodies[answer]) == 1:  # two requests may share a short answer such as a score
                    forbidden |= bodies[answer]
        assert finish(plan)[0] == 0
        assert outputs(plan) == outputs(undisturbed)
    finally:
        server.stop()


def test_a_second_run_asks_nothing_and_a_change_asks_only_for_what_is_new(
    server: Server, tmp_path: Path
) -> None:
    plan = write_plan(tmp_path, server, ["rephrase", "mga"])
    assert finish(plan)[0] == 0
    asked = server.stats()["requests"]
    finish(plan)
    assert server.stats()["requests"] == asked
    plan.write_text(plan.read_text().replace("min_words: 30", "min_words: 80"))
    finish(plan)
    assert server.stats()["requests"] == asked, "a filter costs no request"
    write_plan(tmp_path, server, [{"rephrase": {"styles": ["easy", "medium", "hard", "faq"]}}, "mga"])
    finish(plan)
    assert server.stats()["requests"] == asked + 8, "one more style, one more request per document"
    steps = {"easy": {"max_tokens": 8000}}
    write_plan(
        tmp_path, server, [{"rephrase": {"styles": ["easy", "medium", "hard", "faq"], "steps": steps}}, "mga"]
    )
    finish(plan)
    assert server.stats()["requests"] == asked + 8, (
        "a higher limit does not touch answers that ended by themselves"
    )
    method = tmp_path / "runs" / "try" / "generate" / "mga"
    for path in sorted(method.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    finish(plan)
    assert server.stats()["requests"] == asked + 8, "a deleted stage is rebuilt from stored answers"


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "status", "status": 429},
        {"kind": "status", "status": 429, "retry_after": 1},
        {"kind": "status", "status": 500},
        {"kind": "status", "status": 503, "retry_after": 1},
        {"kind": "status", "status": 529},
        {"kind": "drop"},
        {"kind": "cut"},
        {"kind": "garbage"},
    ],
    ids=lambda fault: " ".join(map(str, fault.values())),
)
def test_passing_faults_are_retried_until_everything_is_there(
    server: Server, tmp_path: Path, fault: Any
) -> None:
    server.fault(**{**fault, "times": 2})
    plan = write_plan(tmp_path, server, [{"rephrase": {"styles": ["easy"]}}])
    assert finish(plan) == (0, "")
    assert manifest(plan, "generate/rephrase")["counts"]["kept"] == 8
    assert server.stats()["requests"] == 10 and server.stats()["answered"] == 8


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("empty", "empty answer"), ("length", "truncated")],
)
def test_an_unusable_text_is_a_counted_reject_and_not_paid_again(
    server: Server, tmp_path: Path, kind: str, reason: str
) -> None:
    server.fault(kind, times=3)
    plan = write_plan(tmp_path, server, [{"rephrase": {"styles": ["easy"]}}])
    code, line = finish(plan)
    assert code == 1 and "nothing could be written from 3 of 8 documents" in line
    counts = manifest(plan, "generate/rephrase")["counts"]
    assert (counts["read"], counts["kept"], counts["rejected"]) == (8, 5, 3)
    assert manifest(plan, "generate/rephrase")["reasons"] == {reason: 3}
    rejects = list(read_stage(plan.parent / "runs" / "try" / "generate" / "rephrase", "rejected"))
    assert all(len(row.metadata["request"]) == 40 for row in rejects), "the answer can be looked up"
    if kind == "length":
        assert all(row.text for row in rejects), "the raw answer is kept"
    finish(plan)
    assert server.stats()["requests"] == 8


@pytest.mark.parametrize(("kind", "extra"), [("broken_json", 0), ("nonsense", 3)])
def test_bad_json_is_repaired_or_corrected_in_one_turn(
    server: Server, tmp_path: Path, kind: str, extra: int
) -> None:
    server.fault(kind, times=3)
    plan = write_plan(tmp_path, server, [{"mga": {"judge": False}}])
    assert finish(plan) == (0, "")
    assert manifest(plan, "generate/mga")["counts"]["kept"] == 40
    assert server.stats()["answered"] == 8 + extra + 40


def test_a_model_that_only_talks_nonsense_leaves_rejects_with_its_words(
    server: Server, tmp_path: Path
) -> None:
    server.fault("nonsense", times=10_000)
    plan = write_plan(tmp_path, server, ["entigraph"])
    assert finish(plan)[0] == 1
    assert manifest(plan, "generate/entigraph")["reasons"] == {"invalid json": 8}
    rejects = read_stage(plan.parent / "runs" / "try" / "generate" / "entigraph", "rejected")
    assert {row.text for row in rejects} == {"I would rather talk about the weather."}
    assert server.stats()["requests"] == 16, "one correction turn each"


def test_a_document_the_server_refuses_is_one_reject(server: Server, tmp_path: Path) -> None:
    refusal = {"kind": "status", "status": 413, "message": "too long"}
    server.fault("matching", text="Queazy", fault=refusal)
    plan = write_plan(tmp_path, server, [{"rephrase": {"styles": ["easy", "hard"]}}])
    code, _ = finish(plan)
    assert code == 1  # 1 of 8 is more than the default share of 0.1
    assert manifest(plan, "generate/rephrase")["reasons"] == {"refused by server": 2}
    assert manifest(plan, "generate/rephrase")["counts"]["kept"] == 14


def test_a_wrong_key_ends_at_once_and_the_key_is_written_nowhere(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "wrong-secret-key")
    server.fault("key", key="right-secret-key")
    plan = write_plan(tmp_path, server, ["rephrase"], key_env="MY_KEY")
    code, line = finish(plan)
    assert code == 2 and line.count("\n") == 0
    assert "status 401: Incorrect API key provided; check the key in MY_KEY" in line
    monkeypatch.setenv("MY_KEY", "right-secret-key")
    assert finish(plan) == (0, "")
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert b"secret-key" not in path.read_bytes(), path


def test_too_many_requests_in_flight_are_throttled_to_what_the_server_takes(
    server: Server, tmp_path: Path
) -> None:
    slow = start_server("--delay", 0.05)
    try:
        slow.fault("ceiling", ceiling=6)
        plan = write_plan(tmp_path, slow, [{"entigraph": {"pairs": 15}}], concurrency=256)
        assert finish(plan) == (0, "")
        assert manifest(plan, "generate/entigraph")["reasons"] == {}
        stats = slow.stats()
        assert stats["answered"] == 8 + 8 * 15
        assert stats["fault status 429"] < stats["answered"], "it learned, and did not hammer"
    finally:
        slow.stop()


def test_a_server_without_json_schema_is_asked_in_words(server: Server, tmp_path: Path) -> None:
    server.fault("no_schema")
    plan = write_plan(tmp_path, server, [{"mga": {"judge": False}}])
    code, _ = finish(plan)
    assert code == 1, "this server answers prose when it cannot see the schema"
    assert manifest(plan, "generate/mga")["reasons"] == {"invalid json": 8}


def test_a_token_budget_is_a_hard_cap_and_can_be_raised(server: Server, tmp_path: Path) -> None:
    plan = write_plan(tmp_path, server, ["rephrase"])
    value = yaml.safe_load(plan.read_text())
    plan.write_text(yaml.safe_dump(value | {"budget": {"tokens": 20_000}}))
    code, line = finish(plan)
    stats = server.stats()
    assert code == 3 and "token budget reached" in line and "raise budget.tokens" in line
    assert 0 < stats["prompt_tokens"] + stats["completion_tokens"] <= 20_000
    plan.write_text(yaml.safe_dump(value))
    assert finish(plan)[0] == 0
    assert server.stats()["requests"] == 24 and server.stats()["asked_twice"] == 0


def test_ctrl_c_ends_soon_and_keeps_everything_received(tmp_path: Path) -> None:
    def as_in_a_terminal() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs inherit that it is ignored

    server = start_server("--delay", 0.3)
    try:
        plan = write_plan(tmp_path, server, EVERYTHING, concurrency=16)
        process = start(plan, preexec_fn=as_in_a_terminal)
        while server.stats().get("answered", 0) < 40:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(
            timeout=20
        )  # under 2 s on an idle machine; in the midst of EVERYTHING
        assert process.returncode == 130 and "run the same command again" in errors
        assert "Traceback" not in errors
        assert len(list(stored_answers(plan))) >= server.stats()["answered"] - 16
        write_plan(tmp_path, server, EVERYTHING, concurrency=256)
        assert finish(plan)[0] == 0
        assert server.stats()["asked_twice"] <= 16
    finally:
        server.stop()


def test_a_full_disk_stops_before_more_is_spent(tmp_path: Path) -> None:
    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit then fails as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    server = start_server("--delay", 0.02)
    try:
        plan = write_plan(tmp_path, server, EVERYTHING, concurrency=16)
        code, line = finish(plan, preexec_fn=small_files)
        assert code == 3 and "cannot write to the response store" in line
        stored, answered = len(list(stored_answers(plan))), server.stats()["answered"]
        assert 50 < stored <= answered <= stored + 3 * 16, "it went on asking after the disk was full"
        assert finish(plan)[0] == 0
        assert server.stats()["asked_twice"] <= answered - stored
    finally:
        server.stop()
