"""The ideator is finetuned with execution as its reward (paper 003, appendix C.2), by TRL's GRPO.

    prompt --the model draws a group--> completions --reward.py--> rewards
       ^                                                              |
       '--- one GRPO step: what is worth more than the group's mean becomes likelier

There is one prompt per environment, so a batch is one prompt, and an epoch is one group and one step. Every completion
is in the archive, and `rewards.jsonl` tells mean and best reward of each epoch apart: in the paper the mean rises and
the best does not, so a rising mean alone does not say that better ideas are had.

Every epoch ends with a checkpoint, and its draws depend on the weights, the seed and its number alone. A run that was
killed therefore draws the group of the broken epoch again, and finds in the archive what of it was run. (Where a
machine computes differently the second time, other ideas are drawn; they are run, those of before are given up.)
"""

from __future__ import annotations

import asyncio
import json
import threading
import warnings
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from leaven.config import PlanPath
from leaven.errors import UsageError
from leaven.lm.client import LanguageModel
from leaven.lm.transformers import encode, weights_hash
from leaven.search.archive import Archive, Attempt
from leaven.search.environment import Environment
from leaven.search.implement import Implementer
from leaven.search.loop import Tell
from leaven.search.reward import Completion, Group, prompt, reward
from leaven.search.workers import Workers
from leaven.stage import Stage, fingerprint
from leaven.train.fit import (
    check_folder,
    keep_memory,
    last_checkpoint,
    load_checkpoint,
    processes,
    require_packages,
)

PART = 4  # the first and the last such part of all epochs are compared in `verdict`


class Config(BaseModel):
    """How the ideator is finetuned; what TRL calls by another name is said.

    Args:
        checkpoint: folder of the ideator; it is not changed.
        group: completions of an epoch (num_generations); 128 and 256 in the paper.
        epochs: groups drawn, each followed by one step; may be raised later. 40 and 68 in the paper.
        accumulate: forward passes that a step is split into, to save memory (gradient_accumulation_steps).
        temperature: of the draws.
        max_tokens: longest completion (max_completion_length), thoughts included; one that does not end within it
            is a failed idea. 8192 in the paper.
        beta: weight of the KL divergence from the checkpoint; 0 keeps no second model in memory.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    checkpoint: PlanPath
    group: int = Field(16, ge=2)
    epochs: int = Field(20, ge=1)
    accumulate: int = Field(1, ge=1)
    learning_rate: float = Field(1e-6, gt=0)
    temperature: float = Field(1.0, gt=0)
    max_tokens: int = Field(8192, ge=1)
    beta: float = Field(0.0, ge=0)
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _even(self) -> Self:
        if self.group % self.accumulate:
            raise ValueError("group must be a multiple of accumulate")
        return self


@dataclass(frozen=True)
class Rewards:
    """One epoch.

    Args:
        mean, best: reward over all completions, failed ones with their 0.
        ideas: completions; `completed` came to a score, of `distinct` patches.
    """

    epoch: int
    mean: float
    best: float
    ideas: int
    completed: int
    distinct: int


def reinforce(
    environment: Environment,
    config: Config,
    out: Path,
    workers: Workers,
    archive: Archive,
    implementer: Implementer | None = None,
    tell: Tell = lambda *_: None,
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """Finetune an ideator by what its ideas are worth; returns the folder of the new checkpoint.

    Goes on where an earlier run in `out` was; with more epochs, after those it had.

    Args:
        out: a folder of its own: ``model/``, ``rewards.jsonl``, and checkpoints to go on from.
        archive: of this alone; a search has its own.
        implementer: see `Group`. It is asked from one event loop in a thread, which is closed at the end; so are the
            model's connections, as they belong to the loop.

    Raises:
        UsageError: packages, checkpoint, prompt, archive, folder or a score will not do; one line.
        Stopped: the implementer's model cannot go on for now.
    """
    if processes()[1] > 1:
        raise UsageError("reinforce: runs in one process; start it without accelerate launch")
    stage = _stage(environment, config, out, implementer)
    check_folder(stage, "on another environment or checkpoint")
    had = len(rewards(out))
    if had > config.epochs:
        raise UsageError(
            f"{out} has come to {had} epochs, {config.epochs} are asked for; choose another folder"
        )
    if stage.manifest is not None and had == config.epochs:
        return out / "model"
    require_packages()
    tokenizer = _tokenizer(config)
    model = load_checkpoint(config.checkpoint, "reinforce")
    asked = prompt(environment, implementer is not None)
    _check_length(model, tokenizer, asked, config)
    _claim(archive, environment, config, stage)
    stage.prepare(rows=False)
    group = Group(environment, archive, workers, implementer, tell)
    with _one_loop() as wait:

        def rewards_of(epoch: int, said: Sequence[Completion]) -> list[float]:
            attempts = wait(group.attempts(epoch, said))
            values = [reward(environment.file.metric, one.score) for one in attempts]
            found = _rewards(epoch, attempts, values)
            _keep(out, found)
            say(
                f"epoch {epoch}: mean reward {found.mean:.6g}, best {found.best:.6g}; {found.completed} of "
                f"{found.ideas} ideas completed, {found.distinct} different ones"
            )
            return values

        try:
            _train(model, tokenizer, asked, config, out, rewards_of)
        finally:
            if implementer is not None and isinstance(implementer.model, LanguageModel):
                wait(implementer.model.close())
    found = rewards(out)
    say(verdict(found))
    ideas, completed = sum(one.ideas for one in found), sum(one.completed for one in found)
    counts = {"epochs": len(found), "ideas": ideas, "completed": completed, "failed": ideas - completed}
    stage.finish(counts=counts, verdict=verdict(found))
    return out / "model"


def rewards(out: Path) -> list[Rewards]:
    """Mean and best reward by epoch, as far as a run in `out` has come."""
    path = out / "rewards.jsonl"
    if not path.exists():
        return []
    return [Rewards(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def verdict(found: Sequence[Rewards]) -> str:
    """In a sentence, what became of the mean and of the best reward: first and last quarter of the epochs."""
    if not found:
        return "no epoch has ended"
    part = max(1, len(found) // PART)
    means, bests = (
        [float(np.mean([getattr(one, name) for one in some])) for some in (found[:part], found[-part:])]
        for name in ("mean", "best")
    )
    return (
        f"reward in the first and the last {part} of {len(found)} epochs: mean {means[0]:.6g} -> {means[1]:.6g}, best "
        f"of an epoch {bests[0]:.6g} -> {bests[1]:.6g}; best of all {max(one.best for one in found):.6g} in epoch "
        f"{max(found, key=lambda one: one.best).epoch}"
    )


def _rewards(epoch: int, attempts: Sequence[Attempt], values: Sequence[float]) -> Rewards:
    completed = [one.patch for one in attempts if one.score is not None]
    mean, best = float(np.mean(values)), max(values)
    return Rewards(epoch, mean, best, len(values), len(completed), len(set(completed)))


def _keep(out: Path, found: Rewards) -> None:
    """Write an epoch's line in place of what a run that was killed had written from there on."""
    lines = [asdict(one) for one in rewards(out) if one.epoch < found.epoch] + [asdict(found)]
    partial = out / "rewards.partial"
    partial.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    partial.replace(out / "rewards.jsonl")


def _stage(environment: Environment, config: Config, out: Path, implementer: Implementer | None) -> Stage:
    """Everything that decides the result but the number of epochs, which may be raised."""
    own = config.model_dump(mode="json", exclude={"checkpoint", "epochs"})
    writer = implementer and [implementer.model.name, implementer.samples, implementer.revisions]
    inputs = {
        "environment": environment.fingerprint,
        "prompt": fingerprint(prompt(environment, implementer is not None)),  # tells the parameters, too
        "checkpoint": weights_hash(config.checkpoint),
    }
    return Stage(out, {"reinforce": own, "implementer": writer}, inputs)


def _claim(archive: Archive, environment: Environment, config: Config, stage: Stage) -> None:
    """Make the archive this run's. The facts are those that a search notes, so that neither takes the other's."""
    archive.claim({
        "environment": environment.file.name, "fingerprint": environment.fingerprint, "strategy": "reinforce",
        "batch": config.group, "seed": config.seed, "metric": environment.file.metric.model_dump(),
        "reinforce": stage.fingerprint,
    })  # fmt: skip


def _tokenizer(config: Config) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(
            config.checkpoint, local_files_only=True, padding_side="left"
        )
    except (OSError, ValueError) as error:
        raise UsageError(
            f"reinforce: checkpoint {config.checkpoint}: {str(error).splitlines()[0]}"
        ) from error
    if tokenizer.eos_token_id is None:
        raise UsageError(
            f"reinforce: the tokenizer of {config.checkpoint} has no end mark (eos_token), so no completion could end"
        )
    return tokenizer


def _check_length(model: Any, tokenizer: Any, asked: str, config: Config) -> None:
    context = int(getattr(model.config, "max_position_embeddings", 0))
    tokens = len(encode(tokenizer, (("user", asked),)))
    if context and tokens + config.max_tokens > context:
        raise UsageError(
            f"reinforce: the prompt has {tokens:,} tokens and max_tokens is {config.max_tokens:,}, the context of "
            f"{config.checkpoint} is {context:,}; lower max_tokens or take another checkpoint"
        )


@contextmanager
def _one_loop() -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    """One event loop for all epochs, in a thread; gives the function that waits for a coroutine in it.

    The trainer asks for rewards now and then, from code that is not asynchronous. What the workers wait with and a
    model's connections belong to the loop they were first used in, so that a loop for each epoch will not do.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="reinforce", daemon=True)
    thread.start()

    def wait(coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result()

    async def cancel() -> None:
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    try:
        yield wait
    finally:
        wait(cancel())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _train(
    model: Any,
    tokenizer: Any,
    asked: str,
    config: Config,
    out: Path,
    rewards_of: Callable[[int, Sequence[Completion]], list[float]],
) -> None:
    """GRPO from the last checkpoint to the end; writes ``out/model``."""
    from datasets import Dataset
    from transformers import PrinterCallback

    keep_memory()
    stop = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *([stop] if isinstance(stop, int) else stop or ())}

    def executed(completion_ids: list[list[int]], trainer_state: Any, **_: Any) -> list[float]:
        texts = tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
        cut = [not ids or ids[-1] not in ends for ids in completion_ids]
        return rewards_of(int(trainer_state.global_step), list(map(Completion, texts, cut)))

    one = [{"role": "user", "content": asked}] if tokenizer.chat_template else asked
    cached = model.config.use_cache  # the Trainer may turn it off and leave it so in what is saved
    checkpoints = out / "checkpoints"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`(is_)?gradient_checkpointing", FutureWarning)  # TRL's name for it
        trainer = _kind()(
            model=model, reward_funcs=executed, args=_arguments(config, checkpoints), processing_class=tokenizer,
            train_dataset=Dataset.from_list([{"prompt": one}]), callbacks=[_own_draws(config.seed)],
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=last_checkpoint(checkpoints))
    model.config.use_cache = cached
    trainer.save_model(str(out / "model"))
    (out / "model" / "training_args.bin").unlink(missing_ok=True)  # a pickle; the manifest says it better


def _arguments(config: Config, checkpoints: Path) -> Any:
    """TRL's, for one prompt a step, its whole group at once. The rate is constant, so that epochs can be added."""
    import torch
    from trl import GRPOConfig

    gpu = torch.cuda.is_available()
    return GRPOConfig(
        output_dir=str(checkpoints), max_steps=config.epochs, seed=config.seed, num_generations=config.group,
        per_device_train_batch_size=config.group // config.accumulate,
        gradient_accumulation_steps=config.accumulate, max_completion_length=config.max_tokens,
        temperature=config.temperature, beta=config.beta, learning_rate=config.learning_rate,
        lr_scheduler_type="constant", loss_type="grpo", scale_rewards="group",  # as Shao et al. (2024) have it
        use_vllm=False, use_cpu=not gpu, bf16=gpu and torch.cuda.is_bf16_supported(), gradient_checkpointing=gpu,
        save_strategy="steps", save_steps=1, save_total_limit=1, logging_steps=1, report_to="none",
        disable_tqdm=True,
    )  # fmt: skip


def _kind() -> Any:
    from trl import GRPOTrainer

    class Reinforce(GRPOTrainer):
        """TRL's trainer, but nothing leaves this machine and the manifest takes the model card's place."""

        def _send_telemetry(self) -> None:
            return

        def create_model_card(self, *_: Any, **__: Any) -> None:
            return

    return Reinforce


def _own_draws(seed: int) -> Any:
    """A callback that gives every epoch draws of its own, whatever was drawn before it."""
    import torch
    from transformers import TrainerCallback

    class OwnDraws(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            torch.manual_seed(int(np.random.SeedSequence([seed, state.global_step]).generate_state(1)[0]))

    return OwnDraws()
