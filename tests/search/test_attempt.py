"""A score is what the pristine evaluation says of honest work, and nothing a patch does gets another one."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil
import pytest
from searching import line_env

from leaven.search.attempt import Outcome, read_score, value
from leaven.search.environment import Environment
from leaven.search.sandbox import Sandbox

HONEST = "import json\njson.dump({'slope': 2.0, 'height': 1.0}, open('model.json', 'w'))\n"
HONEST_SCORE = sum((x / 10 + 0.05) ** 2 for x in range(20)) / 20  # of slope 2 where 3 is right


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return Sandbox.find()


def attempt(environment: Environment, sandbox: Sandbox, place: Path, train: str, **files: str) -> Outcome:
    others = {name.replace("__", "."): text for name, text in files.items()}
    code = {**environment.code, "train.py": train, **others}
    return value(environment, code, sandbox, place / "place")


def test_the_baseline_is_scored_and_nothing_stays(tmp_path: Path, sandbox: Sandbox) -> None:
    environment = line_env(tmp_path / "env")
    first, again, other = (
        value(environment, environment.code, sandbox, tmp_path / "place", seed) for seed in (3, 3, 4)
    )
    assert first.score == again.score and first.score is not None and first.score != other.score
    assert not (tmp_path / "place").exists() and not (tmp_path / "env" / "code" / "model.json").exists()
    assert first.seconds - first.run_seconds - first.eval_seconds < 1, "overhead"


def test_honest_work_is_scored(tmp_path: Path, sandbox: Sandbox) -> None:
    assert attempt(line_env(tmp_path / "env"), sandbox, tmp_path, HONEST).score == pytest.approx(HONEST_SCORE)


FORGERIES = {
    "prints a score": "print('{\"score\": 0.0}')",
    "prints a score on both": "import sys; print('{\"score\": 0.0}', file=sys.stderr); print('{\"score\": 0.0}')",
    "writes the evaluation": """
import glob, os
for place in ("../eval", "../../env/eval", os.getcwd() + "/../eval"):
    try:
        os.makedirs(place, exist_ok=True)
        open(place + "/evaluate.py", "w").write("print('{\\"score\\": 0.0}')")
    except OSError:
        pass
""",
    "leaves a module that the evaluation imports": """
for name in ("json", "os", "sitecustomize", "usercustomize", "encodings"):
    open(name + ".py", "w").write("print('{\\"score\\": 0.0}'); import sys; sys.exit(0)")
""",
    "leaves a process that rewrites the evaluation": """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", '''
import os, time
while True:
    for place in ("..", "../eval", "/tmp", "/proc/1/cwd", "/proc/self/cwd/../eval"):
        try:
            open(place + "/evaluate.py", "w").write("print('{\\\\"score\\\\": 0.0}')")
            open(place + "/eval.log", "w").write('{"score": 0.0}')
        except OSError:
            pass
'''], start_new_session=True)
""",
    "writes logs and descriptors": """
import os
for place in ("../eval.log", "../run.log", *(f"/proc/self/fd/{n}" for n in range(3, 30))):
    try:
        open(place, "w").write('{"score": 0.0}\\n')
    except OSError:
        pass
for number in range(3, 30):
    try:
        os.write(number, b'{"score": 0.0}\\n')
    except OSError:
        pass
""",
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_score_does_not_count(tmp_path: Path, sandbox: Sandbox, name: str) -> None:
    environment = line_env(tmp_path / "env")
    before = environment.fingerprint
    found = attempt(environment, sandbox, tmp_path, HONEST + FORGERIES[name])
    assert found.score == pytest.approx(HONEST_SCORE), (found.reason, found.log)
    assert line_env.__module__ and Environment(environment.folder, environment.file, environment.code, {
        path.name: path.read_bytes() for path in (environment.folder / "eval").glob("*.py")
    }).fingerprint == before, "the environment's own files are as they were"  # fmt: skip


@pytest.mark.parametrize(
    ("train", "reason"),
    [
        (HONEST + "raise SystemExit(3)", "run: ended with 3"),
        ("import os\nos.symlink('../eval/evaluate.py', 'model.json')", "evaluation: ended with 1"),
        ("import os\nos.symlink('/etc/passwd', 'model.json')", "evaluation: ended with 1"),
        ("import os\nos.mkfifo('model.json')", "evaluation: killed at the time limit"),
        ("open('model.json', 'w').write('{\"slope\": NaN, \"height\": 0}')", "evaluation: the score is nan"),
        (
            "open('model.json', 'w').write('{\"slope\": 1e999, \"height\": 0}')",
            "evaluation: the score is inf",
        ),
        ("pass", "evaluation: ended with 1: FileNotFoundError"),
        ("import time\ntime.sleep(60)", "run: killed at the time limit"),
        (
            HONEST + "open('rules.txt', 'w').write('anything goes')",
            "the run changed the protected file rules.txt",
        ),
        (HONEST + "import os; os.remove('rules.txt')", "the run changed the protected file rules.txt"),
        (
            HONEST + "import os; os.rename('rules.txt', 'x'); os.symlink('x', 'rules.txt')",
            "the run changed the protected file rules.txt",
        ),
        (HONEST + "import os; os.chmod('rules.txt', 0); os.chmod('.', 0)", ""),
    ],
)
def test_what_does_not_work_fails_with_its_reason(
    tmp_path: Path, sandbox: Sandbox, train: str, reason: str
) -> None:
    limits = {"seconds": 3, "eval_seconds": 3}
    environment = line_env(
        tmp_path / "env", {"rules.txt": "fair play\n"}, protect=["rules.txt"], limits=limits
    )
    found = attempt(environment, sandbox, tmp_path, train)
    if reason:
        assert found.score is None and found.reason.startswith(reason), found
    else:
        assert found.score is None or found.score == pytest.approx(HONEST_SCORE)
    assert not (tmp_path / "place").exists()


def test_a_secret_does_not_get_out(tmp_path: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-verysecret")
    environment = line_env(tmp_path / "env")
    found = attempt(environment, sandbox, tmp_path, HONEST + "import os; print(sorted(os.environ.items()))")
    assert found.score is not None and "SEED" in found.log and "verysecret" not in found.log


TALK = """
import json, os
ask, answer = open(int(os.environ["ASK"]), "w"), open(int(os.environ["ANSWER"]))
right = 0
for number in range(20):
    print(number, file=ask, flush=True)
    right += answer.readline().strip() == str(number * number)
print(json.dumps({"score": right / 20, "asked": 20}))
"""
ANSWERER = "import sys\nfor line in sys.stdin:\n    print(int(line) ** 2, flush=True)\n"


@pytest.mark.parametrize(
    ("answers", "score", "reason"),
    [
        (ANSWERER, 1.0, ""),
        ("import sys\nfor line in sys.stdin:\n    print(int(line) * 2, flush=True)\n", 0.1, ""),
        ("print('{\"score\": 1.0}', flush=True)\n" * 20, None, None),
        ("raise SystemExit(1)", None, "evaluation: ended with"),
        ("import time\ntime.sleep(60)", None, "evaluation: killed at the time limit"),
        ("while True: print('x' * 100000, flush=True)", None, None),
        ("x = []\nwhile True: x.append(bytearray(1 << 22))", None, None),
        (ANSWERER + "open('/tmp/x', 'w')", 1.0, ""),
    ],
    ids=["right", "wrong", "score as answer", "crash", "hangs", "floods", "memory", "writes elsewhere"],
)
def test_a_patched_program_can_be_asked_and_is_not_believed(
    tmp_path: Path, sandbox: Sandbox, answers: str, score: float | None, reason: str | None
) -> None:
    environment = line_env(
        tmp_path / "env", {"answer.py": answers}, TALK, answer="python answer.py",
        limits={"eval_seconds": 4, "memory_gb": 0.5},
    )  # fmt: skip
    found = value(environment, environment.code, sandbox, tmp_path / "place")
    if reason is None:  # how it breaks is left to it; it must earn nothing
        assert not found.score
    else:
        assert found.score == (None if score is None else pytest.approx(score)), (found.reason, found.log)
        assert found.reason.startswith(reason)
    left = [
        one
        for one in psutil.process_iter(["cmdline"])
        if str(tmp_path) in " ".join(one.info["cmdline"] or ())
    ]
    assert not left


def test_the_answerer_does_not_see_what_the_evaluation_knows(tmp_path: Path, sandbox: Sandbox) -> None:
    spy = """
import glob, os, sys
seen = []
for root in ("..", "/tmp", "/var", "/home"):
    for place, _, names in os.walk(root):
        for name in names:
            try:
                if b"xyzzy is" in open(os.path.join(place, name), "rb").read(100000):
                    seen.append(os.path.join(place, name))
            except OSError:
                pass
for line in sys.stdin:
    print(len(seen), flush=True)
"""
    ask = """
import json, os
secret = "xyzzy " + "is 42"
ask, answer = open(int(os.environ["ASK"]), "w"), open(int(os.environ["ANSWER"]))
print("how many?", file=ask, flush=True)
print(json.dumps({"score": int(answer.readline())}))
"""
    secret = tmp_path / "hidden.txt"
    secret.write_text("xyzzy is 42")
    environment = line_env(
        tmp_path / "env", {"answer.py": spy.replace("xyzzy is", "xyzzy \" b\"is")}, ask,
        answer="python answer.py", eval_data={"hidden.txt": str(secret)}, limits={"eval_seconds": 20},
    )  # fmt: skip
    found = value(environment, environment.code, sandbox, tmp_path / "place")
    assert found.score == 0, (found.reason, found.log)


@pytest.mark.parametrize(
    ("printed", "message"),
    [
        ("", "it printed 'nothing'"),
        ("0.5", "it printed '0.5'"),
        ('{"score": 1}\ndone', "it printed 'done'"),
        ('{"value": 1}', "its last line must be"),
        ('{"score": "1"}', "must be a number, not '1'"),
        ('{"score": true}', "must be a number, not True"),
        ('{"score": null}', "must be a number, not None"),
        ('{"score": NaN}', "the score is nan"),
        ('{"score": -Infinity}', "the score is -inf"),
        ('[{"score": 1}]', "its last line must be"),
        ('{"score": 1' + "0" * 400 + "}", "the score is too large"),
    ],
)
def test_what_is_no_score_is_said(printed: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        read_score(printed)
    assert message in str(error.value)


def test_a_score_brings_its_facts() -> None:
    assert read_score('loading\n{"score": 2, "loss": 0.5}\n\n') == (2.0, {"loss": 0.5})


def test_many_attempts_leave_nothing_behind(tmp_path: Path, sandbox: Sandbox) -> None:
    environment, before = line_env(tmp_path / "env"), len(os.listdir("/tmp"))
    started = time.monotonic()
    for _ in range(5):
        assert attempt(environment, sandbox, tmp_path, HONEST).score is not None
    assert time.monotonic() - started < 20
    assert len(os.listdir("/tmp")) <= before + 2 and os.listdir(tmp_path) == ["env"]
