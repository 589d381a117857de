"""Finetuning for real: what is taught is what is asked, the loss is on answers only, nothing is cut or lost."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leaven.errors import Rejected, UsageError
from leaven.lm import transformers
from leaven.lm.base import Answer, Request, Sampling
from leaven.train.finetune import Finetune, epochs_of, finetune
from leaven.train.rows import IGNORED, ROLES, Encoder, Row, row_of

pytestmark = pytest.mark.torch
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
COLOURS = ("red", "blue", "green", "grey")
ROWS = [
    {"prompt": f"What colour is bag {i}?", "completion": f" Bag {i} is {COLOURS[i % 4]}."} for i in range(20)
]


def build(
    folder: Path,
    *,
    template: str | None = None,
    begins: bool = False,
    context: int = 128,
    vocabulary: int = 0,
) -> Path:
    """A tiny checkpoint; `begins`: its tokenizer puts a mark before every text, as Llama's does."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|end|>", "<|begin|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([row["prompt"] + row["completion"] for row in ROWS] * 3, trainer)
    if begins:
        backend.post_processor = processors.TemplateProcessing(
            single="<|begin|> $A", special_tokens=[("<|begin|>", 1)]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|end|>", bos_token="<|begin|>" if begins else None
    )
    tokenizer.chat_template = template
    config = LlamaConfig(
        vocab_size=vocabulary or len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=context, eos_token_id=0, bos_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("base") / "model")


def options(**changed: Any) -> Finetune:
    value = {"batch_size": 4, "epochs": 2, "learning_rate": 3e-3, "precision": "float32", "save_every": 3}
    return Finetune.model_validate(value | changed)


def curve(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def encoder(checkpoint: Path, chat: bool = False) -> Encoder:
    from transformers import AutoModelForCausalLM

    return Encoder(checkpoint, AutoModelForCausalLM.from_pretrained(checkpoint), chat)


def asked(checkpoint: Path, *messages: tuple[str, str]) -> tuple[list[int], Answer]:
    """Token ids that the backend makes of a request, and its answer to it."""

    async def work() -> tuple[list[int], Answer]:
        backend = transformers.Config(path=checkpoint, dtype="float32", device="cpu").open()
        request = Request(messages, Sampling(temperature=0, max_tokens=24))
        try:
            answer = await backend.generate(request)
            return backend._encode(request), answer
        finally:
            await backend.close()

    return asyncio.run(work())


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("tuned") / "out"
    return out, finetune(base, options(), out, ROWS)


def test_counts_add_up_and_the_log_is_by_step(base: Path, trained: tuple[Path, dict[str, Any]]) -> None:
    out, manifest = trained
    made = encoder(base)
    rows = [made.encode(row_of(row, "")) for row in ROWS]
    assert manifest["counts"] == {
        "read": 20, "kept": 20, "rejected": 0, "steps": 10, "tokens": 2 * sum(len(ids) for ids, _ in rows),
        "answer_tokens": 2 * sum(label != IGNORED for _, labels in rows for label in labels),
    }  # fmt: skip
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 11))
    assert lines[-1]["tokens"] == manifest["counts"]["tokens"] and lines[-1]["loss"] < lines[0]["loss"] - 0.5
    assert [line["learning_rate"] for line in lines][:2] == [3e-3, pytest.approx(3e-3, rel=0.05)], (
        "5% warm-up"
    )
    assert lines[-1]["learning_rate"] < 3e-4, "down to 0"


def test_the_first_loss_is_that_of_the_answers_alone(
    base: Path, trained: tuple[Path, dict[str, Any]]
) -> None:
    """Taken by hand, from the untouched base: natural log, mean over the answer tokens of the first batch."""
    import torch
    from transformers import AutoModelForCausalLM

    model, made = AutoModelForCausalLM.from_pretrained(base), encoder(base)
    total, count = 0.0, 0
    for number in epochs_of(20, 2, 0)[:4]:
        ids, labels = made.encode(row_of(ROWS[number], ""))
        with torch.inference_mode():
            losses = -model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        places = [i for i, label in enumerate(labels) if label != IGNORED]
        total += sum(float(losses[i - 1, ids[i]]) for i in places)
        count += len(places)
    assert curve(trained[0])[0] == pytest.approx(total / count, abs=1e-3)


def test_no_gradient_comes_from_the_prompt(base: Path) -> None:
    """The gradient at the logits is zero wherever the next token belongs to the prompt, and nowhere else."""
    import torch
    from transformers import AutoModelForCausalLM

    model, made = AutoModelForCausalLM.from_pretrained(base), encoder(base)
    ids, labels = made.encode(row_of(ROWS[3], ""))
    prompt = made.prompt((("user", ROWS[3]["prompt"]),))
    logits = model(input_ids=torch.tensor([ids])).logits
    logits.retain_grad()
    torch.nn.functional.cross_entropy(logits[0, :-1], torch.tensor(labels[1:]), ignore_index=-100).backward()
    assert logits.grad is not None
    moved = logits.grad[0].abs().sum(-1) > 0
    assert moved.tolist() == [False] * (len(prompt) - 1) + [True] * (len(ids) - len(prompt)) + [False]


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("template", [None, CHATML])
def test_what_is_taught_is_what_the_backend_asks(tmp_path: Path, begins: bool, template: str | None) -> None:
    checkpoint = build(tmp_path / "model", template=template, begins=begins)
    row = row_of(ROWS[0], "")
    ids, labels = encoder(checkpoint).encode(row)
    request = asked(checkpoint, *row.messages[:-1])[0]
    assert ids[: len(request)] == request, "the same token ids"
    assert labels[: len(request)] == [IGNORED] * len(request)
    assert all(label != IGNORED for label in labels[len(request) :] if template is None)
    assert (request[0] == 1) == (begins and template is None), "the mark before a text, exactly where it was"
    answer = encoder(checkpoint).tokenizer.decode([label for label in labels if label != IGNORED])
    assert answer.startswith(ROWS[0]["completion"]) and answer.endswith("<|end|>")


def test_a_finetuned_model_answers_as_taught_and_loads_anywhere(base: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "out"
    finetune(base, options(epochs=60, learning_rate=1e-2, save_every=1000), out, ROWS)
    found = asked(out / "model", ("user", ROWS[5]["prompt"]))[1]
    assert (found.text, found.finish) == (ROWS[5]["completion"], "stop"), "learnt, with its end"
    model, tokenizer = (kind.from_pretrained(out / "model") for kind in (AutoModelForCausalLM, AutoTokenizer))
    prompt = tokenizer(ROWS[5]["prompt"], return_tensors="pt")
    written = model.generate(**prompt, max_new_tokens=24, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(written, skip_special_tokens=True) == ROWS[5]["completion"]
    assert model.config.use_cache and not tokenizer.chat_template, "prompts of a base model stay its prompts"


@pytest.mark.parametrize("begins", [False, True])
def test_messages_make_a_chat_model(tmp_path: Path, begins: bool) -> None:
    checkpoint = build(tmp_path / "model", begins=begins)
    before = sorted(path.name for path in checkpoint.iterdir())
    rows = [
        {"messages": [
            {"role": "system", "content": "Be brief."}, {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["completion"].strip()},
            {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes."},
        ]} for row in ROWS
    ]  # fmt: skip
    finetune(checkpoint, options(epochs=60, learning_rate=1e-2, save_every=1000), tmp_path / "out", rows)
    turns = [(one["role"], one["content"]) for one in rows[2]["messages"]]
    model = tmp_path / "out" / "model"
    request, answer = asked(model, *turns[:2])
    assert (answer.text, answer.finish) == (turns[2][1], "stop")
    assert asked(model, *turns[:4])[1].text == "Yes.", "the second turn is taught as it is asked"
    made = encoder(model)
    assert (request[0] == made.tokenizer.bos_token_id) == begins
    ids, labels = made.encode(row_of(rows[2], ""))
    learnt = made.tokenizer.decode([label for label in labels if label != IGNORED])
    assert learnt == "Bag 2 is green.<|end|>Yes.<|end|>", "assistant turns only, each with its end"
    whole = made.tokenizer.decode(ids)
    assert (
        "[system]\nBe brief.\n\n[user]\nWhat colour is bag 2?\n\n[assistant]\nBag 2 is green.<|end|>" in whole
    )
    assert sorted(path.name for path in checkpoint.iterdir()) == before, "the base is left as it was"


def test_nothing_is_reported_to_anybody(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL tells its makers of every trainer that is built, unless it is kept from it."""
    told: list[Any] = []
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", lambda *_, **given: told.append(given))
    finetune(base, options(epochs=1), tmp_path / "out", ROWS[:4])
    assert not told and not list(tmp_path.rglob("README.md"))


SCRIPT = """
from pathlib import Path
from leaven.train.finetune import Finetune, finetune
finetune(Path({base!r}), Finetune.model_validate({options!r}), Path({out!r}), {rows!r})
"""


def test_a_killed_run_ends_with_the_same_curve(
    base: Path, trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    value = options().model_dump(mode="json")
    code = SCRIPT.format(base=str(base), options=value, out=str(out), rows=ROWS)
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
    while process.poll() is None and not list(out.glob("checkpoints/checkpoint-*/trainer_state.json")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (out / "manifest.json").exists(), "killed after its first checkpoint"
    manifest = finetune(base, options(), out, ROWS)
    assert curve(out) == pytest.approx(curve(trained[0]), abs=1e-4)
    assert manifest["counts"] == trained[1]["counts"]


def test_what_is_done_is_skipped_wherever_its_rows_lie(
    base: Path, trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out, manifest = trained
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row | {"document": "x"}) + "\n" for row in ROWS))
    stamp = (out / "log.jsonl").stat().st_mtime_ns
    assert finetune(base, options(path=path), out)["fingerprint"] == manifest["fingerprint"]
    assert (out / "log.jsonl").stat().st_mtime_ns == stamp


def test_rows_that_are_too_long_are_rejected_and_counted_never_cut(base: Path, tmp_path: Path) -> None:
    long = {"prompt": "What colour is it? " * 40, "completion": "Red."}
    broken = {"prompt": "half \ud83d", "completion": "Red."}
    manifest = finetune(base, options(epochs=1), tmp_path / "out", [*ROWS[:4], long, broken])
    assert {name: manifest["counts"][name] for name in ("read", "kept", "rejected")} == {
        "read": 6, "kept": 4, "rejected": 2,
    }  # fmt: skip
    assert manifest["reasons"] == {"longer than max_length": 1, "broken text": 1}
    (first, second) = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").open()]
    assert first["row"] == "row 5" and "max_length is 128" in first["detail"] and second["row"] == "row 6"
    with pytest.raises(UsageError, match=r"no row can be trained on; the first: row 1: .* max_length is 8"):
        finetune(base, options(max_length=8), tmp_path / "none", ROWS)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", ":3: not JSON"),
        ("[1]", ":3: a row must be an object"),
        ('{"text": "x"}', ":3: a row must have either prompt and completion, or messages"),
        ('{"prompt": "x", "messages": []}', ":3: a row must have either"),
        ('{"prompt": "x"}', ":3: completion must be a text that is not empty, not None"),
        ('{"prompt": "x", "completion": " "}', ":3: completion must be a text that is not empty"),
        ('{"messages": []}', ":3: messages must be a list"),
        ('{"messages": [{"role": "user"}]}', ":3: message 1 must be an object with role and content"),
        ('{"messages": [{"role": "asistant", "content": "x"}]}', "did you mean 'assistant'?"),
        (
            '{"messages": [{"role": "user", "content": "x"}]}',
            ":3: messages must begin with a question and end",
        ),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', ":3: messages must begin with a question"),
    ],
)
def test_a_bad_row_is_one_line_with_its_place_before_anything_is_written(
    base: Path, tmp_path: Path, line: str, said: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n\n" + line + "\n")
    with pytest.raises(UsageError) as failure:
        finetune(base, options(path=path), tmp_path / "out")
    assert said in str(failure.value) and str(path) in str(failure.value)
    assert "\n" not in str(failure.value) and not (tmp_path / "out").exists()


def test_what_cannot_be_finetuned_is_one_line(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="no such folder"):
        finetune(tmp_path / "nowhere", options(), out, ROWS)
    with pytest.raises(UsageError, match="give 'path'"):
        finetune(base, options(), out)
    with pytest.raises(UsageError, match=r"rows\.jsonl: No such file"):
        finetune(base, options(path=tmp_path / "rows.jsonl"), out)
    with pytest.raises(UsageError, match="there are no rows"):
        finetune(base, options(), out, [])
    with pytest.raises(UsageError, match="max_length 4,096 is more than the checkpoint's context, 128"):
        finetune(base, options(max_length=4096), out, ROWS)
    with pytest.raises(UsageError, match=r"has \d+ tokens, its model 300"):
        finetune(build(tmp_path / "small", vocabulary=300), options(), out, ROWS)
    strict = build(tmp_path / "strict", template="{{ raise_exception('roles must alternate') }}")
    with pytest.raises(
        UsageError, match="row 1: the tokenizer's chat template refuses it: roles must alternate"
    ):
        finetune(strict, options(), out, ROWS)
    assert not out.exists()


@pytest.mark.parametrize("made", ["checkpoints/checkpoint-4", "model"])
def test_a_model_of_another_plan_is_not_cleared_away(base: Path, tmp_path: Path, made: str) -> None:
    out = tmp_path / "out"
    (out / made).mkdir(parents=True)
    (out / "parts").mkdir()
    (out / "parts" / "fingerprint").write_text("of another plan")
    with pytest.raises(UsageError, match="trained by another plan or on other rows; delete"):
        finetune(base, options(), out, ROWS)
    assert (out / made).exists()


def test_a_template_that_rewrites_earlier_turns_is_not_taught_from(tmp_path: Path) -> None:
    last_only = "{{ messages[-1]['content'] }}"
    made = encoder(build(tmp_path / "model", template=last_only))
    with pytest.raises(Rejected, match="earlier turns"):
        made.encode(Row((("user", "a"), ("assistant", "b")), True, "row 1"))


@settings(max_examples=40)
@given(st.integers(1, 30), st.integers(1, 4), st.integers(0, 9))
def test_every_row_comes_once_in_every_epoch(rows: int, epochs: int, seed: int) -> None:
    order = epochs_of(rows, epochs, seed).reshape(epochs, rows)
    assert (np.sort(order, axis=1) == np.arange(rows)).all()
    assert (epochs_of(rows, epochs, seed) == order.ravel()).all()


text = st.text(min_size=1).filter(str.strip)


@given(st.lists(st.tuples(st.sampled_from(ROLES), st.text())), text, text)
def test_rows_of_messages_are_read_as_they_are(turns: list[tuple[str, str]], first: str, last: str) -> None:
    turns = [("user", first), *turns, ("assistant", last)]
    value = {"messages": [{"role": role, "content": content} for role, content in turns]}
    assert row_of(value, "here").messages == tuple(turns)
