"""`method: sbp` or `method: self_train` in a plan: a whole experiment with nothing to decide but the documents.

    FIRST                      before the corpus is built: how it is cut, what is held out
    writing(method, tokens)    what is written and how it is filtered, by the size of the corpus
    proving(method, ...)       the arms that show whether it helped, once it is known how much was kept

Each gives sections of a plan; what the user's plan says itself stands. Real text is repeated and synthetic text is
not (paper 003, 3.5.1); the arms see the same tokens. Self-training has no arms: its rounds and their control are
models already, and are evaluated beside the one they began from.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from leaven.bootstrap import sized, training_of
from leaven.errors import UsageError

Method = Literal["sbp", "self_train"]

FIRST: dict[str, Any] = {
    "chunk_tokens": 224,  # a paragraph or three
    "hold_out": 0.1,
    "tokenizer": 4096,  # half the usual: embeddings are most of a small model
}
SHARE = 0.375  # of synthetic tokens: the best of paper 003 at 200B tokens (B.1.2)
KEPT = 0.95  # share of what is written that survives the filters (.99 on stories); if less does, the arm gets less
SEEDS = (0, 1)


def writing(method: Method, tokens: int) -> dict[str, Any]:
    """The sections `generate` and `clean`, for a corpus of so many tokens."""
    if method == "self_train":
        return {"generate": [{"self_train": {"rounds": 3}}]}
    wanted = SHARE * sized(tokens).epochs  # multiples of the corpus
    return {
        "generate": [{"sbp": {"samples": math.ceil(wanted / KEPT)}}],
        "clean": [{"length": {"min_words": 20}}, "copying", "near_duplicates"],
        "max_failed": 0.5,  # what counts is whether enough is kept in all, see `proving`
    }


def proving(method: Method, tokens: int, marks: int, context: int, written: int) -> dict[str, Any]:
    """The sections `mix`, `train` and `evaluate`.

    Args:
        tokens: of the corpus, `marks`: end marks in it.
        context: tokens of a training sequence.
        written: tokens that were kept of what was written.

    Raises:
        UsageError: too little was kept to train on.
    """
    size = sized(tokens)
    sets = {"held": {"kind": "text", "stage": "held_out"}}
    if method == "self_train":
        return {
            "evaluate": {"baseline": "base", "sets": sets | {"corpus": {"kind": "text", "stage": "corpus"}}}
        }
    if written < 2 * context:
        raise UsageError(
            f"{method}: only {written:,} tokens of what was written were kept, too few to train on; see rejected/ of "
            "the run's generate and clean stages, and pretrain longer (writer: {epochs: ...}) or give more documents"
        )
    budget = round(size.epochs * (tokens + marks))
    # A block less than there is, so that rounding to whole blocks never asks for more.
    share = min(SHARE, (written - context) / budget)
    return {
        "mix": {
            "tokens": max(budget, context),
            "context": context,
            "sources": {
                "real": {"stage": "corpus"},
                "synthetic": {"stage": "clean"},
                "held": {"stage": "held_out"},
            },
            "arms": {
                "repeat": {"sources": {"real": 1}},
                "sbp": {"sources": {"real": 1 - share, "synthetic": share}},
            },
            "validation": "held",
        },
        "train": training_of(size, budget, context) | {"seeds": list(SEEDS)},
        "evaluate": {"baseline": "repeat", "sets": sets},
    }  # fmt: skip
