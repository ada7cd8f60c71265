"""Fixtures of tests in several folders."""

from tests.browser import browser

__all__ = ["browser"]
