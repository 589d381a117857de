"""The value of a patch (paper 003, 4.2): a fresh copy, the run, the check, the evaluation from pristine files.

    code + patch -> copy/ --run--> copy/ --protected files unchanged?--> evaluation (its own copy of eval/) -> score
                                     '--- answerer, in its own sandbox <--questions, answers--'

What a patch can reach is its copy. The score is what the evaluation prints, which no patch can reach; what the patched
program prints goes to a log. Nothing is kept but the outcome: patch and seed give the copy again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leaven.search.environment import Code, Environment
from leaven.search.sandbox import Finished, Sandbox, Watch, remove

LOG_TAIL = 4000  # characters of a log that are kept
LINE = 500


@dataclass(frozen=True)
class Outcome:
    """What came of an attempt.

    Args:
        score: None if it failed, and then
        reason: says why, in one line.
        facts: what else the evaluation printed beside the score.
        run_seconds, eval_seconds: of wall-clock; `seconds` is all of it.
        log: the end of what was printed.
    """

    score: float | None
    reason: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    run_seconds: float = 0.0
    eval_seconds: float = 0.0
    seconds: float = 0.0
    log: str = ""


def value(
    environment: Environment, code: Code, sandbox: Sandbox, place: Path, seed: int = 0, devices: str = ""
) -> Outcome:
    """Run a patched codebase and evaluate it.

    Args:
        code: all files, patched.
        place: folder to work in; emptied before, removed after.
        seed: given to all commands as SEED.
        devices: GPUs it may use, as CUDA_VISIBLE_DEVICES.
    """
    started, place = time.monotonic(), place.resolve()
    remove(place)
    copy, evaluation = place / "copy", place / "eval"
    try:
        _write(copy, code, environment.file.data)
        _write(evaluation, environment.eval, environment.file.eval_data)
        found = _value(environment, sandbox, copy, evaluation, place, seed, devices)
    finally:
        remove(place)
    return Outcome(**{**vars(found), "seconds": time.monotonic() - started})


def _value(
    environment: Environment,
    sandbox: Sandbox,
    copy: Path,
    evaluation: Path,
    place: Path,
    seed: int,
    devices: str,
) -> Outcome:
    file = environment.file
    variables = {**file.variables, "SEED": str(seed), "CUDA_VISIBLE_DEVICES": devices}
    before = _hashes(environment, copy)
    with (place / "run.log").open("wb") as log:
        ran = sandbox.run(file.run, copy, file.limits, file.resources, variables, log)
    printed = _tail(place / "run.log")
    if ran.reason:
        return Outcome(None, f"run: killed at {ran.reason}", run_seconds=ran.seconds, log=printed)
    if ran.code:
        reason = f"run: ended with {ran.code}: {_last_line(printed)}"
        return Outcome(None, reason, run_seconds=ran.seconds, log=printed)
    after = _hashes(environment, copy)
    changed = [name for name in before if after.get(name) != before[name]]
    if changed:
        reason = f"the run changed the protected file {changed[0]}"
        return Outcome(None, reason, run_seconds=ran.seconds, log=printed)
    ended = _evaluate(environment, sandbox, copy, evaluation, place, variables)
    scored = _tail(place / "eval.log")
    common: dict[str, Any] = {"run_seconds": ran.seconds, "eval_seconds": ended.seconds}
    log_text = "\n".join(
        part for part in (printed, _tail(place / "answer.log"), _tail(place / "eval.errors"), scored) if part
    )[-LOG_TAIL:]
    if ended.reason:
        return Outcome(None, f"evaluation: killed at {ended.reason}", log=log_text, **common)
    if ended.code:
        why = _last_line(_tail(place / "eval.errors"))
        return Outcome(None, f"evaluation: ended with {ended.code}: {why}", log=log_text, **common)
    try:
        score, facts = read_score(scored)
    except ValueError as error:
        return Outcome(None, f"evaluation: {error}", log=log_text, **common)
    return Outcome(score, "", facts, log=log_text, **common)


def _evaluate(
    environment: Environment, sandbox: Sandbox, copy: Path, evaluation: Path, place: Path,
    variables: Mapping[str, str],
) -> Finished:  # fmt: skip
    """The evaluation, with the answerer beside it where there is one."""
    file = environment.file
    limits = file.limits.model_copy(update={"seconds": file.limits.eval_seconds})
    given = {**variables, "COPY": str(copy)}
    with (place / "eval.log").open("wb") as log, (place / "eval.errors").open("wb") as errors:
        if file.answer is None:
            with sandbox.started(
                file.eval, evaluation, limits, file.resources, given, stdout=log, stderr=errors, show=[copy]
            ) as judge:
                return Watch([judge], limits, evaluation, log).until(judge)
        ask_read, ask_write = os.pipe()
        answer_read, answer_write = os.pipe()
        ends = {ask_read, ask_write, answer_read, answer_write}
        given |= {"ASK": str(ask_write), "ANSWER": str(answer_read)}
        try:
            with (
                (place / "answer.log").open("wb") as answers,
                sandbox.started(
                    file.answer, copy, limits, file.resources, variables, stdin=ask_read, stdout=answer_write,
                    stderr=answers,
                ) as answerer,
                sandbox.started(
                    file.eval, evaluation, limits, file.resources, given, stdout=log, stderr=errors,
                    pass_fds=(ask_write, answer_read), show=[copy],
                ) as judge,
            ):  # fmt: skip
                while ends:
                    os.close(ends.pop())  # each side must see the other end
                return Watch([answerer, judge], limits, copy, answers).until(judge)
        finally:
            while ends:
                os.close(ends.pop())


def read_score(printed: str) -> tuple[float, dict[str, Any]]:
    """(score, other facts) from what an evaluation printed: a JSON object on its last line.

    Raises:
        ValueError: there is none, or the score is no finite number.
    """
    lines = printed.strip().splitlines()
    try:
        found = json.loads(lines[-1]) if lines else None
    except ValueError:
        found = None
    if not isinstance(found, dict) or "score" not in found:
        last = lines[-1][:LINE] if lines else "nothing"
        raise ValueError(f'its last line must be {{"score": number}}; it printed {last!r}')
    score = found.pop("score")
    if isinstance(score, bool) or not isinstance(score, int | float):
        raise ValueError(f"the score must be a number, not {score!r}")
    try:
        value = float(score)
    except OverflowError as error:  # of a whole number: whoever prints it, the search goes on
        raise ValueError("the score is too large") from error
    if not math.isfinite(value):
        raise ValueError(f"the score is {value}")
    return value, found


def _write(folder: Path, files: Mapping[str, str | bytes], others: Mapping[str, Path]) -> None:
    contents = {**files, **{name: source.read_bytes() for name, source in others.items()}}
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def _hashes(environment: Environment, copy: Path) -> dict[str, str]:
    """Of the protected files; what is no regular file any more has none."""
    found = {}
    for path in sorted(copy.rglob("*")):
        name = path.relative_to(copy).as_posix()
        if environment.protected(name) and path.is_file() and not path.is_symlink():
            found[name] = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    return found


def _tail(path: Path) -> str:
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4 * LOG_TAIL))
        return file.read().decode("utf-8", "replace")[-LOG_TAIL:].strip()


def _last_line(text: str) -> str:
    return text.splitlines()[-1][:LINE] if text else "it printed nothing"
