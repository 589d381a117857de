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

from leaven.corpus.tokens import load_tokenizer
from leaven.stage import read_stage

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


def test_sweeps_and_model_sizes_make_arms_that_really_take_their_shares(plan: Path) -> None:
    sweep = {"real": "real", "synthetic": "all", "shares": [0, 0.25, 1], "repeat": True}
    size = {"real": "real", "synthetic": "all", "parameters": 7e9, "repeat": True}
    change(plan, arms={"seven": {"model_size": size}}, sweeps={"ratio": sweep}, replay=None)
    assert leaven("run", plan)[0] == 0
    manifest = json.loads((plan.parent / "runs" / "mixed" / "mix" / "manifest.json").read_text())
    taken = {
        arm: {share["source"]: share["blocks"] for share in found["sources"]}
        for arm, found in manifest["arms"].items()
    }
    assert taken == {
        "seven": {"real": 109, "all": 47}, "ratio-0": {"real": 156}, "ratio-0.25": {"real": 117, "all": 39},
        "ratio-1": {"all": 156},
    }  # fmt: skip


def test_a_validation_source_is_packed_whole_and_in_order(plan: Path) -> None:
    change(plan, arms={"raw": {"sources": {"real": 1}}}, validation="easy")
    assert leaven("run", plan)[0] == 0
    folder = plan.parent / "runs" / "mixed"
    manifest = json.loads((folder / "mix" / "manifest.json").read_text())
    held = np.fromfile(folder / "mix" / "validation" / "tokens.bin", dtype=manifest["dtype"])
    assert held.size == manifest["validation"] and held.size % 128 == 0
    tokenizer = load_tokenizer(str(folder / "mix" / "tokenizer.json"))
    easy = sorted(
        (row.id, row.text)
        for row in read_stage(folder / "clean")
        if row.metadata["variables"]["style"] == "easy"
    )
    expected = [token for _, text in easy for token in [*tokenizer.encode(text), manifest["end"]]]
    assert held.tolist() == expected[: held.size] and len(expected) - held.size < 128


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"sweeps": {"a": {"real": "real", "synthetic": "all", "shares": [0.5]}}, "arms": {"a-0.5": {
                "sources": {"real": 1}}}},
            "two arms of one name",
        ),
        ({"arms": {}}, "at least one arm or sweep"),
        ({"validation": "easi"}, "unknown source 'easi'; did you mean 'easy'"),
        ({"validation": "real"}, "would train on 'real', which is held out"),
        ({"tokens": 2_000_000}, "and repeating it is forbidden"),
        ({"tokens": 100}, "does not fill one context of 128"),
        ({"arms": {"raw": {"sources": {"rael": 1}}}}, "arm raw: unknown source 'rael'; did you mean 'real'"),
        ({"arms": {"raw": {"sources": {"real": 0.5}}}}, "weights sum to 0.5"),
        ({"arms": {"raw": {}}}, "give exactly one of sources, unique_tokens"),
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
