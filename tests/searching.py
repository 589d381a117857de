"""What tests of the search share: the template as an environment, changed as a test needs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from leaven.search.archive import Attempt
from leaven.search.environment import Environment, load
from leaven.search.folder import new_env


def line_env(
    folder: Path, code: dict[str, str] | None = None, evaluate: str = "", **fields: Any
) -> Environment:
    """The environment of `leaven search new-env`, with other files and fields; None takes a field away."""
    new_env(folder)
    for name, text in (code or {}).items():
        (folder / "code" / name).write_text(text)
    if evaluate:
        (folder / "eval" / "evaluate.py").write_text(evaluate)
    value = yaml.safe_load((folder / "env.yaml").read_text()) | fields
    (folder / "env.yaml").write_text(yaml.safe_dump({k: v for k, v in value.items() if v is not None}))
    return load(folder)


def attempt_of(**fields: Any) -> Attempt:
    """An attempt that has ended, with what a test says of it."""
    score = fields.get("score")
    given = {
        "number": 1, "epoch": 0, "kind": "fresh", "idea": "an idea", "parents": (), "settings": {}, "seed": 0,
        "status": "failed" if score is None else "done", "patch": "", "patch_log": "", "score": None, "reason": "",
        "facts": {}, "run_seconds": 0.0, "eval_seconds": 0.0, "seconds": 0.0, "log": "", "created": 0.0, "ended": 1.0,
    }  # fmt: skip
    return Attempt(**(given | fields))
