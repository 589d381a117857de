"""Environments are read strictly, and a parameter is changed in its place and nowhere else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from searching import line_env

from leaven.errors import UsageError
from leaven.search.environment import Parameter, load, read_parameter, with_parameter
from leaven.search.folder import new_env

ANY = Parameter(file="train.py", choices=(1, 2))


def test_an_ideator_is_told_the_task_and_the_code_and_not_the_evaluation(tmp_path: Path) -> None:
    environment = line_env(tmp_path, {"rules.txt": "fair play"}, protect=["rules.txt"])
    told = environment.context()
    for part in (
        "Fit a straight line",
        "LEARNING_RATE = 0.01",
        "lower is better",
        "Protected: rules.txt",
        "60 seconds",
    ):
        assert part in told
    assert "unseen = " not in told
    assert environment.protected("rules.txt") and not environment.protected("train.py")


def test_its_hash_knows_what_decides_a_score(tmp_path: Path) -> None:
    first = line_env(tmp_path / "a").fingerprint
    assert line_env(tmp_path / "b").fingerprint == first, "not the place"
    assert line_env(tmp_path / "c", {"train.py": "LEARNING_RATE = 1\nSTEPS = 2"}).fingerprint != first
    assert line_env(tmp_path / "d", evaluate="print()").fingerprint != first
    assert line_env(tmp_path / "e", limits={"seconds": 5}).fingerprint != first
    data = tmp_path / "data.txt"
    found = []
    for number, text in enumerate(("x", "y")):
        data.write_text(text)
        found.append(line_env(tmp_path / f"f{number}", data={"data.txt": str(data)}).fingerprint)
    assert found[0] != found[1]


def test_a_setting_changes_what_it_names(tmp_path: Path) -> None:
    line_env(
        tmp_path, variables={"SIZE": "small", "KEEP": 1},
        settings={"larger": {"variables": {"SIZE": "large"}, "limits": {"seconds": 300}, "resources": {"cpus": 2}}},
    )  # fmt: skip
    plain, larger = load(tmp_path), load(tmp_path, "larger")
    assert larger.file.variables == {"SIZE": "large", "KEEP": "1"}
    assert (larger.file.limits.seconds, larger.file.limits.memory_gb) == (300, plain.file.limits.memory_gb)
    assert larger.file.resources.cpus == 2 and plain.fingerprint != larger.fingerprint
    with pytest.raises(UsageError, match=r"there is no setting 'larg'; did you mean 'larger'?"):
        load(tmp_path, "larg")


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"metric": None}, "metric"),
        ({"metric": {"name": "x", "direction": "up"}}, "metric.direction: input should be 'higher' or 'lower'"),
        ({"run": None}, "run"),
        ({"limit": {}}, "unknown option 'limit'; did you mean 'limits'?"),
        ({"limits": {"seconds": -1}}, "limits.seconds"),
        ({"settings": {"x": {"limits": {"second": 1}}}}, "settings"),
        ({"data": {"x": "nowhere.txt"}}, "data: x: there is no file"),
        ({"data": {"../x": "env.yaml"}}, "must be a path inside the copy"),
        ({"parameters": {"RATE": {"file": "train.py", "choices": [1]}}}, "train.py has no line 'RATE = value'"),
        ({"parameters": {"STEPS": {"file": "trane.py", "choices": [1]}}}, "did you mean 'train.py'?"),
        ({"parameters": {"STEPS": {"file": "train.py"}}}, "give 'low' and 'high' (low < high), or 'choices'"),
        ({"parameters": {"STEPS": {"file": "train.py", "low": 0, "high": 1, "log": True}}}, "needs a 'low' above 0"),
        ({"parameters": {"points": {"file": "train.py", "choices": [1]}}}, "it is no literal value"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(tmp_path: Path, fields: dict[str, Any], line: str) -> None:
    with pytest.raises(UsageError, match=re.escape(line)) as error:
        line_env(tmp_path, **fields)
        load(tmp_path, "x")
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_what_is_no_environment_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is no environment: there is no env.yaml"):
        load(tmp_path)
    (tmp_path / "env.yaml").write_text("a: [")
    with pytest.raises(UsageError, match=r"env.yaml: .*expected") as error:
        load(tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match=r"is not empty; give the new environment a folder of its own"):
        new_env(tmp_path)
    (tmp_path / "env.yaml").unlink()
    new_env(tmp_path)
    (tmp_path / "code" / "picture.png").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"code/picture.png is not text"):
        load(tmp_path)


LITERALS = st.one_of(
    st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.none(), st.text(max_size=8),
    st.lists(st.integers(), max_size=3),
)  # fmt: skip


@given(
    LITERALS, LITERALS, st.sampled_from(["", "  # why: é", " ; OTHER = 3", "\r"]),
    st.sampled_from(["", '"""Doc.\n\nX = 1\n"""\n', "if True:\n    X = 5\n", "é = '\x0c'\n"]),
)  # fmt: skip
def test_a_value_is_changed_in_its_place(old: Any, new: Any, after: str, before: str) -> None:
    text = f"{before}X = {old!r}{after}\nY = X  # X = 3\n"
    code = {"train.py": text, "other.py": "X = 1\n"}
    changed = with_parameter(code, "X", ANY, new)
    assert read_parameter(changed, "X", ANY) == new and read_parameter(code, "X", ANY) == old
    assert changed["train.py"] == f"{before}X = {new!r}{after}\nY = X  # X = 3\n"
    assert changed["other.py"] == code["other.py"]


@given(LITERALS, LITERALS)
def test_a_value_of_a_yaml_file_too(old: Any, new: Any) -> None:
    inner = Parameter(file="plan.yaml", choices=(1, 2))
    value = {"mix": {"share": old, "tokens": 5}, "seed": 0}
    code = {"plan.yaml": yaml.safe_dump(value)}
    changed = with_parameter(code, "mix.share", inner, new)
    assert yaml.safe_load(changed["plan.yaml"]) == {"mix": {"share": new, "tokens": 5}, "seed": 0}
    with pytest.raises(UsageError, match=r"plan.yaml has no 'part'"):
        read_parameter(code, "mix.part", inner)


def test_a_yaml_file_keeps_its_comments() -> None:
    text = "# all\nmix:  # in parts\n  share: 0.5  # of the texts\n  styles:\n  - easy\n  - hard\n# the end\nseed: 0\n"
    code = {"plan.yaml": text}
    inner = Parameter(file="plan.yaml", choices=(1, 2))
    assert with_parameter(code, "mix.share", inner, 2)["plan.yaml"] == text.replace("0.5", "2")
    changed = with_parameter(code, "mix.styles", inner, ("easy",))["plan.yaml"]
    assert changed == text.replace("styles:\n  - easy\n  - hard\n", "styles: [easy]\n")
