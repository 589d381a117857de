"""The value of a recipe: the loss of its model on answers about the eight openings that it never saw; lower is better.

Only weights are taken from the run's copy (its path is in the variable COPY): a safetensors file whose names, types and
shapes must be those of the model that fixed.py describes. The configuration and the tokenizer are made here, from
files that lie beside this one; nothing of the copy is imported, unpickled or believed.

Two sets, each a mean over tokens; the score is the mean of both:

    questions   96 answers of a large language model about the openings
    people      160 answers that people wrote about the complete stories, four to a question

QUESTIONS chooses which half of the questions is asked: ``search`` or ``confirm``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

import fixed
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging

from leaven.corpus.tokens import END
from leaven.evaluate.likelihood import Scorer
from leaven.evaluate.sets import PROMPT

SETS = ("questions", "people")
HALVES = ("search", "confirm")


def fail(why: str) -> NoReturn:
    raise SystemExit(f"evaluate.py: {why}")


def load(path: Path, model: PreTrainedModel) -> None:
    """Put the run's weights into the model."""
    tied = set(model.all_tied_weights_keys)  # not stored: they are those of the embedding
    wanted = {
        name: (tuple(one.shape), one.dtype) for name, one in model.state_dict().items() if name not in tied
    }
    size = sum(one.numel() * one.element_size() for one in model.state_dict().values())
    if path.is_symlink() or not path.is_file():
        fail("the run wrote no out/model.safetensors")
    if path.stat().st_size > size + 100_000:
        fail(f"model.safetensors has {path.stat().st_size} bytes, the model only {size}")
    try:
        weights = load_file(path)
    except SafetensorError as error:
        fail(f"model.safetensors cannot be read: {error}")
    found = {name: (tuple(one.shape), one.dtype) for name, one in weights.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            fail(f"model.safetensors: {name} is {found.get(name)}, but must be {wanted.get(name)}")
        if not weights[name].isfinite().all():
            fail(f"model.safetensors: {name} is not finite")
    model.load_state_dict(weights, strict=False)
    model.tie_weights()


def pairs(name: str, half: str) -> list[tuple[str, str]]:
    """(what the model is given, the answer) of every other question of a set; all answers to a question together."""
    rows = [json.loads(line) for line in Path(f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
    number: dict[tuple[str, str], int] = {}
    for row in rows:
        number.setdefault((row["document"], row["question"]), len(number))
    return [
        (PROMPT.replace("{question}", row["question"]), f" {row['answer']}")
        for row in rows
        if number[row["document"], row["question"]] % 2 == HALVES.index(half)
    ]


def told(path: Path) -> dict[str, object]:
    """What the run says of itself, marked as such; nothing is scored by it."""
    try:
        value = json.loads(path.read_bytes()[:10_000])
    except (OSError, ValueError):
        return {}
    return {"told_by_run": value} if isinstance(value, dict) else {}


def main() -> None:
    half = os.environ.get("QUESTIONS", HALVES[0])
    if half not in HALVES:
        fail(f"QUESTIONS must be one of {', '.join(HALVES)}")
    out = Path(os.environ["COPY"]) / "out"
    tokenizer = fixed.tokenizer()
    end = tokenizer.backend.token_to_id(END)
    model = AutoModelForCausalLM.from_config(fixed.config(tokenizer.vocab_size, end), dtype=torch.float32)
    load(out / "model.safetensors", model)
    asked = {name: pairs(name, half) for name in SETS}
    logging.disable_progress_bar()
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend, eos_token=END).save_pretrained(folder)
        found = Scorer(Path(folder), "cpu").score([pair for name in SETS for pair in asked[name]])
    losses: dict[str, float] = {}
    for name in SETS:
        scores, found = found[: len(asked[name])], found[len(asked[name]) :]
        losses[name] = -sum(total for total, _ in scores) / sum(count for _, count in scores)
    answers = {f"{name}_answers": len(asked[name]) for name in SETS}
    facts = {**losses, **answers, "questions_asked": half, **told(out / "facts.json")}
    print(json.dumps({"score": sum(losses.values()) / len(losses), **facts}))


if __name__ == "__main__":
    main()
