"""These tests import the adapter, and so SGLang."""

import tests.quiet_sglang  # noqa: F401
