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
from leaven.lm.base import Answer, Refused, Request, Sampling

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
