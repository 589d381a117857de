"""The mix stage of a plan: from rows to arms on disk, and what is refused before anything is written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

STORIES = Path(__file__).parents[2] / "examples" / "stories"
MIX: dict[str, Any] = {
    "tokens": 20_000, "context": 128,
    "sources": {
        "real": {"stage": "corpus"},
        "easy": {"stage": "clean", "only": {"variables.style": "easy"}},
        "all": {"stage": "generate", "only": {"method": "rephrase", "variables.style": ["easy", "hard"]}},
    },
    "arms": {
        "raw": {"sources": {"real": 1}},
        "rephrased": {"sources": {"all": {"weight": 0.9}, "real": {"weight": 0.1}}},
        "even": {"unique_tokens": ["real", "easy"]},
    },
    "replay": {"source": "real", "rate": 0.1},
}  # fmt: skip


def leaven(*arguments: object) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "leaven.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr.strip()


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    value = {
        "name": "mixed", "documents": {"path": str(STORIES / "documents.jsonl")},
        "model": {"backend": "replay", "path": str(STORIES / "answers.jsonl")},
        "generate": [{"rephrase": {"styles": ["easy", "hard"]}}], "clean": ["boilerplate"], "mix": MIX,
    }  # fmt: skip
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(value))
    return path


def change(plan: Path, **changes: Any) -> Path:
    value = yaml.safe_load(plan.read_text())
    value["mix"] |= changes
    plan.write_text(yaml.safe_dump(value))
    return plan


def test_a_run_ends_with_arms_that_differ_in_nothing_but_their_text(plan: Path) -> None:
    code, out, errors = leaven("run", plan)
    assert (code, errors) == (0, "")
    folder = plan.parent / "runs" / "mixed" / "mix"
    manifest = json.loads((folder / "manifest.json").read_text())
    sizes = {name: (folder / name / "tokens.bin").stat().st_size for name in MIX["arms"]}
    assert set(sizes.values()) == {2 * (20_000 // 128) * 128}
    for arm in manifest["arms"].values():
        assert sum(one["tokens"] for one in arm["sources"]) == arm["tokens"] == 19_968
    assert "rephrased" in out and "19,968" in out and "unique tokens" in out
    tokens = np.fromfile(folder / "raw" / "tokens.bin", dtype=manifest["dtype"])
    assert tokens.max() < manifest["vocab_size"] and (tokens == manifest["end"]).sum() >= 7
    even = {one["source"]: one["epochs"] for one in manifest["arms"]["even"]["sources"]}
    assert (folder / "tokenizer.json").exists() and set(even) == {"real", "easy"}


def test_a_dry_run_prints_the_table_and_writes_nothing(plan: Path) -> None:
    code, _, errors = leaven("mix", plan, "--dry-run")
    assert code == 2 and "is not finished; run the plan first" in errors
    assert leaven("run", plan, "--to", "clean")[0] == 0
    code, out, errors = leaven("mix", plan, "--dry-run")
    assert (code, errors) == (0, "") and out.count("19,968") == 4 and "epochs" in out  # raw replays itself
    assert not (plan.parent / "runs" / "mixed" / "mix").exists()
    code, out, _ = leaven("mix", plan)
    assert code == 0 and out.count("19,968") == 4
    assert (plan.parent / "runs" / "mixed" / "mix" / "even" / "tokens.bin").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tokens": 2_000_000}, "and repeating it is forbidden"),
        ({"tokens": 100}, "does not fill one context of 128"),
        ({"arms": {"raw": {"sources": {"rael": 1}}}}, "arm raw: unknown source 'rael'; did you mean 'real'"),
        ({"arms": {"raw": {"sources": {"real": 0.5}}}}, "weights sum to 0.5"),
        ({"arms": {"raw": {}}}, "give either sources or unique_tokens"),
        ({"sources": {"real": {"stage": "corpsu"}}}, "mix.sources.real.stage"),
        ({"end": "<|nothing|>"}, "none of the tokens <|nothing|>"),
        ({"tokenizer": "nowhere.json"}, "nowhere.json"),
        (
            {"sources": {"real": {"stage": "corpus"}, "none": {"stage": "clean", "only": {"method": "x"}}},
             "arms": {"a": {"sources": {"none": 1}}}},
            "source 'none' has no documents",
        ),
        ({"order": "megadocuments"}, "megadocuments of"),
    ],
)  # fmt: skip
def test_a_mix_that_cannot_be_is_one_line_and_leaves_nothing(
    plan: Path, changes: dict[str, Any], said: str
) -> None:
    assert leaven("run", plan, "--to", "clean")[0] == 0
    code, _, errors = leaven("run", change(plan, **changes))
    assert code == 2 and said in errors and len(errors.splitlines()) == 1, errors
    assert not list((plan.parent / "runs" / "mixed").glob("mix/*/tokens.bin"))
