"""The stage as a whole: counts that add up, order of filters, resume, skipping, errors before any writing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leaven.clean import FILTERS, _runner, clean, load_filter, parse_filters
from leaven.clean.base import Options
from leaven.document import Document
from leaven.errors import UsageError
from leaven.stage import read_manifest, read_stage, shards

DEFAULT = [
    "boilerplate", {"length": {"min_words": 30}}, "length_ratio", "repetition", "tics", "copying", "coverage",
    "near_duplicates",
]  # fmt: skip


def count_words(texts: list[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def snapshot(folder: Path) -> dict[str, Any]:
    return {
        kind: [(row.id, row.text, row.metadata) for row in read_stage(folder, kind)]
        for kind in ("data", "rejected")
    }


@pytest.fixture
def dirty(children: list[Document]) -> list[Document]:
    """The recorded answers with one planted fault of each kind at the end."""
    base = [row for row in children if row.metadata["step"] == "reformulate_base"]
    wrapped, refused, twin, again, loop = (
        Document(text=row.text, id=f"planted-{kind}", metadata=dict(row.metadata))
        for kind, row in zip(("wrapped", "refused", "twin", "again", "loop"), base, strict=False)
    )
    words = wrapped.text.split()
    wrapped.text = (
        "Sure! Here is the rewritten text:\n\n" + " ".join(reversed(words)) + "\n\nI hope this helps!"
    )
    refused.text = "I'm sorry, but I can't help with that request."
    twin.text = "Sure! Here is the rewritten text:\n\n" + twin.text.replace(" the ", " that ", 2)
    again.text = again.text.replace(" a ", " one ", 1)
    loop.text += " and so the rock went round and round the sun until it came back" * 3
    return [*children, wrapped, refused, twin, again, loop]


def test_recorded_answers_mostly_pass_and_planted_faults_do_not(
    stories: Path, written: Callable[..., Path], dirty: list[Document], tmp_path: Path
) -> None:
    folder = written(dirty, pieces=3)
    seen: list[tuple[int, int]] = []
    out = tmp_path / "out"
    manifest = clean(
        [folder],
        stories,
        out,
        parse_filters(DEFAULT),
        count_words,
        lambda done, total: seen.append((done, total)),
    )
    counts, kept, rejected = manifest["counts"], list(read_stage(out)), list(read_stage(out, "rejected"))
    assert counts["read"] == len(dirty) == counts["kept"] + counts["rejected"]
    assert (counts["kept"], counts["rejected"]) == (len(kept), len(rejected))
    assert sorted(row.id for row in dirty) == sorted(row.id for row in [*kept, *rejected])
    assert [len(list((out / "data").glob("*"))), len(shards(folder))] == [3, 3]
    why = {row.id: row.metadata["reason"] for row in rejected}
    assert {kind: why.get(f"planted-{kind}") for kind in ("wrapped", "refused", "twin", "again", "loop")} == {
        "wrapped": None,
        "refused": "boilerplate",
        "twin": "near_duplicates",
        "again": "near_duplicates",
        "loop": "repetition",
    }
    assert manifest["reasons"] == dict(Counter(why.values()).most_common())
    original = [row for row in dirty if not row.id.startswith("planted")]
    steps = Counter(row.metadata["step"] for row in original if row.id in why)
    assert set(steps) <= {"reformulate_strict", "reformulate_relaxed"}
    assert steps["reformulate_relaxed"] > 8 > steps["reformulate_strict"] > 2
    assert all(row.metadata["detail"] for row in rejected)
    assert seen[-1][0] == seen[-1][1] and [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert manifest["filters"]["near_duplicates"]["rejected"] == 2


def test_every_decision_is_on_the_row(
    stories: Path, written: Callable[..., Path], dirty: list[Document], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    clean([written(dirty)], stories, out, parse_filters(DEFAULT), count_words)
    names = [item if isinstance(item, str) else next(iter(item)) for item in DEFAULT]
    for row in read_stage(out):
        assert set(row.metadata["checks"]) == set(names)
        assert all(check["keep"] for check in row.metadata["checks"].values())
    for row in read_stage(out, "rejected"):
        checks, reason = row.metadata["checks"], row.metadata["reason"]
        assert set(checks) == set(names[: names.index(reason) + 1]), "the first rejection ends the checks"
        assert [name for name, check in checks.items() if not check["keep"]] == [reason]


def test_edited_rows_are_counted_anew(
    stories: Path, written: Callable[..., Path], dirty: list[Document], tmp_path: Path
) -> None:
    folder = written(dirty)
    manifest = clean([folder], stories, tmp_path / "out", parse_filters(["boilerplate"]), count_words)
    assert manifest["counts"]["edited"] == 2
    rows = {row.id: row for row in read_stage(tmp_path / "out")}
    wrapped = rows["planted-wrapped"]
    assert wrapped.metadata["tokens"] == len(wrapped.text.split()) and "Sure" not in wrapped.text
    assert rows["planted-again"].metadata["tokens"] == 1, "untouched rows keep their count"
    assert manifest["counts"]["tokens"] == sum(row.metadata["tokens"] for row in rows.values())
    clean([folder], stories, tmp_path / "uncounted", parse_filters(["boilerplate"]))
    uncounted = {row.id: row for row in read_stage(tmp_path / "uncounted")}
    assert "tokens" not in uncounted["planted-wrapped"].metadata


def test_a_filter_over_all_rows_sees_what_earlier_filters_left(
    stories: Path, written: Callable[..., Path], children: list[Document], tmp_path: Path
) -> None:
    first = children[0]
    looping = Document(
        text=first.text + " and on and on and on" * 20, id="loop", metadata=dict(first.metadata)
    )
    folder = written([looping, first], pieces=1)
    manifest = clean([folder], stories, tmp_path / "a", parse_filters(["repetition", "near_duplicates"]))
    assert manifest["reasons"] == {"repetition": 1}, "the first is gone, so the second is no duplicate"
    manifest = clean([folder], stories, tmp_path / "b", parse_filters(["near_duplicates", "repetition"]))
    assert manifest["reasons"] == {"near_duplicates": 1, "repetition": 1}
    assert next(read_stage(tmp_path / "b", "rejected")).id in ("loop", first.id)


def test_the_same_filters_are_skipped_and_others_are_not(
    stories: Path, written: Callable[..., Path], children: list[Document], tmp_path: Path
) -> None:
    folder, out = written(children), tmp_path / "out"
    evaluation = tmp_path / "questions.txt"
    evaluation.write_text("a line that no story has in it, not even one of them\n")

    def run(max_share: float = 0.1) -> tuple[dict[str, Any], int]:
        items = [{"copying": {"max_share": max_share}}, {"decontaminate": {"files": [evaluation]}}]
        manifest = clean([folder], stories, out, parse_filters(items), count_words)
        return manifest, (out / "data" / "00000.parquet").stat().st_mtime_ns

    first = run()
    assert run() == first
    assert run(0.3)[0]["reasons"] != first[0]["reasons"]
    again = run()
    assert again[0]["counts"] == first[0]["counts"] and again[1] != first[1]
    evaluation.write_text(" ".join(children[0].text.split()[:9]))
    assert run()[0]["reasons"]["decontaminate"] >= 1
    written(children[:10], version=1)
    assert run()[0]["counts"]["read"] == 10


@pytest.mark.parametrize("stop_at", [1, 2, 3, 4, 5, 6])
def test_a_killed_run_goes_on_and_gives_the_same(
    stories: Path,
    written: Callable[..., Path],
    dirty: list[Document],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_at: int,
) -> None:
    folder = written(dirty)
    items = ["boilerplate", "tics", "copying", "near_duplicates", "coverage"]
    whole = clean([folder], stories, tmp_path / "whole", parse_filters(items), count_words)
    real, calls = _runner._Work._apply, []

    def failing(*arguments: Any) -> Any:
        calls.append(arguments[1:3])
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        return real(*arguments)

    out = tmp_path / "out"
    monkeypatch.setattr(_runner._Work, "_apply", failing)
    with pytest.raises(KeyboardInterrupt):
        clean([folder], stories, out, parse_filters(items), count_words)
    assert read_manifest(out) is None
    manifest = clean([folder], stories, out, parse_filters(items), count_words)
    assert len(calls) == 7, "3 segments of 2 shards, and the one that failed"
    for name in ("counts", "reasons", "filters", "fingerprint"):
        assert manifest[name] == whole[name]
    assert snapshot(out) == snapshot(tmp_path / "whole")
    assert not [path for path in (out / "parts").iterdir() if path.is_dir()], (
        "nothing is left of the segments"
    )


def test_cleaning_what_was_cleaned_keeps_the_earlier_checks(
    stories: Path, written: Callable[..., Path], children: list[Document], tmp_path: Path
) -> None:
    clean([written(children)], stories, tmp_path / "one", parse_filters(["length"]))
    clean([tmp_path / "one"], stories, tmp_path / "two", parse_filters(["repetition"]))
    row = next(read_stage(tmp_path / "two"))
    assert set(row.metadata["checks"]) == {"length", "repetition"}


def test_only_edits_of_this_stage_lose_an_unknown_count(
    stories: Path, written: Callable[..., Path], dirty: list[Document], tmp_path: Path
) -> None:
    clean([written(dirty)], stories, tmp_path / "one", parse_filters(["boilerplate"]), count_words)
    manifest = clean([tmp_path / "one"], stories, tmp_path / "two", parse_filters(["length"]))
    assert manifest["counts"]["edited"] == 0
    assert all("tokens" in row.metadata for row in read_stage(tmp_path / "two"))


def test_no_filters_keep_everything(
    stories: Path, written: Callable[..., Path], children: list[Document], tmp_path: Path
) -> None:
    manifest = clean([written(children)], stories, tmp_path / "out", [])
    assert manifest["counts"]["kept"] == manifest["counts"]["read"] == len(children)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (["lenght"], "clean: unknown filter 'lenght'; did you mean 'length'?"),
        (
            [{"copying": {"max_shar": 1}}],
            "clean: copying: unknown option 'max_shar'; did you mean 'max_share'?",
        ),
        ([{"copying": {"max_share": 2}}], "clean: copying: max_share: "),
        ([{"length": {"min_words": 9, "max_words": 3}}], "min_words 9 is greater than max_words 3"),
        ([{"tics": {"n": 3}}], "clean: tics: n: "),
        ([{"length": 30}], "clean: length: "),
        (["copying", {"copying": {}}], "clean: copying is listed twice"),
        ([{"copying": {}, "length": {}}], "clean: an item must be a name or one 'name: options'"),
        ([3], "clean: an item must be a name or one 'name: options', not 3"),
    ],
)
def test_mistakes_in_a_plan_are_one_line(items: list[Any], message: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_filters(items)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_bad_folders_leave_an_earlier_result_alone(
    stories: Path, written: Callable[..., Path], children: list[Document], tmp_path: Path
) -> None:
    folder, out = written(children), tmp_path / "out"
    before = clean([folder], stories, out, parse_filters(["length"]))
    lost = Document(
        text=children[0].text, id="lost", metadata=children[0].metadata | {"sources": ["nowhere"]}
    )
    orphans = written([*children, lost], name="orphans")
    for inputs, message in (
        ([], "no folder of written documents"),
        ([folder, folder / "."], "given twice"),
        ([tmp_path / "none"], "not a finished Leaven folder"),
        ([orphans], "source 'nowhere' of lost in"),
    ):
        with pytest.raises(UsageError, match=message):
            clean(inputs, stories, out, parse_filters(["repetition"]))
    with pytest.raises(UsageError, match="No such file"):
        clean(
            [folder], stories, out, parse_filters([{"decontaminate": {"files": [tmp_path / "none.jsonl"]}}])
        )
    assert read_manifest(out) == before


def test_every_filter_is_documented_and_strict() -> None:
    for name in FILTERS:
        kind = load_filter(name)
        assert kind.name == name and issubclass(kind.Config, Options) and kind.__doc__
        assert not kind.Config.model_fields or kind.Config.__doc__
        for option in set(kind.Config.model_fields) - {"splitter"}:
            assert option in str(kind.Config.__doc__), f"{name}: {option}"


def test_filters_work_in_a_datatrove_pipeline(children: list[Document]) -> None:
    from datatrove.pipeline.filters import LambdaFilter

    step = LambdaFilter(parse_filters([{"length": {"min_words": 400}}])[0].filter)
    passed = list(step.run(iter(children)))
    assert 0 < len(passed) < len(children)
    assert all(len(row.text.split()) >= 400 for row in passed)


def test_import_is_light() -> None:
    code = (
        "import sys, json, leaven.clean\n"
        "leaven.clean.parse_filters(['length', 'copying', 'near_duplicates', 'gopher_quality'])\n"
        "heavy = {'torch', 'transformers', 'pyarrow', 'datasets', 'datatrove.pipeline', 'numba', 'spacy'}\n"
        "print(json.dumps(sorted(heavy & set(sys.modules))))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.returncode == 0 and json.loads(out.stdout) == [], out.stdout + out.stderr
