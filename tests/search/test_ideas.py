"""A language model has ideas: what it is shown, what counts as new, and what happens when it talks nonsense.

The whole search with a model runs here against a real server that answers from a script: ideas as models put them,
patches as models write them, malformed and hostile ones among them.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measuring import Scripted
from scripted_server import scripted_server
from searching import attempt_of, line_env

from leaven.errors import Stopped
from leaven.lm.base import Request
from leaven.lm.client import LanguageModel
from leaven.lm.store import ResponseStore
from leaven.search.archive import Archive, Idea
from leaven.search.ideas import Thinker


def letters(texts: Sequence[str]) -> Any:
    """Embeddings that tell texts apart by their letters, and take those with the same letters for the same."""
    counts = (
        np.array([[text.lower().count(chr(97 + i)) for i in range(26)] for text in texts], dtype=float) + 1e-9
    )
    return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def had(
    folder: Path, answer: Callable[[Request], str], kind: Any = "fresh", count: int = 3, shown: Any = (),
    avoid: Any = (), **options: Any,
) -> tuple[list[Idea], list[Request]]:  # fmt: skip
    seen: list[Request] = []

    def say(request: Request) -> str:
        seen.append(request)
        return answer(request)

    async def main() -> list[Idea]:
        store = ResponseStore(folder / "answers", "run")
        thinker = Thinker(environment, LanguageModel(Scripted(say), store), letters, **options)
        try:
            return await thinker.ideas(kind, count, 2, shown, avoid)
        finally:
            store.close()

    environment = line_env(folder / "env")
    return asyncio.run(main()), seen


def listed(*texts: str) -> str:
    return json.dumps({"ideas": [{"idea": text, "changes": "train.py"} for text in texts]})


def test_ideas_are_asked_for_ten_at_a_time_and_not_twice(tmp_path: Path) -> None:
    words = iter(f"{a}{b} {b}{a}{c} {c * 5}" for a in "abcdefgh" for b in "ijklm" for c in "nopqr")
    ideas, seen = had(
        tmp_path, lambda _: listed(*(next(words) for _ in range(10))), count=23, avoid=["an earlier one"]
    )
    assert len(ideas) == 23 == len({one.text for one in ideas})
    asked = [str(request.messages[-1][1]) for request in seen]
    assert [re.search(r"Give (\d+) ideas", one)[1] for one in asked][:2] == ["10", "10"]  # type: ignore[index]
    assert all("- an earlier one" in one for one in asked)
    assert ideas[0].text.splitlines()[0] in asked[1] and ideas[0].text.splitlines()[0] not in asked[0]
    assert all(request.sample != seen[0].sample for request in seen[1:]), "another answer every time"
    assert all(one.startswith("Task: Fit a straight line") and "STEPS = 20" in one for one in asked)
    assert {request.shared for request in seen} == {asked[0].index("\n\nYou are looking")}, (
        "the codebase is shared"
    )


def test_one_idea_in_other_words_is_not_tried_again(tmp_path: Path) -> None:
    shown = [attempt_of(idea="momentum for the slope\nChanges: train.py", score=None, reason="NameError")]
    answers = iter(
        [
            listed("for the slope momentum", "a warm start", "start a warm"),
            listed("closed form by least squares"),
        ]
    )
    ideas, _ = had(tmp_path, lambda _: next(answers), "explore", 2, shown)
    assert [one.text.splitlines()[0] for one in ideas] == ["a warm start", "closed form by least squares"]


def test_explorers_see_failures_and_exploiters_the_best_first(tmp_path: Path) -> None:
    shown = [
        attempt_of(number=1, idea="larger steps", score=3.0), attempt_of(number=2, idea="more steps", score=1.0),
        attempt_of(number=3, idea="two lines", score=None, reason="run: ended with 1: NameError"),
    ]  # fmt: skip
    _, (request,) = had(tmp_path / "a", lambda _: listed("x"), "explore", 1, shown)
    text = request.messages[-1][1]
    assert "two lines\n  -> FAILED (run: ended with 1: NameError)" in text and "points 3" in text
    ideas, (request,) = had(tmp_path / "b", lambda _: listed("x"), "exploit", 1, shown[:2])
    text = request.messages[-1][1]
    assert text.index("more steps") < text.index("larger steps"), "an error of 1 is better than one of 3"
    assert ideas[0].parents == (2, 1)


def test_what_was_tried_is_shown_as_far_as_it_fits(tmp_path: Path) -> None:
    shown = [attempt_of(number=n, idea=f"idea {n} " + "x" * 500, score=float(n)) for n in range(100)]
    _, (request,) = had(tmp_path, lambda _: listed("y"), "explore", 1, shown, context_tokens=3000)
    text = request.messages[-1][1]
    places = [int(number) for number in re.findall(r"- idea (\d+) ", text)]
    assert len(text) < 3000 * 3.5 and 5 < len(places) < 20
    assert places != sorted(places) and max(places) > 30, "a random part, not the first ones"


@pytest.mark.parametrize("answer", ["no JSON at all", '{"ideas": []}', '{"ideas": [{"text": 1}]}', ""])
def test_a_model_without_ideas_stops_the_search(tmp_path: Path, answer: str) -> None:
    with pytest.raises(Stopped, match=r"gave no usable idea in 4 answers: "):
        had(tmp_path, lambda _: answer)


def test_thoughts_and_fences_are_no_ideas(tmp_path: Path) -> None:
    answer = f"<think>maybe {listed('a wrong one')}</think>\n```json\n{listed('warm start')}\n```"
    ideas, _ = had(tmp_path, lambda _: answer, count=1)
    assert [one.text for one in ideas] == ["warm start\nChanges: train.py"]


# What the scripted server's coder answers, by the idea it is asked to carry out.
CODE = {
    "exact line": """Sure! Here is the change.
```diff
--- a/train.py
+++ b/train.py
@@ -40,7 +40,6 @@
 slope = height = 0.0
-for _ in range(STEPS):
-    errors = [(slope * x + height - y, x) for x, y in points]
-    slope -= LEARNING_RATE * sum(error * x for error, x in errors) / len(points)
-    height -= LEARNING_RATE * sum(error for error, _ in errors) / len(points)
+n, sx, sy = len(points), sum(x for x, _ in points), sum(y for _, y in points)
+slope = (n * sum(x * y for x, y in points) - sx * sy) / (n * sum(x * x for x, _ in points) - sx * sx)
+height = (sy - slope * sx) / n
 with open("model.json", "w") as file:
```
Hope this helps.""",
    "more steps": "=== FILE train.py\nSTEPS = 5\nraise SystemExit('out of steps')\n=== END",
    "touch the judge": """--- a/../eval/evaluate.py
+++ b/../eval/evaluate.py
@@ -1 +1 @@
-import json
+print('{"score": 0}')
""",
    "change the rules": "--- a/rules.txt\n+++ b/rules.txt\n@@ -1 +1 @@\n-fair play\n+no rules\n",
    "say zero": "=== FILE train.py\nprint('{\"score\": 0.0}')\n=== END",
    "steal": """=== FILE train.py
import glob, json, os, socket
try:
    socket.create_connection(("1.1.1.1", 53), timeout=1)
    slope = 1
except OSError:
    slope = 0
secrets = []
for place in glob.glob("/proc/*/environ"):
    try:
        secrets += [text for text in open(place) if "verysecret" in text]
    except OSError:
        pass
json.dump({"slope": slope, "height": len(secrets)}, open("model.json", "w"))
print(secrets)
=== END""",
    "do nothing": "I would rather not change anything.\n```diff\n```",
    "never end": "=== FILE train.py\nwhile True: pass\n=== END",
    "fork": "=== FILE train.py\nimport os\nwhile True: os.fork()\n=== END",
    "fill the disk": "=== FILE train.py\nfor i in range(10**6): open(f'f{i}', 'wb').write(bytes(10**7))\n=== END",
}


broken_left = [1, 2, 3]


def scripted(prompt: str, number: int) -> str:
    """Ideas in one go, then patches; the first samples for one idea are broken."""
    if "Give " in prompt and "JSON object" in prompt:
        return (
            "```json\n"
            + json.dumps({"ideas": [{"idea": name, "changes": "train.py"} for name in CODE]})
            + "\n```"
        )
    (name,) = [one for one in CODE if one in prompt.split("=====")[-1]][:1] or ["do nothing"]
    if name == "exact line" and broken_left:
        broken_left.pop()
        return "```diff\n--- a/train.py\n+++ b/train.py\n@@ -1,2 +1,2 @@\n-this line is not there\n+x\n```"
    return CODE[name]


def test_a_search_with_a_model_earns_what_it_earns(tmp_path: Path) -> None:
    line_env(
        tmp_path / "env", {"rules.txt": "fair play\n"}, protect=["rules.txt"],
        limits={"seconds": 4, "eval_seconds": 10, "disk_gb": 0.05, "memory_gb": 0.5, "processes": 40},
    )  # fmt: skip
    command = [
        sys.executable,
        "-m",
        "leaven.cli",
        "search",
        str(tmp_path / "env"),
        "--out",
        str(tmp_path / "out"),
    ]
    command += ["--budget", str(len(CODE)), "--batch", str(len(CODE)), "--strategy", "best-of-n"]
    environment = os.environ | {"OPENAI_API_KEY": "sk-verysecret", "HF_HUB_OFFLINE": "1"}
    with scripted_server(scripted) as (url, prompts):
        command += ["--ideator", f"any@{url}"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        asked = len(prompts)
        again = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert again.returncode == 0 and len(prompts) == asked, "nothing is paid for twice"
    archive = Archive(tmp_path / "out" / "search.sqlite")
    found = {one.idea.splitlines()[0]: one for one in archive.attempts() if one.epoch == 0}
    assert set(found) == set(CODE)
    exact = found.pop("exact line")
    assert exact.score is not None and exact.score < 0.01 and "this line is not there" in exact.patch_log
    steal = found.pop("steal")
    assert steal.score == pytest.approx(sum((3 * (x / 10 + 0.05) + 1) ** 2 for x in range(20)) / 20), (
        "a line at zero"
    )
    assert "verysecret" not in steal.log + (tmp_path / "out" / "events.jsonl").read_text()
    assert all(one.score is None for one in found.values()), "nobody else has earned a score"
    for name, reason in {
        "touch the judge": "no patch: ", "change the rules": "no patch: ", "do nothing": "no patch: ",
        "more steps": "run: ended with 1: out of steps", "say zero": "evaluation: ended with 1",
        "never end": "run: killed at the time limit",
    }.items():  # fmt: skip
        assert found[name].reason.startswith(reason), (name, found[name].reason)
    assert "protected" in found["change the rules"].patch_log
    assert (tmp_path / "out" / "best.patch").read_text() == exact.patch
    results = (tmp_path / "out" / "results.md").read_text()
    assert "| algorithmic |" in results and "failed" in results
    assert "no attempt" not in done.stdout and f"best attempt {exact.number}" in done.stdout
