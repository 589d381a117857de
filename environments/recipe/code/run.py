"""Carries out recipe.yaml: writes, cleans, mixes and trains one model, as a Leaven plan. Protected.

    recipe.yaml + what is fixed --leaven.plan.resolve--> plan --leaven.run--> run/ --> out/model.safetensors

Everything but the text is the same for every recipe (fixed.py): documents, recorded answers, tokenizer, model, number
of tokens, training. The recipe is data: only the fields of `Recipe` are read, and any other one is refused.

    SEED=0 TOKENS=163840 SHAPE=1m python run.py
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import fixed
import yaml
from pydantic import BaseModel, ConfigDict, Field

from leaven.config import validated
from leaven.errors import Stopped, UsageError
from leaven.plan import resolve
from leaven.run import Result, run
from leaven.stage import read_stage

DOCUMENTS, ANSWERS, GROUPS = "documents.jsonl", "answers.jsonl", "groups.jsonl"
ARM = "recipe"
SECTIONS = ("generate", "clean", "mix")
# Methods and steps that may be asked for. Not among them: rephrase/qa and probe, which the evaluation asks.
RECORDED = {
    "rephrase": ("easy", "medium", "hard"),
    "mga": ("pairs", "reformulate_base", "reformulate_strict", "reformulate_relaxed", "judge"),
    "entigraph": ("entities", "pair", "triple"),
}


class _Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Rephrase(_Options):
    """One text of each style about every document."""

    styles: tuple[Literal["easy", "medium", "hard"], ...] = Field(min_length=1)


class Mga(_Options):
    """Reformulations for other genres and audiences; how many of each strictness about every document.

    Args:
        base: in another form, with the same facts.
        strict: near to the wording of the source; `copying` takes some of them out.
        relaxed: only inspired by it; the judge gave them 2 or 3, all others 5.
        keep_score: least score by the judge that is kept.
    """

    base: int = Field(ge=0, le=5)
    strict: int = Field(ge=0, le=2)
    relaxed: int = Field(ge=0, le=2)
    keep_score: int = Field(3, ge=1, le=5)


class Entigraph(_Options):
    """Texts about how two or three entities relate; how many about every document. A summary comes with them."""

    pairs: int = Field(ge=0, le=12)
    triples: int = Field(ge=0, le=4)


class Generate(_Options):
    rephrase: Rephrase | None = None
    mga: Mga | None = None
    entigraph: Entigraph | None = None


class Shares(_Options):
    """Of the tokens trained on, in proportion; a text with share 0 is neither written nor used.

    Args:
        raw: the eight openings themselves.
        others: 32 other stories.
    """

    raw: float = Field(0, ge=0)
    rephrase: float = Field(0, ge=0)
    mga: float = Field(0, ge=0)
    entigraph: float = Field(0, ge=0)
    others: float = Field(0, ge=0)


class Mix(_Options):
    """What the model is trained on.

    Args:
        mask: whether a token sees only its own document, not those packed before it.
    """

    shares: Shares
    mask: bool = False


class Recipe(_Options):
    """recipe.yaml.

    Args:
        clean: options by filter, in the order in which they are applied; any of Leaven's (`leaven methods` lists them).
    """

    generate: Generate = Generate()
    clean: dict[str, dict[str, Any] | None] = {}
    mix: Mix


def read(path: Path) -> Recipe:
    """The recipe, checked.

    Raises:
        UsageError: no YAML, a field there is not, a value out of range, or a share of what is not written; one line.
    """
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"recipe.yaml: {' '.join(str(error).split())[:300]}") from error
    recipe = validated(Recipe, value, "recipe.yaml")
    shares = recipe.mix.shares.model_dump()
    if not 0 < sum(shares.values()) < float("inf"):
        raise UsageError("recipe.yaml: mix.shares: at least one must be above 0")
    for name in RECORDED:
        if shares[name] and getattr(recipe.generate, name) is None:
            raise UsageError(f"recipe.yaml: mix.shares: {name} has a share, but generate.{name} is not there")
    return recipe


def methods(recipe: Recipe) -> list[dict[str, Any]]:
    """The plan's `generate`: methods with a share, turned to what is recorded. Writes the groups that are chosen."""
    found: list[dict[str, Any]] = []
    shares, chosen = recipe.mix.shares, recipe.generate
    if shares.rephrase and chosen.rephrase:
        found.append({"rephrase": {"styles": chosen.rephrase.styles}})
    if shares.mga and chosen.mga:
        for strictness in ("base", "strict", "relaxed"):
            if number := getattr(chosen.mga, strictness):
                options = {"pairs": 5, "first": number, "keep_score": chosen.mga.keep_score}
                found.append({"mga": {"name": f"mga-{strictness}", "strictness": [strictness], **options}})
        if not any("mga" in one for one in found):
            raise UsageError("recipe.yaml: mix.shares: mga has a share, but generate.mga asks for no text")
    if shares.entigraph and chosen.entigraph:
        write_groups(chosen.entigraph, Path("chosen.jsonl"))
        found.append({"entigraph": {"groups": "chosen.jsonl"}})
    return found


def write_groups(options: Entigraph, to: Path) -> None:
    """Of the recorded groups, the first pairs and the first triples of every document."""
    left: dict[tuple[str, int], int] = {}
    kept: list[str] = []
    for line in Path(GROUPS).read_text(encoding="utf-8").splitlines():
        group = json.loads(line)
        size = len(group["entities"])
        key = group["document"], size
        left.setdefault(key, options.pairs if size == 2 else options.triples)
        left[key] -= 1
        if left[key] >= 0:
            kept.append(line + "\n")
    to.write_text("".join(kept), encoding="utf-8")


def write_recording(to: Path) -> None:
    """The recorded answers that a recipe may use: none of those that the evaluation asks for."""
    with Path(ANSWERS).open(encoding="utf-8") as lines, to.open("w", encoding="utf-8") as out:
        for line in lines:
            row = json.loads(line)
            if row["step"] in RECORDED.get(row["method"], ()):
                out.write(line)


def plan(recipe: Recipe) -> dict[str, Any]:
    """The recipe as a Leaven plan of a single arm."""
    shares = {name: share for name, share in recipe.mix.shares.model_dump().items() if share}
    total = sum(shares.values())
    written = "clean" if recipe.clean else "generate"
    sources: dict[str, Any] = {
        "raw": {"stage": "corpus"},
        "others": {"path": fixed.OTHERS},
        **{name: {"stage": written, "only": {"method": name}} for name in RECORDED},
    }
    amounts = {name: {"weight": share / total, "repeat": True} for name, share in shares.items()}
    return {
        "name": ARM, "out": "run", "answers": "run/answers",
        "documents": {"path": DOCUMENTS},
        "tokenizer": "tokenizer.json",
        "model": {"backend": "replay", "path": "recording.jsonl", "name": "recorded large language model"},
        "generate": methods(recipe),
        "max_failed": 1,  # a judge may reject all of a document's texts; what was not recorded fails below
        "clean": [{name: options} for name, options in recipe.clean.items()],
        "mix": {
            "tokens": fixed.TOKENS, "context": fixed.CONTEXT, "seed": fixed.SEED, "mask": recipe.mix.mask,
            "sources": {name: sources[name] for name in shares}, "arms": {ARM: {"sources": amounts}},
        },
        "train": {**fixed.TRAINING, "seeds": [fixed.SEED]},
    }  # fmt: skip


def check_recorded(found: Result) -> None:
    """Every request must have been recorded: a recipe that lost text to the recording is not what it says.

    Raises:
        UsageError: some were not.
    """
    for folder in sorted((found.folder / "generate").glob("*")):
        for row in read_stage(folder, "rejected"):
            if "refused by server" in row.metadata["reason"]:
                raise UsageError(f"{folder.name}: {row.metadata['detail']}")


def facts(found: Result) -> dict[str, Any]:
    """What the model was trained on: told by the run, for people; nothing is scored by it."""
    mixed, trained = found.manifests["mix"], found.manifests[f"train/{ARM}-{fixed.SEED}"]
    cleaned = found.manifests.get("clean", {"counts": {"kept": 0, "rejected": 0}})["counts"]
    shares = {one["source"]: one for one in mixed["arms"][ARM]["sources"]}
    return {
        "tokens": trained["counts"]["tokens"], "steps": trained["counts"]["steps"],
        "texts_kept": cleaned["kept"], "texts_rejected": cleaned["rejected"],
        "unique_tokens": {name: one["unique_tokens"] for name, one in shares.items()},
        "epochs": {name: round(one["epochs"], 2) for name, one in shares.items()},
    }  # fmt: skip


def main() -> None:
    try:
        recipe = read(Path("recipe.yaml"))
        write_recording(Path("recording.jsonl"))
        fixed.tokenizer().save(Path("tokenizer.json"))
        found = run(resolve(plan(recipe), Path(), "recipe.yaml"))
        check_recorded(found)
    except (UsageError, Stopped) as error:
        raise SystemExit(str(error)) from error
    model, out = found.folder / "train" / f"{ARM}-{fixed.SEED}" / "model", Path("out")
    out.mkdir(exist_ok=True)
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        shutil.copyfile(model / name, out / name)
    told = facts(found)
    (out / "facts.json").write_text(json.dumps(told), encoding="utf-8")
    print(json.dumps(told))


if __name__ == "__main__":
    main()
