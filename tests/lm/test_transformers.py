"""A real, tiny checkpoint: built, saved, loaded and asked."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from leaven.errors import UsageError
from leaven.lm import transformers
from leaven.lm.base import Answer, Refused, Request, Sampling, scores_from_text

pytestmark = pytest.mark.torch
TEMPLATE = "{% for m in messages %}<|user|>{{ m['content'] }}{% endfor %}<|assistant|>"


def build(folder: Path, seed: int = 0, template: str | None = None) -> Path:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|end|>", "<|user|>", "<|assistant|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["some words to learn from"], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", chat_template=template)
    config = LlamaConfig(
        vocab_size=len(fast), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=128, eos_token_id=fast.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def ask(folder: Path, prompts: list[str], **sampling: Any) -> list[Answer]:
    async def work() -> list[Answer]:
        backend = transformers.Config(path=folder, dtype="float32", device="cpu").open()
        options = Sampling(**{"temperature": 0.0, "max_tokens": 8, **sampling})
        try:
            asked = (backend.generate(Request((("user", prompt),), options)) for prompt in prompts)
            return list(await asyncio.gather(*asked))
        finally:
            await backend.close()

    return asyncio.run(work())


def test_an_answer_does_not_depend_on_its_neighbours_in_the_batch(tmp_path: Path) -> None:
    folder = build(tmp_path / "tiny")
    prompts = ["short", "a prompt that is quite a bit longer", "mid size one"]
    together = ask(folder, prompts)
    assert together == [ask(folder, [prompt])[0] for prompt in prompts]
    assert {answer.finish for answer in together} <= {"length", "stop"}
    for answer in together:
        assert (answer.finish == "length") == (answer.usage.completion == 8) and answer.usage.prompt > 0


def test_a_chat_template_is_used_where_there_is_one(tmp_path: Path) -> None:
    plain = ask(build(tmp_path / "plain"), ["hello"])[0]
    chat = ask(build(tmp_path / "chat", template=TEMPLATE), ["hello"])[0]
    assert chat.usage.prompt == plain.usage.prompt + 2


def test_a_prompt_beyond_the_context_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="context is 128"):
        ask(build(tmp_path / "tiny"), ["x" * 500])


def test_the_identity_is_that_of_the_weights_not_of_the_place(tmp_path: Path) -> None:
    one = transformers.Config(path=build(tmp_path / "one")).open().identity
    shutil.copytree(tmp_path / "one", tmp_path / "moved")
    assert transformers.Config(path=tmp_path / "moved").open().identity == one
    assert transformers.Config(path=build(tmp_path / "other", seed=1)).open().identity != one


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        transformers.Config(path=tmp_path / "nowhere").open()
    os.mkdir(tmp_path / "empty")
    with pytest.raises(UsageError, match="checkpoint"):
        ask(tmp_path / "empty", ["hello"])


def score(folder: Path, *texts: str) -> list[list[float]]:
    async def work() -> list[list[float]]:
        backend = transformers.Config(path=folder, dtype="float32", device="cpu").open()
        try:
            asked = (
                backend.generate(
                    Request((("user", text),), Sampling(temperature=0, max_tokens=1), score=True)
                )
                for text in texts
            )
            return [scores_from_text(answer.text) for answer in await asyncio.gather(*asked)]
        finally:
            await backend.close()

    return asyncio.run(work())


def test_scores_are_the_models_log_probabilities_whatever_the_neighbours(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = build(tmp_path / "tiny", template=TEMPLATE)
    texts = ["some words", "a longer text with many more words to learn from"]
    found = score(folder, *texts)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for text, scores in zip(texts, found, strict=True):
        tokens = torch.tensor([tokenizer.encode(text)])
        with torch.inference_mode():
            loss = model(input_ids=tokens, labels=tokens).loss
        assert len(scores) == tokens.shape[1] - 1
        assert -sum(scores) / len(scores) == pytest.approx(float(loss), abs=1e-3)


def test_a_text_longer_than_the_context_is_scored_to_its_end(tmp_path: Path) -> None:
    folder = build(tmp_path / "tiny")
    text = "words to learn from, and others. " * 30
    (long,) = score(folder, text)
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(folder).encode(text)
    assert len(tokens) > 3 * 128 and len(long) == len(tokens) - 1
    (head,) = score(folder, AutoTokenizer.from_pretrained(folder).decode(tokens[:128]))
    assert long[:127] == pytest.approx(head[:127], abs=1e-3)


def test_an_empty_prompt_is_the_beginning_of_a_text(tmp_path: Path) -> None:
    """What a model trained on documents with an end mark between them saw before their first words."""
    empty, marked, other = ask(build(tmp_path / "tiny"), ["", "<|end|>", "words"])
    assert empty == marked and empty.usage.prompt == 1
    assert other.text != empty.text
