"""Pretraining and continued pretraining on an arm's packed tokens, with the transformers Trainer.

    MIX/ARM/tokens.bin --blocks in the file's order, one pass--> RUN/train/ARM/model

The budget is the file: every block is seen once, so arms of one mix see exactly the same number
of tokens in the same number of steps. A killed run goes on from its last checkpoint with the block that came
next. Checkpoints are plain `transformers` ones and load anywhere. For more devices start the same command
with ``accelerate launch``: FSDP and mixed precision are the Trainer's.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from leaven.config import PlanPath
from leaven.corpus.tokens import load_tokenizer
from leaven.errors import UsageError
from leaven.stage import Stage
from leaven.train.schedule import Schedule
from leaven.train.shapes import Shape, config_of, shape

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Progress = Callable[[str, int, int | None], None]


class Train(BaseModel):
    """How every arm is trained; all arms alike.

    Args:
        shape: a name in `shapes.SHAPES`, or a shape of one's own; for pretraining from nothing.
        checkpoint: folder of a checkpoint to go on from; its tokenizer must be the mix's.
        batch_size: sequences in one step.
        accumulate: forward passes that a step is split into, to save memory.
        learning_rate: the peak.
        weight_decay: on matrices only.
        clip: largest norm of the gradient.
        precision: ``auto`` is bfloat16 where the processor computes with it.
        compile: compile the model first; half a minute that pays for longer runs.
        save_every: steps between checkpoints, from which a killed run goes on.
        trackers: names that transformers knows (``wandb``, ``tensorboard``, ...); none by default.
        seed: of the first weights and of the order of the data: 0 takes the blocks as they lie in the file,
            any other seed in an order of its own, the same for all arms.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    shape: str | Shape | None = None
    checkpoint: PlanPath | None = None
    batch_size: int = Field(16, ge=1)
    accumulate: int = Field(1, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = Field(1.0, gt=0)
    schedule: Schedule = Schedule()
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool = False
    save_every: int = Field(500, ge=1)
    trackers: tuple[str, ...] = ()
    seed: int = 0

    @model_validator(mode="after")
    def _one_start(self) -> Train:
        if (self.shape is None) == (self.checkpoint is None):
            raise ValueError("give either shape or checkpoint")
        if self.batch_size % self.accumulate:
            raise ValueError("batch_size must be a multiple of accumulate")
        return self


class Blocks:
    """An arm's tokens as training sequences, read from disk as they are needed.

    Args:
        path: ``tokens.bin``.
        seed: of their order; see `Train`.
    """

    def __init__(self, path: Path, context: int, dtype: str, seed: int = 0) -> None:
        self.tokens: NDArray[Any] = np.memmap(path, dtype=dtype, mode="r").reshape(-1, context)
        count = len(self.tokens)
        self._order = np.arange(count) if seed == 0 else np.random.default_rng([seed, 4]).permutation(count)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, number: int) -> dict[str, Any]:
        import torch

        row = torch.from_numpy(self.tokens[self._order[number]].astype(np.int64))
        return {"input_ids": row, "labels": row}


def train(
    mix: Path,
    arm: str,
    options: Train,
    out: Path,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """Train one arm; returns the manifest. Skipped when it was trained before.

    Args:
        mix: a finished mix stage's folder.
        out: the stage's folder; ``model/`` in it will be the checkpoint, ``log.jsonl`` loss by step.

    Raises:
        UsageError: missing packages, an arm that is not there, a tokenizer that is not the checkpoint's, or a
            model of another plan in `out`; before any compute is spent.
    """
    mixed = json.loads((mix / "manifest.json").read_text(encoding="utf-8"))
    if arm not in mixed["arms"]:
        raise UsageError(f"train: {mix} has no arm {arm!r}; it has {', '.join(mixed['arms'])}")
    stage = Stage(out, {"train": options.model_dump(mode="json"), "arm": arm}, {"mix": mixed["fingerprint"]})
    if stage.manifest is not None:
        return stage.manifest
    _check_folder(stage)
    model = build(options, mixed, mix)
    stage.prepare(rows=False)
    blocks = Blocks(mix / arm / "tokens.bin", mixed["context"], mixed["dtype"], options.seed)
    result = _fit(model, blocks, options, stage.folder, progress)
    model.save_pretrained(out / "model")
    _save_tokenizer(mix / "tokenizer.json", mixed["end"], out / "model")
    return stage.finish(
        counts={"tokens": blocks.tokens.size, "steps": steps_of(len(blocks), options)}, reasons={},
        parameters=sum(one.numel() for one in model.parameters()), context=mixed["context"], **result,
    )  # fmt: skip


def steps_of(blocks: int, options: Train) -> int:
    """Optimizer steps of one pass over so many sequences; the last step may be a smaller one."""
    return math.ceil(blocks / options.batch_size)


def build(options: Train, mixed: Mapping[str, Any], mix: Path) -> PreTrainedModel:
    """The model to train: new by its shape, or a checkpoint.

    Raises:
        UsageError: missing packages, no such shape or checkpoint, or another tokenizer.
    """
    try:
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging
    except ImportError as error:
        raise UsageError(f"training needs pip install 'leaven[train]' ({error})") from error
    logging.disable_progress_bar()  # our own progress shows what takes time
    torch.manual_seed(options.seed)
    if options.checkpoint is None:
        assert options.shape is not None
        found = shape(options.shape) if isinstance(options.shape, str) else options.shape
        config = config_of(found, vocab_size=mixed["vocab_size"], context=mixed["context"], end=mixed["end"])
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        return model
    folder = options.checkpoint
    if not folder.is_dir():
        raise UsageError(f"train: checkpoint {folder}: no such folder")
    if (folder / "tokenizer.json").exists():
        theirs, ours = load_tokenizer(str(folder)), load_tokenizer(str(mix / "tokenizer.json"))
        if theirs.backend.get_vocab() != ours.backend.get_vocab():
            raise UsageError(
                f"train: the mix was tokenised with another tokenizer ({ours.vocab_size:,} tokens) than "
                f"checkpoint {folder} has ({theirs.vocab_size:,}); set mix: tokenizer to the checkpoint"
            )
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UsageError(f"train: checkpoint {folder}: {str(error).splitlines()[0]}") from error
    rows = model.config.vocab_size
    if rows < mixed["vocab_size"]:
        raise UsageError(
            f"train: checkpoint {folder} knows {rows:,} tokens, the mix has {mixed['vocab_size']:,}; "
            "set mix: tokenizer to the checkpoint"
        )
    return model


def _check_folder(stage: Stage) -> None:
    """A trained model is worth too much to be cleared away because an option changed; so is half of one."""
    marker = stage.folder / "parts" / "fingerprint"
    other = marker.exists() and marker.read_text() != stage.fingerprint
    if other and (
        (stage.folder / "model").exists() or any((stage.folder / "checkpoints").glob("checkpoint-*"))
    ):
        raise UsageError(
            f"{stage.folder} holds a model that was trained by another plan or on another mix; delete the "
            "folder, or give this plan another name"
        )


def _fit(
    model: PreTrainedModel, blocks: Blocks, options: Train, folder: Path, progress: Progress
) -> dict[str, Any]:
    """Train to the end, from the last checkpoint if there is one."""
    import torch
    from torch.utils.data import SequentialSampler
    from transformers import Trainer, TrainerCallback, TrainingArguments
    from transformers.trainer_utils import get_last_checkpoint

    steps = steps_of(len(blocks), options)
    bfloat16 = options.precision == "bfloat16" or (options.precision == "auto" and _has_bfloat16())

    class InOrder(Trainer):
        """The Trainer, but for the order of the data, the optimizer's groups and the schedule."""

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return SequentialSampler(blocks)

        def create_optimizer(self, model: Any = None) -> Any:
            if self.optimizer is None:
                chosen: Any = model or self.model
                every = list(chosen.parameters())
                groups: list[dict[str, Any]] = [
                    {"params": [one for one in every if one.ndim > 1]},
                    {"params": [one for one in every if one.ndim <= 1], "weight_decay": 0.0},
                ]
                self.optimizer = torch.optim.AdamW(
                    groups, lr=options.learning_rate, betas=options.betas, weight_decay=options.weight_decay,
                )  # fmt: skip
            return self.optimizer

        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            if self.lr_scheduler is None:
                chosen: Any = optimizer or self.optimizer
                self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                    chosen, lambda step: options.schedule.at(min(step, steps - 1), steps)
                )
            return self.lr_scheduler

    class Log(TrainerCallback):
        """Loss, rate and tokens by step, one JSON object a line."""

        def __init__(self) -> None:
            self.started, self.first = time.monotonic(), 0

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.started, self.first = time.monotonic(), state.global_step
            _keep_lines(folder / "log.jsonl", state.global_step)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if not logs or "loss" not in logs:
                return
            done = (state.global_step - self.first) * options.batch_size * blocks.tokens.shape[1]
            line = {
                "step": state.global_step, "loss": logs["loss"], "learning_rate": logs["learning_rate"],
                "tokens": min(state.global_step * options.batch_size, len(blocks)) * blocks.tokens.shape[1],
                "tokens_per_second": round(done / max(1e-9, time.monotonic() - self.started), 1),
            }  # fmt: skip
            with (folder / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            progress(f"training {folder.name}, loss {logs['loss']:.3f}", state.global_step, steps)

    checkpoints = str(folder / "checkpoints")
    trackers: Any = list(options.trackers) or "none"  # an empty list would ask the environment
    arguments = TrainingArguments(
        output_dir=checkpoints, max_steps=steps, seed=options.seed, report_to=trackers,
        per_device_train_batch_size=options.batch_size // options.accumulate,
        gradient_accumulation_steps=options.accumulate, max_grad_norm=options.clip, bf16=bfloat16,
        torch_compile=options.compile, logging_steps=1, save_steps=options.save_every, save_total_limit=1,
        disable_tqdm=True, dataloader_drop_last=False, remove_unused_columns=False,
        use_cpu=not torch.cuda.is_available(),
    )  # fmt: skip
    trainer = InOrder(model=model, args=arguments, train_dataset=blocks, callbacks=[Log()])
    _quiet(trainer)
    last = get_last_checkpoint(checkpoints) if os.path.isdir(checkpoints) else None
    trainer.train(resume_from_checkpoint=last)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {"loss": lines[-1]["loss"], "tokens_per_second": lines[-1]["tokens_per_second"]}


def _quiet(trainer: Any) -> None:
    """Our own progress shows what the Trainer would print at every step."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)


def _keep_lines(log: Path, steps: int) -> None:
    """Drop the lines after the checkpoint from which a run goes on: those steps are taken again."""
    if log.exists():
        lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= steps]
        log.write_text("".join(kept), encoding="utf-8")


def _has_bfloat16() -> bool:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _save_tokenizer(tokenizer: Path, end: int, folder: Path) -> None:
    """Beside the weights, so that the checkpoint is one everyone can load."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_file(str(tokenizer))
    mark = backend.id_to_token(end)
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=mark, pad_token=mark).save_pretrained(folder)
