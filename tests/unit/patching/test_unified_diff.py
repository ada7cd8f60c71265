"""Patches are applied exactly, or not at all."""

import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_flowprefill.errors import PatchError
from sglang_flowprefill.patching.unified_diff import parse_patch

LINES = st.lists(
    st.sampled_from(["", "a", "b", "c\r", " d", "-e", "+f", "@@", "\\ g", "\x0bh", "é"])
)
TEXTS = st.builds(
    lambda lines, ends: "".join(f"{line}\n" for line in lines) + ends,
    LINES,
    st.sampled_from(["", "no newline at the end"]),
)
PATCH = b"""\
diff --git a/sglang/a.py b/sglang/a.py
index 1..2 100644
--- a/sglang/a.py
+++ b/sglang/a.py
@@ -1,3 +1,3 @@ def context
 one
-two
+2
 three
"""
NEW_FILE = b"""\
diff --git a/sglang/n.py b/sglang/n.py
new file mode 100644
index 0..2
--- /dev/null
+++ b/sglang/n.py
@@ -0,0 +1 @@
+one
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """An empty git repository: git makes the patches that we must understand."""
    folder = tmp_path_factory.mktemp("repository")
    subprocess.run(["git", "init", "-q", folder], check=True)
    (folder / "sglang").mkdir()
    return folder


def git_diff(repository, before, after):
    """Have git compare two contents of one file."""
    path = repository / "sglang" / "a.py"
    path.write_bytes(before)
    subprocess.run(["git", "-C", repository, "add", "-A"], check=True)
    path.write_bytes(after)
    command = ["git", "-C", repository, "-c", "core.autocrlf=false", "diff", "--text"]
    return subprocess.run(command, capture_output=True, check=True).stdout


@settings(max_examples=60, deadline=None)
@given(before=TEXTS, after=TEXTS)
def test_what_git_made_is_applied_as_git_meant_it(repository, before, after):
    """Before becomes after, with every odd line end and line start."""
    old, new = before.encode(), after.encode()
    text = git_diff(repository, old, new)
    if old == new:
        return
    [diff] = parse_patch(text)
    assert diff.apply(old) == new


@settings(max_examples=60, deadline=None)
@given(before=TEXTS, after=TEXTS, other=TEXTS)
def test_another_content_is_refused_or_patched_as_git_would(repository, before, after, other):
    """Nothing is squeezed in: we accept no content for which git makes something else."""
    text = git_diff(repository, before.encode(), after.encode())
    if before == after:
        return
    [diff] = parse_patch(text)
    try:
        ours = diff.apply(other.encode())
    except PatchError:
        return
    (repository / "sglang" / "a.py").write_bytes(other.encode())
    command = ["git", "-C", repository, "-c", "core.autocrlf=false", "apply", "--whitespace=nowarn"]
    applied = subprocess.run([*command, "-"], input=text, capture_output=True, check=False)
    # Git also asks that a hunk at the end of its file is at the end of this one.
    if applied.returncode == 0:
        assert (repository / "sglang" / "a.py").read_bytes() == ours


def test_new_file_is_made():
    """A patch may add a file, but not over one that is there."""
    [diff] = parse_patch(b"Subject: [PATCH] x\n\n---\n" + NEW_FILE + b"-- \n2.39\n\n")
    assert diff.apply(None) == b"one\n"
    with pytest.raises(PatchError, match=r"sglang/n\.py exists already"):
        diff.apply(b"")


def test_several_files_of_one_patch_are_told_apart():
    """In their order."""
    assert [diff.path for diff in parse_patch(PATCH + NEW_FILE)] == ["sglang/a.py", "sglang/n.py"]


def test_missing_file_is_refused():
    """A change needs something to change."""
    with pytest.raises(PatchError, match="does not exist"):
        parse_patch(PATCH)[0].apply(None)


@pytest.mark.parametrize(
    "content", [b"one\ntwo \nthree\n", b"zero\none\ntwo\nthree\n", b"one\ntwo\n"]
)
def test_near_misses_are_refused(content):
    """Neither spaces nor shifted lines are forgiven."""
    with pytest.raises(PatchError, match=r"sglang/a\.py: the lines from 1 on"):
        parse_patch(PATCH)[0].apply(content)


@pytest.mark.parametrize("num_bytes", range(1, len(PATCH), 7))
def test_cut_patch_is_refused(num_bytes):
    """A download that broke off changes nothing."""
    with pytest.raises(PatchError):
        parse_patch(PATCH[:-num_bytes])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"index 1..2 100644\n", b"old mode 100644\nnew mode 100755\n"),
        (b"index 1..2 100644\n", b"deleted file mode 100644\n"),
        (b"index 1..2 100644\n", b"similarity index 90%\nrename from sglang/a.py\n"),
        (b"--- a/sglang/a.py\n+++ b/sglang/a.py\n", b"GIT binary patch\n"),
        (b"+++ b/sglang/a.py", b"+++ b/sglang/b.py"),
        (b"sglang/a.py", b"../a.py"),
        (b"sglang/a.py", b"/etc/a.py"),
        (b"@@ -1,3 +1,3 @@", b"@@ -1,3 +1,4 @@"),
        (b"@@ -1,3 +1,3 @@", b"@@ -1,2 +1,3 @@"),
        (b"@@ -1,3 +1,3 @@", b"@@ one @@"),
    ],
)
def test_what_is_not_a_change_of_text_is_refused(old, new):
    """Modes, renames, deletions, binaries, paths that leave the package, wrong counts."""
    assert old in PATCH
    with pytest.raises(PatchError):
        parse_patch(PATCH.replace(old, new))
