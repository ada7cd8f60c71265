"""A toy SGLang with two patches for it: a file changed by both, one changed once, one made."""

import difflib
import hashlib
import os

VERSION = "9.9.1"
TWICE, ONCE, NEW = "sglang/srt/server.py", "sglang/protocol.py", "sglang/srt/added.py"
ORIGINAL = {
    TWICE: "".join(f"line_{i} = {i}\n" for i in range(40)),
    ONCE: "fields = 1\nmore = 2\nlast = 3\n",
}
FIRST = {
    TWICE: ORIGINAL[TWICE].replace("line_7 = 7\n", "line_7 = 7\nload = True\n"),
    ONCE: ORIGINAL[ONCE].replace("more = 2\n", "more = 2\nslo = 4\n"),
}
SECOND = {TWICE: FIRST[TWICE].replace("line_30 = 30\n", "line_30 = 31\n"), NEW: "added = True\n"}
PATCHED = FIRST | SECOND
PATCHES = (("0001-first", ORIGINAL, FIRST), ("0002-second", FIRST, SECOND))
OLD_NS = 1_700_000_000_123_456_789


def make_register(folder, version=VERSION):
    """Write the toy's register and patches."""
    entries = []
    for name, before, after in PATCHES:
        path = folder / version / f"{name}.patch"
        path.parent.mkdir(parents=True, exist_ok=True)
        diffs = [diff_of(file, before.get(file), text) for file, text in after.items()]
        path.write_text("From 0\nSubject: [PATCH] toy\n\n---\n\n" + "".join(diffs))
        entries.append(_entry(f"{version}/{name}.patch", version, before, after))
    (folder / "register.toml").write_text("\n".join(entries))
    return folder


def make_tree(root, version=VERSION):
    """Install the toy: sources and compiled modules with old times, and one with a mode."""
    files = {name: text.encode() for name, text in ORIGINAL.items()}
    files["sglang/__init__.py"] = b""
    files[f"sglang-{version}.dist-info/METADATA"] = f"Name: sglang\nVersion: {version}\n".encode()
    for tag in ("cpython-311", "cpython-311.opt-1"):
        files[f"sglang/srt/__pycache__/server.{tag}.pyc"] = tag.encode()
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.utime(path, ns=(OLD_NS, OLD_NS))
    (root / ONCE).chmod(0o640)
    return root


def diff_of(path, before, after):
    """Make a git diff of one file; None stands for no file."""
    lines = difflib.unified_diff(
        (before or "").splitlines(keepends=True),
        after.splitlines(keepends=True),
        "/dev/null" if before is None else f"a/{path}",
        f"b/{path}",
    )
    mode = "new file mode 100644\n" if before is None else ""
    return f"diff --git a/{path} b/{path}\n{mode}index 0000000..1111111\n" + "".join(lines)


def snapshot(root):
    """Take down all there is: names, kinds, and of files inode, mode, times and content."""
    return {str(path.relative_to(root)): _traits(path) for path in sorted(root.rglob("*"))}


def _traits(path):
    if path.is_dir():
        return "folder"
    status = path.stat()
    return status.st_ino, status.st_mode, status.st_mtime_ns, path.read_bytes()


def _entry(file, version, before, after):
    changes = []
    for path, text in after.items():
        old = f'before = "{_sha256(before[path])}", ' if path in before else ""
        changes.append(f'  {{ path = "{path}", {old}after = "{_sha256(text)}" }},')
    head = [f'file = "{file}"', f'target = "{version}"', 'why = "w"', 'how = "h"']
    head += ['upstream = "not sent"', 'remove_when = "never"', "files = [", *changes, "]\n"]
    return "\n".join(["[[patch]]", *head])


def _sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()
