"""Token streams: every token accounted for, the order a function of the seed, arms alike in all but text."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaven.corpus.tokens import Tokenizer, train_tokenizer
from leaven.document import Document
from leaven.errors import UsageError
from leaven.mix import Mix, mix
from leaven.mix.pack import Stream, blocks, encode, marks_of, ordered

TEXTS = [f"Document {i} says that the bag fell {'again ' * (i % 7)}and lay there." for i in range(40)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, 300)


def documents(texts: list[str], **metadata: Any) -> list[Document]:
    return [Document(text=text, id=f"{i:03d}", metadata=dict(metadata)) for i, text in enumerate(texts)]


def written(texts: list[str], sources: int) -> list[Document]:
    rows = documents(texts, method="mga")
    for i, row in enumerate(rows):
        row.metadata["sources"] = [f"s{i % sources}"]
    return rows


def pieces(tokens: Any, end: int) -> list[tuple[int, ...]]:
    """The documents in a stream of tokens."""
    found: list[tuple[int, ...]] = []
    current: list[int] = []
    for token in np.asarray(tokens).ravel().tolist():
        current.append(token)
        if token == end:
            found.append(tuple(current))
            current = []
    return [*found, tuple(current)] if current else found


def test_a_stream_is_all_documents_each_with_its_end(tokenizer: Tokenizer) -> None:
    marks = marks_of(tokenizer)
    stream = encode(documents(TEXTS)[::-1], tokenizer, marks)
    assert pieces(stream.tokens, marks.end) == [(*tokenizer.encode(text), marks.end) for text in TEXTS]
    assert stream.tokens.dtype == np.uint16 and stream.starts[-1] == len(stream.tokens)
    assert not stream.synthetic and encode(written(TEXTS, 3), tokenizer, marks).synthetic


def test_a_document_that_spells_the_end_mark_does_not_end(tokenizer: Tokenizer) -> None:
    marks = marks_of(tokenizer)
    stream = encode(documents(["One <|endoftext|> two."]), tokenizer, marks)
    assert (stream.tokens == marks.end).sum() == 1


def test_a_begin_mark_is_put_where_it_is_asked_for(tokenizer: Tokenizer) -> None:
    marks = marks_of(tokenizer, begin="<|endoftext|>")
    stream = encode(documents(["One."]), tokenizer, marks)
    assert stream.tokens[0] == stream.tokens[-1] == marks.end == marks.begin
    with pytest.raises(UsageError, match="none of the tokens <s>"):
        marks_of(tokenizer, end="<s>")


@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(1, 40), st.integers(1, 3))
def test_blocks_lose_and_repeat_nothing(lengths: list[int], context: int, epochs: int) -> None:
    """Over whole epochs every document comes exactly as often as there are epochs, and in one piece."""
    end = 999
    bodies = [np.array([*([i] * (length - 1)), end], dtype=np.uint16) for i, length in enumerate(lengths)]
    starts = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    stream = Stream(np.concatenate(bodies), starts, np.arange(len(lengths)), False)
    total = epochs * sum(lengths)
    source = blocks(stream, context, "documents", 5)
    found = np.concatenate([next(source) for _ in range(-(-total // context))])[:total]
    expected = Counter(tuple(one.tolist()) for one in bodies for _ in range(epochs))
    assert Counter(pieces(found, end)) == expected


def test_every_epoch_has_an_order_of_its_own_and_the_seed_decides_it(tokenizer: Tokenizer) -> None:
    stream = encode(documents(TEXTS), tokenizer, marks_of(tokenizer))
    first, second = (ordered(stream, "documents", 0, epoch).tolist() for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(40)) and first != second
    assert ordered(stream, "documents", 0, 0).tolist() == first != ordered(stream, "documents", 1, 0).tolist()


def test_megadocuments_keep_children_of_one_source_together(tokenizer: Tokenizer) -> None:
    stream = encode(written(TEXTS, 5), tokenizer, marks_of(tokenizer))
    groups = stream.groups[ordered(stream, "megadocuments", 0, 0)].tolist()
    assert len([1 for one, two in pairwise(groups) if one != two]) == 4


def options(**changed: Any) -> Mix:
    value: dict[str, Any] = {
        "tokens": 640, "context": 16,
        "sources": {"real": {"stage": "corpus"}, "mga": {"stage": "clean"}},
        "arms": {"raw": {"sources": {"real": 1}}, "half": {"sources": {"real": 0.5, "mga": 0.5}}},
    }  # fmt: skip
    return Mix.model_validate(value | changed)


def run(folder: Path, tokenizer: Tokenizer, given: Mix, dry: bool = False) -> Any:
    sources: Any = {
        "real": ("f1", lambda: documents(TEXTS[:12])),
        "mga": ("f2", lambda: written(TEXTS[12:], 4)),
    }
    return mix(given, sources, tokenizer, folder / "mix", dry=dry)


def test_arms_are_files_of_the_same_size_in_training_order(tokenizer: Tokenizer, tmp_path: Path) -> None:
    manifest, found = run(tmp_path, tokenizer, options())
    end = manifest["end"]
    known = {(*tokenizer.encode(text), end) for text in TEXTS[:12]}
    raw = np.fromfile(tmp_path / "mix" / "raw" / "tokens.bin", dtype=np.uint16)
    half = np.fromfile(tmp_path / "mix" / "half" / "tokens.bin", dtype=np.uint16)
    assert len(raw) == len(half) == 640 == manifest["arms"]["raw"]["tokens"]
    assert manifest["context"] == 16 and manifest["dtype"] == "uint16"
    assert set(pieces(raw, end)[:-1]) <= known, "one source: its stream, cut into blocks"
    shares = {one["source"]: one["tokens"] for one in manifest["arms"]["half"]["sources"]}
    assert shares == {"real": 320, "mga": 320}
    real = half.reshape(-1, 16)[found["half"].which == 0]
    assert set(pieces(real, end)[:-1]) <= known, "its blocks in order are its stream"
    again, _ = run(tmp_path / "again", tokenizer, options())
    assert (tmp_path / "again" / "mix" / "half" / "tokens.bin").read_bytes() == half.tobytes()
    assert again["fingerprint"] == manifest["fingerprint"]


def test_the_same_mix_is_not_written_twice_and_a_dry_one_not_at_all(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    manifest, found = run(tmp_path, tokenizer, options(), dry=True)
    assert manifest is None and found["raw"].tokens == 640 and not (tmp_path / "mix").exists()
    run(tmp_path, tokenizer, options())
    stamp = (tmp_path / "mix" / "raw" / "tokens.bin").stat().st_mtime_ns

    def never() -> list[Document]:
        raise AssertionError("what is done is not read again")

    sources: Any = {"real": ("f1", never), "mga": ("f2", never)}
    assert mix(options(), sources, tokenizer, tmp_path / "mix")[0] is not None
    assert (tmp_path / "mix" / "raw" / "tokens.bin").stat().st_mtime_ns == stamp
    run(tmp_path, tokenizer, options(seed=1))
    assert (tmp_path / "mix" / "raw" / "tokens.bin").stat().st_mtime_ns != stamp


def test_a_recipe_that_cannot_be_writes_nothing(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="repeating it is forbidden"):
        run(tmp_path, tokenizer, options(tokens=64_000, arms={"mga": {"sources": {"mga": 1}}}))
    assert not (tmp_path / "mix").exists()
    with pytest.raises(UsageError, match="megadocuments of 'mga' have up to"):
        run(tmp_path, tokenizer, options(order="megadocuments"))
    assert not (tmp_path / "mix" / "manifest.json").exists()


def test_replay_blocks_stand_at_the_same_places_in_every_arm(tokenizer: Tokenizer, tmp_path: Path) -> None:
    replayed = options(replay={"source": "mga", "rate": 0.3}, arms={
        "raw": {"sources": {"real": 1}}, "twice": {"sources": {"real": {"weight": 1}}},
    })  # fmt: skip
    _, found = run(tmp_path, tokenizer, replayed)
    first, second = (
        np.fromfile(tmp_path / "mix" / name / "tokens.bin", np.uint16) for name in ("raw", "twice")
    )
    assert (first == second).all() and 4 <= (found["raw"].which == 1).sum() <= 20
