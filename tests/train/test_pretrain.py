"""Training for real: every token once, the same curve after a kill, a checkpoint that loads anywhere."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leaven.corpus.tokens import train_tokenizer
from leaven.document import Document
from leaven.errors import UsageError
from leaven.mix import Mix, mix
from leaven.train import Train, train
from leaven.train.pretrain import Blocks, build, positions

pytestmark = pytest.mark.torch
SHAPE = {"hidden": 32, "inner": 64, "layers": 2, "heads": 2, "tied": True}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mix with one arm of 100 blocks of 32 tokens."""
    folder = tmp_path_factory.mktemp("mix")
    texts = [f"The bag number {i} fell from the aeroplane into the sea near the island." for i in range(150)]
    rows = [Document(text=text, id=f"{i:03d}", metadata={}) for i, text in enumerate(texts)]
    options = Mix.model_validate({
        "tokens": 3200, "context": 32, "sources": {"real": {"stage": "corpus"}},
        "arms": {"raw": {"sources": {"real": 1}}, "again": {"sources": {"real": 1}}},
    })  # fmt: skip
    mix(options, {"real": ("f", lambda: rows)}, train_tokenizer(texts, 300), folder / "mix")
    return folder / "mix"


def options(**changed: Any) -> Train:
    value = {"shape": SHAPE, "batch_size": 8, "learning_rate": 3e-3, "precision": "float32", "save_every": 4}
    return Train.model_validate(value | changed)


def curve(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(mixed: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("train") / "raw"
    return out, train(mixed, "raw", options(), out)


def test_every_token_is_seen_once_and_the_loss_falls(trained: tuple[Path, dict[str, Any]]) -> None:
    out, manifest = trained
    assert manifest["counts"] == {"tokens": 3200, "steps": 13}, "100 sequences, 8 at a time"
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 14)) and lines[-1]["tokens"] == 3200
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.5
    assert lines[-1]["learning_rate"] < lines[5]["learning_rate"] == pytest.approx(3e-3)


def test_a_checkpoint_loads_in_transformers_and_generates(trained: tuple[Path, dict[str, Any]]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out, manifest = trained
    model, tokenizer = (kind.from_pretrained(out / "model") for kind in (AutoModelForCausalLM, AutoTokenizer))
    assert sum(one.numel() for one in model.parameters()) == manifest["parameters"]
    prompt = tokenizer("The bag number", return_tensors="pt")
    written = model.generate(**prompt, max_new_tokens=5, do_sample=False)
    assert written.shape[1] > prompt["input_ids"].shape[1]
    assert tokenizer.decode(written[0]).startswith("The bag number")


def test_arms_of_one_text_train_alike_and_what_is_done_is_skipped(
    mixed: Path, trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out, _ = trained
    train(mixed, "again", options(), tmp_path / "again")
    assert curve(tmp_path / "again") == pytest.approx(curve(out), abs=1e-5)
    stamp = (out / "log.jsonl").stat().st_mtime_ns
    train(mixed, "raw", options(), out)
    assert (out / "log.jsonl").stat().st_mtime_ns == stamp


def test_places_begin_anew_after_every_end_mark() -> None:
    tokens = np.array([5, 6, 0, 7, 0, 0, 8, 9])
    assert positions(tokens, 0).tolist() == [0, 1, 2, 0, 1, 0, 0, 1]
    assert positions(np.array([0]), 0).tolist() == [0]


def test_masked_documents_do_not_see_what_is_packed_before_them(mixed: Path) -> None:
    import torch

    manifest = json.loads((mixed / "manifest.json").read_text())
    model = build(options(), manifest, mixed).eval()
    blocks = Blocks(mixed / "raw" / "tokens.bin", 32, "uint16", end=manifest["end"])
    batch = {name: torch.stack([blocks[i][name] for i in (0, 1)]) for name in ("input_ids", "position_ids")}
    with torch.inference_mode():
        packed = model(**batch, use_cache=False).logits
        plain = model(input_ids=batch["input_ids"]).logits
        for row in (0, 1):
            places = batch["position_ids"][row].tolist()
            starts = [i for i, place in enumerate(places) if place == 0]
            assert len(starts) > 1, "several documents in one block"
            for start, stop in zip(starts, [*starts[1:], 32], strict=True):
                alone = model(input_ids=batch["input_ids"][row : row + 1, start:stop]).logits[0]
                assert torch.allclose(packed[row, start:stop], alone, atol=1e-4)
            assert not torch.allclose(packed[row, starts[1] :], plain[row, starts[1] :], atol=1e-3)


def test_training_heeds_the_mask_and_sees_as_many_tokens(mixed: Path, tmp_path: Path) -> None:
    import torch

    folder = tmp_path / "mix"
    shutil.copytree(mixed, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"mask": True, "fingerprint": "masked"}))
    found = train(folder, "raw", options(), tmp_path / "masked")
    other = train(mixed, "raw", options(), tmp_path / "plain")
    assert found["counts"] == other["counts"]
    blocks = Blocks(mixed / "raw" / "tokens.bin", 32, "uint16", end=manifest["end"])
    batch = {name: torch.stack([blocks[i][name] for i in range(8)]) for name in blocks[0]}
    model = build(options(), manifest, mixed)
    first = {name: curve(tmp_path / name)[0] for name in ("masked", "plain")}
    assert first["masked"] == pytest.approx(model(**batch, use_cache=False).loss.item(), abs=1e-4)
    del batch["position_ids"]
    assert first["plain"] == pytest.approx(model(**batch).loss.item(), abs=1e-4)
    assert abs(first["masked"] - first["plain"]) > 2e-4
    assert curve(tmp_path / "masked")[-1] < first["masked"] - 0.5


def test_loss_on_held_out_text_is_taken_while_training(mixed: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "mix"
    shutil.copytree(mixed, folder)
    (folder / "validation").mkdir()
    held = np.fromfile(mixed / "again" / "tokens.bin", dtype="uint16")[: 12 * 32]
    held.tofile(folder / "validation" / "tokens.bin")
    manifest = json.loads((folder / "manifest.json").read_text())
    changed = manifest | {"validation": held.size, "fingerprint": "validated"}
    (folder / "manifest.json").write_text(json.dumps(changed))
    found = train(folder, "raw", options(validate_every=5), tmp_path / "raw")
    lines = [json.loads(line) for line in (tmp_path / "raw" / "log.jsonl").read_text().splitlines()]
    taken = {line["step"]: line["validation_loss"] for line in lines if "validation_loss" in line}
    assert list(taken) == [5, 10, 13] and taken[13] < taken[5]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 14))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "raw" / "model")
    rows = torch.from_numpy(held.astype(np.int64).reshape(12, 32))
    with torch.inference_mode():
        assert (
            found["validation_loss"]
            == taken[13]
            == pytest.approx(model(rows, labels=rows).loss.item(), abs=1e-3)
        )
    other = train(mixed, "raw", options(), tmp_path / "plain")
    assert found["loss"] == pytest.approx(other["loss"], abs=1e-5), "looking changes nothing"


def test_what_several_processes_cannot_share_is_refused(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UsageError, match="batch_size 8 cannot be split over 3 processes"):
        train(mixed, "raw", options(), tmp_path / "raw")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="100 sequences are no multiple of batch_size 8"):
        train(mixed, "raw", options(), tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


@pytest.mark.slow
def test_two_processes_train_what_one_does(mixed: Path, tmp_path: Path) -> None:
    """Under accelerate launch: the same order, the same steps, the same curve, one log."""
    given = ["batch_size: 10", "learning_rate: 3.0e-3", "precision: float32", f"shape: {json.dumps(SHAPE)}"]
    arguments = ["leaven.cli", "train", mixed, "raw", *(f"--option={one}" for one in given)]
    launch = ["accelerate.commands.launch", "--cpu", "--num_processes", "2", "--mixed_precision", "no", "-m"]
    for name, before in (("one", []), ("two", launch)):
        command = [sys.executable, "-m", *before, *map(str, arguments), "--out", str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    assert curve(tmp_path / "two") == pytest.approx(curve(tmp_path / "one"), abs=1e-4)
    assert len(curve(tmp_path / "two")) == 10
    one, two = (json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("one", "two"))
    assert one["counts"] == two["counts"] and one["parameters"] == two["parameters"]


def test_another_seed_sees_the_same_blocks_in_another_order(mixed: Path) -> None:
    path = mixed / "raw" / "tokens.bin"
    file, other, again = (Blocks(path, 32, "uint16", seed) for seed in (0, 5, 5))
    rows = [[tuple(one[i]["input_ids"].tolist()) for i in range(len(one))] for one in (file, other, again)]
    assert rows[0] != rows[1] == rows[2] and sorted(rows[0]) == sorted(rows[1])
    assert rows[0] == [tuple(row) for row in file.tokens.tolist()]


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from leaven.train import Train, train
train(Path({mix!r}), "raw", Train.model_validate({options!r}), Path({out!r}))
"""


def test_a_killed_run_ends_with_the_same_curve(
    mixed: Path, trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "raw"
    value = options().model_dump(mode="json")
    code = SCRIPT.format(tests=str(Path(__file__).parent), mix=str(mixed), options=value, out=str(out))
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
    while process.poll() is None and not list(out.glob("checkpoints/checkpoint-*/trainer_state.json")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (out / "manifest.json").exists(), "killed after its first checkpoint"
    manifest = train(mixed, "raw", options(), out)
    assert curve(out) == pytest.approx(curve(trained[0]), abs=1e-4)
    assert manifest["counts"]["steps"] == 13


def test_a_checkpoint_is_trained_on(
    mixed: Path, trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    going_on = options(shape=None, checkpoint=trained[0] / "model", learning_rate=1e-4)
    train(mixed, "raw", going_on, tmp_path / "on")
    assert curve(tmp_path / "on")[0] < curve(trained[0])[3]
    moved = shutil.copytree(trained[0] / "model", tmp_path / "moved")
    stamp = (tmp_path / "on" / "log.jsonl").stat().st_mtime_ns
    train(mixed, "raw", options(shape=None, checkpoint=moved, learning_rate=1e-4), tmp_path / "on")
    assert (tmp_path / "on" / "log.jsonl").stat().st_mtime_ns == stamp, "the same weights, wherever they lie"
    shutil.copy(tmp_path / "on" / "model" / "model.safetensors", moved)
    with pytest.raises(UsageError, match="by another plan or on another mix"):
        train(mixed, "raw", options(shape=None, checkpoint=moved, learning_rate=1e-4), tmp_path / "on")


def test_what_cannot_be_trained_is_one_line_before_anything_is_written(
    mixed: Path, trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="has no arm 'rew'; it has raw, again"):
        train(mixed, "rew", options(), out)
    with pytest.raises(UsageError, match="unknown model shape '1b'"):
        train(mixed, "raw", options(shape="1b"), out)
    with pytest.raises(UsageError, match="no such folder"):
        train(mixed, "raw", options(shape=None, checkpoint=tmp_path / "nowhere"), out)
    other = train_tokenizer(["Quite another text with other words in it."] * 3, 280)
    folder = tmp_path / "other"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((trained[0] / "model" / name).read_bytes())
    other.save(folder / "tokenizer.json")
    with pytest.raises(UsageError, match=r"another tokenizer .* set tokenizer: "):
        train(mixed, "raw", options(shape=None, checkpoint=folder), out)
    assert not out.exists()


@pytest.mark.parametrize("made", ["checkpoints/checkpoint-4", "model"])
def test_a_model_of_another_plan_is_not_cleared_away(mixed: Path, tmp_path: Path, made: str) -> None:
    out = tmp_path / "raw"
    (out / made).mkdir(parents=True)
    (out / "parts").mkdir()
    (out / "parts" / "fingerprint").write_text("of another plan")
    with pytest.raises(UsageError, match="trained by another plan or on another mix; delete"):
        train(mixed, "raw", options(), out)
    assert (out / made).exists()


def test_a_start_is_given_in_exactly_one_way() -> None:
    for wrong in ({}, {"shape": "1m", "checkpoint": "x"}, {"shape": "1m", "batch_size": 5, "accumulate": 2}):
        with pytest.raises(ValueError, match=r"give either shape or checkpoint|multiple of accumulate"):
            Train.model_validate(wrong)
