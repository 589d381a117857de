"""The train stage: one model per arm, alike in everything but the text they see.

shapes.py     model shapes by name, from 1M to 13B parameters
schedule.py   learning-rate schedules
fit.py        the training loop that the next two share
pretrain.py   pretraining and continued pretraining on packed tokens
finetune.py   finetuning on prompts and answers or conversations, loss on the answers only
rows.py       prompts and answers as token ids
tool.py       what a large model wrote as examples for a small one that takes its place (MGA's tool model)
compare.py    teacher and student by the same judge
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from leaven.train.finetune import Finetune, finetune
from leaven.train.pretrain import Train, train

__all__ = ["Finetune", "Train", "Training", "assert_matched", "finetune", "train"]


class Training(Train):
    """The `train` section of a plan: how every arm is trained, and how often.

    Args:
        seeds: one model per arm and seed; they take the place of `seed`.
    """

    seeds: tuple[int, ...] = Field((0,), min_length=1)

    def of_seed(self, seed: int) -> Train:
        """The options of one model."""
        return Train.model_validate(self.model_dump(exclude={"seeds"}) | {"seed": seed})


def assert_matched(manifests: Mapping[str, Mapping[str, Any]]) -> None:
    """Make sure that models to be compared were trained alike, whatever made them.

    Args:
        manifests: of train stages, by name.

    Raises:
        AssertionError: two differ in tokens, steps, parameters, checkpoint or any option but the seed; it says in what.
    """
    facts: dict[str, dict[str, Any]] = {}
    for name, manifest in manifests.items():
        config = manifest["config"]
        options = dict(config["train"] if "train" in config else config["finetune"])
        options.pop("seed")
        start = manifest.get("inputs", {}).get("checkpoint") if "train" in config else None
        facts[name] = {
            **manifest["counts"],
            "parameters": manifest["parameters"],
            "checkpoint": start,
            **options,
        }
    first = next(iter(facts))
    for name, found in facts.items():
        apart = [key for key in found if found[key] != facts[first].get(key)]
        assert not apart, f"not compute-matched: {first} and {name} differ in {', '.join(apart)}"
