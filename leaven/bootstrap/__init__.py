"""Models trained on the user's own documents to write more of them: no teacher, no key, no network.

    RUN/corpus --Writer, Bootstrap--> RUN/writer/base      the model pretrained on the corpus
                                      RUN/writer/STAGE/    what a method makes of it (pairs, tuned models, rounds)

    whole.py      `method: sbp` in a plan: everything that it does not say, by the size of the corpus
    forecast.py   how long that will take on this machine

`Writer` is a plan's `writer` section. Whatever it leaves open goes by the size of the corpus (`sized`). `Bootstrap` is
the `Trainer` that methods in `generate/` are given, so that they need not know how models are trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from leaven.config import PlanPath, validated
from leaven.corpus import embed
from leaven.corpus.locate import Corpus
from leaven.corpus.tokens import load_tokenizer
from leaven.document import Document, content_id
from leaven.lm import ModelConfig, transformers
from leaven.lm.client import LanguageModel
from leaven.mix import Mix, mix
from leaven.stage import fingerprint, read_manifest
from leaven.train import Finetune, Train, finetune, train
from leaven.train.fit import has_bfloat16
from leaven.train.pretrain import same_tokenizer

Progress = Callable[[str, int, int | None], None]

TITLE = 64  # tokens kept free in a context for a document's title, author and the marks around it


class Writer(BaseModel):
    """The model that `sbp` and `self_train` train on the corpus and write with.

    Args:
        checkpoint: take this one, as it is, in place of one pretrained on the corpus.
        epochs: of the corpus in pretraining; None by its size.
        context: tokens of one training sequence; sbp needs room for two documents in it. None is twice the plan's
            `chunk_tokens` and room for titles, or 4,096.
        pretrain: options of training (`leaven train`) that differ from those by size, such as ``{shape: 3m}``.
        tune: options of finetuning (`leaven finetune`) that differ, for sbp's pairs.
        go_on: options of training that differ, for the rounds of self_train.
        batch_size: most texts drawn at once.
        dtype: to draw in; None is bfloat16 on a GPU that has it, else float32. In bfloat16 what else is in a batch
            moves the scores enough to turn a draw now and then, so that a run killed while it writes ends with a few
            other texts than one that was not; in float32 the texts are the same.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    checkpoint: PlanPath | None = None
    epochs: float | None = Field(None, gt=0)
    context: int | None = Field(None, ge=32)
    pretrain: dict[str, Any] = Field(default_factory=dict)
    tune: dict[str, Any] = Field(default_factory=dict)
    go_on: dict[str, Any] = Field(default_factory=dict)
    batch_size: int = Field(128, ge=1)
    dtype: Literal["float32", "bfloat16", "float16"] | None = None

    def check(self, where: str) -> None:
        """Whether the options make sense, before any work is done.

        Raises:
            UsageError: an unknown option or a value out of range.
        """
        for name, kind, given in (
            ("pretrain", Train, {"shape": "1m"} | self.pretrain),
            ("tune", Finetune, self.tune),
            ("go_on", Train, {"checkpoint": "."} | self.go_on),
        ):
            validated(kind, given, f"{where}: writer: {name}")


@dataclass(frozen=True)
class Sizes:
    """What suits a corpus.

    Args:
        up_to: for corpora of fewer tokens.
        step: tokens in one step of training.
        rate: peak learning rate of pretraining.
        tune_rate: of tuning, constant.
    """

    up_to: float
    shape: str
    epochs: float
    step: int
    rate: float
    tune_rate: float


# Ours. The first row was tried on stories (LOG.md); the others carry it on and were not. Tuning at a third of the
# pretraining rate and less: the paper's 5e-6 after a peak of 1e-2 is for thousands of steps of a 3B model.
SIZES = (
    Sizes(2e6, "1m", 4.5, 2048, 3e-3, 1e-3),
    Sizes(2e7, "3m", 6, 4096, 2e-3, 5e-4),
    Sizes(2e8, "10m", 4, 16_384, 1e-3, 2e-4),
    Sizes(math.inf, "30m", 4, 65_536, 6e-4, 1e-4),
)
LONG = 1_500_000  # tokens of training from which compiling, half a minute, pays


def sized(tokens: int) -> Sizes:
    """What suits a corpus of so many tokens."""
    return next(one for one in SIZES if tokens < one.up_to)


def training_of(size: Sizes, tokens: int, context: int) -> dict[str, Any]:
    """Options of pretraining a model on so many tokens."""
    return {
        "shape": size.shape, "batch_size": max(1, size.step // context), "learning_rate": size.rate,
        "save_every": 200, "compile": tokens >= LONG,
    }  # fmt: skip


def context_of(options: Writer, chunk_tokens: int | None) -> int:
    """Tokens of one training sequence: room for two documents, see `Writer`."""
    return options.context or (4096 if chunk_tokens is None else 2 * chunk_tokens + TITLE)


class Bootstrap:
    """The `Trainer` of a run: see `leaven.generate._training`.

    Args:
        corpus: the finished corpus stage.
        held: the finished stage of held-out documents, whose loss is taken while pretraining; None for none.
        folder: ``RUN/writer``.
        embeddings: folder of the embeddings' cache.
        open_model: opens a model of a config with the run's store and budget.
    """

    def __init__(
        self,
        options: Writer,
        corpus: Path,
        held: Path | None,
        folder: Path,
        embeddings: Path,
        open_model: Callable[[ModelConfig], LanguageModel],
        progress: Progress,
    ) -> None:
        self._options, self._corpus, self._held, self._folder = options, corpus, held, folder
        self._embeddings, self._open, self.progress = embeddings, open_model, progress
        manifest = read_manifest(corpus)
        assert manifest is not None
        counts = manifest["counts"]
        self.size = sized(counts["tokens"])
        # An end mark stands after every document.
        self.unique = counts["tokens"] + counts["kept"]
        self.context = context_of(options, manifest["config"]["chunk_tokens"])
        self.tokenizer = load_tokenizer(str(corpus / "tokenizer.json"))

    @property
    def embedding(self) -> str:
        return self._embedder.identity

    @cached_property
    def _embedder(self) -> embed.Embedder:
        return embed.Embedder(embed.Config(), self._embeddings)

    def embed(self, texts: Sequence[str]) -> embed.Vectors:
        return self._embedder.embed(
            texts, lambda done, total: self.progress("documents embedded", done, total)
        )

    @cached_property
    def training(self) -> Train:
        """How the base is pretrained; with a checkpoint at hand only its shape matters."""
        if self._options.checkpoint is not None:
            return Train(checkpoint=self._options.checkpoint, batch_size=self.batch)
        given = training_of(self.size, self.tokens, self.context)
        return validated(Train, given | self._options.pretrain, "writer: pretrain")

    @property
    def batch(self) -> int:
        """Sequences in one step of training."""
        return max(1, self.size.step // self.context)

    @property
    def pretrains(self) -> bool:
        """Whether a model is pretrained at all."""
        return self._options.checkpoint is None

    @property
    def tokens(self) -> int:
        """That the base is pretrained on."""
        return self._whole((self._options.epochs or self.size.epochs) * self.unique)

    def pretrained(self) -> Path:
        if self._options.checkpoint is not None:
            same_tokenizer(self._options.checkpoint, self.tokenizer)
            return self._options.checkpoint
        base = self._folder / "base"
        sources = {"real": {"stage": "corpus"}} | ({"held": {"stage": "held_out"}} if self._held else {})
        options = Mix.model_validate({
            "tokens": self.tokens, "context": self.context, "sources": sources,
            "arms": {"base": {"sources": {"real": 1}}}, "validation": "held" if self._held else None,
        })  # fmt: skip
        self._mix(
            options, {"real": self._corpus} | ({"held": self._held} if self._held else {}), base / "mix"
        )
        train(base / "mix", "base", self.training, base / "train", self.progress)
        return base / "train" / "model"

    def tune(self, checkpoint: Path, rows: Sequence[Mapping[str, str]], out: Path) -> Path:
        given = {
            "batch_size": 2 * self.batch, "learning_rate": self.size.tune_rate, "epochs": 1,
            "schedule": {"name": "constant"}, "save_every": 200,
        }  # fmt: skip
        # Two documents are seldom as long as a context: about as many tokens in a step as in pretraining.
        options = validated(Finetune, given | self._options.tune, "writer: tune")
        finetune(checkpoint, options, out, rows, self.progress)
        return out / "model"

    def go_on(
        self, checkpoint: Path, written: Sequence[Document] | None, tokens: int, seed: int, out: Path
    ) -> Path:
        given = {
            "batch_size": self.batch, "learning_rate": self.size.rate / 10, "save_every": 200,
            "schedule": {"name": "linear"}, "seed": seed,
        } | self._options.go_on | {"checkpoint": checkpoint}  # fmt: skip
        training = validated(Train, given, "writer: go_on")
        amount = {"weight": 1, "repeat": written is None}
        options = Mix.model_validate({
            "tokens": self._whole(tokens), "context": self.context, "sources": {"text": {"stage": "corpus"}},
            "arms": {"text": {"sources": {"text": amount}}}, "seed": seed,
        })  # fmt: skip
        self._mix(options, {"text": self._corpus if written is None else written}, out / "mix")
        train(out / "mix", "text", training, out / "train", self.progress)
        return out / "train" / "model"

    @property
    def batch_size(self) -> int:
        """Texts drawn at once."""
        return self._options.batch_size

    @property
    def dtype(self) -> Literal["float32", "bfloat16", "float16"]:
        """What texts are drawn in."""
        import torch

        on_gpu = torch.cuda.is_available() and has_bfloat16()
        return self._options.dtype or ("bfloat16" if on_gpu else "float32")

    def open(self, checkpoint: Path, name: str) -> LanguageModel:
        known = f"{name} {transformers.weights_hash(checkpoint)[:12]}"
        return self._open(transformers.Config(
            path=checkpoint, name=known, batch_size=self.batch_size, dtype=self.dtype,
        ))  # fmt: skip

    def _whole(self, tokens: float) -> int:
        """At most so many tokens in whole sequences, but one at least."""
        return max(1, int(tokens / self.context)) * self.context

    def _mix(self, options: Mix, sources: Mapping[str, Path | Sequence[Document]], out: Path) -> None:
        mix(
            options, {name: _source(one) for name, one in sources.items()}, self.tokenizer, out, self.progress
        )


def _source(given: Path | Sequence[Document]) -> tuple[str, Callable[[], Sequence[Document]]]:
    """(fingerprint, function that gives the documents) of a finished stage's folder or of documents at hand."""
    if not isinstance(given, Path):
        return fingerprint([[one.id, content_id(one.text)] for one in given]), lambda: given
    corpus = Corpus("source", (given,))
    return corpus.fingerprint(), lambda: list(corpus.read())
