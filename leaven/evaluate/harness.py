"""lm-evaluation-harness: Leaven's question sets as its tasks, and its tasks as a set of Leaven.

    export       items --> FOLDER/leaven_NAME.yaml + .jsonl + leaven_sets.py; from then on without Leaven:
                 lm_eval --include_path FOLDER --tasks leaven_NAME --model hf --model_args pretrained=CHECKPOINT
    load_tasks   names --> tasks, found and downloaded before any model is loaded
    run          checkpoint x tasks --> lm-eval's figures, and every item's value for paired intervals

What a set becomes, and how the figures there relate to ours (`sets.py`) for the same checkpoint:

    choices   multiple_choice. The log-probabilities of options are the same numbers. `acc` takes the option with
              the greatest SUM, which favours short options; `acc_norm` divides by the option's CHARACTERS (without
              the space before it); our `accuracy` divides by its TOKENS, so that it may differ from both. An equal
              best is right for them where the right option comes first, and wrong for us.
    answers   loglikelihood of the answer after the question, the same sum as ours, reported per byte of what is
              scored (bits_per_byte), per word (word_perplexity), and as the share of answers that greedy decoding
              would give (acc); our `loss` divides by tokens. Not lm-eval's own `perplexity` of such tasks, which
              divides by the number of answers and so grows with their length.
    text      loglikelihood_rolling: word_perplexity, byte_perplexity, bits_per_byte. The sum is ours for texts that
              fit the context with the end mark; longer ones are cut there into windows that do not overlap, here
              into windows that overlap by half, so ours is lower.

They differ further where lm-eval tokenises otherwise: it encodes question and answer together and adds the
tokenizer's own begin mark, we encode them apart and add none; with the tokenizers that Leaven trains it is the same.
A context that ends in a space gives that space to the answer there.

A folder may be moved: the data is found beside the task by `leaven_sets.py`. Few-shot examples (`--num_fewshot`) are
drawn from the set itself, never the item asked: a question about the same document then gives away part of it.
"""

from __future__ import annotations

import difflib
import json
import logging
import math
import os
import re
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from leaven.config import PlanPath
from leaven.errors import UsageError
from leaven.evaluate.results import Row
from leaven.evaluate.sets import Item, Kind

NAME = re.compile(r"[A-Za-z0-9_.-]+")
BOOTSTRAP = (
    1000  # draws for lm-eval's own standard errors; its 100,000 take hours for a perplexity of 5,000 texts
)
NEEDED = "lm-eval tasks need pip install 'leaven[eval]'"

_TASK = """\
# A set of Leaven for lm-evaluation-harness 0.4.10 or later.
task: {task}
custom_dataset: !function leaven_sets.read
dataset_kwargs:
  file: {task}.jsonl
test_split: test
metadata:
  version: 1.0
"""
_KINDS: dict[Kind, str] = {
    "choices": """\
output_type: multiple_choice
fewshot_split: test
doc_to_text: prompt
doc_to_choice: options
doc_to_target: right
target_delimiter: " "
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
""",
    "answers": """\
output_type: loglikelihood
fewshot_split: test
doc_to_text: prompt
doc_to_target: target
target_delimiter: ""
process_results: !function leaven_sets.answer
metric_list:
  - {metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}
  - {metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
""",
    "text": """\
output_type: loglikelihood_rolling
num_fewshot: 0
doc_to_text: ""
doc_to_target: target
metric_list:
  - {metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
  - {metric: byte_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
  - {metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}
""",
}
_HELPER = '''\
"""What the tasks beside this file need, written by Leaven: their data, and the figures of an answer."""

import json
from pathlib import Path


def read(file, **metadata):
    import datasets

    lines = Path(__file__).with_name(file).read_text(encoding="utf-8").split("\\n")
    return {"test": datasets.Dataset.from_list([json.loads(line) for line in lines if line])}


def answer(doc, results):
    total, greedy = results[0]
    size = len(doc["target"].encode("utf-8"))
    words = len(doc["target"].split())
    return {"bits_per_byte": (total, size), "word_perplexity": (total, max(1, words)), "acc": int(greedy)}
'''


def export(name: str, kind: Kind, items: Sequence[Item], folder: Path) -> Path:
    """Write a set as a task of lm-evaluation-harness, ``leaven_NAME``; several sets share a folder.

    Args:
        items: as `sets.read` gives them.

    Returns:
        the task's YAML file, written last.

    Raises:
        UsageError: a name that lm-eval cannot take, an empty text or option, or a folder that cannot be written.
    """
    if not NAME.fullmatch(name):
        raise UsageError(f"export: set name {name!r} may hold letters, digits, '_', '-' and '.' only")
    task = f"leaven_{name}"
    lines = [json.dumps(_line(name, kind, item), ensure_ascii=False) for item in items]
    path = folder / f"{task}.yaml"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / "leaven_sets.py", _HELPER)
        _write(folder / f"{task}.jsonl", "\n".join(lines) + "\n")
        _write(path, _TASK.format(task=task) + _KINDS[kind])
    except OSError as error:
        raise UsageError(f"export: cannot write to {folder}: {error.strerror or error}") from error
    return path


def _line(name: str, kind: Kind, item: Item) -> dict[str, Any]:
    texts = [text.removeprefix(" ") for text in item.continuations] if kind != "text" else item.continuations
    if not all(texts):
        raise UsageError(
            f"export: set {name}: item {item.id!r} has an empty text, which lm-eval cannot score"
        )
    common = {"id": item.id, "document": item.unit}
    if kind == "text":
        return {**common, "target": item.continuations[0]}
    if kind == "answers":
        return {**common, "prompt": item.prefix, "target": item.continuations[0]}
    return {**common, "prompt": item.prefix, "options": texts, "right": item.right}


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


class Harness(BaseModel):
    """Tasks of lm-evaluation-harness to be run on every model.

    Args:
        tasks: of its own, from `include`, or ``leaven_NAME`` for a set of this evaluation scored by likelihood.
        include: folder with further tasks.
        num_fewshot: examples before each question; None is what a task says.
        limit: documents of each task, the first ones; None is all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    tasks: tuple[str, ...] = Field(min_length=1)
    include: PlanPath | None = None
    num_fewshot: int | None = Field(None, ge=0)
    limit: int | None = Field(None, ge=1)
    batch_size: int = Field(16, ge=1)


@dataclass(frozen=True)
class Tasks:
    """Tasks that are ready to be run, of one checkpoint after another.

    Args:
        asked: groups and tasks of lm-eval.
        single: all tasks, those inside of groups too, by name.
        num_fewshot: belongs here, because lm-eval notes it in a task once and for all.
    """

    manager: Any
    asked: list[Any]
    single: dict[str, Any]
    num_fewshot: int | None


@dataclass(frozen=True)
class Figure:
    """One aggregate figure as lm-eval reports it.

    Args:
        task: a task's or a group's name.
        metric: with its filter after a comma where lm-eval applied one.
        stderr: lm-eval's own; None where it has none.
        items: documents.
    """

    task: str
    metric: str
    value: float
    stderr: float | None
    items: int


@dataclass(frozen=True)
class Found:
    """What lm-eval found out about a checkpoint.

    Args:
        figures: by task and metric, groups included.
        rows: values of all items by task, of the metrics that are means (`over / under` is the value), bits per
            byte, or perplexities (`over / under` is the natural-log loss per byte, word or item; the figure is exp
            of its mean). What is no mean over items (F1, BLEU, ...) has figures only.
        shots: examples that stood before the questions of each task.
    """

    figures: list[Figure]
    rows: dict[str, list[Row]]
    shots: dict[str, int]


def load_tasks(names: Sequence[str], include: Sequence[Path] = (), num_fewshot: int | None = None) -> Tasks:
    """Find tasks and load their data.

    Args:
        names: of tasks, groups or tags.
        include: folders with further tasks, such as exported ones.
        num_fewshot: examples before each question; None is what a task says. One that says 0 keeps 0.

    Raises:
        UsageError: lm-eval or what a task needs is not installed, no such task, or data that cannot be had.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UsageError(f"{NEEDED} ({error})") from error
    for folder in include:
        if not folder.is_dir():
            raise UsageError(f"lm-eval: {folder} is no folder of tasks")
    paths = [str(folder) for folder in include]
    with _quiet():
        own = TaskManager(include_path=paths, include_defaults=False) if paths else None
        if own is not None and set(names) <= set(own.all_tasks):
            manager = own  # reading the harness's own 14,000 takes ten seconds
        else:
            manager = TaskManager(include_path=paths or None)
        for name in names:
            if name not in manager.all_tasks:
                close = difflib.get_close_matches(name, manager.all_tasks, n=1)
                hint = f"did you mean {close[0]!r}?" if close else "`lm-eval ls tasks` names them all"
                raise UsageError(f"lm-eval: unknown task {name!r}; {hint}")
        asked = [one for name in names for one in _load(manager, name)]
        try:
            single = manager.load(asked)["tasks"]
        except ValueError as error:
            raise UsageError(f"lm-eval: {_short(error)}; ask for one of them only") from error
    return Tasks(manager, asked, single, num_fewshot)


def _load(manager: Any, name: str) -> list[Any]:
    """A group by itself, so that it is aggregated; tasks one by one."""
    try:
        found = manager.load([name])
    except ImportError as error:
        raise UsageError(f"lm-eval: task {name} needs more packages: {_short(error)}") from error
    except (OSError, ValueError, RuntimeError) as error:
        message = (
            f"lm-eval: data of task {name} cannot be had (no network, or not in the cache?): {_short(error)}"
        )
        raise UsageError(message) from error
    return [found["groups"][name]] if name in found["groups"] else list(found["tasks"].values())


def run(
    checkpoint: Path,
    tasks: Tasks,
    *,
    limit: int | None = None,
    batch_size: int = 16,
    device: str | None = None,
) -> Found:
    """Evaluate a checkpoint, in 32-bit floats as `likelihood.py` does. Seeds are lm-eval's own, the same each time.

    Args:
        limit: documents of each task, the first ones; None is all.

    Raises:
        UsageError: no checkpoint there, or an answer that does not fit its context.
    """
    try:
        import torch
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise UsageError(f"{NEEDED} ({error})") from error
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if not checkpoint.is_dir():
        raise UsageError(f"lm-eval: checkpoint {checkpoint}: no such folder")
    with _quiet():
        try:  # the whole path, because a short one could be a name on the hub, which would be asked
            model = HFLM(
                pretrained=str(checkpoint.resolve()), dtype="float32", device=device, batch_size=batch_size
            )
        except (OSError, ValueError) as error:
            raise UsageError(f"lm-eval: checkpoint {checkpoint}: {_short(error)}") from error
        try:
            found: Any = simple_evaluate(
                model=model, tasks=list(tasks.asked), task_manager=tasks.manager, limit=limit,
                num_fewshot=tasks.num_fewshot, bootstrap_iters=BOOTSTRAP,
            )  # fmt: skip
        except AssertionError as error:
            if traceback.extract_tb(error.__traceback__)[-1].name != "_loglikelihood_tokens":
                raise
            message = f"lm-eval: an answer or option is longer than the context of {checkpoint}"
            raise UsageError(f"{message} ({model.max_length} tokens), or empty") from error
    rows = {name: _rows(name, samples, tasks.single[name]) for name, samples in found["samples"].items()}
    return Found(_figures(found), rows, {name: found["n-shot"][name] for name in rows})


def _figures(found: Mapping[str, Any]) -> list[Figure]:
    figures: list[Figure] = []
    for task, values in found["results"].items():
        for key, value in values.items():
            metric, comma, filtered = key.partition(",")
            if not comma or metric.endswith("_stderr") or isinstance(value, str):
                continue
            error = values.get(f"{metric}_stderr,{filtered}")
            stderr = None if error is None or isinstance(error, str) else float(error)  # else "N/A"
            name = _metric(metric, filtered)
            figures.append(Figure(task, name, float(value), stderr, int(values.get("sample_len") or 0)))
    return figures


def _rows(name: str, samples: Sequence[Mapping[str, Any]], task: Any) -> list[Row]:
    """Rows of one task; items of our own sets keep their ids, others are named by a hash of what they hold."""
    ours = name.startswith("leaven_")
    aggregations = {metric: how.__name__ for metric, how in task.aggregation().items()}
    names: dict[int, str] = {}
    seen: Counter[str] = Counter()
    rows: list[Row] = []
    for sample in samples:
        number, doc = sample["doc_id"], sample["doc"]
        if number not in names:
            found = doc["id"] if ours else sample["doc_hash"][:16]
            seen[found] += 1
            names[number] = found if seen[found] == 1 else f"{found}-{seen[found]}"
        item = names[number]
        for metric in sample["metrics"]:
            pair = _value(sample[metric], aggregations.get(metric, "mean"))
            if pair is not None:
                unit = doc["document"] if ours else item
                rows.append(Row(item, unit, _metric(metric, sample["filter"]), *pair))
    return rows


def _value(value: Any, aggregation: str) -> tuple[float, float] | None:
    """(over, under) of one item; None for what is no mean of items."""
    match aggregation:
        case "mean":
            return float(value), 1.0
        case "perplexity":
            return -float(value), 1.0
        case "weighted_perplexity":
            return -float(value[0]), float(value[1])
        case "bits_per_byte":
            return -float(value[0]) / math.log(2), float(value[1])
    return None


def _metric(metric: str, filtered: str) -> str:
    return metric if filtered == "none" else f"{metric},{filtered}"


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Without lm-eval's log, bars and prints; its errors are raised, and ours still show."""
    from lm_eval.api import metrics

    logger = logging.getLogger("lm_eval")
    level, alone = logger.level, os.environ.get("DISABLE_MULTIPROC")
    logger.setLevel(logging.ERROR)
    os.environ["DISABLE_MULTIPROC"] = (
        "1"  # its standard errors would fork a process that holds torch's threads
    )
    metrics.print = lambda *values: None
    try:
        with redirect_stderr(StringIO()):
            yield
    finally:
        logger.setLevel(level)
        del metrics.print
        if alone is None:
            del os.environ["DISABLE_MULTIPROC"]
