"""What a judge is worth: its agreement with people on the same texts.

A label file is JSONL, one object a line:

    {"judge": "novelty", "id": "4f0c...", "label": true, "annotator": "ada"}

`judge` and `id` as in ``verdicts.parquet``; `label` one of the judge's classes (true or false, 1 to 5, win /
tie / loss, ...); `item` where a judge gives several verdicts on one text (a sentence); `annotator` may be
left out. Lines whose label is null are still to be filled in: `template` writes such a file.

Cohen's kappa is 1 for full agreement and 0 for what chance gives; for numbers in order it is also given with
squared distances as weights. Where several people labelled one text, each is compared with the judge, and
with each other if two or more share at least two texts.
"""

from __future__ import annotations

import itertools
import json
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leaven.document import Document
from leaven.errors import UsageError, nearest
from leaven.measure.statistics import Agreement, cohen_kappa

Key = tuple[str, str]  # (id, item)


@dataclass(frozen=True)
class Compared:
    """Agreement of two raters on one judge's question.

    Args:
        first, second: ``judge`` or an annotator's name.
    """

    judge: str
    first: str
    second: str
    agreement: Agreement


def agree(folder: Path, labels: Path, *, seed: int = 0) -> list[Compared]:
    """Compare a measure stage's verdicts with people's labels.

    Args:
        folder: of the measure stage.
        labels: a label file.

    Raises:
        UsageError: no verdicts, an unreadable label file, or labels of texts that no judge has seen.
    """
    verdicts = read_verdicts(folder)
    found = _labels(labels)
    result: list[Compared] = []
    for judge, by_annotator in found.items():
        if judge not in verdicts:
            raise UsageError(f"{labels}: {folder} has no verdicts of {judge!r}; {nearest(judge, verdicts)}")
        ours = {key: str(row["label"]).lower() for key, row in verdicts[judge].items()}
        raters = {"judge": ours, **by_annotator}
        for first, second in itertools.combinations(raters, 2):
            common = sorted(raters[first].keys() & raters[second].keys())
            if not common and first == "judge":
                raise UsageError(f"{labels}: no text that {second} labelled was judged for {judge!r}")
            if first == "judge" or len(common) > 1:
                sides = [[_class(raters[name][key]) for key in common] for name in (first, second)]
                result.append(Compared(judge, first, second, cohen_kappa(*sides, seed=seed)))
    return result


def template(folder: Path, texts: dict[str, Document], out: Path, *, number: int, seed: int = 0) -> int:
    """Write a label file to fill in: `number` texts of each judge, drawn at random, without its answers.

    Args:
        texts: the judged documents by id; their text and their source's id go beside the empty label.

    Returns:
        number of lines.
    """
    lines: list[str] = []
    for judge, rows in read_verdicts(folder).items():
        chosen = random.Random(f"{seed} {judge}").sample(sorted(rows), min(number, len(rows)))
        for identifier, item in chosen:
            document = texts.get(identifier)
            line = {"judge": judge, "id": identifier, "item": item, "label": None, "annotator": ""}
            if document is not None:
                line |= {"text": item or document.text, "sources": document.metadata.get("sources")}
            lines.append(json.dumps(line, ensure_ascii=False))
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(lines)


def read_verdicts(folder: Path) -> dict[str, dict[Key, dict[str, Any]]]:
    """The verdicts of a measure stage, by judge, then by (id, item).

    Raises:
        UsageError: there are none.
    """
    import pyarrow.parquet as pq

    path = folder / "verdicts.parquet"
    if not path.exists():
        raise UsageError(f"{folder} has no verdicts; measure with judges first (verdicts.parquet is missing)")
    found: dict[str, dict[Key, dict[str, Any]]] = defaultdict(dict)
    for row in pq.read_table(path).to_pylist():
        found[row["judge"]].setdefault((row["id"], row["item"]), row)
    return dict(found)


def _labels(path: Path) -> dict[str, dict[str, dict[Key, str]]]:
    """judge -> annotator -> (id, item) -> label."""
    found: dict[str, dict[str, dict[Key, str]]] = defaultdict(lambda: defaultdict(dict))
    for number, row in _rows(path):
        missing = {"judge", "id", "label"} - row.keys()
        if missing:
            raise UsageError(f"{path}, line {number}: missing {', '.join(sorted(missing))}")
        if row["label"] is not None:
            annotator = str(row.get("annotator") or "label")
            key = (str(row["id"]), str(row.get("item") or ""))
            found[str(row["judge"])][annotator][key] = str(row["label"]).lower()
    if not found:
        raise UsageError(f"{path}: no line has a label yet")
    return found


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UsageError(f"label file {path}: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UsageError(f"{path}, line {number}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise UsageError(f"{path}, line {number}: must be a JSON object")
        yield number, row


def _class(label: str) -> int | str:
    return int(label) if label.lstrip("-").isdigit() else label
