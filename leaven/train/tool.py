"""The tool model of MGA: a small model taught by a large one to write pairs and reformulations (paper 000).

    finished run of a teacher --answers fit to learn from--> D_SFT --finetune.py--> student
    run of the teacher, run of the student --same judge--> shares of scores, difference

D_SFT (3.2 and appendix B) holds two sets: a document's genre-audience pairs where they passed the rules of
`generate/mga.py`, and the reformulations that the judge scored 3 or more, so that the student does not learn the
teacher's bad ones. The paper takes 15,000 and 35,000 of them, trains one model on each set (three epochs, 8,192
tokens), and finds 92.06% of the student's texts scored 3 or more against the teacher's 93.11% (table 1; 91.76% for
a public model, table 4). One model for both sets serves as a plan's `model` at once; see `recipes/tool_model.py`.

Every example is the prompt that the teacher saw, to the letter, and what Leaven took from its answer (thoughts
stripped). They come from the run's own response store: the method is expanded once more with the store in the
model's place, nothing is sent, and the rows must come out as the run has them. A pairs answer that needed a
correction turn is no answer to its prompt, and a text cut off at `max_tokens` would teach to stop in the middle:
both are left out and counted.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leaven.config import validated
from leaven.corpus.tokens import Tokenizer, load_tokenizer
from leaven.document import Document
from leaven.errors import Rejected, UsageError, nearest
from leaven.generate import mga
from leaven.generate._runner import pieces
from leaven.lm import loop
from leaven.lm.ask import Ask, Reply, Step
from leaven.lm.base import Answer, Request
from leaven.lm.store import ResponseStore
from leaven.stage import Stage, read_manifest, read_stage

REFORMULATE = tuple(name for name in mga.STEPS if name.startswith("reformulate_"))
STEPS = ("pairs", *REFORMULATE)


@dataclass
class Examples:
    """One set of D_SFT.

    Args:
        rows: `prompt`, `completion`, `document` (id) and `step`, as `finetune` reads them.
        reasons: of the answers that were left out.
    """

    rows: list[dict[str, str]] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)

    def counts(self) -> dict[str, Any]:
        """Answers read, kept and rejected, with the reasons."""
        kept, rejected = len(self.rows), self.reasons.total()
        return {
            "read": kept + rejected, "kept": kept, "rejected": rejected, "reasons": dict(self.reasons),
        }  # fmt: skip


def distill(
    run: Path,
    stage: str = "mga",
    *,
    steps: Collection[str] = STEPS,
    least: int = 3,
    answers: Path | None = None,
) -> dict[str, Examples]:
    """D_SFT from a teacher's finished run.

    Args:
        run: its folder.
        stage: name of the `mga` stage under ``generate/``.
        steps: kinds of answers to learn from.
        least: score that a reformulation must have; may be below the run's own cut.
        answers: the response store; None is the one that the run was made with.

    Returns:
        the sets ``pairs`` and ``reformulate``.

    Raises:
        UsageError: no such stage, not judged, or a store that does not hold its answers.
    """
    for name in steps:
        if name not in STEPS:
            raise UsageError(f"distill: unknown step {name!r}; {nearest(name, STEPS)}")
    teacher = Teacher(run, stage)
    if not teacher.config.judge and set(steps) & set(REFORMULATE):
        raise UsageError(
            f"{teacher.folder} was not judged (judge: false), so its good texts cannot be told from its bad ones; "
            "set judge: true and run the plan again: only the judging is asked for"
        )
    place = _store_of(run) if answers is None else answers
    if not place.is_dir():
        raise UsageError(
            f"distill: response store {place}: no such folder; give the one that the run was made with"
        )
    store = ResponseStore(place)
    try:
        found, kept = loop.run(_collect(teacher, store, frozenset(steps), least))
    finally:
        store.close()
    rows = {row.id for row in read_stage(teacher.folder)}
    if kept != rows:
        raise UsageError(
            f"{teacher.folder}: {len(rows ^ kept):,} of {len(rows):,} rows cannot be followed to their answers in "
            f"{place}; run the plan again (stored answers cost nothing), or give the store it was made with"
        )
    return found


def write_examples(
    run: Path,
    out: Path,
    stage: str = "mga",
    *,
    steps: Collection[str] = STEPS,
    least: int = 3,
    answers: Path | None = None,
) -> dict[str, Any]:
    """`distill` into ``OUT/pairs.jsonl`` and ``OUT/reformulate.jsonl``; returns the manifest. Done once.

    Its counts are of both sets together, `sets` has each one's.
    """
    teacher = Teacher(run, stage)
    config = {"distill": {"steps": sorted(steps), "least": least}}
    written = Stage(out, config, {"teacher": teacher.manifest["fingerprint"]})
    if written.manifest is not None:
        return written.manifest
    found = distill(run, stage, steps=steps, least=least, answers=answers)
    written.prepare(rows=False)
    for name, examples in found.items():
        partial = out / f"{name}.partial"
        with partial.open("w", encoding="utf-8") as file:
            # Escaped: a document may hold half a surrogate pair, which UTF-8 cannot.
            file.writelines(json.dumps(row) + "\n" for row in examples.rows)
        os.replace(partial, out / f"{name}.jsonl")
    sets = {name: examples.counts() for name, examples in found.items()}
    counts = {name: sum(one[name] for one in sets.values()) for name in ("read", "kept", "rejected")}
    reasons = sum((examples.reasons for examples in found.values()), Counter[str]())
    return written.finish(counts=counts, reasons=dict(reasons), sets=sets)


class Teacher:
    """A finished `mga` stage of a run, with what its requests were made of.

    Raises:
        UsageError: there is none of that name.
    """

    def __init__(self, run: Path, stage: str) -> None:
        self.folder, self.corpus = run / "generate" / stage, run / "corpus"
        manifest = read_manifest(self.folder)
        if manifest is None:
            known = sorted(path.parent.name for path in run.glob("generate/*/manifest.json"))
            hint = nearest(stage, known) if known else "run its plan first"
            raise UsageError(f"{run} has no finished stage generate/{stage}; {hint}")
        self.manifest, made = manifest, manifest["config"]
        if made["method"] != "mga":
            raise UsageError(f"{self.folder} was written by {made['method']}; tool models are made for mga")
        self.config = validated(mga.Config, made["options"], str(self.folder))
        self.steps = {name: validated(Step, one, str(self.folder)) for name, one in made["steps"].items()}
        self.identity: str = made["model"]
        self.name: str = manifest["model"]
        self.chunk_tokens: int | None = made["chunk_tokens"]

    @property
    def per_piece(self) -> int:
        """Reformulations asked for of one document (or piece of one)."""
        return len(self.config.strictness) * min(self.config.first or self.config.pairs, self.config.pairs)

    def pieces(self, tokenizer: Tokenizer) -> Iterator[Document]:
        """Documents as the method saw them."""
        for document in read_stage(self.corpus):
            yield from pieces(document, self.chunk_tokens, tokenizer.count)


class _Stored:
    """The response store in the model's place."""

    def __init__(self, store: ResponseStore, teacher: Teacher) -> None:
        self.name = teacher.name
        self.asked: dict[str, Request] = {}
        self._store, self._identity = store, teacher.identity

    async def answer(self, request: Request, priority: int = 0) -> tuple[str, Answer]:
        key = request.key(self._identity)
        found = self._store.find(key, request.sampling.max_tokens)
        if found is None:  # refused by the server when it was asked, or another store
            raise Rejected("no stored answer")
        self.asked[key] = request
        return key, found


class _Listening(Ask):
    """An `Ask` that keeps every reply fit to use."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.replies: list[tuple[str, Reply[Any]]] = []

    async def __call__(self, step: str, *args: Any, **options: Any) -> Reply[Any]:
        reply = await super().__call__(step, *args, **options)
        self.replies.append((step, reply))
        return reply


@dataclass
class _Expanded:
    """What the teacher made of one document."""

    ask: _Listening
    asked: dict[str, Request]
    written: list[Document]
    failure: Rejected | None = None


async def _expand(teacher: Teacher, store: ResponseStore) -> AsyncIterator[_Expanded]:
    tokenizer = load_tokenizer(str(teacher.corpus / "tokenizer.json"))
    for piece in teacher.pieces(tokenizer):
        model = _Stored(store, teacher)
        ask = _Listening(model, piece, "mga", teacher.steps, count=tokenizer.count)
        found = _Expanded(ask, model.asked, [])
        try:
            async for row in mga.expand(piece, ask, teacher.config):
                found.written.append(row)
        except Rejected as error:
            found.failure = error
        yield found


async def _collect(
    teacher: Teacher, store: ResponseStore, steps: frozenset[str], least: int
) -> tuple[dict[str, Examples], set[str]]:
    """(the sets, ids of the rows that the run kept)."""
    pairs, texts = Examples(), Examples()
    kept: set[str] = set()
    async for one in _expand(teacher, store):
        source = one.ask.document.metadata.get("row", one.ask.document.id)
        kept.update(row.id for row in one.written)

        def add(
            to: Examples, step: str, request: str, text: str, reason: str = "",
            asked: dict[str, Request] = one.asked, source: str = source,
        ) -> None:  # fmt: skip
            if reason:
                to.reasons[reason] += 1
                return
            prompt = asked[request].messages[0][1]
            to.rows.append({"prompt": prompt, "completion": text, "document": source, "step": step})

        if "pairs" in steps:
            for step, reply in one.ask.replies:
                if step == "pairs":
                    corrected = len(one.asked[reply.request].messages) > 1
                    add(pairs, step, reply.request, reply.text, "needed a correction" if corrected else "")
            if one.failure is not None:
                pairs.reasons[one.failure.reason] += 1
        for row in (*one.written, *one.ask.rejected):
            if row.metadata["step"] in steps:
                add(texts, row.metadata["step"], row.metadata["request"], row.text, _unfit(row, least))
    return {"pairs": pairs, "reformulate": texts}, kept


def _unfit(row: Document, least: int) -> str:
    """Why a reformulation is not learnt from; empty if it is."""
    if row.metadata.get("finish") == "length":
        return "cut off"
    if "score" not in row.metadata:
        return str(row.metadata["reason"])
    return "" if row.metadata["score"] >= least else f"judged below {least}"


def _store_of(run: Path) -> Path:
    try:
        return Path(json.loads((run / "plan.json").read_text(encoding="utf-8"))["answers"])
    except OSError as error:
        raise UsageError(f"{run}/plan.json: {error.strerror}; give the response store of that run") from error
