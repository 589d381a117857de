"""EntiGraph: subsets, names and budgets by property, the whole on the recorded stories."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from leaven.document import Document
from leaven.generate.entigraph import STEPS, Config, clean_entities, groups_of, subsets
from leaven.stage import read_stage

names = st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=12, unique=True)


@given(names, st.integers(2, 4))
def test_all_subsets_are_all_and_once(entities: list[str], size: int) -> None:
    found = list(subsets(entities, size, "all", "0"))
    assert len(found) == len(set(found)) == math.comb(len(entities), size)


@given(names, st.integers(2, 4), st.integers(0, 50), st.integers(0, 50))
def test_a_smaller_sample_is_a_prefix_of_a_larger_one(
    entities: list[str], size: int, one: int, two: int
) -> None:
    small, large = sorted((one, two))
    first = list(subsets(entities, size, small, "7 doc"))
    second = list(subsets(entities, size, large, "7 doc"))
    assert second[: len(first)] == first
    assert len(second) == min(large, math.comb(len(entities), size)) == len(set(map(frozenset, second)))


def test_samples_of_huge_entity_lists_need_no_enumeration() -> None:
    entities = [f"e{i}" for i in range(400)]  # 10.6 million triples
    found = list(subsets(entities, 3, 500, "1 doc"))
    assert len(set(found)) == 500
    assert found[:100] == list(subsets(entities, 3, 100, "1 doc"))
    assert found != list(subsets(entities, 3, 500, "2 doc"))


def test_pairs_come_before_triples_before_larger_ones() -> None:
    document = Document(text="t", id="d")
    config = Config(triples=3, larger={4: 2})
    sizes = [len(group) for group in groups_of(list("abcde"), document, config)]
    assert sizes == [2] * 10 + [3] * 3 + [4] * 2


def test_entity_names_are_cleaned_and_deduplicated() -> None:
    raw = [
        "- The  Queazy",
        "queazy",
        '"Mars"',
        "",
        " ",
        "Mars,",
        "\uff2dars",
        "“asteroid” fad",
        "x" * 101,
        "'",
    ]
    assert clean_entities(raw) == ["The Queazy", "Mars", "“asteroid” fad", "'"]


@given(st.lists(st.text(max_size=30), max_size=20))
def test_cleaned_names_are_stable_and_unique(raw: list[str]) -> None:
    once = clean_entities(raw)
    assert clean_entities(once) == once
    assert len({name.casefold() for name in once}) == len(once)


def test_the_recorded_stories_give_a_summary_and_every_listed_group(expand: Any, groups_file: Path) -> None:
    manifest, folder = expand("entigraph", groups=groups_file)
    rows = list(read_stage(folder))
    steps = [row.metadata["step"] for row in rows]
    assert (steps.count("summary"), steps.count("pair"), steps.count("triple")) == (8, 96, 32)
    assert manifest["counts"]["read"] == 136 and manifest["counts"]["rejected"] == 0
    listed = {
        (g["document"], tuple(g["entities"])) for g in map(json.loads, groups_file.read_text().splitlines())
    }
    related = [row for row in rows if row.metadata["step"] != "summary"]
    assert {
        (row.metadata["sources"][0], tuple(row.metadata["variables"]["entities"])) for row in related
    } == listed


def test_other_groups_in_the_same_file_are_another_stage(
    expand: Any, groups_file: Path, tmp_path: Path
) -> None:
    lines = groups_file.read_text().splitlines(keepends=True)
    groups = tmp_path / "groups.jsonl"
    kept = []
    for number in (len(lines), 20):
        groups.write_text("".join(lines[:number]))
        kept.append(expand("entigraph", groups=groups)[0]["counts"]["kept"])
    assert kept == [136, 28], "the texts of the groups, and a summary of each of eight documents"


def test_a_token_budget_stops_after_a_prefix_of_the_groups(expand: Any, groups_file: Path) -> None:
    manifest, folder = expand("entigraph", groups=groups_file, tokens_per_document=5000)
    tokens: dict[str, list[int]] = {}
    for row in read_stage(folder):
        if row.metadata["step"] != "summary":
            tokens.setdefault(row.metadata["sources"][0], []).append(row.metadata["tokens"])
    assert len(tokens) == 8
    for counts in tokens.values():
        assert sum(counts) >= 5000 or len(counts) == 16
        assert sum(counts) < 5000 + 2 * max(counts), "at most the last wave may overshoot"
    assert manifest["counts"]["kept"] < 136


def test_a_corpus_budget_is_shared_out_by_length(expand: Any, groups_file: Path) -> None:
    _, folder = expand("entigraph", groups=groups_file, tokens=24_000)
    total = sum(row.metadata["tokens"] for row in read_stage(folder) if row.metadata["step"] != "summary")
    assert 24_000 <= total < 24_000 + 8 * 2500


def test_one_entity_is_too_few(expand: Any, recorded: list[dict[str, Any]], tmp_path: Path) -> None:
    rows = [dict(row) for row in recorded if row["method"] == "entigraph"]
    for row in rows:
        if row["step"] == "entities":
            row["response"] = '{"summary": "s", "entities": ["Bob", " bob "]}'
    recording = tmp_path / "recording.jsonl"
    recording.write_text("".join(json.dumps(row) + "\n" for row in rows))
    manifest, folder = expand("entigraph", recording=recording)
    assert manifest["reasons"] == {"too few entities": 8}
    assert all("Bob" in row.text for row in read_stage(folder, "rejected"))


def test_the_entities_are_the_last_thing_in_a_prompt() -> None:
    for step in ("pair", "triple", "larger"):
        assert STEPS[step].prompt.endswith("{entities}")
