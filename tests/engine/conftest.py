"""A folder of tiny models for the session."""

import pytest


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """Takes every model that is built in this session."""
    return tmp_path_factory.mktemp("models")
