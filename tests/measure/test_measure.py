"""`leaven measure` and the measure stage: what is drawn, written, skipped, required and refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from server import Server

from leaven.document import Document, write_parquet
from leaven.errors import UsageError
from leaven.measure import parse_measures
from leaven.measure.base import Drawer, Figure
from leaven.measure.report import MEANINGS, Report, number
from leaven.measure.statistics import Interval
from leaven.run import measure

STORIES = Path(__file__).parents[2] / "examples" / "stories"


def leaven(*arguments: object) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "leaven.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr.strip()


def jsonl(path: Path, *rows: Any) -> str:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return str(path)


def figures_of(run: Path) -> list[dict[str, Any]]:
    return list(json.loads((run / "measure" / "figures.json").read_text())["figures"])


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's run up to clean."""
    folder = tmp_path_factory.mktemp("stories")
    value = yaml.safe_load((STORIES / "plan.yaml").read_text())
    for section in ("measure", "mix", "train", "evaluate"):
        del value[section]
    for section, name in (("documents", "path"), ("model", "path")):
        value[section][name] = str(STORIES / value[section][name])
    value["generate"][-1]["entigraph"]["groups"] = str(STORIES / "groups.jsonl")
    (folder / "plan.yaml").write_text(yaml.safe_dump(value))
    assert leaven("run", folder / "plan.yaml")[0] == 0
    return folder / "runs" / "stories"


def test_a_run_is_measured_by_method_beside_its_sources(run_folder: Path) -> None:
    code, out, errors = leaven("measure", run_folder, "--figure", "lexical")
    assert (code, errors) == (0, "")
    assert {one["name"] for one in figures_of(run_folder)} <= set(MEANINGS)
    for name in ("all", "entigraph", "mga", "rephrase", "source", "ngram_diversity", "ngram_overlap_8"):
        assert name in out
    found = json.loads((run_folder / "measure" / "figures.json").read_text())
    columns = {one["name"]: one for one in found["columns"]}
    assert columns["all"]["documents"] == sum(
        columns[name]["documents"] for name in ("entigraph", "mga", "rephrase")
    )
    assert columns["source"]["documents"] == 8 and columns["mga"]["part_of"] == "all"
    overlap = next(f for f in found["figures"] if (f["name"], f["column"]) == ("ngram_overlap_4", "all"))
    assert overlap["low"] < overlap["value"] < overlap["high"] and overlap["units"] == 8
    table = (run_folder / "measure" / "figures.md").read_text()
    assert "| ngram_overlap_4 ↓ |" in table and "seed 0" in table
    manifest = json.loads((run_folder / "measure" / "manifest.json").read_text())
    assert manifest["counts"]["measured"] == columns["all"]["documents"]


def test_the_same_is_not_measured_twice_and_another_seed_is(run_folder: Path, tmp_path: Path) -> None:
    def stamp() -> float:
        return (tmp_path / "m" / "figures.json").stat().st_mtime_ns

    arguments = {"corpus": str(run_folder), "out": tmp_path / "m", "figures": ["lexical"]}
    _, first = measure(**arguments)
    before = stamp()
    _, again = measure(**arguments)
    assert stamp() == before and [f.value for f in again.figures] == [f.value for f in first.figures]
    measure(**arguments, seed=1)
    assert stamp() != before


def test_a_report_is_read_back_as_it_was_written(run_folder: Path, tmp_path: Path) -> None:
    _, report = measure(
        str(run_folder), tmp_path / "m", figures=["lexical"], require={"duplicate_rate": {"max": 0}}
    )
    assert Report.from_json(json.loads(json.dumps(report.to_json()))).to_json() == report.to_json()


def test_another_corpus_is_held_against_it_paired_by_source(run_folder: Path, tmp_path: Path) -> None:
    generate = run_folder / "generate"
    _, report = measure(
        str(generate / "rephrase"), tmp_path / "m", figures=["lexical"], against=str(generate / "entigraph")
    )
    found = {one.name: one for one in report.differences}
    assert found["ngram_overlap_8"].paired and not found["ngram_diversity"].paired
    ours, theirs = (
        next(f.value for f in report.figures if (f.name, f.column) == ("ngram_overlap_8", column))
        for column in ("all", "against")
    )
    assert found["ngram_overlap_8"].value == pytest.approx(ours - theirs)
    assert found["ngram_overlap_8"].interval and found["ngram_overlap_8"].interval.low > 0
    assert "paired by source" in (tmp_path / "m" / "figures.md").read_text()
    assert list(report.columns) == ["all", "against", "source"]


def test_files_of_any_kind_are_measured_with_their_sources(tmp_path: Path) -> None:
    sources = jsonl(tmp_path / "s.jsonl", {"id": "a", "text": "One two three four five."})
    corpus = jsonl(
        tmp_path / "c.jsonl",
        {"id": "1", "text": "One two three and four.", "sources": ["a"]},
        {"id": "2", "text": "Nothing alike here.", "sources": ["gone"]},
    )
    code, out, errors = leaven("measure", corpus, "--source", sources, "--figure", "lexical")
    assert (code, errors) == (0, "") and "1 of 2 rows name no known source" in out
    found = json.loads((tmp_path / "c.measure" / "figures.json").read_text())
    overlap = next(f for f in found["figures"] if f["name"] == "ngram_overlap_2")
    assert overlap["value"] == pytest.approx(100 * 2 / 5) and overlap["n"] == 1


def test_bounds_that_are_missed_end_with_one(run_folder: Path, tmp_path: Path) -> None:
    arguments = ["measure", run_folder, "--figure", "lexical", "--out", tmp_path / "m"]
    code, out, _ = leaven(*arguments, "--require", "ngram_overlap_8: {max: 0.1}")
    assert code == 1 and "FAIL  ngram_overlap_8" in out and "must be at most 0.1" in out
    code, out, _ = leaven(*arguments, "--require", "ngram_overlap_8: {max: 20}")
    assert code == 0 and "pass  ngram_overlap_8" in out
    code, out, _ = leaven(*arguments, "--require", "heterogeneity: {min: 0}")
    assert code == 1 and "FAIL  heterogeneity is -" in out, "what was not measured is not met"
    code, _, errors = leaven(*arguments, "--require", "heterogenity: {min: 0}")
    assert code == 2 and "no figure 'heterogenity'; did you mean 'heterogeneity'" in errors


def test_a_plans_bounds_end_the_run_with_one(run_folder: Path) -> None:
    plan = run_folder.parents[1] / "plan.yaml"
    value = yaml.safe_load(plan.read_text())
    value["measure"] = {"figures": ["lexical"], "require": {"compression_ratio": {"max": 1.5}}}
    other = plan.with_name("strict.yaml")
    other.write_text(yaml.safe_dump(value))
    code, out, errors = leaven("run", other)
    assert code == 1 and "compression_ratio is out of the bounds that the plan requires" in errors
    assert "FAIL  compression_ratio" in out and "compression_ratio" in leaven("show", run_folder)[1]
    code, _, _ = leaven("run", other)
    assert code == 1, "a second run finds it done and misses the bound all the same"


@pytest.mark.parametrize(
    ("rows", "arguments", "said"),
    [
        ([], [], "holds no usable document"),
        (["{broken"], [], "holds no usable document (broken json"),
        (["{broken", {"id": "1", "text": "A text."}], [], "1 rows are no documents, the first: broken json"),
        (
            [{"id": "1", "text": "A text."}],
            ["--figure", "lexicl"],
            "unknown measure 'lexicl'; did you mean 'lexical'",
        ),
        ([{"id": "1", "text": "A text."}], ["--figure", "lexical: {jacard: 1}"], "did you mean 'jaccard'"),
        ([{"id": "1", "text": "A text."}], ["--figure", "judges"], "name one under 'model'"),
        ([{"id": "1", "text": "A text."}], ["--require", "duplicate_rate"], "--require"),
        (
            [{"id": "1", "text": "A text."}],
            ["--by", "style", "--figure", "lexical"],
            "--by style: no row has it",
        ),
        ([{"id": "1", "text": "A text."}], ["--source", "nowhere.jsonl"], "nowhere.jsonl"),
        ([{"id": "1", "text": "A text."}], ["--against", "nowhere"], "nowhere"),
        ([{"id": "1", "text": "A text."}], ["--source", "SELF"], "names a source that is among"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, rows: list[Any], arguments: list[str], said: str) -> None:
    corpus = jsonl(tmp_path / "c.jsonl", *rows)
    chosen = [corpus if one == "SELF" else one for one in arguments]
    code, _, errors = leaven("measure", corpus, *chosen)
    assert code == 2 and said in errors and len(errors.splitlines()) == 1, errors


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_bytes(b'{"id": "1", "text": "caf\xe9"}\n')
    code, _, errors = leaven("measure", tmp_path / "c.jsonl")
    assert code == 2 and "c.jsonl:1" in errors and "UTF-8" in errors


def test_one_document_is_measured_without_intervals(tmp_path: Path) -> None:
    corpus = jsonl(
        tmp_path / "c.jsonl", {"id": "1", "text": "Just one text, and nothing to compare it with."}
    )
    code, out, _ = leaven("measure", corpus, "--figure", "lexical")
    assert code == 0 and "ngram_diversity" in out and "no sources" in out


def test_missing_extras_are_named(tmp_path: Path) -> None:
    corpus = jsonl(tmp_path / "c.jsonl", {"id": "1", "text": "One."}, {"id": "2", "text": "Two."})
    hide = "import sys; sys.modules['sentence_transformers'] = None; "
    script = hide + "sys.argv = ['leaven', 'measure', sys.argv[1]]; from leaven.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", script, corpus], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "pip install 'leaven[embed]'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_sample_is_the_same_whatever_order_rows_come_in() -> None:
    rows = [Document(text=f"Text {i}.", id=str(i)) for i in range(100)]

    def drawn(order: list[Document], seed: int = 0, most: int = 10) -> list[str]:
        drawer = Drawer(most, seed)
        for row in order:
            drawer.add(row)
        assert drawer.sample("x").population == 100
        return [row.id for row in drawer.sample("x").documents]

    assert drawn(rows) == drawn(rows[::-1]) != drawn(rows, seed=1)
    assert drawn(rows, most=20)[:10] == drawn(rows), "a larger sample begins with the smaller"


def test_rows_of_one_stage_larger_than_the_sample_are_drawn(tmp_path: Path) -> None:
    from leaven.stage import Stage

    stage = Stage(tmp_path / "stage", {}, {})
    stage.prepare()
    rows = [Document(text=f"Text {i} of many.", id=str(i), metadata={}) for i in range(50)]
    stage.write(0, rows, [], read=50)
    stage.finish()
    _, report = measure(str(tmp_path / "stage"), tmp_path / "m", figures=["lexical"], sample=20)
    assert report.columns["all"] == (20, 50, None)
    assert "all 20 of 50" in (tmp_path / "m" / "figures.md").read_text()


def test_numbers_show_the_digits_that_count() -> None:
    shown = [number(value) for value in (0.12345, 1.2, 12.347, 123.46, 12345.6, 40.0, float("nan"))]
    assert shown == ["0.123", "1.200", "12.35", "123.5", "12,346", "40", "-"]


def test_measures_are_named_once() -> None:
    with pytest.raises(UsageError, match="listed twice"):
        parse_measures(["lexical", {"lexical": {}}])


def test_a_figure_keeps_its_interval_through_json() -> None:
    one = Figure(
        "x", "all", 0.5, Interval(0.4, 0.6, "jackknife", 8), 10, "source", "lower", True, "note", {"a": 1}
    )
    assert Figure.from_json(json.loads(json.dumps(one.to_json()))) == one


def test_an_unfinished_stage_is_not_measured(tmp_path: Path) -> None:
    (tmp_path / "stage" / "parts").mkdir(parents=True)
    write_parquet(tmp_path / "stage" / "data" / "0.parquet", [Document(text="t", id="1", metadata={})])
    with pytest.raises(UsageError, match="unfinished stage"):
        measure(str(tmp_path / "stage"), figures=["lexical"])


def test_judges_of_a_plan_ask_a_real_server_once_and_are_compared_with_people(
    server: Server, tmp_path: Path
) -> None:
    value = {
        "name": "judged", "documents": {"path": str(STORIES / "documents.jsonl")},
        "model": {"backend": "openai", "name": "m", "url": server.url}, "generate": [{"mga": {"pairs": 2}}],
        "measure": {"figures": [{"judges": {"ask": ["consistency", "pairwise", "copying"], "sample": 6}}]},
    }  # fmt: skip
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(value))
    code, out, _ = leaven("plan", tmp_path / "plan.yaml")
    assert code == 0 and server.stats().get("requests", 0) == 0
    rows = [line.split() for line in out.splitlines() if re.match(r" \w+/\w+ ", line)]
    planned = {row[0]: int(row[2]) for row in rows}
    code, out, errors = leaven("run", tmp_path / "plan.yaml")
    assert code == 0, errors
    assert "consistency_score" in out and "pairwise_position_bias" in out and "pair_copying" in out
    asked = server.stats()["requests"]
    # 8 x (pairs, 2 texts, 2 judgements), then 6 x (2 orders, copying); consistency was judged already.
    assert asked == 8 * 5 + 6 * 3 == sum(planned.values())
    assert planned["judges/pairwise"] == 12 and "judges/consistency" not in planned
    folder = tmp_path / "runs" / "judged"
    ledger = json.loads((folder / "ledger.json").read_text())
    assert ledger["steps"]["judges/pairwise"]["answers"] == 12
    again = tmp_path / "again"
    plan = folder / "plan.json"
    assert plan.exists() and leaven("run", tmp_path / "plan.yaml")[0] == 0
    assert server.stats()["requests"] == asked
    code, out, _ = leaven("agree", folder / "measure", again, "--template", 4, "--corpus", folder)
    assert code == 0 and "12 lines to label" in out
    rows = [json.loads(line) for line in again.read_text().splitlines()]
    assert all(row["text"] for row in rows)
    labelled = [row | {"label": True} for row in rows if row["judge"] == "copying"]
    again.write_text("\n".join(map(json.dumps, labelled)))
    code, out, _ = leaven("agree", folder / "measure", again)
    assert code == 0 and "copying" in out and "kappa" in out
    assert leaven("agree", folder / "measure", again, "--template", 4)[0] == 2, "labels are never overwritten"


def test_perplexity_by_a_model_of_its_own_needs_no_other(server: Server, tmp_path: Path) -> None:
    corpus = jsonl(tmp_path / "c.jsonl", {"id": "1", "text": "One text."}, {"id": "2", "text": "Two texts."})
    scorer = {"backend": "openai", "name": "base", "url": server.url, "api": "completions"}
    _, report = measure(corpus, tmp_path / "m", figures=[{"perplexity": {"model": scorer}}])
    assert [one.name for one in report.figures] == ["perplexity", "bits_per_byte"]
    before = server.stats()["requests"]
    measure(corpus, tmp_path / "m", figures=[{"perplexity": {"model": scorer | {"extra": {"seed": 1}}}}])
    assert server.stats()["requests"] == before + 2, "another model is measured anew"


def test_two_shares_of_none_may_still_differ(run_folder: Path, tmp_path: Path) -> None:
    generate = run_folder / "generate"
    _, report = measure(
        str(generate / "rephrase"), tmp_path / "m", figures=["lexical"], against=str(generate / "mga")
    )
    (found,) = [one for one in report.differences if one.name == "duplicate_rate"]
    assert found.value == 0 and found.interval and found.interval.low < -0.1 and found.interval.high > 0.1
