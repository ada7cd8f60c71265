"""The browser that tests of pages use is a real one."""

import pytest

from tests.browser import console_errors, prefer_colors

PAGE = "data:text/html,<title>hello</title><style>p{color:red}</style><p>text</p>"
BROKEN_PAGE = "data:text/html,<script>throw new Error('broken on purpose')</script>"


def test_browser_renders_a_page(browser):
    """A page is parsed, laid out and styled."""
    browser.get(PAGE)
    paragraph = browser.find_element("css selector", "p")
    assert browser.title == "hello"
    assert paragraph.value_of_css_property("color") == "rgba(255, 0, 0, 1)"
    assert paragraph.size["height"] > 0


def test_errors_of_a_page_are_reported(browser):
    """A script that throws is seen by the test, once."""
    browser.get(BROKEN_PAGE)
    assert "broken on purpose" in "".join(console_errors(browser))
    assert console_errors(browser) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colour_scheme_can_be_chosen(browser, scheme):
    """Pages see the colour scheme that the test asks for."""
    browser.get(PAGE)
    prefer_colors(browser, scheme)
    query = f"return matchMedia('(prefers-color-scheme: {scheme})').matches"
    assert browser.execute_script(query)
