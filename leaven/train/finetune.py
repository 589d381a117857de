"""Finetuning on prompts and answers, with TRL's SFTTrainer: instruction tuning, and the tool models of MGA.

    rows.jsonl --prompt tokens exactly as the model will be asked, loss on the answers--> OUT/model

Instruction tuning as in paper 003, A.2: linear warm-up, then a cosine down to 0, peak 5e-6, one epoch (there with
batches of 512 and a context of 2048). Tool models as in paper 000, appendix B: the same with three epochs and
8,192 tokens.

The loss covers the answers with their end mark and nothing else, and a prompt is encoded as the model will be asked
(`rows.py`). Rows of messages make a chat model: a tokenizer without a chat template is given a plain one, saved with
the checkpoint. A row that is too long is rejected and counted, never cut: half an answer teaches to stop in the
middle.

Every epoch has an order of its own. A killed run goes on from its last checkpoint with the rows that came next.
"""

from __future__ import annotations

import json
import warnings
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from leaven.config import PlanPath
from leaven.errors import Rejected, UsageError
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
from leaven.train.rows import IGNORED, Encoder, Row, read_rows, row_of, rows_fingerprint
from leaven.train.schedule import Schedule


class Finetune(Fitting):
    """How a checkpoint is finetuned. Beside the options of `Fitting`, of which some have other defaults:

    Args:
        path: the rows, JSONL: ``{"prompt": ..., "completion": ...}`` or ``{"messages": [{"role": ...,
            "content": ...}, ...]}`` that end with the assistant's; further fields are left alone.
        epochs: passes over the rows.
        max_length: longest row in tokens, prompt and answer together; None is the checkpoint's context.
        seed: of the order of the rows in each epoch.
    """

    path: PlanPath | None = None
    epochs: int = Field(1, ge=1)
    learning_rate: float = Field(5e-6, gt=0)
    schedule: Schedule = Schedule(name="cosine")
    max_length: int | None = Field(None, ge=2)


def finetune(
    checkpoint: Path,
    options: Finetune,
    out: Path,
    rows: Iterable[Mapping[str, Any]] | None = None,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """Finetune a checkpoint; returns the manifest (of processes that do not write, counts and parameters).

    Skipped when it was done before.

    Args:
        checkpoint: folder that transformers loads; it is not changed.
        out: the stage's folder; ``model/`` in it will be the checkpoint, ``log.jsonl`` loss by step,
            ``rejected.jsonl`` the rows that were left out.
        rows: in place of ``options.path``, as that file has them.

    Returns:
        the manifest; its counts: rows `read`, `kept` and `rejected`, `tokens` seen and `answer_tokens` trained on
        over all epochs, `steps`.

    Raises:
        UsageError: missing packages, no such checkpoint, a bad row (named), no row that fits, or a model of
            another plan in `out`; before any compute is spent.
    """
    found = (
        read_rows(options.path)
        if rows is None
        else [row_of(one, f"row {i}") for i, one in enumerate(rows, 1)]
    )
    if not found:
        raise UsageError(f"finetune: {options.path or 'rows'}: there are no rows")
    config = {"finetune": options.model_dump(mode="json", exclude={"path"})}
    stage = Stage(out, config, {"rows": rows_fingerprint(found), "checkpoint": weights_hash(checkpoint)})
    if stage.manifest is not None:
        return stage.manifest
    check_folder(stage, "on other rows")
    require_packages()
    model = load_checkpoint(checkpoint, "finetune")
    encoder = Encoder(checkpoint, model, chat=any(row.chat for row in found))
    encoded, rejected = _encode(found, encoder, _limit(options, model), progress)
    if not len(encoded):
        raise UsageError(f"finetune: no row can be trained on; the first: {rejected[0]['detail']}")
    order = epochs_of(len(encoded), options.epochs, options.seed)
    rank, several = processes()
    if several > 1:  # the last step must be whole: it is filled up from the first rows
        order = np.resize(order, len(order) + -len(order) % options.batch_size)
    check_processes(len(order), options)
    counts = {
        "read": len(found), "kept": len(encoded), "rejected": len(rejected),
        "tokens": int(encoded.lengths[order].sum()), "answer_tokens": int(encoded.learnt[order].sum()),
        "steps": steps_of(len(order), options),
    }  # fmt: skip
    assert counts["read"] == counts["kept"] + counts["rejected"]
    parameters = sum(one.numel() for one in model.parameters())
    if rank == 0:
        stage.prepare(rows=False)
        lines = (json.dumps(one, ensure_ascii=False) + "\n" for one in rejected)
        (out / "rejected.jsonl").write_text("".join(lines), encoding="utf-8")
    result = _fit(model, encoder.tokenizer, encoded, order, options, out, progress)
    if rank:
        return {"counts": counts, "parameters": parameters}
    reasons = dict(Counter(one["reason"] for one in rejected))
    return stage.finish(counts=counts, reasons=reasons, parameters=parameters, **result)


@dataclass(frozen=True)
class Encoded:
    """All rows that are trained on, end to end.

    Args:
        tokens, labels: shape (tokens of all rows,).
        ends: place after the last token of every row, shape (rows,).
    """

    tokens: NDArray[np.int32]
    labels: NDArray[np.int32]
    ends: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of every row, shape (rows,)."""
        return np.diff(self.ends, prepend=0)

    @property
    def learnt(self) -> NDArray[np.int64]:
        """Tokens of every row that a loss is taken of, shape (rows,)."""
        before = np.concatenate([[0], np.cumsum(self.labels != IGNORED)])
        return np.diff(before[self.ends], prepend=0)

    def to_dataset(self, order: NDArray[np.int64]) -> Any:
        """A `datasets.Dataset` of the rows in that order, in memory once however often a row comes."""
        import pyarrow as pa
        from datasets import Dataset

        starts = np.concatenate([[0], self.ends])
        columns = {
            name: pa.LargeListArray.from_arrays(starts, pa.array(values))
            for name, values in (("input_ids", self.tokens), ("labels", self.labels))
        }
        return Dataset(pa.table(columns)).select(order)


def epochs_of(rows: int, epochs: int, seed: int) -> NDArray[np.int64]:
    """Numbers of the rows in training order, each epoch in an order of its own, shape (epochs * rows,)."""
    return np.concatenate([np.random.default_rng([seed, 5, one]).permutation(rows) for one in range(epochs)])


def _fit(
    model: Any,
    tokenizer: Any,
    encoded: Encoded,
    order: NDArray[np.int64],
    options: Finetune,
    out: Path,
    progress: Progress,
) -> dict[str, Any]:
    import torch
    from trl import SFTConfig, SFTTrainer

    class Answers(SFTTrainer):
        """TRL's trainer, but nothing leaves this machine and the manifest takes the model card's place."""

        def __init__(self, **given: Any) -> None:
            super().__init__(processing_class=tokenizer, **given)

        def _send_telemetry(self) -> None:
            return

        def create_model_card(self, *_: Any, **__: Any) -> None:
            return

    after = np.concatenate([[0], np.cumsum(encoded.lengths[order])])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`gradient_checkpointing", FutureWarning)  # TRL's name for it
        return fit(
            Answers, SFTConfig, model, encoded.to_dataset(order), options, out, progress,
            tokens_after=lambda rows: int(after[rows]), max_length=None,  # rows are whole; TRL would cut them
            gradient_checkpointing=torch.cuda.is_available() or None,  # where memory is short
        )  # fmt: skip


def _limit(options: Finetune, model: Any) -> int:
    context = int(getattr(model.config, "max_position_embeddings", 0)) or (options.max_length or 0)
    if not context:
        raise UsageError("finetune: the checkpoint does not tell its context; set max_length")
    if options.max_length is not None and options.max_length > context:
        raise UsageError(
            f"finetune: max_length {options.max_length:,} is more than the checkpoint's context, {context:,}"
        )
    return options.max_length or context


def _encode(
    rows: Sequence[Row], encoder: Encoder, limit: int, progress: Progress
) -> tuple[Encoded, list[dict[str, str]]]:
    """(rows to train on, rejected ones with the reason)."""
    tokens, labels, ends = array("i"), array("i"), array("q")
    rejected: list[dict[str, str]] = []
    for number, row in enumerate(rows):
        if number % 500 == 0:
            progress("tokens of rows", number, len(rows))
        try:
            ids, learnt = encoder.encode(row)
            if len(ids) > limit:
                raise Rejected("longer than max_length", f"{len(ids):,} tokens; max_length is {limit:,}")
        except Rejected as error:
            detail = f"{row.where}: {error.detail}"
            rejected.append({"row": row.where, "reason": error.reason, "detail": detail})
            continue
        tokens.extend(ids)
        labels.extend(learnt)
        ends.append(len(tokens))
    found = Encoded(
        np.frombuffer(tokens, np.int32) if tokens else np.empty(0, np.int32),
        np.frombuffer(labels, np.int32) if labels else np.empty(0, np.int32),
        np.frombuffer(ends, np.int64) if ends else np.empty(0, np.int64),
    )
    return found, rejected
