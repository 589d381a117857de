"""The training loop that pretraining and finetuning share: the transformers Trainer, with less left to it.

The Trainer (or a subclass, as TRL's) does devices, precision, accumulation, checkpoints and trackers. Taken from
it are the order of the data (as it is given), the optimizer's groups (no decay on vectors), the schedule (ours,
to the step), and what it prints. A run that was killed goes on from its last checkpoint with the sequences that
came next, and its log is that of a run which was not.

Under ``accelerate launch`` every process runs the same code on its share of each step; the first alone writes.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from leaven.errors import UsageError
from leaven.stage import Stage
from leaven.train.schedule import Schedule

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Progress = Callable[[str, int, int | None], None]


class Fitting(BaseModel):
    """How weights are fitted to sequences; what pretraining and finetuning share.

    Args:
        batch_size: sequences in one step.
        accumulate: forward passes that a step is split into, to save memory.
        learning_rate: the peak.
        weight_decay: on matrices only.
        clip: largest norm of the gradient.
        precision: ``auto`` is bfloat16 where the processor computes with it.
        save_every: steps between checkpoints, from which a killed run goes on.
        trackers: names that transformers knows (``wandb``, ``tensorboard``, ...); none by default.
        seed: of everything that is drawn.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    batch_size: int = Field(16, ge=1)
    accumulate: int = Field(1, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = Field(1.0, gt=0)
    schedule: Schedule = Schedule()
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    save_every: int = Field(500, ge=1)
    trackers: tuple[str, ...] = ()
    seed: int = 0

    @model_validator(mode="after")
    def _even(self) -> Self:
        if self.batch_size % self.accumulate:
            raise ValueError("batch_size must be a multiple of accumulate")
        return self


def processes() -> tuple[int, int]:
    """(number of this process, how many there are); (0, 1) but under ``accelerate launch`` and the like."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def check_processes(sequences: int, options: Fitting) -> None:
    """Several processes share every step evenly, so that no sequence is seen twice.

    Raises:
        UsageError: the step, or the last one, cannot be shared.
    """
    count = processes()[1]
    if options.batch_size % (options.accumulate * count):
        raise UsageError(
            f"train: batch_size {options.batch_size} cannot be split over {count} processes and "
            f"accumulate {options.accumulate}"
        )
    if count > 1 and sequences % options.batch_size:
        raise UsageError(
            f"train: on {count} processes every step must be whole, but {sequences:,} sequences are no multiple of "
            f"batch_size {options.batch_size}; choose the budget accordingly"
        )


def steps_of(blocks: int, options: Fitting) -> int:
    """Optimizer steps of one pass over so many sequences; the last step may be a smaller one."""
    return math.ceil(blocks / options.batch_size)


def require_packages() -> None:
    """Say in one line what is missing, and keep the libraries' own progress bars and remarks away.

    Raises:
        UsageError: the packages that train are not installed.
    """
    try:
        import torch  # noqa: F401
        from transformers.utils import logging
    except ImportError as error:
        raise UsageError(f"training needs pip install 'leaven[train]' ({error})") from error
    logging.disable_progress_bar()  # our own progress shows what takes time
    logging.set_verbosity_error()  # on file systems, on GPUs that are not there: nothing that a user could mend


def load_checkpoint(folder: Path, where: str) -> PreTrainedModel:
    """A checkpoint's model in float32, to be trained.

    Raises:
        UsageError: no such folder, or nothing in it that can be loaded.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if not folder.is_dir():
        raise UsageError(f"{where}: checkpoint {folder}: no such folder")
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True
        )
    except (OSError, ValueError) as error:
        raise UsageError(f"{where}: checkpoint {folder}: {str(error).splitlines()[0]}") from error
    return model


def check_folder(stage: Stage, other_data: str) -> None:
    """A trained model is worth too much to be cleared away because an option changed; so is half of one.

    Args:
        other_data: how to say that it was trained on something else.

    Raises:
        UsageError: the stage's folder holds a model of another plan.
    """
    marker = stage.folder / "parts" / "fingerprint"
    other = marker.exists() and marker.read_text() != stage.fingerprint
    if other and (
        (stage.folder / "model").exists() or any((stage.folder / "checkpoints").glob("checkpoint-*"))
    ):
        raise UsageError(
            f"{stage.folder} holds a model that was trained by another plan or {other_data}; delete the "
            "folder, or give this plan another name"
        )


def last_checkpoint(checkpoints: Path) -> str | None:
    """The last checkpoint that was written to its end, which is the trainer's state."""
    whole = [path.parent for path in checkpoints.glob("checkpoint-*/trainer_state.json")]
    return str(max(whole, key=lambda one: int(one.name.rpartition("-")[2]))) if whole else None


def fit(
    kind: type[Any],
    settings: type[Any],
    model: PreTrainedModel,
    data: Any,
    options: Fitting,
    folder: Path,
    progress: Progress,
    *,
    tokens_after: Callable[[int], int],
    validation: Any = None,
    validate_every: int | None = None,
    **arguments: Any,
) -> dict[str, Any]:
    """Train to the end, from the last checkpoint if there is one, and save the model.

    Args:
        kind: the Trainer's class; `settings` that of its arguments.
        data: every sequence in the order in which it is seen; each is seen once.
        folder: ``log.jsonl``, ``checkpoints/`` and ``model/`` are written there.
        tokens_after: tokens in the first so many sequences.
        validation: sequences whose loss is taken every `validate_every` steps and at the end.
        arguments: further ones for `settings`.

    Returns:
        loss of the last step, and tokens per second.
    """
    import torch
    from transformers import PrinterCallback

    keep_memory()
    check_processes(len(data), options)
    size = options.batch_size // (options.accumulate * processes()[1])
    steps = steps_of(len(data), options)
    bfloat16 = options.precision == "bfloat16" or (options.precision == "auto" and has_bfloat16())
    checkpoints = str(folder / "checkpoints")
    trackers: Any = list(options.trackers) or "none"  # an empty list would ask the environment
    chosen = settings(
        output_dir=checkpoints, max_steps=steps, seed=options.seed, report_to=trackers,
        per_device_train_batch_size=size, per_device_eval_batch_size=size,
        eval_strategy="no" if validation is None else "steps", eval_steps=validate_every or steps,
        prediction_loss_only=True,
        gradient_accumulation_steps=options.accumulate, max_grad_norm=options.clip, bf16=bfloat16,
        logging_steps=1, save_steps=options.save_every, save_total_limit=1, disable_tqdm=True,
        dataloader_drop_last=False, remove_unused_columns=False, use_cpu=not torch.cuda.is_available(),
        **arguments,
    )  # fmt: skip

    def seen(step: int) -> int:
        return tokens_after(min(step * options.batch_size, len(data)))

    cached = model.config.use_cache  # the Trainer turns it off and leaves it so in what is saved
    log = _log(folder, steps, seen, progress)
    trainer = _in_order(kind, data, options, steps)(
        model=model, args=chosen, train_dataset=data, eval_dataset=validation, callbacks=[log]
    )
    trainer.remove_callback(PrinterCallback)  # our own progress shows what it would print at every step
    trainer.train(resume_from_checkpoint=last_checkpoint(Path(checkpoints)))
    model.config.use_cache = cached
    trainer.save_model(str(folder / "model"))  # whole, also where every process holds a part of it
    if processes()[0]:
        return {}
    (folder / "model" / "training_args.bin").unlink(missing_ok=True)  # a pickle; the manifest says it better
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    last_step = next(line for line in reversed(lines) if "loss" in line)
    found = {name: last_step[name] for name in ("loss", "tokens_per_second")}
    return found | ({} if validation is None else {"validation_loss": lines[-1]["validation_loss"]})


def keep_memory() -> None:
    """Let the C library keep freed memory: every step needs the same again, and getting it anew from the system
    takes a third of a step on a processor. Does nothing where the library is not glibc."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        mmap_threshold, trim_threshold, top_pad = -3, -1, -2  # as malloc.h numbers them
        libc.mallopt(mmap_threshold, (1 << 31) - 1)
        libc.mallopt(trim_threshold, (1 << 31) - 1)
        libc.mallopt(top_pad, 1 << 28)


def _in_order(kind: Any, data: Any, options: Fitting, steps: int) -> Any:
    """The Trainer, but for the order of the data, the optimizer's groups and the schedule."""
    import torch
    from torch.utils.data import SequentialSampler

    class InOrder(kind):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return SequentialSampler(data)

        def create_optimizer(self, model: Any = None) -> Any:
            if self.optimizer is None:
                every = list((model or self.model).parameters())
                groups: list[dict[str, Any]] = [
                    {"params": [one for one in every if one.ndim > 1]},
                    {"params": [one for one in every if one.ndim <= 1], "weight_decay": 0.0},
                ]
                self.optimizer: Any = torch.optim.AdamW(
                    groups, lr=options.learning_rate, betas=options.betas, weight_decay=options.weight_decay,
                    fused=True,
                )  # fmt: skip
            return self.optimizer

        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            if self.lr_scheduler is None:
                self.lr_scheduler: Any = torch.optim.lr_scheduler.LambdaLR(
                    optimizer or self.optimizer,
                    lambda step: options.schedule.at(min(step, steps - 1), steps),
                )
            return self.lr_scheduler

    return InOrder


def _log(folder: Path, steps: int, seen: Callable[[int], int], progress: Progress) -> Any:
    """A callback that writes loss, rate and tokens by step, one JSON object a line."""
    from transformers import TrainerCallback

    class Log(TrainerCallback):
        def __init__(self) -> None:
            self.started, self.first = time.monotonic(), 0

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.started, self.first = time.monotonic(), state.global_step
            if state.is_world_process_zero:
                _keep_lines(folder / "log.jsonl", state.global_step)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if args.eval_strategy != "no" and state.global_step >= steps:
                control.should_evaluate = True

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if not state.is_world_process_zero or not logs:
                return
            tokens = seen(state.global_step)
            if "eval_loss" in logs:
                self._write(
                    {"step": state.global_step, "tokens": tokens, "validation_loss": logs["eval_loss"]}
                )
            if "loss" not in logs:
                return
            seconds = max(1e-9, time.monotonic() - self.started)
            line = {
                "step": state.global_step, "loss": logs["loss"], "learning_rate": logs["learning_rate"],
                "tokens": tokens, "tokens_per_second": round((tokens - seen(self.first)) / seconds, 1),
            }  # fmt: skip
            self._write(line)
            progress(f"training {folder.name}, loss {logs['loss']:.3f}", state.global_step, steps)

        def _write(self, line: dict[str, Any]) -> None:
            with (folder / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    return Log()


def _keep_lines(log: Path, steps: int) -> None:
    """Drop the lines after the checkpoint from which a run goes on: those steps are taken again."""
    if log.exists():
        lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= steps]
        log.write_text("".join(kept), encoding="utf-8")


def has_bfloat16() -> bool:
    """Whether this machine computes with bfloat16, rather than imitating it."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
