"""Options: strict, and wrong ones are answered with one line that says where and what instead."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from leaven.config import PlanLocation, PlanPath, one_item, validated
from leaven.errors import UsageError


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Cat(Strict):
    kind: Literal["cat"] = "cat"
    whiskers: int = 12


class Dog(Strict):
    kind: Literal["dog"]
    bark: float = Field(1.0, gt=0)


class Options(Strict):
    name: str
    file: PlanPath | None = None
    format: str | None = None
    place: PlanLocation | None = None
    animal: Annotated[Cat | Dog, Field(discriminator="kind")] = Cat()
    more: list[Cat] = []


def read(base: Path | None = None, **value: Any) -> Options:
    return validated(Options, {"name": "n", **value}, "plan.yaml", base)


def test_paths_start_at_the_plan(tmp_path: Path) -> None:
    assert read(tmp_path, file="a/b").file == tmp_path / "a/b"
    assert read(tmp_path, file="/a/b").file == Path("/a/b")
    assert read(file="a/b").file == Path("a/b")
    assert read(tmp_path, place="a.jsonl").place == str(tmp_path / "a.jsonl")


def test_urls_and_dataset_names_are_no_paths(tmp_path: Path) -> None:
    assert read(tmp_path, place="s3://bucket/a").place == "s3://bucket/a"
    assert read(tmp_path, format="hf", place="someone/data").place == "someone/data"


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ({"nam": "x"}, "plan.yaml: unknown option 'nam'; did you mean 'name'?"),
        ({"animal": {"kind": "dog", "barks": 2}}, "unknown option 'animal.dog.barks'; did you mean 'bark'?"),
        ({"animal": {"kind": "cow"}}, "plan.yaml: animal: input tag 'cow'"),
        (
            {"animal": {"kind": "dog", "bark": 0}},
            "plan.yaml: animal.dog.bark: input should be greater than 0",
        ),
        ({"more": [{"wiskers": 2}]}, "unknown option 'more.0.wiskers'; did you mean 'whiskers'?"),
        ({"name": 3}, "plan.yaml: name: input should be a valid string, not 3"),
    ],
)
def test_mistakes_are_one_line_with_place_and_fix(value: dict[str, Any], line: str) -> None:
    with pytest.raises(UsageError) as error:
        read(**value)
    assert line in str(error.value) and "\n" not in str(error.value)


def test_an_item_is_a_name_or_a_name_with_options() -> None:
    assert one_item("mga", "x") == ("mga", {}) and one_item({"mga": None}, "x") == ("mga", {})
    assert one_item({"mga": {"pairs": 2}}, "x") == ("mga", {"pairs": 2})
    with pytest.raises(UsageError, match="x: mga: options must be 'name: value' pairs, not 3"):
        one_item({"mga": 3}, "x")
    for wrong in ({"a": {}, "b": {}}, 3, ["mga"]):
        with pytest.raises(UsageError, match="must be a name or one 'name: options'"):
            one_item(wrong, "x")


def test_nothing_at_all_names_the_first_missing_field() -> None:
    with pytest.raises(UsageError, match=r"plan.yaml: name: field required$"):
        validated(Options, None, "plan.yaml")
