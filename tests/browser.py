"""A headless Chromium for tests of pages: the fixture ``browser``.

Without Chromium these tests fail, never skip: ``make browser`` installs it. Nothing is downloaded
at run time: browser and driver are those on PATH.
"""

import shutil
from collections.abc import Iterator

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService

WINDOW_WIDTH, WINDOW_HEIGHT = 1280, 900


@pytest.fixture(scope="session")
def browser() -> Iterator[Chrome]:
    """One Chromium for all tests; each opens its own page and leaves nothing behind in it."""
    driver = Chrome(
        options=_options(_found("chromium")),
        service=ChromeService(executable_path=_found("chromedriver")),
    )
    try:
        yield driver
    finally:
        driver.quit()


def console_errors(browser: Chrome) -> list[str]:
    """Return what the page has complained of since the last call: errors of scripts and loads."""
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def prefer_colors(browser: Chrome, scheme: str) -> None:
    """Have pages believe that the user wants ``light`` or ``dark`` colours."""
    wish = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [wish]})


def _options(chromium: str) -> ChromeOptions:
    options = ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in (
        "--headless=new",
        "--no-sandbox",  # the sandbox does not start for root, which containers are
        "--disable-dev-shm-usage",  # containers have little of it
        "--disable-gpu",
        f"--window-size={WINDOW_WIDTH},{WINDOW_HEIGHT}",
    ):
        options.add_argument(flag)
    return options


def _found(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise FileNotFoundError(f"{program} is not on PATH: `make browser` installs it")
    return path
