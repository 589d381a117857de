"""The response store: found by what was asked, shared by writers, whole after a kill."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaven.errors import Stopped, UsageError
from leaven.lm.base import Answer, Origin, Request, Sampling, Usage
from leaven.lm.store import ResponseStore


def request(text: str = "Hello", max_tokens: int = 100, shared: int = 0, sample: int = 0) -> Request:
    return Request((("user", text),), Sampling(max_tokens=max_tokens), None, sample, shared)


def put(store: ResponseStore, asked: Request, text: str = "an answer", finish: str = "stop") -> str:
    async def add() -> str:
        key = asked.key("test")
        answer = Answer(text, finish, Usage(10, 4, 5))
        await store.add(key, asked, answer, model="m", identity="test", seconds=0.1)
        return key

    return asyncio.run(add())


def test_a_complete_answer_serves_any_limit_and_a_cut_one_only_its_own(tmp_path: Path) -> None:
    store = ResponseStore(tmp_path)
    key = put(store, request("a", 100), "whole")
    assert request("a", 5000).key("test") == key, "the limit is not part of the key"
    assert store.find(key, 5000) == Answer("whole", "stop", Usage(10, 4, 5))
    cut = put(store, request("b", 100), "cut o", "length")
    assert store.find(cut, 101) is None
    assert store.find(cut, 100) == store.find(cut, 20) == Answer("cut o", "length", Usage(10, 4, 5))
    put(store, request("b", 500), "cut off later", "stop")
    found = store.find(cut, 9000)
    assert found is not None and found.text == "cut off later"
    store.close()


def test_everything_that_decides_an_answer_is_in_the_key() -> None:
    base = request("a")
    others = [
        request("b"),
        request("a", sample=1),
        Request(base.messages, Sampling(max_tokens=100, temperature=0.5)),
        Request(base.messages, Sampling(max_tokens=100, stop=("x",))),
        Request(base.messages, base.sampling, {"type": "object"}),
        Request((("system", "a"),), base.sampling),
    ]
    keys = {one.key("test") for one in [base, *others]} | {base.key("another endpoint")}
    assert len(keys) == len(others) + 2
    assert Request(base.messages, base.sampling, shared=1).key("test") == base.key("test")


def test_two_writers_have_a_file_each_and_are_read_as_one(tmp_path: Path) -> None:
    one = ResponseStore(tmp_path, "run")
    two = ResponseStore(tmp_path, "run")
    key = put(one, request("from one"))
    assert two.find(key, 100) is not None
    put(two, request("from two"))
    one.close()
    two.close()
    assert len(list(tmp_path.glob("*.sqlite"))) == 2
    both = ResponseStore(tmp_path, "run")
    assert len(both) == 2
    assert both.spent() == {"m": Usage(20, 8, 10)}
    both.close()


def test_the_document_at_the_head_of_many_prompts_is_stored_once(tmp_path: Path) -> None:
    import random

    draw = random.Random(0)
    document = " ".join(str(draw.random()) for _ in range(2000))  # 38 kB that do not compress well
    store = ResponseStore(tmp_path)
    for i in range(50):
        key = put(store, request(f"{document} question {i}", shared=len(document)))
    found = store.lookup(key)
    assert found is not None and found["request"]["messages"][0][1] == f"{document} question 49"
    store.close()
    assert sum(path.stat().st_size for path in tmp_path.glob("*.sqlite*")) < 10 * len(document)


@given(st.text(alphabet=st.characters(), max_size=200))
def test_any_text_comes_back_as_it_was(text: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        store = ResponseStore(Path(folder))
        key = put(store, request(text + "?"), text)
        found, whole = store.find(key, 10), store.lookup(key)
        assert found is not None and found.text == text
        assert whole is not None and whole["request"]["messages"][0][1] == text + "?"
        store.close()


def test_half_a_surrogate_pair_is_kept_too(tmp_path: Path) -> None:
    store = ResponseStore(tmp_path)
    key = put(store, request("cut \ud83d emoji " * 300, shared=2500), "an \ude00 answer")
    found, whole = store.find(key, 10), store.lookup(key)
    assert found is not None and found.text == "an \ude00 answer"
    assert whole is not None and whole["request"]["messages"][0][1] == "cut \ud83d emoji " * 300
    store.close()


WRITER = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_store import put, request
from leaven.lm.store import ResponseStore
store = ResponseStore(Path(sys.argv[1]))
for i in range(100000):
    print(put(store, request(f"{{sys.argv[2]}} {{i}}")), flush=True)
"""


def test_every_answer_that_was_confirmed_survives_kill_9(tmp_path: Path) -> None:
    confirmed: list[str] = []
    for turn in range(3):
        code = WRITER.format(tests=str(Path(__file__).parent))
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), str(turn)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        seen = [process.stdout.readline() for _ in range(20)]  # it is at work, however fast the machine is
        time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        output, _ = process.communicate()
        lines = (b"".join(seen) + output).decode().split("\n")
        confirmed += [line for line in lines[:-1] if len(line) == 40]
    store = ResponseStore(tmp_path)
    assert len(confirmed) > 30
    assert all(store.find(key, 100) is not None for key in confirmed)
    store.close()


def test_a_full_disk_stops_the_store_and_harms_nothing_stored(tmp_path: Path) -> None:
    store = ResponseStore(tmp_path)
    first = put(store, request("fits"))
    pages = store._writer.execute("PRAGMA page_count").fetchone()[0]
    store._writer.execute(f"PRAGMA max_page_count = {pages + 2}")  # SQLite then reports a full disk
    import random

    draw = random.Random(0)
    with pytest.raises(Stopped, match="cannot write to the response store"):
        for i in range(50):
            put(store, request(f"more {i}"), "".join(chr(draw.randrange(32, 4000)) for _ in range(3000)))
    with pytest.raises(Stopped):
        put(store, request("after"))
    assert store.find(first, 100) is not None
    store.close()


def test_a_store_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match="cannot use the response store"):
        ResponseStore(tmp_path / "file")
    (tmp_path / "answers-000.sqlite").write_text(
        "this is not a database, and long enough to be noticed" * 100
    )
    with pytest.raises(UsageError, match="cannot use the response store"):
        ResponseStore(tmp_path)


def test_planning_sees_every_step_however_many_answers_another_has(tmp_path: Path) -> None:
    store = ResponseStore(tmp_path)

    async def fill() -> None:
        for i in range(40):
            step = "rare" if i == 0 else "frequent"
            asked = Request((("user", str(i)),), Sampling(), origin=Origin("d", "m", step))
            answer = Answer("a", "stop", Usage(1, 0, 1))
            await store.add(asked.key("test"), asked, answer, model="m", identity="test", seconds=0)

    asyncio.run(fill())
    steps = [seen.step for seen in store.seen("test", most=5)]
    assert sorted(steps) == ["frequent"] * 5 + ["rare"]
    store.close()


def test_planning_prefers_this_runs_own_answers(tmp_path: Path) -> None:
    other = ResponseStore(tmp_path, "other")
    put(other, request("theirs"))
    assert [seen.characters for seen in other.seen("test")] == [6]
    other.close()
    mine = ResponseStore(tmp_path, "mine")
    assert [seen.characters for seen in mine.seen("test")] == [6], "better than nothing"
    put(mine, request("mine"))
    assert [seen.characters for seen in mine.seen("test")] == [4]
    mine.close()
    with sqlite3.connect(tmp_path / "answers-000.sqlite") as connection:
        assert connection.execute("SELECT count(*) FROM answers").fetchone() == (2,)
