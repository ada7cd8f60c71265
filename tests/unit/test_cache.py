"""Files of the cache, which several processes may write at once."""

import os
from contextlib import suppress

import pytest

from sglang_flowprefill.cache import replacing, require_trusted


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    """A writer that fails leaves the old file, and nothing beside it."""
    path = tmp_path / "new" / "profile.json"
    with replacing(path) as written:
        written.write_text("first")
    with suppress(RuntimeError), replacing(path) as written:
        written.write_text("half")
        raise RuntimeError
    assert path.read_text() == "first"
    assert list(path.parent.iterdir()) == [path]


def test_two_writers_do_not_share_a_name(tmp_path):
    """Processes of two containers may have the same number."""
    path = tmp_path / "profile.json"
    with replacing(path) as one, replacing(path) as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one"


def test_what_belongs_to_somebody_else_is_not_trusted(tmp_path, monkeypatch):
    """Nor what others may write; root may own it, for a shared installation."""
    path = tmp_path / "library"
    path.touch(mode=0o600)
    require_trusted(path)
    path.chmod(0o620)
    with pytest.raises(PermissionError, match="can be written by others"):
        require_trusted(path)
    path.chmod(0o644)
    require_trusted(path)
    owner = path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    if owner != 0:
        with pytest.raises(PermissionError, match="belongs to user"):
            require_trusted(path)
    else:
        require_trusted(path)
