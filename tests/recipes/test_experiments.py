"""The training recipes, run small: every part of them, not their figures (those are in LOG.md)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RECIPES = Path(__file__).parents[2] / "recipes"
pytestmark = [pytest.mark.slow, pytest.mark.torch]


def recipe(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(RECIPES / f"{name}.py"), *map(str, arguments)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "COLUMNS": "160"}
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)


def test_closed_book_compares_arms_at_every_budget(tmp_path: Path) -> None:
    small = [
        "--shape",
        "1m",
        "--base-tokens",
        16_384,
        "--tokens",
        4096,
        8192,
        12_288,
        "--seeds",
        0,
        "--no-compile",
    ]
    done = recipe("closed_book", "--out", tmp_path, *small, "--arms", "raw", "entigraph")
    assert done.returncode == 0, done.stderr
    assert "people | loss ↓ | entigraph" in done.stdout and "| base |" in done.stdout
    found = json.loads((tmp_path / "curves.json").read_text())
    assert set(found) == {f"{name}/{arm}" for name in ("questions", "people") for arm in ("raw", "entigraph")}
    for one in found.values():
        assert one["tokens"] == [4096, 8192, 12_288] and len(one["curve"]["terms"]) <= 1
    manifest = json.loads((tmp_path / "arms-8192" / "train" / "raw-0" / "manifest.json").read_text())
    assert manifest["counts"]["tokens"] == 8192
    bad = recipe("closed_book", "--out", tmp_path / "bad", "--others", tmp_path / "none.jsonl")
    assert bad.returncode == 1 and "none.jsonl" in bad.stderr and "Traceback" not in bad.stderr


def test_repetition_validates_while_training(tmp_path: Path) -> None:
    done = recipe("repetition", "--out", tmp_path, "--epochs", 2, "--seeds", 0)
    assert done.returncode == 0, done.stderr
    curves = json.loads((tmp_path / "curves.json").read_text())
    assert list(curves) == ["repeat", "mga", "more"]
    seen = [list(map(int, one)) for one in curves.values()]
    assert seen[0] == seen[1] == seen[2] and len(seen[0]) >= 5, "all arms are looked at after the same tokens"
    held = [json.loads(line)["id"] for line in (tmp_path / "held.jsonl").read_text().splitlines()]
    more = [json.loads(line)["id"] for line in (tmp_path / "more.jsonl").read_text().splitlines()]
    assert len(held) == 9 and not set(held) & set(more)
