"""What is the same for every recipe, so that only the text differs. Protected; the evaluation has a copy of its own.

env.yaml sets the variables TOKENS (the budget every model is trained on) and SHAPE (a name in Leaven's list of shapes).
"""

from __future__ import annotations

import gzip
import json
import os
from typing import TYPE_CHECKING, Any

from leaven.corpus.tokens import Tokenizer, train_tokenizer
from leaven.train.shapes import config_of, shape

if TYPE_CHECKING:
    from transformers import PretrainedConfig

SEED = int(os.environ.get("SEED", "0"))
TOKENS = int(os.environ["TOKENS"])
SHAPE = os.environ["SHAPE"]
CONTEXT = 128  # tokens of one training sequence
VOCABULARY = 2048
OTHERS = "others.jsonl.gz"  # 32 stories that are not those the recipe is about

# of six settings of rate, schedule and width, this one made the baseline best at this budget
TRAINING: dict[str, Any] = {
    "shape": SHAPE, "batch_size": 4, "learning_rate": 2e-3, "weight_decay": 0.1, "clip": 1.0,
    "schedule": {"name": "linear", "warm_up": 0.1}, "precision": "auto", "compile": False,
}  # fmt: skip


def tokenizer() -> Tokenizer:
    """The tokenizer of every model: trained on the other stories, the same each time."""
    with gzip.open(OTHERS, "rt", encoding="utf-8") as lines:
        return train_tokenizer((json.loads(line)["text"] for line in lines), VOCABULARY)


def config(vocabulary: int, end: int) -> PretrainedConfig:
    """The shape of every model, as transformers builds it.

    Args:
        vocabulary: entries of the tokenizer.
        end: id of its mark after a document.
    """
    return config_of(shape(SHAPE), vocab_size=vocabulary, context=CONTEXT, end=end)
