"""The commands of a search, as a user gives them: what they print, leave behind, and refuse in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from searching import line_env


def leaven(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "leaven.cli", *map(str, words)], capture_output=True, text=True, cwd=folder,
        env=os.environ | {"COLUMNS": "200"},
    )  # fmt: skip


def test_from_a_new_environment_to_a_confirmed_winner(tmp_path: Path) -> None:
    made = leaven(tmp_path, "search", "new-env", "mine")
    assert made.returncode == 0 and "leaven search mine" in made.stdout
    found = leaven(tmp_path, "search", "mine", "--budget", 6, "--batch", 3, "--out", "out")
    assert found.returncode == 0, found.stderr
    assert "baseline: mean squared error on unseen points 8.42035, 8.38505, 8.46898" in found.stdout
    assert (
        "beyond the noise of the baseline" in found.stdout and "not confirmed on fresh seeds" in found.stdout
    )
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {
        "search.sqlite", "events.jsonl", "results.md", "best.patch", "progress.png",
    }  # fmt: skip
    assert (tmp_path / "out" / "progress.png").read_bytes()[:4] == b"\x89PNG"
    confirmed = leaven(tmp_path, "search", "confirm", "out", "--seeds", 3)
    assert confirmed.returncode == 0 and ": a gain" in confirmed.stdout, confirmed.stderr
    shown = leaven(tmp_path, "show", "out")
    assert shown.returncode == 0 and shown.stdout in confirmed.stdout + shown.stdout
    assert (
        "on 3 fresh seeds: " in shown.stdout
        and "| hyper-parameter | 6 |" in (tmp_path / "out" / "results.md").read_text()
    )
    patched = subprocess.run(
        ["git", "apply", "--directory", "mine/code", "--unsafe-paths", "out/best.patch"],
        cwd=tmp_path,
        capture_output=True,
    )
    assert patched.returncode == 0, patched.stderr


NO_SCORE = "print('done')"
NOT_A_NUMBER = "print('{\"score\": NaN}')"


@pytest.mark.parametrize(
    ("fields", "evaluate", "line"),
    [
        ({"metric": None}, "", "metric"),
        ({"run": "no-such-program"}, "", "the baseline fails: run: ended with 127: /bin/sh: 1: no-such-program: not"),
        ({"run": "python train.py && false"}, "", "the baseline fails: run: ended with 1"),
        ({"eval": "no-such-program"}, "", "the baseline fails: evaluation: ended with 127"),
        ({"run": "sleep 30", "limits": {"seconds": 1}}, "", "the baseline fails: run: killed at the time limit"),
        ({}, NO_SCORE, 'the baseline fails: evaluation: its last line must be {"score": number}; it printed \'done\''),
        ({}, NOT_A_NUMBER, "the baseline fails: evaluation: the score is nan"),
        ({"resources": {"cpus": 4096}}, "", "4096 CPUs and 0 GPUs are asked for"),
        ({"parameters": {}}, "", "declares no 'parameters', so there is nothing to mutate"),
    ],
)  # fmt: skip
def test_a_bad_environment_is_one_line_before_any_idea(
    tmp_path: Path, fields: dict[str, Any], evaluate: str, line: str
) -> None:
    try:
        line_env(tmp_path / "env", evaluate=evaluate, **fields)
    except Exception as error:
        assert line in str(error)
    failed = leaven(tmp_path, "search", "env", "--out", "out")
    assert failed.returncode == 2 and line in failed.stderr, failed.stderr
    assert len(failed.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out" / "results.md").exists()


def test_bad_words_are_one_line(tmp_path: Path) -> None:
    line_env(tmp_path / "env")
    for words, line in (
        (("search", "nowhere"), "nowhere is no environment: there is no env.yaml in it"),
        (("search", "env", "--strategy", "evolv"), "--strategy 'evolv'; did you mean 'evolve'?"),
        (("search", "env", "--budget", 0), "--budget must be at least 1, not 0"),
        (("search", "env", "--setting", "gpu"), "there is no setting 'gpu'"),
        (("search", "env", "--ideator", "gpt"), "give NAME@URL, a checkpoint folder, or a recording"),
        (("search", "confirm", "nowhere"), "nowhere holds no search: there is no search.sqlite in it"),
        (("search", "new-env", "env"), "env is not empty"),
        (
            ("search", "reinforce", "env", "--checkpoint", "nowhere", "--out", "o", "--option", "epoch: 3"),
            "epoch",
        ),
    ):
        failed = leaven(tmp_path, *words)
        assert failed.returncode == 2 and line in failed.stderr, failed.stderr
        assert len(failed.stderr.strip().splitlines()) == 1
