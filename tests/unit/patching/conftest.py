"""The toy installation and its patches."""

import pytest
import toy_sglang as toy

from sglang_flowprefill.patching import find_installation, patch_set_for


@pytest.fixture
def installation(tmp_path):
    """A fresh toy SGLang."""
    return find_installation(toy.make_tree(tmp_path / "site-packages"))


@pytest.fixture(scope="session")
def register(tmp_path_factory):
    """The folder of the toy's patches."""
    return toy.make_register(tmp_path_factory.mktemp("patches"))


@pytest.fixture(scope="session")
def patch_set(register):
    """The toy's patches."""
    return patch_set_for(toy.VERSION, register)
