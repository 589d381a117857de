"""From documents and one word to models that were compared: everything adds up, and kills change nothing."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from leaven.document import Document
from leaven.errors import UsageError
from leaven.evaluate import read_results
from leaven.lm.transformers import weights_hash
from leaven.plan import load_plan, resolve
from leaven.run import run
from leaven.stage import read_manifest, read_stage

pytestmark = pytest.mark.torch
STORIES = Path(__file__).parents[2] / "examples" / "stories"
TINY = {"hidden": 32, "inner": 64, "layers": 2, "heads": 2, "tied": True}
NO_BAR = {"relevance": 0, "novelty": 0, "non_repetition": 0}
WRITER = {"pretrain": {"shape": TINY, "save_every": 5}, "tune": {"save_every": 5}, "epochs": 3}


def plan_of(folder: Path, **sections: Any) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    return {
        "name": "own", "out": folder / "run", "answers": folder / "answers", "embeddings": folder / "embeddings",
        "documents": {"path": str(STORIES / "documents.jsonl")}, "tokenizer": 1024, "chunk_tokens": 64,
        "writer": WRITER,
    } | sections  # fmt: skip


SBP = {"samples": 3, "keep_cut": True, "mideval": {"sample": 16, **NO_BAR}}


@pytest.fixture(scope="module")
def sbp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole `method: sbp`, made small by what its plan does say."""
    folder = tmp_path_factory.mktemp("sbp")
    value = plan_of(folder, generate=[{"sbp": SBP}], hold_out=0.2, clean=["near_duplicates"])
    run(resolve(value, Path()))
    return folder / "run"


def rows(folder: Path, kind: str = "data") -> list[Document]:
    return list(read_stage(folder, kind))


def test_every_row_knows_which_model_wrote_it_from_what(sbp: Path) -> None:
    synthesizer = weights_hash(sbp / "writer" / "sbp" / "tune" / "model")
    corpus = {row.id: row for row in rows(sbp / "corpus")}
    written = rows(sbp / "generate" / "sbp") + rows(sbp / "generate" / "sbp", "rejected")
    assert len(written) == 3 * len(corpus)
    for row in written:
        assert row.metadata["model"] == f"sbp {synthesizer[:12]}" and row.metadata["request"]
        assert row.metadata["sources"][0] in corpus
    tuned = read_manifest(sbp / "writer" / "sbp" / "tune")
    base = sbp / "writer" / "base" / "train" / "model"
    assert tuned is not None and tuned["inputs"]["checkpoint"] == weights_hash(base)


def test_nothing_is_written_from_held_out_documents_nor_trained_on(sbp: Path) -> None:
    held = {row.metadata.get("parent", row.id) for row in rows(sbp / "held_out")}
    used = {row.metadata.get("parent", row.id) for row in rows(sbp / "corpus")}
    assert len(held) == 2 and len(used) == 6 and not held & used
    manifest = read_manifest(sbp / "writer" / "base" / "train")
    assert manifest is not None and manifest["validation_loss"] > 0, (
        "held out, and looked at while pretraining"
    )


def test_pairs_are_kept_with_what_guides_the_threshold(sbp: Path) -> None:
    import pyarrow.parquet as pq

    manifest = read_manifest(sbp / "writer" / "sbp" / "pairs")
    table = pq.read_table(sbp / "writer" / "sbp" / "pairs" / "pairs.parquet").to_pylist()
    assert manifest is not None and manifest["counts"]["read"] == sum(
        manifest["counts"][name] for name in ("kept", "rejected")
    )
    assert manifest["tuned_on"] == len(table) == manifest["counts"]["kept"]
    assert manifest["pairing"]["threshold"] == -1, (
        "no two paragraphs of these stories are alike enough for 0.75"
    )
    assert manifest["counts"]["read"] == 2 * len(rows(sbp / "corpus")), "the two nearest of every document"
    assert sum(one["pairs"] for one in manifest["guide"]) > len(table)


def test_a_second_run_does_nothing(sbp: Path) -> None:
    before = {
        path: path.stat().st_mtime_ns
        for path in sbp.rglob("*")
        if path.name in ("manifest.json", "log.jsonl")
    }
    value = plan_of(sbp.parent, generate=[{"sbp": SBP}], hold_out=0.2, clean=["near_duplicates"])
    result = run(resolve(value, Path()))
    assert result.manifests["generate/sbp"]["requests"] == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_random_pairs_share_the_base_and_are_as_many(sbp: Path) -> None:
    value = plan_of(
        sbp.parent, hold_out=0.2, generate=[{"sbp": SBP}, {"sbp": SBP | {"name": "random", "random": True}}]
    )
    run(resolve(value, Path()), to="generate")
    pairs = {name: read_manifest(sbp / "writer" / name / "pairs") for name in ("sbp", "random")}
    assert pairs["random"]["tuned_on"] == pairs["sbp"]["tuned_on"]  # type: ignore[index]
    assert pairs["random"]["similarity"] < pairs["sbp"]["similarity"] - 0.1  # type: ignore[index]
    assert weights_hash(sbp / "writer" / "random" / "tune" / "model") != weights_hash(
        sbp / "writer" / "sbp" / "tune" / "model"
    )


@pytest.fixture(scope="module")
def rounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rounds")
    stages = [
        {"self_train": {"rounds": 2, "prefix": 3, "tokens": 2000}},
        {"self_train": {"name": "low", "prefix": 0, "tokens": 2000, "tier": "low"}},
    ]
    value = plan_of(folder, generate=stages, hold_out=0.2) | {
        "evaluate": {
            "baseline": "base",
            "sets": {
                "held": {"kind": "text", "stage": "held_out"},
                "own": {"kind": "text", "stage": "corpus"},
            },
        }
    }
    run(resolve(value, Path()))
    return folder / "run"


def test_rounds_go_on_from_one_another_on_equal_tokens(rounds: Path) -> None:
    def trained(*parts: str) -> dict[str, Any]:
        found = read_manifest(rounds.joinpath("writer", *parts, "train"))
        assert found is not None
        return found

    one, two, real = (
        trained(*p) for p in (("self_train", "round-1"), ("self_train", "round-2"), ("real-2000", "round-1"))
    )
    base = weights_hash(rounds / "writer" / "base" / "train" / "model")
    assert one["inputs"]["checkpoint"] == real["inputs"]["checkpoint"] == base
    first = rounds / "writer" / "self_train" / "round-1" / "train" / "model"
    assert two["inputs"]["checkpoint"] == weights_hash(first)
    assert one["counts"] == two["counts"] == real["counts"], "the control sees as many tokens"
    by_round: dict[int, list[Document]] = {1: [], 2: []}
    for row in rows(rounds / "generate" / "self_train"):
        by_round[row.metadata["variables"]["round"]].append(row)
    assert {row.metadata["model"] for row in by_round[1]} == {f"self_train round 0 {base[:12]}"}
    assert {row.metadata["model"] for row in by_round[2]} == {
        f"self_train round 1 {weights_hash(first)[:12]}"
    }
    for some in by_round.values():
        written = [row.metadata["written"] for row in some]
        assert sum(written) >= 2000 > sum(written[:-1])


def test_a_text_begins_with_tokens_of_its_source(rounds: Path) -> None:
    corpus = {row.id: row.text for row in rows(rounds / "corpus")}
    for row in rows(rounds / "generate" / "self_train"):
        (source,) = row.metadata["sources"]
        beginning = next(n for n in range(40, 0, -1) if row.text[:n] in corpus[source])
        assert beginning >= 3, "three tokens are three characters at least"
    assert {len(row.metadata["sources"]) for row in rows(rounds / "generate" / "low")} == {1}


def test_the_low_tier_is_the_likeliest_third(rounds: Path) -> None:
    kept = rows(rounds / "generate" / "low")
    others = [
        row
        for row in rows(rounds / "generate" / "low", "rejected")
        if row.metadata["reason"] == "perplexity tier"
    ]
    assert max(row.metadata["perplexity"] for row in kept) <= min(
        row.metadata["perplexity"] for row in others
    )
    tokens = [sum(row.metadata["written"] for row in some) for some in (kept, others)]
    assert 2000 <= tokens[0] <= 2000 + 300 and sum(tokens) >= 6000


def test_rounds_and_their_control_are_evaluated_beside_the_base(rounds: Path) -> None:
    results = read_results(rounds / "evaluate")
    arms = {one.arm for one in results}
    assert arms == {"base", "self_train-1", "self_train-2", "low-1", "real-1", "real-2"}
    assert {one.set for one in results} == {"held", "own"}
    assert all(one.apart is not None for one in results if one.arm != "base" and one.figure == "loss")


def test_one_word_is_a_whole_experiment(tmp_path: Path) -> None:
    """`method: sbp`: all that is written and trained on is chosen; what the plan says itself stands."""
    value = plan_of(tmp_path, method="sbp", train={"shape": TINY, "seeds": [3]}, hold_out=0.2)
    value |= {"writer": WRITER | {"epochs": 1}, "generate": [{"sbp": SBP}]}
    result = run(resolve(value, Path()))
    completed = json.loads((tmp_path / "run" / "completed.json").read_text())
    assert completed["hold_out"] == 0.2 and completed["train"]["seeds"] == [3]
    arms = read_manifest(tmp_path / "run" / "mix")["arms"]  # type: ignore[index]
    (real,) = arms["repeat"]["sources"]
    mixed = {one["source"]: one for one in arms["sbp"]["sources"]}
    assert real["tokens"] == sum(one["tokens"] for one in mixed.values()) and real["epochs"] > 4.4
    assert mixed["synthetic"]["epochs"] <= 1, "what was written is never repeated"
    assert {one.arm for one in read_results(tmp_path / "run" / "evaluate")} == {"repeat", "sbp"}
    assert result.manifests["clean"]["counts"]["tokens"] >= mixed["synthetic"]["tokens"]


def test_a_synthesizer_that_misses_a_bar_writes_nothing_more(tmp_path: Path) -> None:
    stage = {"sbp": SBP | {"mideval": NO_BAR | {"sample": 16, "relevance": 0.99}}}
    line = r"mideval: relevance of the sample is 0\.\d\d, below 0\.99; tune longer"
    with pytest.raises(UsageError, match=line):
        run(resolve(plan_of(tmp_path, generate=[stage]), Path()))
    figures = json.loads((tmp_path / "run" / "writer" / "sbp" / "mideval" / "figures.json").read_text())
    assert figures["relevance"] < 0.99 and figures["texts"] <= 16 * 3
    assert not (tmp_path / "run" / "generate").exists(), "before the large run"


def test_self_training_is_one_word_too(tmp_path: Path) -> None:
    value = plan_of(tmp_path, method="self_train", hold_out=0.2)
    del value["chunk_tokens"]
    result = run(resolve(value, Path()))
    assert {"corpus", "generate/self_train", "evaluate"} <= set(result.manifests)
    assert {one.arm for one in read_results(tmp_path / "run" / "evaluate")} >= {
        "base",
        "self_train-3",
        "real-3",
    }
    completed = json.loads((tmp_path / "run" / "completed.json").read_text())
    assert completed["generate"] == [{"self_train": {"rounds": 3}}] and completed["hold_out"] == 0.2


STEPS = (
    "embeddings/*",
    "run/writer/sbp/pairs/manifest.json",
    "run/writer/base/train/checkpoints/*/trainer_state.json",
    "run/writer/sbp/tune/checkpoints/*/trainer_state.json",
    "run/writer/sbp/mideval/parts/fingerprint",
    "run/generate/sbp/parts/fingerprint",
    "run/writer/self_train/round-1/train/checkpoints/*/trainer_state.json",
    "run/generate/self_train/parts/00000.json",
    "run/writer/real-2000/round-1/train/checkpoints/*/trainer_state.json",
    "run/writer/self_train/round-2/train/checkpoints/*/trainer_state.json",
)


def facts(folder: Path) -> Iterator[tuple[str, Any]]:
    for name in ("sbp", "self_train"):
        for kind in ("data", "rejected"):
            yield (
                f"{name} {kind}",
                [(row.id, row.text, row.metadata) for row in rows(folder / "generate" / name, kind)],
            )
    for path in sorted(folder.rglob("model.safetensors")):
        if "checkpoints" not in path.parts:
            yield str(path.relative_to(folder)), weights_hash(path.parent)


@pytest.mark.slow  # a dozen starts of a program that loads torch
def test_a_kill_in_every_step_changes_nothing(tmp_path: Path) -> None:
    stages = [{"sbp": SBP}, {"self_train": {"rounds": 2, "prefix": 3, "tokens": 2000}}]
    writer = {**WRITER, "go_on": {"save_every": 2, "batch_size": 2}}
    places = {}
    for name in ("whole", "killed"):
        value = plan_of(tmp_path / name, generate=stages, hold_out=0.2, writer=writer)
        places[name] = tmp_path / name / "plan.yaml"
        places[name].write_text(yaml.safe_dump(json.loads(json.dumps(value, default=str))))
    run(load_plan(places["whole"]), to="generate")
    command = [sys.executable, "-m", "leaven.cli", "run", str(places["killed"]), "--to", "generate"]
    folder = tmp_path / "killed" / "run"
    killed = []
    for step in STEPS:
        if list(folder.parent.glob(step)):
            continue  # a kill came late enough to be in this step already
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while process.poll() is None and not list(folder.parent.glob(step)):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        _, error = process.communicate()
        assert process.returncode == -signal.SIGKILL, error.decode()
        killed.append(step)
    print("killed in", *killed)
    assert len(killed) >= len(STEPS) - 2, killed
    run(load_plan(places["killed"]), to="generate")
    assert dict(facts(folder)) == dict(facts(tmp_path / "whole" / "run"))


def with_texts(folder: Path, texts: list[str]) -> dict[str, str]:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "in.jsonl"
    path.write_text(
        "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts)), encoding="utf-8"
    )
    return {"path": str(path)}


@pytest.mark.parametrize(
    ("texts", "sections", "line"),
    [
        (["The only bag."], {"generate": ["sbp"]}, "pairs need at least 2 documents, the corpus has 1: add documents"),
        (["The bag."] * 5, {"generate": ["sbp"]}, "all 5 documents are the same text"),
        (
            ["The bag fell.", "Nobody paid taxes."], {"generate": [{"sbp": {"threshold": 0.95}}]},
            "no two documents are more similar than threshold 0.95: the highest similarity is",
        ),
        (["The bag."], {"method": "sbp"}, "hold_out needs at least two different documents, there are 1"),
        (
            ["A bag."] * 2 + ["No."], {"generate": [{"self_train": {"prefix": 64}}]},
            "no document has the 64 tokens of a prefix; lower 'prefix'",
        ),
    ],
)  # fmt: skip
def test_a_corpus_that_cannot_serve_is_one_line_before_anything_is_trained(
    tmp_path: Path, texts: list[str], sections: dict[str, Any], line: str
) -> None:
    value = plan_of(tmp_path, documents=with_texts(tmp_path, texts)) | sections
    with pytest.raises(UsageError, match=re.escape(line)):
        run(resolve(value, Path()))
    assert not (tmp_path / "run" / "writer" / "base").exists()


def test_a_checkpoint_must_be_in_the_corpus_s_tokens(sbp: Path, tmp_path: Path) -> None:
    base = sbp / "writer" / "base" / "train" / "model"
    value = plan_of(
        tmp_path,
        tokenizer=300,
        generate=[{"self_train": {"tokens": 500, "prefix": 8}}],
        writer={"checkpoint": base},
    )
    with pytest.raises(UsageError, match="tokenised with another tokenizer"):
        run(resolve(value, Path()))
    value = plan_of(
        tmp_path / "same", tokenizer=str(base), writer={"checkpoint": base}, hold_out=0.2,
        generate=[{"self_train": {"tokens": 500, "prefix": 8, "control": False}}],
    )  # fmt: skip
    run(resolve(value, Path()), to="generate")
    assert not (tmp_path / "same" / "run" / "writer" / "base").exists(), "nothing is pretrained"


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        ({"method": "spb"}, "method: input should be 'sbp' or 'self_train'"),
        ({"generate": ["mga"]}, "mga needs a 'model'"),
        (
            {"generate": ["sbp"], "writer": {"tune": {"epoch": 2}}},
            "writer: tune: unknown option 'epoch'; did you mean 'epochs'?",
        ),
        (
            {"generate": [{"self_train": {"model": {"backend": "replay", "path": "x"}}}]},
            "self_train: 'model': it writes with the model it trains",
        ),
        (
            {"mix": {"tokens": 99, "sources": {"h": {"stage": "held_out"}}, "arms": {"a": {"sources": {"h": 1}}}}},
            "source 'h' takes stage 'held_out'; set hold_out",
        ),
    ],
)  # fmt: skip
def test_a_plan_that_cannot_be_is_one_line(tmp_path: Path, sections: dict[str, Any], line: str) -> None:
    with pytest.raises(UsageError, match=re.escape(line)):
        resolve(plan_of(tmp_path) | sections, Path())
