"""What every test stands on: the example corpus, and an environment that hides nothing from the machine.

Keys and endpoints of the person who runs the tests are taken away before anything is imported, and no hub
is asked for files, so that a test passes or fails for everybody alike. Properties are tried on the same
examples every time where ``CI`` is set.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))  # what several tests share lies beside them, not in a package
from server import Server, start_server

STORIES = Path(__file__).parents[1] / "examples" / "stories"
PRIVATE = re.compile(r"(API_?KEY|TOKEN|SECRET)$|^(OPENAI|ANTHROPIC|AZURE|AWS|GOOGLE|HF)_", re.IGNORECASE)

for name in filter(PRIVATE.search, list(os.environ)):
    del os.environ[name]
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # else it warns in every forked process

settings.register_profile("leaven", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("leaven"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "leaven")


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def stories() -> list[dict[str, Any]]:
    """The 8 documents of the example corpus: id, title, author, text."""
    return _rows(STORIES / "documents.jsonl")


@pytest.fixture
def recorded() -> list[dict[str, Any]]:
    """The recorded answers about them: doc_id, method, step, variables, response."""
    return _rows(STORIES / "answers.jsonl")


@pytest.fixture(scope="session")
def _server_process() -> Iterator[Server]:
    server = start_server()
    yield server
    server.stop()


@pytest.fixture
def server(_server_process: Server) -> Server:
    """A real OpenAI-compatible server, with counts at zero and no faults."""
    _server_process.reset()
    return _server_process
