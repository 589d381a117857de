"""Methods that train the model they write with: what such a method is given, and where its work lies.

    corpus --method's own steps, with a `Trainer` passed in--> checkpoint --asked as any model--> OUT

Such a method has, beside the parts every method has,

    bootstrap(task, config, trainer) -> manifest of the finished stage; `checkpoints` in it, models to evaluate by name
    work(config, documents, tokens) -> Work, told beforehand for a corpus of so many documents and tokens

It knows nothing of how models are trained: whoever runs it (a plan's runner, a recipe) passes a `Trainer` in. Steps
before the stage are stages of their own under ``task.work``, so that a killed run goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from leaven.corpus.embed import Vectors
from leaven.corpus.tokens import Tokenizer
from leaven.document import Document
from leaven.generate._runner import Job, Model, generate
from leaven.lm import loop
from leaven.stage import read_manifest, read_stage


class Writing(Model, Protocol):
    """A checkpoint opened to be asked."""

    async def score(self, text: str, priority: int = 0) -> list[float]: ...

    async def close(self) -> None: ...


@dataclass(frozen=True)
class Work:
    """How much a method will do over a corpus, beside pretraining its base; told beforehand.

    Args:
        embedded: documents; tuned, continued: tokens seen in tuning and in further pretraining; drawn: tokens.
    """

    embedded: int = 0
    tuned: int = 0
    continued: int = 0
    drawn: int = 0


class Trainer(Protocol):
    """Trains and opens models. What was trained before, in the same way from the same, is found and not trained again.

    Attributes:
        embedding: identity of the embedding model.
    """

    embedding: str

    def pretrained(self) -> Path:
        """Checkpoint of the model that was pretrained on the corpus, or that the user gave instead."""

    def tune(self, checkpoint: Path, rows: Sequence[Mapping[str, str]], out: Path) -> Path:
        """The checkpoint, tuned on rows of `prompt` and `completion` with the loss on completions."""

    def go_on(
        self, checkpoint: Path, written: Sequence[Document] | None, tokens: int, seed: int, out: Path
    ) -> Path:
        """The checkpoint after at most so many more tokens of pretraining, in whole sequences.

        Args:
            written: documents that are seen once at most; None is the corpus, repeated as needed.
        """

    def open(self, checkpoint: Path, name: str) -> Writing:
        """The checkpoint as a model to ask; `name` is on every row it writes."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Vectors of unit length, shape (texts, d)."""

    def progress(self, what: str, done: int, total: int | None) -> None:
        """Show how far a step is."""


@dataclass(frozen=True)
class Task:
    """One such method over one corpus.

    Args:
        name: of the stage.
        corpus: the finished corpus stage.
        out: the stage's folder to write; `work`: folder of the steps before it.
        tokenizer: the corpus's.
        about: called with a line that a person should see.
    """

    name: str
    job: Job
    corpus: Path
    out: Path
    work: Path
    tokenizer: Tokenizer
    about: Callable[[str], None]

    def documents(self) -> list[Document]:
        """The corpus, in order."""
        return list(read_stage(self.corpus))

    @property
    def fingerprint(self) -> str:
        """Of the corpus."""
        manifest = read_manifest(self.corpus)
        assert manifest is not None
        return str(manifest["fingerprint"])

    @property
    def tokens(self) -> int:
        """Of the corpus, without marks."""
        manifest = read_manifest(self.corpus)
        assert manifest is not None
        return int(manifest["counts"]["tokens"])

    def write(
        self, trainer: Trainer, checkpoint: Path, out: Path | None = None, only: set[str] | None = None
    ) -> dict[str, Any]:
        """Ask the checkpoint about every document (of `only`, if given) as any method does; returns the manifest.

        Args:
            out: in place of the stage's own folder.
        """

        async def ask() -> dict[str, Any]:
            model = trainer.open(checkpoint, self.name)
            try:
                return await generate(
                    self.job, self.corpus, out or self.out, model, self.tokenizer.count,
                    lambda done, total: trainer.progress("writing", done, total), only,
                )  # fmt: skip
            finally:
                await model.close()

        return loop.run(ask())
