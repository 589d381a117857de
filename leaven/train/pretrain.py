"""Pretraining and continued pretraining on an arm's packed tokens, with the transformers Trainer.

    MIX/ARM/tokens.bin --blocks in the file's order, one pass--> RUN/train/ARM/model

The budget is the file: every block is seen once, so arms of one mix see exactly the same number
of tokens in the same number of steps. A killed run goes on from its last checkpoint with the block that came
next. Checkpoints are plain `transformers` ones and load anywhere. For more devices start the same command
with ``accelerate launch``: FSDP and mixed precision are the Trainer's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from leaven.config import PlanPath
from leaven.corpus.tokens import Tokenizer, load_tokenizer
from leaven.errors import UsageError
from leaven.lm.transformers import weights_hash
from leaven.stage import Stage
from leaven.train.fit import (
    Fitting,
    Progress,
    check_folder,
    check_processes,
    fit,
    load_checkpoint,
    processes,
    require_packages,
    steps_of,
)  # fmt: skip
from leaven.train.shapes import Shape, config_of, shape

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Train(Fitting):
    """How every arm is trained; all arms alike. Beside the options of `Fitting`:

    Args:
        shape: a name in `shapes.SHAPES`, or a shape of one's own; for pretraining from nothing.
        checkpoint: folder of a checkpoint to go on from; its tokenizer must be the mix's.
        compile: compile the model first; half a minute that pays for longer runs.
        validate_every: steps between two looks at the mix's validation source; None looks at the end only.
        seed: of the first weights and of the order of the data: 0 takes the blocks as they lie in the file,
            any other seed in an order of its own, the same for all arms.
    """

    shape: str | Shape | None = None
    checkpoint: PlanPath | None = None
    compile: bool = False
    validate_every: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if (self.shape is None) == (self.checkpoint is None):
            raise ValueError("give either shape or checkpoint")
        return self


class Blocks:
    """An arm's tokens as training sequences, read from disk as they are needed.

    Args:
        path: ``tokens.bin``.
        seed: of their order; see `Train`.
        end: id of the mark after a document where tokens may not see the documents packed before their own;
            None lets them. Positions then begin anew in every document, which is how `transformers` knows.
    """

    def __init__(self, path: Path, context: int, dtype: str, seed: int = 0, end: int | None = None) -> None:
        self._end = end
        self.tokens: NDArray[Any] = np.memmap(path, dtype=dtype, mode="r").reshape(-1, context)
        count = len(self.tokens)
        self._order = np.arange(count) if seed == 0 else np.random.default_rng([seed, 4]).permutation(count)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, number: int) -> dict[str, Any]:
        import torch

        tokens = self.tokens[self._order[number]].astype(np.int64)
        row = torch.from_numpy(tokens)
        found = {"input_ids": row, "labels": row}
        if self._end is not None:
            found["position_ids"] = torch.from_numpy(positions(tokens, self._end))
        return found


def positions(tokens: NDArray[np.int64], end: int) -> NDArray[np.int64]:
    """Place of every token in its own document, which ends with the mark `end`; shape as `tokens`."""
    places = np.arange(len(tokens))
    first = np.concatenate(([True], tokens[:-1] == end))
    found: NDArray[np.int64] = places - np.maximum.accumulate(np.where(first, places, 0))
    return found


def train(
    mix: Path,
    arm: str,
    options: Train,
    out: Path,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """Train one arm; returns the manifest (of processes that do not write, its counts and parameters).

    Skipped when it was trained before.

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
    inputs = {"mix": mixed["fingerprint"]}
    if (
        options.checkpoint is not None
    ):  # known by its weights: where it lies may change, and so may what lies there
        inputs["checkpoint"] = weights_hash(options.checkpoint)
    stage = Stage(out, {"train": options.model_dump(mode="json", exclude={"checkpoint"}), "arm": arm}, inputs)
    if stage.manifest is not None:
        return stage.manifest
    check_folder(stage, "on another mix")
    model = build(options, mixed, mix)
    end = mixed["end"] if mixed["mask"] else None
    blocks = Blocks(mix / arm / "tokens.bin", mixed["context"], mixed["dtype"], options.seed, end)
    held = None
    if mixed["validation"]:
        held = Blocks(mix / "validation" / "tokens.bin", mixed["context"], mixed["dtype"], end=end)
    check_processes(len(blocks), options)
    parameters = sum(one.numel() for one in model.parameters())
    first = processes()[0] == 0
    if first:
        stage.prepare(rows=False)
    result = _fit(model, blocks, held, options, stage.folder, progress)
    counts = {"tokens": blocks.tokens.size, "steps": steps_of(len(blocks), options)}
    if not first:
        return {"counts": counts, "parameters": parameters}
    _save_tokenizer(mix / "tokenizer.json", mixed["end"], out / "model")
    return stage.finish(counts=counts, reasons={}, parameters=parameters, context=mixed["context"], **result)


def build(options: Train, mixed: Mapping[str, Any], mix: Path) -> PreTrainedModel:
    """The model to train: new by its shape, or a checkpoint.

    Raises:
        UsageError: missing packages, no such shape or checkpoint, or another tokenizer.
    """
    require_packages()
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(options.seed)
    if options.checkpoint is None:
        assert options.shape is not None
        found = shape(options.shape) if isinstance(options.shape, str) else options.shape
        config = config_of(found, vocab_size=mixed["vocab_size"], context=mixed["context"], end=mixed["end"])
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        return model
    folder = options.checkpoint
    same_tokenizer(folder, load_tokenizer(str(mix / "tokenizer.json")))
    model = load_checkpoint(folder, "train")
    rows = model.config.vocab_size
    if rows < mixed["vocab_size"]:
        raise UsageError(
            f"train: checkpoint {folder} knows {rows:,} tokens, the mix has {mixed['vocab_size']:,}; "
            f"set tokenizer: {folder}"
        )
    return model


def same_tokenizer(checkpoint: Path, ours: Tokenizer) -> None:
    """Make sure that a mix is in a checkpoint's tokens.

    Raises:
        UsageError: it is not, or there is no such checkpoint.
    """
    if not checkpoint.is_dir():
        raise UsageError(f"train: checkpoint {checkpoint}: no such folder")
    if not (checkpoint / "tokenizer.json").exists():
        return  # the sizes of the vocabularies are compared when it is loaded
    theirs = load_tokenizer(str(checkpoint))
    if theirs.backend.get_vocab() != ours.backend.get_vocab():
        raise UsageError(
            f"train: the mix is tokenised with another tokenizer ({ours.vocab_size:,} tokens) than "
            f"checkpoint {checkpoint} has ({theirs.vocab_size:,}); set tokenizer: {checkpoint}"
        )


def _fit(
    model: PreTrainedModel,
    blocks: Blocks,
    held: Blocks | None,
    options: Train,
    folder: Path,
    progress: Progress,
) -> dict[str, Any]:
    import torch
    from transformers import Trainer, TrainingArguments

    if options.compile:
        torch._dynamo.reset()  # what was compiled for the models trained before counts against a limit
    context = blocks.tokens.shape[1]
    return fit(
        Trainer, TrainingArguments, model, blocks, options, folder, progress,
        tokens_after=lambda rows: rows * context, validation=held, validate_every=options.validate_every,
        torch_compile=options.compile,
    )  # fmt: skip


def _save_tokenizer(tokenizer: Path, end: int, folder: Path) -> None:
    """Beside the weights, so that the checkpoint is one everyone can load."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_file(str(tokenizer))
    mark = backend.id_to_token(end)
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=mark, pad_token=mark).save_pretrained(folder)
