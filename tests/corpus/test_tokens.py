"""Tokenizers: trained the same way twice, lossless, loaded from where users keep them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaven.corpus.tokens import END, Tokenizer, load_tokenizer, train_tokenizer
from leaven.errors import UsageError

TEXTS = [
    f"The {colour} ship number {i} sailed to the harbour." for i in range(50) for colour in ("red", "blue")
]
TRAINED = train_tokenizer(TEXTS, 400)


@given(st.text())
def test_any_text_survives_and_counts_agree(text: str) -> None:
    ids = TRAINED.encode(text)
    assert TRAINED.backend.decode(ids, skip_special_tokens=False) == text
    assert TRAINED.count([text, "", text]) == [len(ids), 0, len(ids)]


def test_special_tokens_in_a_document_are_plain_text() -> None:
    assert TRAINED.backend.token_to_id(END) == 0
    assert 0 not in TRAINED.encode(f"before{END}after")


def test_training_is_deterministic_across_processes(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from leaven.corpus.tokens import train_tokenizer\n"
        "ship = 'The {} ship number {} sailed to the harbour.'\n"
        "texts = [ship.format(c, i) for i in range(50) for c in ('red', 'blue')]\n"
        "print(train_tokenizer(texts, 400, pathlib.Path(sys.argv[1])).fingerprint)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "t.json")], capture_output=True, text=True
    )
    assert out.stdout.strip() == TRAINED.fingerprint, out.stderr
    assert load_tokenizer(str(tmp_path / "t.json")).fingerprint == TRAINED.fingerprint
    assert train_tokenizer(TEXTS, 300).fingerprint != TRAINED.fingerprint


def test_vocabulary_is_bounded_and_learnt() -> None:
    assert 257 < TRAINED.vocab_size <= 400
    assert TRAINED.count(TEXTS)[0] < len(TEXTS[0].split()) * 2


def test_load_from_file_and_checkpoint_folder(tmp_path: Path) -> None:
    TRAINED.save(tmp_path / "tokenizer.json")
    for spec in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = load_tokenizer(str(spec))
        assert loaded.encode(TEXTS[0]) == TRAINED.encode(TEXTS[0])
        assert loaded.name == str(spec)
    assert not list(tmp_path.glob("*.partial"))


def test_truncation_and_padding_of_a_checkpoint_are_switched_off(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Backend

    TRAINED.save(tmp_path / "t.json")
    backend = Backend.from_file(str(tmp_path / "t.json"))
    backend.enable_truncation(3)
    backend.enable_padding(length=10)
    assert Tokenizer(backend, "x").count(TEXTS[:1]) == TRAINED.count(TEXTS[:1])


@pytest.mark.torch  # transformers imports it
def test_checkpoint_without_tokenizer_json(tmp_path: Path) -> None:
    TRAINED.backend.model.save(str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    assert load_tokenizer(str(tmp_path)).encode(TEXTS[0]) == TRAINED.encode(TEXTS[0])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no tokenizer") as error:
        load_tokenizer(str(tmp_path / "empty"))
    assert "\n" not in str(error.value)


def test_bad_specs_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.json").write_text("{}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    cases = {
        str(tmp_path / "none.json"): "no such file or folder",
        str(tmp_path / "broken.json"): "not a tokenizer.json",
        "no-such-org/no-such-model": "give the path of a tokenizer.json",
        "not a name": "neither a local path nor a name",
    }
    for spec, message in cases.items():
        with pytest.raises(UsageError, match=message) as error:
            load_tokenizer(spec)
        assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match="at least 257"):
        train_tokenizer(TEXTS, 100)
