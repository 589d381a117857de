"""The corpus stage as a whole: counts that add up, shards, resume, nothing half-written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import leaven.corpus
from leaven.corpus import build_corpus
from leaven.corpus.read import Input
from leaven.corpus.tokens import load_tokenizer
from leaven.document import content_id
from leaven.errors import UsageError
from leaven.stage import read_stage, shards

SENTENCE = "The {} keeper climbed the tower at {} and lit the lamp. "


@pytest.fixture
def corpus(tmp_path: Path) -> Input:
    rows: list[Any] = [
        {"id": f"d{i}", "title": f"T{i}", "text": SENTENCE.format(i, i) * (i + 1)} for i in range(20)
    ]
    lines = [*map(json.dumps, rows), '{"broken', '{"id": "e", "text": ""}', '{"id": "d0", "text": "again"}']
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    return Input(path=str(tmp_path / "in.jsonl"))


def test_counts_add_up_and_rows_carry_lineage(corpus: Input, tmp_path: Path) -> None:
    manifest = build_corpus(corpus, tmp_path / "out", chunk_tokens=60)
    counts = manifest["counts"]
    rows = list(read_stage(tmp_path / "out"))
    rejects = list(read_stage(tmp_path / "out", "rejected"))
    assert (counts["documents_read"], counts["documents_kept"], counts["documents_rejected"]) == (23, 20, 3)
    assert counts["kept"] == len(rows) > 20 and counts["rejected"] == len(rejects) == 3
    assert manifest["reasons"] == {"broken json": 1, "empty text": 1, "duplicate id": 1}
    tokenizer = load_tokenizer(str(tmp_path / "out"))
    assert manifest["tokenizer"]["fingerprint"] == tokenizer.fingerprint
    assert tokenizer.count([r.text for r in rows]) == [r.metadata["tokens"] for r in rows]
    assert counts["tokens"] == sum(r.metadata["tokens"] for r in rows)
    assert max(r.metadata["tokens"] for r in rows) <= 60
    for number in range(20):
        name = f"d{number}"
        own = [r for r in rows if name in (r.id, r.metadata.get("parent"))]
        whole = SENTENCE.format(number, number) * (number + 1)
        assert " ".join(r.text for r in own).split() == whole.split()
        assert all(r.metadata["title"] == f"T{number}" and not r.metadata.get("method") for r in own)
        assert all(r.metadata["sources"] == ([] if r.id == name else [name]) for r in own)


def test_chunks_of_a_document_share_the_shard_of_its_text(corpus: Input, tmp_path: Path) -> None:
    manifest = build_corpus(corpus, tmp_path / "out", chunk_tokens=60, shards=3)
    assert manifest["shards"] == 3 and len(shards(tmp_path / "out")) == 3
    from leaven.document import read_parquet

    total = 0
    for number, path in enumerate(shards(tmp_path / "out")):
        order = []
        for row in read_parquet(path):
            i = int(row.metadata.get("parent", row.id)[1:])
            assert int(content_id(SENTENCE.format(i, i) * (i + 1)), 16) % 3 == number
            order.append((i, row.metadata.get("chunk", 0)))
            total += 1
        assert order == sorted(order), "rows of a shard are in the order of reading"
    assert total == manifest["counts"]["kept"]


def test_size_decides_the_number_of_shards(
    corpus: Input, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaven.corpus, "SHARD_BYTES", 3000)
    manifest = build_corpus(corpus, tmp_path / "out")
    assert manifest["shards"] == -(-manifest["counts"]["bytes"] // 3000) > 1
    assert manifest["counts"]["kept"] == 20


def test_same_input_is_skipped_and_a_change_is_not(corpus: Input, tmp_path: Path) -> None:
    first = build_corpus(corpus, tmp_path / "out", chunk_tokens=60)
    data = shards(tmp_path / "out")[0]
    before = data.stat().st_mtime_ns, data.read_bytes()
    assert build_corpus(corpus, tmp_path / "out", chunk_tokens=60) == first
    assert data.stat().st_mtime_ns == before[0]
    assert build_corpus(corpus, tmp_path / "again", chunk_tokens=60)["fingerprint"] == first["fingerprint"]
    assert shards(tmp_path / "again")[0].read_bytes() == before[1], "the same input gives the same bytes"
    with Path(corpus.path).open("a") as file:
        file.write('\n{"text": "One more."}')
    assert build_corpus(corpus, tmp_path / "out", chunk_tokens=60)["counts"]["documents_kept"] == 21


def test_resumes_after_a_crash_between_shards(
    corpus: Input, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = leaven.corpus._write_shard, []

    def failing(stage: Any, spill: Any, shard: int, *rest: Any) -> dict[str, Any]:
        calls.append(shard)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(stage, spill, shard, *rest)

    monkeypatch.setattr(leaven.corpus, "_write_shard", failing)
    with pytest.raises(KeyboardInterrupt):
        build_corpus(corpus, tmp_path / "out", shards=3)
    assert not (tmp_path / "out" / "manifest.json").exists()
    manifest = build_corpus(corpus, tmp_path / "out", shards=3)
    assert calls == [0, 1, 1, 2]
    assert manifest["counts"]["documents_read"] == 23


def test_bad_input_leaves_an_earlier_corpus_alone(corpus: Input, tmp_path: Path) -> None:
    build_corpus(corpus, tmp_path / "out")
    for source, arguments in (
        (Input(path=corpus.path, text="txt"), {}),
        (Input(path=str(tmp_path / "none.jsonl")), {}),
        (corpus, {"tokenizer": str(tmp_path / "none.json")}),
        (corpus, {"chunk_tokens": 0}),
        (corpus, {"tokenizer": 10}),
    ):
        with pytest.raises(UsageError):
            build_corpus(source, tmp_path / "out", **arguments)
    assert len(list(read_stage(tmp_path / "out"))) == 20
    with pytest.raises(UsageError):
        build_corpus(Input(path=str(tmp_path / "none.jsonl")), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_given_tokenizer_is_used_and_kept(corpus: Input, tmp_path: Path) -> None:
    build_corpus(corpus, tmp_path / "one", tokenizer=300)
    manifest = build_corpus(corpus, tmp_path / "two", tokenizer=str(tmp_path / "one"))
    assert manifest["tokenizer"]["fingerprint"] == load_tokenizer(str(tmp_path / "two")).fingerprint
    assert manifest["tokenizer"]["vocab_size"] == 300


def test_import_is_light() -> None:
    code = (
        "import sys, leaven.corpus, leaven.corpus.read, leaven.corpus.chunk, leaven.corpus.tokens\n"
        "heavy = {'torch', 'transformers', 'pyarrow', 'datasets', 'datatrove.pipeline', "
        " 'tokenizers', 'numba'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout.strip() == "[]", out.stdout + out.stderr


def test_held_out_documents_are_whole_and_in_one_part_only(corpus: Input, tmp_path: Path) -> None:
    parts = {}
    for held in (False, True):
        out = tmp_path / str(held)
        manifest = build_corpus(corpus, out, tokenizer=300, chunk_tokens=60, hold_out=0.22, held=held)
        counts, others = manifest["counts"], manifest["other_part"]
        assert counts["documents_read"] == counts["documents_kept"] + counts["documents_rejected"]
        assert counts["documents_read"] + others == 23
        parts[held] = {row.metadata.get("parent", row.id) for row in read_stage(out)}
        assert counts["documents_kept"] == len(parts[held])
        assert counts["documents_rejected"] == (0 if held else 3), (
            "rows that are no documents are read with the rest"
        )
    assert len(parts[True]) == 5, "22% of 20, rounded up"
    assert len(parts[False]) == 15 and not parts[True] & parts[False]


def test_what_is_held_out_depends_on_the_texts_alone(corpus: Input, tmp_path: Path) -> None:
    lines = Path(corpus.path).read_text().splitlines()
    (tmp_path / "other.jsonl").write_text("\n".join(reversed(lines[:20])))
    chosen = []
    for number, path in enumerate((corpus.path, str(tmp_path / "other.jsonl"))):
        out = tmp_path / f"held-{number}"
        build_corpus(Input(path=path), out, tokenizer=300, hold_out=0.3, held=True)
        chosen.append({row.text for row in read_stage(out)})
    assert chosen[0] == chosen[1] and len(chosen[0]) == 6
    twins = tmp_path / "twins.jsonl"
    twins.write_text(
        "\n".join(json.dumps({"id": i, "text": text}) for i, text in enumerate(["The bag.", "The sea."] * 3))
    )
    build_corpus(Input(path=str(twins)), tmp_path / "t", tokenizer=300, hold_out=0.1, held=True)
    texts = [row.text for row in read_stage(tmp_path / "t")]
    assert len(texts) == 3 and len(set(texts)) == 1, "equal texts are on one side"


def test_too_few_documents_to_divide(tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text(json.dumps({"text": "The bag."}))
    with pytest.raises(UsageError, match="hold_out needs at least two different documents, there are 1"):
        build_corpus(Input(path=str(tmp_path / "one.jsonl")), tmp_path / "out", hold_out=0.1)
    assert not (tmp_path / "out").exists()
