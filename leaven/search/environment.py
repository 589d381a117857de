"""A research environment: what is searched for, where it starts, and how an idea is valued (paper 003, 4.2.1).

    ENVIRONMENT/
      env.yaml     metric, commands, what may be changed, limits
      code/        the baseline codebase: an ideator sees it, a patch changes it
      eval/        the evaluation: no run ever sees it, no patch reaches it

The paper's interface has two methods: `context()`, what an ideator is told, and ``value(idea)``, which is
`leaven.search.attempt.value`. README.md shows how to write an environment of one's own.
"""

from __future__ import annotations

import ast
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from leaven.config import PlanPath, validated
from leaven.document import to_json
from leaven.errors import UsageError, nearest
from leaven.search.patch import Rules

Direction = Literal["higher", "lower"]
Variable = Annotated[
    str, BeforeValidator(lambda value: str(value) if isinstance(value, int | float) else value)
]
Code = Mapping[str, str]  # text by path, relative to code/


class _Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Metric(_Options):
    """What the evaluation's score is, and which way is better."""

    name: str
    direction: Direction

    def better(self, one: float, other: float) -> bool:
        """Whether one score is better than another."""
        return one > other if self.direction == "higher" else one < other

    def reward(self, score: float | None) -> float:
        """Greater is better; a failure is worse than every score."""
        if score is None:
            return -math.inf
        return score if self.direction == "higher" else -score


class Limits(_Options):
    """What a run may take; one that takes more is killed and has failed.

    Args:
        seconds: of wall-clock for the run.
        eval_seconds: for the evaluation with its answerer.
        memory_gb: resident, all processes together.
        disk_gb: everything in the copy; one file; and a temporary folder in memory.
        processes: processes, and threads of one user.
    """

    seconds: float = Field(600, gt=0)
    eval_seconds: float = Field(300, gt=0)
    memory_gb: float = Field(8, gt=0)
    disk_gb: float = Field(2, gt=0)
    processes: int = Field(256, ge=2)


class Resources(_Options):
    """What a run occupies while it runs; the scheduler starts no more than fit."""

    cpus: int = Field(1, ge=1)
    gpus: int = Field(0, ge=0)


class Setting(_Options):
    """A named change of an environment: larger, or for another machine."""

    variables: dict[str, Variable] = {}
    limits: dict[str, float] = {}
    resources: dict[str, int] = {}


class Parameter(_Options):
    """Something that can be changed without a language model: one value in one file of the code.

    Args:
        file: of the code: a Python file with a line ``NAME = literal`` at its top level, or a YAML file in
            which the parameter's name is a path of keys with dots between them.
        low, high: bounds of a number; `log`: drawn evenly on a logarithmic scale; `whole`: a whole number.
        choices: instead of bounds, the values there are.
    """

    file: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    whole: bool = False
    choices: tuple[Any, ...] = ()

    @model_validator(mode="after")
    def _either(self) -> Parameter:
        bounded = self.low is not None and self.high is not None and self.low < self.high
        if bounded == bool(self.choices):
            raise ValueError("give 'low' and 'high' (low < high), or 'choices'")
        if self.log and (self.low or 0) <= 0:
            raise ValueError("'log' needs a 'low' above 0")
        return self


class EnvFile(_Options):
    """The fields of env.yaml.

    Args:
        task: what is to be improved, in words, for whoever has ideas.
        run: shell command in the patched copy of the code; never trusted.
        answer: shell command in the same copy after the run, in a sandbox of its own; it reads questions on its
            input and writes answers to its output, so that a patched model can be asked without being believed.
        eval: shell command in a fresh copy of eval/; its last line on the output is ``{"score": number, ...}``.
        data: files put into the copy, where nobody may change them; paths relative to the environment.
        eval_data: files put beside the evaluation, where no run sees them.
        change, protect: patterns of paths in the code that a patch may and may not touch.
        variables: of the environment of all three commands.
        settings: changes by name, for ``--setting``.
        parameters: what the embedded ideator may change, by name.
    """

    name: str
    task: str
    metric: Metric
    run: str
    eval: str
    answer: str | None = None
    data: dict[str, PlanPath] = {}
    eval_data: dict[str, PlanPath] = {}
    change: tuple[str, ...] = ()
    protect: tuple[str, ...] = ()
    limits: Limits = Limits()
    resources: Resources = Resources()
    variables: dict[str, Variable] = {}
    settings: dict[str, Setting] = {}
    parameters: dict[str, Parameter] = {}


@dataclass(frozen=True)
class Environment:
    """An environment that was read and checked.

    Args:
        code: the baseline.
        eval: files of the evaluation, by path.
    """

    folder: Path
    file: EnvFile
    code: Code
    eval: Mapping[str, bytes]

    @property
    def rules(self) -> Rules:
        """What a patch may touch."""
        return Rules(self.file.change, (*self.file.protect, *self.file.data))

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides a score, apart from the machine."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(
            to_json(
                self.file.model_dump(mode="json", exclude={"data", "eval_data", "parameters", "settings"})
            )
        )
        for part in (self.code, self.eval):
            for path in sorted(part):
                text = part[path]
                digest.update(
                    f"{path}\0".encode() + (text.encode() if isinstance(text, str) else text) + b"\0"
                )
        for name, source in (*self.file.data.items(), *self.file.eval_data.items()):
            digest.update(f"{name}\0".encode() + source.read_bytes() + b"\0")
        return digest.hexdigest()

    def protected(self, path: str) -> bool:
        """Whether a file of the code is one that nobody may change."""
        return any(fnmatchcase(path, pattern) for pattern in self.rules.protect)

    def context(self) -> str:
        """What an ideator is told: the task and the codebase."""
        file = self.file
        allowed = ", ".join(file.change) or "everything that is not protected"
        lines = [
            f"Task: {file.task.strip()}",
            f"Score: {file.metric.name} ({file.metric.direction} is better).",
            f"Command: {file.run} (at most {file.limits.seconds:g} seconds, {file.limits.memory_gb:g} GB of memory, "
            f"{file.resources.cpus} CPU, {file.resources.gpus} GPU; no network).",
            f"May be changed: {allowed}. Protected: {', '.join(self.rules.protect) or 'nothing'}.",
            "",
        ]
        for path, text in self.code.items():
            lines += [f"===== {path} =====", text.rstrip("\n"), ""]
        return "\n".join(lines)


def load(folder: Path, setting: str | None = None) -> Environment:
    """Read an environment and check all that can be checked without running it.

    Args:
        setting: name of one of its settings.

    Raises:
        UsageError: what is missing or wrong, in one line.
    """
    path = folder / "env.yaml"
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(
            f"{folder} is no environment: there is no env.yaml in it (leaven search new-env FOLDER makes one)"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {' '.join(str(error).split())}") from error
    file = validated(EnvFile, value, str(path), folder)
    if setting is not None:
        file = _with(file, setting, str(path))
    code = {name: _text(where, name) for name, where in _files(folder / "code", path).items()}
    evaluation = {name: where.read_bytes() for name, where in _files(folder / "eval", path).items()}
    for field, found in (("data", file.data), ("eval_data", file.eval_data)):
        for name, where in found.items():
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise UsageError(f"{path}: {field}: {name!r} must be a path inside the copy")
            if not where.is_file():
                raise UsageError(f"{path}: {field}: {name}: there is no file {where}")
    environment = Environment(folder, file, code, evaluation)
    for name, parameter in file.parameters.items():
        try:
            read_parameter(code, name, parameter)
        except UsageError as error:
            raise UsageError(f"{path}: parameters: {error}") from error
    return environment


def _with(file: EnvFile, setting: str, where: str) -> EnvFile:
    if setting not in file.settings:
        raise UsageError(f"{where}: there is no setting {setting!r}; {nearest(setting, file.settings)}")
    change = file.settings[setting]
    return file.model_copy(
        update={
            "variables": file.variables | change.variables,
            "limits": validated(
                Limits, file.limits.model_dump() | change.limits, f"{where}: settings.{setting}.limits"
            ),
            "resources": validated(
                Resources,
                file.resources.model_dump() | change.resources,
                f"{where}: settings.{setting}.resources",
            ),
        }
    )


def _files(folder: Path, where: Path) -> dict[str, Path]:
    found = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    if not found:
        raise UsageError(f"{where}: there is nothing in {folder}")
    return found


def _text(path: Path, name: str) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"code/{name} is not text; put data outside and name it under 'data'") from error


def read_parameter(code: Code, name: str, parameter: Parameter) -> Any:
    """The value that a parameter has in a codebase.

    Raises:
        UsageError: it is not there, or no literal.
    """
    text = code.get(parameter.file)
    if text is None:
        raise UsageError(f"{name}: there is no file {parameter.file}; {nearest(parameter.file, code)}")
    if parameter.file.endswith((".yaml", ".yml")):
        value = yaml.safe_load(text)
        for key in name.split("."):
            if not isinstance(value, dict) or key not in value:
                raise UsageError(f"{name}: {parameter.file} has no {key!r}")
            value = value[key]
        return value
    return ast.literal_eval(_assignment(text, name, parameter.file).value)


def with_parameter(code: Code, name: str, parameter: Parameter, value: Any) -> dict[str, str]:
    """The codebase with another value of a parameter, and everything else as it was, comments too.

    Raises:
        UsageError: it is not there.
    """
    read_parameter(code, name, parameter)
    text = code[parameter.file]
    if parameter.file.endswith((".yaml", ".yml")):
        return {**code, parameter.file: _in_yaml(text, name.split("."), value)}
    node = _assignment(text, name, parameter.file).value
    lines = text.split("\n")  # as the parser counts them
    raw = lines[node.lineno - 1].encode()
    changed = raw[: node.col_offset] + repr(value).encode() + raw[node.end_col_offset :]
    lines[node.lineno - 1] = changed.decode()
    return {**code, parameter.file: "\n".join(lines)}


def _in_yaml(text: str, keys: list[str], value: Any) -> str:
    """The file with one value replaced where it stands; written anew where that would not read back the same."""
    value = list(value) if isinstance(value, tuple) else value
    node: Any = yaml.compose(text)
    whole = yaml.safe_load(text)
    inner = whole
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    for key in keys:
        before, node = next((name, found) for name, found in node.value if name.value == key)
    new = yaml.safe_dump(value, default_flow_style=True, width=math.inf).removesuffix("...\n").rstrip("\n")
    old = text[before.end_mark.index : _end(node)]
    changed = f"{text[: before.end_mark.index]}: {new}{text[before.end_mark.index + len(old.rstrip()) :]}"
    try:
        same = yaml.safe_load(changed) == whole
    except yaml.YAMLError:
        same = False
    return changed if same else yaml.safe_dump(whole, sort_keys=False, width=100)


def _end(node: Any) -> int:
    """Where a YAML value ends; what follows a list or mapping in lines of its own is not part of it."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    return int(node.end_mark.index)


def _assignment(text: str, name: str, file: str) -> ast.Assign:
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise UsageError(f"{name}: {file} is no Python: {error}") from error
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == name for target in node.targets
        ):
            try:
                ast.literal_eval(node.value)
            except ValueError as error:
                raise UsageError(f"{name}: in {file} it is no literal value") from error
            if node.value.lineno != node.value.end_lineno:
                raise UsageError(f"{name}: in {file} its value must be on one line")
            return node
    raise UsageError(f"{name}: {file} has no line '{name} = value' at its top level")
