"""The rules of the tree as tests: imports point left, starting is light, every file says what it is."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import leaven

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "leaven"
FILES = sorted(PACKAGE.rglob("*.py"))
# The rooms of the package. A room may import itself and the rooms left of it, nothing to its right.
ROOMS = (
    *(
        "errors",
        "config",
        "document",
        "stage",
        "lm",
        "progress",
        "corpus",
        "generate",
        "clean",
        "measure",
        "mix",
    ),
    *("train", "evaluate", "report", "search", "bootstrap", "plan", "run", "estimate", "show", "cli"),
)
# Folders beside the package that wire it together or try it; the package knows nothing of them.
OUTSIDE = {"recipes", "examples", "environments", "tests", "benchmarks"}
HEAVY = {"torch", "transformers", "ray", "faiss", "datasets", "numba", "pyarrow"}
HELP_SECONDS = 0.5

each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))


def room(path: Path) -> str:
    """Room of a file under the package; ``""`` is ``leaven/__init__.py``, left of everything."""
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imported(tree: ast.AST, package: list[str]) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import in a file: at its top, in functions, under TYPE_CHECKING, by name.

    Args:
        package: dotted path, in parts, of the package that the file belongs to; relative imports start there.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{start}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = (
                node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            )
            if function in ("import_module", "__import__"):
                yield node.lineno, str(node.args[0].value)


def faults(source: str, path: Path) -> list[str]:
    """Imports of a file that do not point left, one line each."""
    here = room(path)
    allowed = {"", *ROOMS[: ROOMS.index(here) + 1]} if here else {""}
    found = []
    package = ["leaven", *path.relative_to(PACKAGE).parts[:-1]]
    for line, name in imported(ast.parse(source), package):
        parts = name.split(".")
        if parts[0] in OUTSIDE:
            found.append(f"{path.name}:{line} imports {name}, which is outside the package")
        elif parts[0] == "leaven" and len(parts) > 1:
            # `from leaven import __version__` names no room: it is the package's own __init__.
            target = parts[1] if parts[1] in ROOMS or not hasattr(leaven, parts[1]) else ""
            if target not in allowed:
                found.append(
                    f"{path.name}:{line} imports {name}, which is to the right of {here or 'leaven'}"
                )
    return found


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_every_file_is_in_a_known_room() -> None:
    assert {room(path) for path in FILES} <= {"", *ROOMS}


@each_file
def test_imports_point_left(path: Path) -> None:
    assert not faults(path.read_text(encoding="utf-8"), path)


@pytest.mark.parametrize(
    "source",
    [
        "from leaven.run import run",
        "import leaven.cli",
        "from leaven import generate",
        "from .. import clean",
        "from ..clean.rules import length",
        "def f():\n    from leaven.plan import load_plan",
        "if TYPE_CHECKING:\n    from leaven.clean import Filter",
        "importlib.import_module('leaven.measure')",
        "import recipes.first",
    ],
)
def test_an_import_to_the_right_is_found(source: str) -> None:
    assert len(faults(source, PACKAGE / "corpus" / "read.py")) == 1


@pytest.mark.parametrize(
    "source",
    [
        "from leaven.lm.base import Answer",
        "from . import rows",
        "from ..errors import UsageError",
        "import leaven",
    ],
)
def test_an_import_to_the_left_is_allowed(source: str) -> None:
    assert not faults(source, PACKAGE / "corpus" / "read.py")


def test_stages_are_rooms_in_the_order_of_the_flow() -> None:
    assert list(leaven.STAGES) == [name for name in ROOMS if name in leaven.STAGES]
    assert all((PACKAGE / stage).is_dir() or (PACKAGE / f"{stage}.py").is_file() for stage in leaven.STAGES)


def test_importing_leaven_loads_nothing_heavy() -> None:
    done = run_python("import sys, leaven; print(*sorted({name.partition('.')[0] for name in sys.modules}))")
    assert not (HEAVY | {"datatrove", "numpy", "pydantic", "typer"}) & set(done.stdout.split()), done.stderr
    assert "leaven" in done.stdout.split(), done.stderr


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print('LOADED', *{name.partition('.')[0] for name in sys.modules}))\n"
        "from leaven.cli import main\n"
        "main()"
    )
    done = run_python(code, "--help")
    text, _, loaded = done.stdout.rpartition("LOADED")
    assert done.returncode == 0, done.stderr
    assert "Usage" in text
    assert "typer" in loaded.split()
    assert not HEAVY & set(loaded.split())


def test_help_is_quick() -> None:
    def seconds() -> float:
        start = time.perf_counter()
        done = run_python("from leaven.cli import main; main()", "--help")
        assert done.returncode == 0, done.stderr
        return time.perf_counter() - start

    best = min(seconds() for _ in range(5))  # the best of five, so that a busy machine is not a failure
    assert best < HELP_SECONDS, f"leaven --help takes {best:.2f} s"


@each_file
def test_every_file_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), f"{path} has no header docstring"


@each_file
def test_every_public_function_says_what_it_returns(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    silent = [
        f"{path.name}:{node.lineno} {node.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and not node.name.startswith("_")
        and node.returns is None
    ]
    assert not silent


def test_pyproject_names_the_entry_point_and_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"leaven": "leaven.cli:main"}
    assert project["dynamic"] == ["version"]
    assert "version" not in project


def test_the_lock_pins_every_extra_and_nothing_of_this_machine() -> None:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert not [name for name, version in pins.items() if "+" in version or "/" in version]
    assert not [name for name in pins if name.startswith(("nvidia", "cuda", "triton"))]

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = sum(project["optional-dependencies"].values(), project["dependencies"])
    plain = {name.lower().replace("_", "-") for name in pins}
    wanted = {requirement.split("[")[0].split(">")[0].strip().lower() for requirement in required}
    assert wanted - {"leaven"} <= plain
