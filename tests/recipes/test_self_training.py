"""The self-training recipe, run small: every part of it, not its figures (those are in LOG.md)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from server import Server

RECIPES = Path(__file__).parents[2] / "recipes"
pytestmark = pytest.mark.torch


def test_a_classifier_tells_what_can_be_told() -> None:
    sys.path.insert(0, str(RECIPES))
    try:
        from self_training import taken_for_real
    finally:
        sys.path.remove(str(RECIPES))
    rng = np.random.default_rng(0)
    real = rng.normal(size=(400, 8))
    assert 0.4 < taken_for_real(rng.normal(size=(400, 8)), real) < 0.6
    assert taken_for_real(rng.normal(size=(400, 8)) + 3, real) < 0.02


@pytest.mark.slow
def test_rounds_are_made_evaluated_judged_and_drawn(tmp_path: Path, server: Server) -> None:
    small = ["--tokens", "3000", "--epochs", "0.1", "--rounds", "2", "--prefixes", "0", "3", "--tiers", "low"]
    command = [sys.executable, str(RECIPES / "self_training.py"), "--out", str(tmp_path), *small]
    command += ["--judge", f"any@{server.url}"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    rows = {one["model"]: one for one in json.loads((tmp_path / "rounds.json").read_text())}
    assert list(rows) == ["base", "k0-1", "k0-2", "k3-1", "k3-2", "k0-low-1", "real-1", "real-2"]
    assert all(row["held"] > 1 and 0 <= row.get("taken_for_real", 0) <= 1 for row in rows.values())
    assert all(name in done.stdout for name in rows)
    for name in ("k0-1", "k0-2", "k3-1", "k3-2", "k0-low-1"):
        assert sum(rows[name]["judged"]) == pytest.approx(1), "wins, ties and losses"
    assert "judged" not in rows["base"] and server.stats()["requests"] > 0
    assert (tmp_path / "rounds.png").read_bytes()[:4] == b"\x89PNG"
