"""An ideator learns from execution for real: a tiny model, a real sandbox, GRPO; and breaks change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measuring import Scripted
from rewarding import RATES, STEPS, Computed, few_values

from leaven.errors import Stopped, UsageError
from leaven.lm.client import LanguageModel
from leaven.lm.store import ResponseStore
from leaven.lm.transformers import weights_hash
from leaven.search.archive import Archive
from leaven.search.environment import Environment
from leaven.search.folder import summary
from leaven.search.implement import Implementer
from leaven.search.reinforce import Config, Rewards, reinforce, rewards, verdict
from leaven.search.reward import prompt
from leaven.search.sandbox import Sandbox
from leaven.search.workers import workers
from leaven.stage import read_manifest
from leaven.train.finetune import Finetune, finetune

pytestmark = pytest.mark.torch
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def ideator(folder: Path, asked: str, ideas: list[str], template: str | None = None) -> Path:
    """A model of 0.2M parameters that was taught how ideas are written, and nothing of which are good."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=["<|end|>", "<|im_start|>", "<|im_end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    backend.train_from_iterator(
        [asked], trainer
    )  # tokens may span words, so that the long prompt is few of them
    end = "<|im_end|>" if template else "<|end|>"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end, chat_template=template)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=512, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "raw")
    tokenizer.save_pretrained(folder / "raw")
    rows = [{"prompt": asked, "completion": one} for one in ideas]
    options = Finetune(epochs=3, learning_rate=4e-3, batch_size=8, weight_decay=0.0, precision="float32")
    finetune(folder / "raw", options, folder / "taught", rows)
    return folder / "taught" / "model"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return few_values(tmp_path_factory.mktemp("few") / "env")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, environment: Environment) -> Path:
    draw = np.random.default_rng(0)
    ideas = [f"LEARNING_RATE = {draw.choice(RATES)}\nSTEPS = {draw.choice(STEPS)}" for _ in range(640)]
    return ideator(tmp_path_factory.mktemp("base"), prompt(environment, in_words=False), ideas)


def config(checkpoint: Path, **options: Any) -> Config:
    given = {"group": 8, "epochs": 4, "learning_rate": 2e-3, "max_tokens": 40}
    return Config(checkpoint=checkpoint, **{**given, **options})


def rows(archive: Archive) -> list[tuple[Any, ...]]:
    return [(one.epoch, one.idea, one.patch, one.status, one.score, one.reason) for one in archive.attempts()]


@pytest.mark.slow
def test_the_mean_reward_rises(environment: Environment, base: Path, tmp_path: Path) -> None:
    said: list[str] = []
    archive = Archive(tmp_path / "a.sqlite")
    with workers(tmp_path / "work", environment, Sandbox.find()) as running:
        options = config(base, group=16, epochs=15)
        model = reinforce(environment, options, tmp_path / "out", running, archive, say=said.append)
    found = rewards(tmp_path / "out")
    print(*said, sep="\n")
    assert [one.epoch for one in found] == list(range(15)) and all(one.ideas == 16 for one in found)
    means, bests = np.array([one.mean for one in found]), np.array([one.best for one in found])
    assert means[-5:].mean() > 2 * means[:3].mean(), means
    assert (bests >= means).all() and bests.max() == max(
        1 / one.score for one in archive.attempts() if one.score
    )
    attempts = archive.attempts("rl")
    assert len(attempts) == 240 and {one.status for one in attempts} == {"done", "failed"}
    run = [one.patch for one in attempts if one.run_seconds]
    assert len(run) == len(set(run)), "no patch runs twice"
    assert said[-1] == verdict(found) and said[0].startswith("epoch 0: mean reward")
    assert read_manifest(tmp_path / "out")["counts"]["ideas"] == 240  # type: ignore[index]
    assert weights_hash(model) != weights_hash(base)
    best = summary(archive).best
    assert best is not None and 1 / best.score == bests.max()  # type: ignore[operator]


@pytest.mark.slow
def test_breaks_change_nothing_and_epochs_can_be_added(
    environment: Environment, base: Path, tmp_path: Path
) -> None:
    whole, counted = Archive(tmp_path / "whole.sqlite"), Computed()
    model = reinforce(environment, config(base), tmp_path / "whole", counted, whole)
    broken = Archive(tmp_path / "broken.sqlite")
    out = tmp_path / "broken"
    several = [Computed(Stopped("power"), at) for at in (2, 5)]
    for some in several:
        with pytest.raises(Stopped, match="power"):
            reinforce(environment, config(base), out, some, broken)
    lines: list[str] = []

    def full(line: str) -> None:
        lines.append(line)
        if len(lines) == 2:
            raise Stopped("executed, but not learnt from yet")

    several.append(Computed())
    with pytest.raises(Stopped, match="not learnt"):
        reinforce(environment, config(base), out, several[-1], broken, say=full)
    half = out / "checkpoints" / "checkpoint-77"  # a kill while it was written
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"")
    several.append(Computed())
    assert reinforce(environment, config(base), out, several[-1], broken) == out / "model"
    assert rewards(out) == rewards(tmp_path / "whole") and len(rewards(out)) == 4
    assert sorted(rows(broken)) == sorted(rows(whole)), "the same ideas are drawn, none is lost"
    assert (out / "model" / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    runs = sum((some.runs for some in several), start=several[0].runs.__class__())
    assert runs == counted.runs and set(runs.values()) == {1}

    nobody = Computed(AssertionError("nothing is left to be done"), at=1)
    assert reinforce(environment, config(base), out, nobody, broken) == out / "model"
    reinforce(environment, config(base, epochs=5), out, Computed(), broken)
    assert len(rewards(out)) == 5 and rewards(out)[:4] == rewards(tmp_path / "whole")
    assert len(broken.attempts()) == 40 and read_manifest(out)["counts"]["epochs"] == 5  # type: ignore[index]
    with pytest.raises(UsageError, match="has come to 5 epochs, 4 are asked for"):
        reinforce(environment, config(base), out, nobody, broken)
    with pytest.raises(UsageError, match="holds a model that was trained by another plan"):
        reinforce(environment, config(base, seed=1), out, nobody, broken)
    with pytest.raises(UsageError, match=r"holds another search \(batch: 8 there, 4 now\)"):
        reinforce(environment, config(base, group=4), tmp_path / "other", nobody, broken)
    assert not (tmp_path / "other").exists()


def test_a_chat_model_thinks_and_an_implementer_writes(environment: Environment, tmp_path: Path) -> None:
    ideas = [f"<think>Hm, {one}?</think>\nTake {one} steps." for one in STEPS] * 50
    asked = prompt(environment, in_words=True)
    base = ideator(tmp_path / "base", asked, ideas, CHATML)
    wanted: list[str] = []

    def answer(request: Any) -> str:
        idea = request.messages[0][1].rsplit("The idea:", 1)[1].strip()
        wanted.append(idea)
        digits = int("".join(one for one in idea if one.isdecimal()) or 20)
        return f"```diff\n--- a/train.py\n+++ b/train.py\n@@ -8 +8 @@\n-STEPS = 20\n+STEPS = {digits}\n```"

    store = ResponseStore(tmp_path / "answers", "test")
    model = LanguageModel(Scripted(answer), store)
    implementer = Implementer(model, environment.context(), environment.code, environment.rules, 2, 0)
    archive = Archive(tmp_path / "a.sqlite")
    options = config(base, epochs=2, beta=0.1, accumulate=2)
    reinforce(environment, options, tmp_path / "out", Computed(), archive, implementer)
    store.close()
    attempts = archive.attempts("rl")
    assert len(attempts) == 16 and wanted and not any("think>" in one for one in wanted)
    scored = [one for one in attempts if one.score is not None]
    assert all("+STEPS = " in one.patch for one in scored)
    assert sum(one.idea.startswith("Take ") for one in scored) > len(scored) / 2, "as it was taught"
    log = (tmp_path / "out" / "checkpoints" / "checkpoint-2" / "trainer_state.json").read_text()
    assert '"kl"' in log and len(rewards(tmp_path / "out")) == 2


def test_what_will_not_do_is_said_before_anything_is_run(
    environment: Environment, base: Path, tmp_path: Path
) -> None:
    archive, nobody, out = Archive(tmp_path / "a.sqlite"), Computed(AssertionError(), at=1), tmp_path / "out"
    with pytest.raises(UsageError, match=r"the prompt has \d+ tokens and max_tokens is 8,192, the context"):
        reinforce(environment, config(base, max_tokens=8192), out, nobody, archive)
    with pytest.raises(UsageError, match="no such folder"):
        reinforce(environment, config(tmp_path / "none"), out, nobody, archive)
    assert not out.exists() and not archive.attempts() and archive.fact("metric") is None
    with pytest.raises(ValueError, match="group must be a multiple of accumulate"):
        config(base, accumulate=3)


def test_the_verdict_tells_mean_and_best_apart() -> None:
    found = [Rewards(epoch, 1.0 + epoch, 9.0 - (epoch == 7), 4, 2, 1) for epoch in range(8)]
    assert verdict(found) == (
        "reward in the first and the last 2 of 8 epochs: mean 1.5 -> 7.5, best of an epoch 9 -> 8.5; best of all 9 "
        "in epoch 0"
    )
    assert verdict([]) == "no epoch has ended"
