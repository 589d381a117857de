"""Patches as models write them: what is applied, what is refused, and that a diff of ours is taken back exactly."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaven.search.patch import PatchError, Rules, apply, as_diff

ANY = Rules()
TRAIN = "".join(f"line {i}\n" for i in range(1, 61))
SMALL = "import torch\n\n\ndef loss(x):\n    y = x * 2\n    return y\n"
CODE = {"train.py": TRAIN, "model.py": SMALL, "lib/data.py": "DATA = 1\n", "eval.py": "SCORE = 0\n"}


def patched(answer: str, code: dict[str, str] | None = None, rules: Rules = ANY) -> dict[str, str]:
    """Only what the answer changed."""
    before = CODE if code is None else code
    after = apply(answer, before, rules)
    return {
        path: after.get(path, "(deleted)")
        for path in after.keys() | before.keys()
        if after.get(path) != before.get(path)
    }


def refusal(answer: str, code: dict[str, str] | None = None, rules: Rules = ANY) -> str:
    with pytest.raises(PatchError) as caught:
        apply(answer, CODE if code is None else code, rules)
    return str(caught.value)


def hunk(
    header: str = "@@ -4,3 +4,3 @@",
    body: str = " def loss(x):\n-    y = x * 2\n+    y = x * 3\n     return y\n",
) -> str:
    return f"--- a/model.py\n+++ b/model.py\n{header}\n{body}"


TRIPLED = {"model.py": SMALL.replace("* 2", "* 3")}


# What models get wrong, row by row


@pytest.mark.parametrize(
    "answer",
    ["", "I changed it.", "```diff\n```", "--- a/model.py\n+++ b/model.py\n", "<think>a plan</think>"],
)
def test_an_empty_diff_is_refused(answer: str) -> None:
    assert "changes nothing" in refusal(answer)


def test_a_result_that_is_as_before_is_refused() -> None:
    assert "the same as before" in refusal(hunk(body=" def loss(x):\n-    y = x * 2\n+    y = x * 2\n"))
    assert "the same as before" in refusal(f"=== FILE model.py\n{SMALL}=== END\n")
    assert "the same as before" in refusal("=== FILE a.py\nx = 1\n=== END\n", {"a.py": "x = 1"})
    assert "begins with '+' or '-'" in refusal(hunk(body=" def loss(x):\n     y = x * 2\n"))


@pytest.mark.parametrize("start", [4, 1, 40, 4000, 0])
def test_a_start_line_that_is_off_is_no_matter(start: int) -> None:
    assert patched(hunk(f"@@ -{start},3 +{start},3 @@")) == TRIPLED


def test_a_new_file_is_created_under_its_own_name() -> None:
    assert patched("--- /dev/null\n+++ b/opt/muon.py\n@@ -0,0 +1,2 @@\n+import torch\n+LR = 1\n") == {
        "opt/muon.py": "import torch\nLR = 1\n"
    }


def test_a_new_file_may_have_lost_the_plus_of_its_blank_lines_and_have_wrong_counts() -> None:
    answer = "```diff\n--- /dev/null\n+++ b/new.py\n@@ -0,0 +1,99 @@\n+import torch\n\n+LR = 1\n\n```\n"
    assert patched(answer) == {"new.py": "import torch\n\nLR = 1\n"}
    counted = "--- /dev/null\n+++ b/new.py\n@@ -0,0 +1,3 @@\n+a\n\n\n"
    assert patched(counted) == {"new.py": "a\n\n\n"}


def test_lines_that_git_writes_between_files_are_passed() -> None:
    answer = (
        "diff --git a/model.py b/model.py\nindex 83db48f..bf269f4 100644\n"
        + hunk()
        + "diff --git a/lib/data.py b/lib/data.py\nindex 1..2\n--- a/lib/data.py\n+++ b/lib/data.py\n"
        + "@@ -1 +1 @@\n-DATA = 1\n+DATA = 2\n"
        + "diff --git a/new.py b/new.py\nnew file mode 100644\nindex 000..111\n"
        + "--- /dev/null\n+++ b/new.py\n@@ -0,0 +1 @@\n+N = 1\n"
        + "diff --git a/eval.py b/eval.py\ndeleted file mode 100644\nindex 1..0\n"
    )
    assert patched(answer) == {
        **TRIPLED,
        "lib/data.py": "DATA = 2\n",
        "new.py": "N = 1\n",
        "eval.py": "(deleted)",
    }


def test_a_note_about_a_missing_line_feed_is_followed() -> None:
    head = "--- a/a.py\n+++ b/a.py\n@@ -1 +1 @@\n"
    note = "\\ No newline at end of file\n"
    assert patched(f"{head}-x = 1\n{note}+x = 2\n{note}", {"a.py": "x = 1"}) == {"a.py": "x = 2"}
    assert patched(f"{head}-x = 1\n{note}+x = 2\n", {"a.py": "x = 1"}) == {"a.py": "x = 2\n"}
    assert patched(f"{head}-x = 1\n+x = 2\n{note}", {"a.py": "x = 1\n"}) == {"a.py": "x = 2"}
    # Notes in the wrong place do no harm.
    assert patched(f"{head}-x = 1\n{note}+x = 2\n{note}", {"a.py": "x = 1\ny = 1\n"}) == {
        "a.py": "x = 2\ny = 1\n"
    }
    assert patched(f"{head} x = 1\n+x = 2\n", {"a.py": "x = 1"}) == {"a.py": "x = 1\nx = 2\n"}


DASHED = "select 1\n-- a comment\n-- another\nselect 2\nselect 3\n"


@pytest.mark.parametrize("counts", ["-1,4 +1,4", "-1,9 +1,2", "-1,2 +1,2"])
def test_a_removed_line_of_two_dashes_is_no_header(counts: str) -> None:
    body = f"--- a/q.sql\n+++ b/q.sql\n@@ {counts} @@\n select 1\n"
    body += "--- a comment\n+++ a sum\n--- another\n+x\n select 2\n"
    code = {"q.sql": DASHED, "model.py": SMALL}
    expected = {"q.sql": "select 1\n++ a sum\nx\nselect 2\nselect 3\n"}
    assert patched(body, code) == expected
    # and where a real header follows, it is one
    assert patched(body + hunk(), code) == expected | TRIPLED


@pytest.mark.parametrize("counts", ["-2,2 +2", "-2,8 +2,9", "-2 +2"])
def test_a_removed_line_of_two_dashes_at_the_end_of_a_hunk(counts: str) -> None:
    body = f"--- a/q.sql\n+++ b/q.sql\n@@ {counts} @@\n--- a comment\n--- another\n+++ both\n"
    code = {"q.sql": DASHED, "model.py": SMALL}
    assert (
        patched(body + hunk(), code)
        == {"q.sql": DASHED.replace("-- a comment\n-- another", "++ both")} | TRIPLED
    )


def test_a_protected_file_is_refused_with_the_reason() -> None:
    rules = Rules(change=("*.py",), protect=("eval.py", "lib/*"))
    for answer in (
        "--- a/eval.py\n+++ b/eval.py\n@@ -1 +1 @@\n-SCORE = 0\n+SCORE = 9\n",
        "--- a/eval.py\n+++ /dev/null\n@@ -1 +0,0 @@\n-SCORE = 0\n",
        "=== FILE eval.py\nSCORE = 9\n=== END\n",
        "=== FILE ./eval.py\nSCORE = 9\n=== END\n",
        "=== DELETE eval.py\n",
    ):
        assert re.search(r"eval\.py: .*protected", refusal(hunk() + answer, rules=rules))
    assert "protected" in refusal("--- /dev/null\n+++ b/lib/new.py\n@@ -0,0 +1 @@\n+x\n", rules=rules)
    assert "only *.py" in refusal("=== FILE notes.txt\nx\n=== END\n", rules=rules)
    assert patched(hunk(), rules=rules) == TRIPLED


# Other ways to write a diff


@pytest.mark.parametrize(
    "header",
    [
        "@@ -4,3 +4,3 @@ def loss(x):",
        "@@ -4,9 +4,1 @@",
        "@@ -4,3 +4,3",
        "@@ ... @@",
        "@@",
        "@@ def loss @@",
        "@@ -4 +4 @@",
    ],
)
def test_headers_of_hunks_may_be_wrong_or_empty(header: str) -> None:
    assert patched(hunk(header)) == TRIPLED
    assert (
        patched(f"Here it is:\n\n```diff\n{hunk(header)}```\nIt triples. That is:\n- faster\n+ better\n")
        == TRIPLED
    )
    assert patched(f"{hunk(header)}\nThis triples:\n\n- it is faster\n") == TRIPLED


@pytest.mark.parametrize(
    "names",
    [
        "--- a/model.py\n+++ b/model.py\n",
        "--- model.py\n+++ model.py\n",
        "--- model.py.orig\n+++ model.py\n",
        "--- a/model.py\t2025-01-01 10:00:00\n+++ b/model.py\t2025-01-01\n",
        '--- "a/model.py"\n+++ "b/model.py"\n',
        "--- ./model.py\n+++ ./model.py\n",
        "diff --git a/model.py b/model.py\n",
        "diff --git model.py model.py\nindex 1..2\n",
        "--- model.py 2025-01-01 10:00:00 +0000\n+++ model.py 2025-01-01 10:00:00 +0000\n",
    ],
)
def test_names_with_and_without_prefixes(names: str) -> None:
    assert patched(hunk().replace("--- a/model.py\n+++ b/model.py\n", names)) == TRIPLED


def test_a_prefix_may_be_a_folder() -> None:
    code = {"a/x.py": "1\n", "x.py": "2\n", "b/y.py": "3\n"}
    body = "@@ -1 +1 @@\n-{}\n+new\n"
    assert patched("--- a/a/x.py\n+++ b/a/x.py\n" + body.format(1), code) == {"a/x.py": "new\n"}
    assert patched("--- a/x.py\n+++ b/x.py\n" + body.format(2), code) == {"x.py": "new\n"}
    assert patched("--- b/y.py\n+++ b/y.py\n" + body.format(3), code) == {"b/y.py": "new\n"}


def test_white_space_that_was_lost_at_the_end_of_lines() -> None:
    code = {"a.py": "def f():   \n\n    x = 1\t\n    \n    return x\n"}
    answer = "--- a/a.py\n+++ b/a.py\n@@ -1,5 +1,5 @@\n def f():\n\n-    x = 1\n+    x = 2\n\n     return x\n"
    assert patched(answer, code) == {"a.py": "def f():   \n\n    x = 2\n    \n    return x\n"}


def test_an_exact_place_is_preferred_to_a_nearer_one_that_differs_in_white_space() -> None:
    code = {"a.py": "x = 1 \n" + "y\n" * 9 + "x = 1\n"}
    assert patched("--- a/a.py\n+++ b/a.py\n@@ -1 +1 @@\n-x = 1\n+x = 2\n", code) == {
        "a.py": "x = 1 \n" + "y\n" * 9 + "x = 2\n"
    }


def test_blank_lines_between_added_ones_may_have_lost_their_plus() -> None:
    answer = hunk("@@ -4,3 +4,6 @@", "     return y\n+\n+def f():\n+    a = 1\n\n+    return a\n")
    assert patched(answer) == {"model.py": SMALL + "\ndef f():\n    a = 1\n\n    return a\n"}


def test_several_hunks_refer_to_the_file_as_it_was() -> None:
    answer = (
        "--- a/train.py\n+++ b/train.py\n@@ -3,2 +3,4 @@\n line 3\n+new 1\n+new 2\n line 4\n\n"
        "@@ -50,3 +50,2 @@\n line 50\n-line 51\n line 52\n"
        "@@ -4,2 +4,2 @@\n line 4\n-line 5\n+line five\n"
    )
    lines = (
        TRAIN.replace("line 3\n", "line 3\nnew 1\nnew 2\n", 1)
        .replace("line 51\n", "")
        .replace("line 5\n", "line five\n", 1)
    )
    assert patched(answer) == {"train.py": lines}


def test_several_blocks_and_both_forms_at_once() -> None:
    answer = f"First:\n```diff\n{hunk()}```\nThen some shell:\n```bash\npython train.py\n```\n"
    answer += "=== FILE lib/data.py\nDATA = 2\n=== END\n=== DELETE eval.py\n"
    assert patched(answer) == {**TRIPLED, "lib/data.py": "DATA = 2\n", "eval.py": "(deleted)"}


def test_thoughts_are_dropped() -> None:
    draft = hunk(body=" def loss(x):\n-    y = x * 2\n+    y = x * 9\n")
    assert patched(f"<think>\nPerhaps\n{draft}\n</think>\n{hunk()}") == TRIPLED
    assert patched(f"Perhaps\n{draft}\n</think>\n{hunk()}") == TRIPLED
    assert "changes nothing" in refusal(f"<think>\nPerhaps\n{draft}\n")
    code = {"a.py": "x\n"}  # a program that knows such tags is not taken for a thought
    assert patched("=== FILE a.py\nEND = '</think>'\n=== END\n", code) == {"a.py": "END = '</think>'\n"}


def test_line_ends_of_a_file_are_kept() -> None:
    crlf = {"model.py": SMALL.replace("\n", "\r\n")}
    expected = {"model.py": TRIPLED["model.py"].replace("\n", "\r\n")}
    assert patched(hunk(), crlf) == expected
    assert patched(hunk().replace("\n", "\r\n"), crlf) == expected
    assert patched(hunk().replace("\n", "\r\n")) == TRIPLED
    assert (
        patched(
            hunk("@@", " def loss(x):\n-    y = x * 2\n+    y = x * 3\n     return y\n").replace("\n", "\r\n")
        )
        == TRIPLED
    )
    for whole in (
        f"=== FILE model.py\n{TRIPLED['model.py']}=== END\n",
        f"```python model.py\n{TRIPLED['model.py']}```\n",
    ):
        assert patched(whole, crlf) == expected
        assert patched(whole.replace("\n", "\r\n"), crlf) == expected
        assert patched(whole.replace("\n", "\r\n")) == TRIPLED
    assert patched("--- a/a\n+++ b/a\n@@ -1 +1,2 @@\n x\n+y\n", {"a": "w\r\nx"}) == {"a": "w\r\nx\r\ny\r\n"}


# Files as a whole


@pytest.mark.parametrize(
    "form",
    [
        "=== FILE a.py\n{}=== END\n",
        "=== FILE a.py ===\n{}=== END FILE ===\n",
        "=== a.py\n{}=== END\n",
        "=== `a.py` ===\n{}=== END\n",
        "=== FILE: a.py\n```python\n{}```\n",
        "=== FILE a.py\n\n```python\n{}```\n=== END\nDone.",
        "```python a.py\n{}```\n",
        "```a.py\n{}```",
        "```python:a.py\n{}```\n",
        '```python title="a.py"\n{}```\nDone.',
        "**a.py**\n```python\n{}```\n",
        "### `a.py`\n\n```python\n{}```\n",
        "File: a.py\n~~~\n{}~~~\n",
        "1. **File: `a.py`**\n```\n{}```\n",
        "**`a.py`:**\n```python\n{}```\n",
        "Look:\n```python\nx = 9\n```\n=== FILE a.py\n{}=== END",
    ],
)
@pytest.mark.parametrize("text", ["x = 2\n", "\n\nx = 2\n\n", "--- a/b\n+++ b/b\n@@ -1 +1 @@\n-no\n"])
def test_files_as_a_whole(form: str, text: str) -> None:
    code = {"a.py": "x = 1\n", "b": "y\n"}
    if text.startswith("---") and "=== " not in form:  # a fence with a diff in it is a diff
        assert "are not in the file" in refusal(form.format(text), code)
    else:
        assert patched(form.format(text), code) == {"a.py": text}


def test_several_whole_files_and_fences_inside() -> None:
    readme = "# Title\n\n```bash\npython a.py\n```\n\nThat is all.\n"
    answer = f"=== FILE a.py\nx = 2\n=== FILE README.md\n{readme}=== END\n```markdown notes/b.md\n{readme}```\nDone."
    assert patched(answer, {"a.py": "x = 1\n"}) == {
        "a.py": "x = 2\n",
        "README.md": readme,
        "notes/b.md": readme,
    }
    assert patched("=== FILE empty.py\n=== END\n", {"a.py": "x\n"}) == {"empty.py": ""}


def test_a_snippet_is_no_file() -> None:
    assert "changes nothing" in refusal("In `model.py`:\n\n```python\ny = x * 3\n```\n")
    assert "given twice" in refusal(f"model.py\n```python\ny = x * 3\n```\n{hunk()}")


@pytest.mark.parametrize(
    "line", ["# ... rest of the file unchanged ...", "    # ... existing code ...", "... (same as before)"]
)
def test_a_file_with_lines_left_out_is_refused(line: str) -> None:
    assert "stands for lines left out" in refusal(f"=== FILE model.py\nimport torch\n{line}\n=== END\n")
    kept = {"a.py": f"x\n{line}\n"}
    assert patched(f"=== FILE a.py\ny\n{line}\n=== END\n", kept) == {"a.py": f"y\n{line}\n"}


@pytest.mark.parametrize(
    "answer", ["=== FILE a.py\nx = 2\n", "```python a.py\nx = 2\n", "=== FILE a.py\n```python\nx = 2\n"]
)
def test_a_file_that_was_cut_off_is_refused(answer: str) -> None:
    assert "cut off" in refusal(answer, {"a.py": "x = 1\n"})


# What is refused


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/etc/passwd", "relative"),
        ("../up.py", "out of"),
        ("lib/../../up.py", "out of"),
        ("lib\\data.py", "separated"),
        ("C:/x.py", "relative"),
        ("~/x.py", "relative"),
        ("lib/", "not the name"),
        (".", "not the name"),
        ("a\0.py", "not the name"),
    ],
)
def test_paths_that_lead_elsewhere(path: str, why: str) -> None:
    assert why in refusal(f"=== FILE {path}\nx\n=== END\n")
    assert why in refusal(f"--- /dev/null\n+++ b/{path}\n@@ -0,0 +1 @@\n+x\n") or path.startswith("/")
    assert why in refusal(f"--- /dev/null\n+++ {path}\n@@ -0,0 +1 @@\n+x\n")


def test_files_that_do_not_exist_or_exist_already() -> None:
    assert "did you mean 'model.py'" in refusal(hunk().replace("model.py", "modle.py"))
    assert "exists already" in refusal("--- /dev/null\n+++ b/model.py\n@@ -0,0 +1 @@\n+x\n")
    assert "no such file" in refusal("=== DELETE other.py\n")
    assert "cannot rename" in refusal(hunk().replace("b/model.py", "b/network.py"))
    assert "cannot rename" in refusal(
        "diff --git a/model.py b/net.py\nsimilarity index 90%\nrename from model.py\nrename to net.py\n"
    )
    assert "a file and a folder" in refusal("=== FILE train.py/x.py\nx\n=== END\n")
    assert "a file and a folder" in refusal("=== FILE lib\nx\n=== END\n")
    assert "which file" in refusal("--- /dev/null\n+++ /dev/null\n")
    assert "which file" in refusal("diff --git \n")


def test_what_is_not_text() -> None:
    assert "only text" in refusal(
        "diff --git a/a.bin b/a.bin\nindex 1..2\nBinary files a/a.bin and b/a.bin differ\n"
    )
    assert "not text" in refusal("=== FILE a.py\nx\0\n=== END\n")
    assert "not text" in refusal("=== FILE a.py\nx\ud800\n=== END\n")


def test_deletions() -> None:
    code = {"a.py": "1\n2\n", "b.py": "3\n"}
    assert patched("--- a/a.py\n+++ /dev/null\n@@ -1,2 +0,0 @@\n-1\n-2\n", code) == {"a.py": "(deleted)"}
    assert patched("--- a/a.py\n+++ /dev/null\n", code) == {"a.py": "(deleted)"}
    assert "deleted and added to" in refusal("--- a/a.py\n+++ /dev/null\n@@ -1,2 +1 @@\n-1\n-2\n+3\n", code)
    assert "not in the file" in refusal("--- a/a.py\n+++ /dev/null\n@@ -1,2 +0,0 @@\n-3\n", code)


def test_ambiguous_hunks() -> None:
    code = {"a.py": "x\n" + "y\n" * 3 + "x\n" + "y\n" * 3 + "x\n"}
    head = "--- a/a.py\n+++ b/a.py\n"
    assert "lines 1, 5" in refusal(head + "@@ -3 +3 @@\n-x\n+z\n", code)
    assert "lines 1, 5, 9" in refusal(head + "@@\n-x\n+z\n", code)
    assert patched(head + "@@ -4 +4 @@\n-x\n+z\n", code) == {
        "a.py": "x\n" + "y\n" * 3 + "z\n" + "y\n" * 3 + "x\n"
    }


def test_additions_without_context() -> None:
    code = {"a.py": "1\n2\n"}
    head = "--- a/a.py\n+++ b/a.py\n"
    assert patched(head + "@@ -1,0 +2 @@\n+x\n", code) == {"a.py": "1\nx\n2\n"}
    assert patched(head + "@@ -2,0 +3 @@\n+x\n", code) == {"a.py": "1\n2\nx\n"}
    assert patched(head + "@@ -0,0 +1 @@\n+x\n", {"a.py": ""}) == {"a.py": "x\n"}
    for header in ("@@", "@@ -0,0 +1 @@", "@@ -1,3 +1,4 @@", "@@ -9,0 +9 @@"):
        assert "nothing tells where" in refusal(f"{head}{header}\n+x\n", code)


def test_overlapping_hunks() -> None:
    head = "--- a/train.py\n+++ b/train.py\n"
    one = "@@ -3,3 +3,3 @@\n line 3\n-line 4\n+line four\n line 5\n"
    assert "overlap" in refusal(head + one + one)
    assert "overlap" in refusal(head + one + "@@ -4,2 +4,2 @@\n line 4\n-line 5\n+line five\n")
    assert "overlap" in refusal(head + one + "@@ -3,0 +3 @@\n+x\n@@ -3,0 +3 @@\n+y\n")
    block = "@@ -3,3 +2,0 @@\n-line 3\n-line 4\n-line 5\n"
    assert "overlap" in refusal(head + block + "@@ -4,0 +5 @@\n+x\n")
    assert patched(head + one + "@@ -5,2 +5,3 @@\n line 5\n+x\n line 6\n") == {
        "train.py": TRAIN.replace("line 4\n", "line four\n", 1).replace("line 5\n", "line 5\nx\n", 1)
    }


def test_the_log_shows_the_nearest_lines_and_every_problem() -> None:
    wrong = hunk(body=" def loss(x):\n-    y = x + 2\n+    y = x * 3\n     return y\n")
    log = refusal(wrong + "--- a/none.py\n+++ b/none.py\n@@ -1 +1 @@\n-1\n+2\n=== DELETE ../x\n")
    assert "model.py, hunk 1 (@@ -4,3 +4,3 @@)" in log
    assert "First that differs: '    y = x + 2'" in log
    assert "  5 |     y = x * 2" in log
    assert "none.py: there is no such file" in log and "../x" in log
    assert len(log.splitlines()) < 15


def test_a_hunk_that_would_lose_lines_is_refused() -> None:
    """Half a patch would be scored as if it were the idea."""
    lost = " def loss(x):\n-    y = x * 2\n+    y = x * 3\nreturn y\n+    more = 1\n"
    assert "'return y' below it begins neither" in refusal(hunk("@@ -4,5 +4,5 @@", lost))
    assert "'return y' below it begins neither" in refusal(f"```diff\n{hunk('@@', lost)}```\n")
    short = " def loss(x):\n-    y = x * 2\n+    y = x * 3\n     return y\n\n-    not there\n"
    assert "not in the file" in refusal(hunk("@@ -4,3 +4,3 @@", short))
    assert "no file is named" in refusal("@@ -1 +1 @@\n-DATA = 1\n+DATA = 2\n")
    assert patched("lib/data.py\n```diff\n@@ -1 +1 @@\n-DATA = 1\n+DATA = 2\n```\n") == {
        "lib/data.py": "DATA = 2\n"
    }


# Round trips

LINES = st.one_of(
    st.sampled_from(
        [
            "",
            " ",
            "x",
            "x ",
            "-- x",
            "++ x",
            "- x",
            "+ x",
            "@@",
            "@@ -1,2 +1,2 @@",
            "diff --git a/x b/x",
            "--- a/x",
            "+++ b/x",
            "index 1..2",
            "```",
            "```python a.py",
            "=== FILE a",
            "=== END",
            "\\ No newline at end of file",
            "\t",
            "<think>",
            "</think>",
            "x\r",
            "\r",
            "\x0c",
            "\u2028",
        ]
    ),
    st.text(st.characters(exclude_characters="\n\0", exclude_categories=["Cs"]), max_size=6),
)
PATHS = st.sampled_from(["x", "a/x", "b/x", "d/b/y.py", "new file.py", "n.py"])


@st.composite
def texts(draw: st.DrawFn) -> str:
    end = draw(st.sampled_from(["\n", "\n", "\r\n"]))
    lines = draw(st.lists(LINES, max_size=25))
    return end.join(lines) + (end if lines and draw(st.booleans()) else "")


@st.composite
def edited(draw: st.DrawFn, text: str) -> str:
    lines = text.split("\n")
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(lines)))
        lines[at : at + draw(st.integers(0, 3))] = draw(st.lists(LINES, max_size=3))
    return "\n".join(lines)


@st.composite
def codebases(draw: st.DrawFn) -> tuple[dict[str, str], dict[str, str]]:
    before = draw(st.dictionaries(PATHS, texts(), max_size=4))
    after = {
        path: draw(st.one_of(edited(text), texts()))
        for path, text in before.items()
        if draw(st.integers(0, 4))
    }
    return before, after | draw(st.dictionaries(PATHS, texts(), max_size=1))


def test_a_hunk_of_blank_lines_alone_is_refused_in_a_new_file() -> None:
    answer = "--- /dev/null\n+++ b/n.py\n@@ -0,0 +1,1 @@\n+x\n@@\n\n"
    with pytest.raises(PatchError):
        apply(answer, CODE, Rules())


def test_hunks_in_a_fence_below_a_path_belong_to_that_path() -> None:
    code = {"lib/data.py": "a = 1\nb = 2\n", "main.py": "x = 1\n"}
    answer = (
        "./lib/data.py\n```diff\n@@ -1,2 +1,2 @@\n a = 1\n-b = 2\n+b = 3\n```\n"
        "=== FILE main.py\nx = 2\n=== END\n"
    )
    assert apply(answer, code, Rules()) == {"lib/data.py": "a = 1\nb = 3\n", "main.py": "x = 2\n"}


@given(codebases())
def test_a_diff_of_ours_is_taken_back_exactly(codes: tuple[dict[str, str], dict[str, str]]) -> None:
    before, after = codes
    diff = as_diff(before, after)
    if before == after:
        assert not diff
    else:
        assert apply(diff, before, ANY) == after
        assert apply(f"Sure:\n\n```diff\n{diff}```\nDone.", before, ANY) == after


@given(texts(), st.data(), st.integers(-50, 50))
def test_shifted_numbers_are_no_matter_where_the_context_is_unique(
    before: str, data: st.DataObject, shift: int
) -> None:
    after = data.draw(edited(before))
    diff = as_diff({"x": before}, {"x": after})
    moved = re.sub(
        r"^@@ -(\d+)(\S*) \+(\d+)(\S*) @@$",
        lambda found: (
            f"@@ -{max(0, int(found[1]) + shift)}{found[2]} +{max(0, int(found[3]) + shift)}{found[4]} @@"
        ),
        diff,
        flags=re.MULTILINE,
    )
    old = [
        [line[1:] for line in hunk.split("\n")[1:] if line[:1] in (" ", "-")]
        for hunk in re.split(r"^(?=@@ -)", diff, flags=re.MULTILINE)[1:]
    ]
    lines = before.split("\n")
    unique = all(sum(lines[i : i + len(one)] == one for i in range(len(lines))) == 1 for one in old)
    if diff and (unique or not before):
        assert apply(moved, {"x": before}, ANY) == {"x": after}


@given(st.text(max_size=200), st.integers(0, 10**6))
def test_any_answer_is_applied_or_refused(noise: str, seed: int) -> None:
    """Answers with characters and lines lost or doubled never fail in another way, nor touch what is protected."""
    draw = random.Random(seed)
    lines = (hunk() + "=== FILE n.py\nx\n=== END\n" + hunk().replace("model", "eval") + noise).split("\n")
    for _ in range(draw.randint(1, 6)):
        at = draw.randrange(len(lines))
        lines[at : at + 1] = draw.choice([[], [lines[at][1:]], [lines[at]] * 2, ["```"], [lines[at - 1]]])
    try:
        after = apply("\n".join(lines), CODE, Rules(protect=("eval.py",)))
    except PatchError as error:
        assert str(error)
    else:
        assert after != CODE and after["eval.py"] == CODE["eval.py"]


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_git_takes_a_diff_of_ours(tmp_path: Path) -> None:
    before = {"a.py": "1\n2\n3", "b.py": "x\r\n", "gone.py": "1\n", "hollow.py": "", "-- q.sql": "-- x\n"}
    after = {"a.py": "1\n3\n4\n", "b.py": "y\r\nx\r\n", "new/n.py": "n", "empty.py": "", "-- q.sql": "++ x\n"}
    for path, text in before.items():
        (tmp_path / path).write_bytes(text.encode())
    subprocess.run(
        ["git", "apply", "-"], cwd=tmp_path, input=as_diff(before, after).encode(), check=True, timeout=30
    )
    found = {
        str(path.relative_to(tmp_path)): path.read_bytes().decode()
        for path in tmp_path.rglob("*")
        if path.is_file()
    }
    assert found == after
