"""The concept world: what is drawn is what was asked for, and statements are checked rightly."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

RECIPE = Path(__file__).parents[2] / "recipes" / "concept_world.py"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("concept_world", RECIPE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["concept_world"] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


world = _load()
worlds = st.fixed_dictionaries({
    "concepts": st.integers(1, 6), "per_concept": st.integers(1, 4), "more": st.integers(0, 4),
    "facts": st.integers(2, len(world.ATTRIBUTES) - 1), "rho": st.floats(0, 1), "seed": st.integers(0, 2**32),
})  # fmt: skip


def test_every_value_belongs_to_one_attribute_and_every_sentence_ends_in_it() -> None:
    words = [value for values in world.VALUES.values() for value in values]
    assert len(words) == len(set(words))
    for templates, _ in world.ATTRIBUTES.values():
        assert all(one.endswith(" {v}.") for one in templates)
        assert all("{x}" in one for one in templates[:1]), "questions name the place by the first"


@given(worlds)
def test_the_same_seed_draws_the_same_world_and_no_document_twice(options: dict[str, float]) -> None:
    drawn = world.draw_world(**options)
    assert drawn == world.draw_world(**options)
    texts = [one.text for part in (drawn.held, drawn.corpus, drawn.more) for one in part]
    assert len(texts) == len(set(texts)), "nothing held out is trained on"
    assert len(drawn.corpus) == options["concepts"] * options["per_concept"]
    assert (
        len(drawn.held) == 2 * options["concepts"]
        and len(drawn.more) == options["concepts"] * options["more"]
    )
    places = {one.name: one.values for one in drawn.concepts}
    assert len(places) == options["concepts"]
    for one in drawn.held if options["rho"] < 1 else (*drawn.held, *drawn.corpus, *drawn.more):
        assert all(places[one.concept][name] == value for name, value in one.facts), "with rho 1 all is true"


@given(worlds)
def test_what_is_held_out_does_not_depend_on_the_corpus(options: dict[str, float]) -> None:
    drawn = world.draw_world(**options)
    other = world.draw_world(**options | {"per_concept": options["per_concept"] + 1, "more": 0, "rho": 1.0})
    assert (drawn.concepts, drawn.held) == (other.concepts, other.held)


@given(worlds)
def test_every_document_is_understood_as_it_was_meant(options: dict[str, float]) -> None:
    for one in world.draw_world(**options).corpus:
        assert world.understood(one.text) == one
        assert one.sentences == len(one.facts) == options["facts"] + 1


@given(st.text())
def test_any_text_can_be_read(text: str) -> None:
    found = world.understood(text)
    assert len(found.facts) <= found.sentences


def test_rho_is_the_share_of_values_that_are_the_places_own() -> None:
    drawn = world.draw_world(concepts=100, per_concept=10, more=0, facts=5, rho=0.4, seed=0)
    places = {one.name: one.values for one in drawn.concepts}
    own = [places[one.concept][name] == value for one in drawn.corpus for name, value in one.facts]
    # Drawn evenly, one in twelve is right by chance.
    assert len(own) == 6000 and abs(sum(own) / 6000 - (0.4 + 0.6 / 12)) < 0.02


def test_questions_have_one_right_answer_that_the_start_does_not_tell() -> None:
    places = world.draw_concepts(20, 3)
    asked = list(world.questions(places, 4, 3))
    assert len(asked) == 80 and len({one["id"] for one in asked}) == 80
    values = {one.name: one.values for one in places}
    for one in asked:
        right = one["options"][one["answer"]]
        assert right == values[one["document"]][one["id"].partition("-")[2]]
        assert len(set(one["options"])) == 4 and right not in one["question"].split()
        assert world.understood(f"{one['question']} {right}.").concept == one["document"]


def test_statements_are_checked_against_their_own_place() -> None:
    place = world.Concept("Melor", {name: values[0] for name, values in world.VALUES.items()})
    other = world.Concept("Davin", {name: values[1] for name, values in world.VALUES.items()})
    seed = world.understood("The place called Melor is a village. The people of Melor trade in salt.")
    texts = [
        "The place called Melor is a village. Merchants come to Melor for copper. The seal of Melor bears a wolf. Er.",
        "The place called Davin is a town. The people of Melor trade in salt.",  # not about Davin
        "The place called Kesor is a village.",
        "",
    ]
    found = world.truth(list(map(world.understood, texts)), [seed] * 4, [place, other])
    assert found.own == 0.25 and found.known == 0.5 and found.clear == 5 / 7
    assert found.copied == 1 / 2, "kind and trade of the first: the seed states both"
    assert found.recalled == 1, "its emblem, and Davin's kind: nothing of Davin is in the seed"
    assert math.isnan(world.truth([], [], [place]).own)


@pytest.mark.slow
@pytest.mark.torch
def test_the_whole_comparison_run_small(tmp_path: Path) -> None:
    # As little as still writes documents that end: the base must have learnt that they do.
    small = ["--concepts", 12, "--tokens", 4096, "--share", 0.2, "--seeds", 0, "--base-tokens", 130_000]
    command = [sys.executable, str(RECIPE), "--out", str(tmp_path), *map(str, small), "--rho", "1", "0.5"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    made = [json.loads(line) for line in (tmp_path / "synthesizers.jsonl").read_text().splitlines()]
    assert [one["world"] for one in made] == ["4 of each, rho 1", "4 of each, rho 0.5"]
    for one in made:
        assert set(one) == {"world", "sbp", "random"}
        assert one["sbp"]["pairs of one place"] > 0.5 > one["random"]["pairs of one place"]
        assert one["sbp"]["similarity of a pair"] > one["random"]["similarity of a pair"]
    manifests = [json.loads(one.read_text()) for one in tmp_path.glob("4*/run/train/*/manifest.json")]
    assert len(manifests) == 8 and {one["counts"]["tokens"] for one in manifests} == {4096}
