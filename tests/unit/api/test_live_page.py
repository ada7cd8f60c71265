"""The live page in Chromium, over states of a made-up server."""

import json
import re
from importlib.resources import files
from itertools import pairwise

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from tests.browser import console_errors, prefer_colors
from tests.live_states import HOSTILE_ID, answering, sample_state

NONE = "\N{EN DASH}"
WAIT_S = 30.0  # for a busy machine
PAGE = files("sglang_flowprefill.api").joinpath("live.html").read_text(encoding="utf-8")


def wait_for(browser, condition):
    """Wait until the page is as wanted; return what the condition returned."""
    return WebDriverWait(browser, WAIT_S, poll_frequency=0.05).until(lambda _: condition())


def text_of(browser, selector):
    """Return the text of one element."""
    return browser.find_element(By.CSS_SELECTOR, selector).text


def open_page(browser, server):
    """Open the page and wait for its first numbers."""
    browser.get(server.url + "/flowprefill")
    wait_for(browser, lambda: "policy" in text_of(browser, "#server"))


def rows_of(browser, table):
    """Return the cells of a table's body, as text, all of one moment."""
    return browser.execute_script(
        """
        return [...document.querySelectorAll(`#${arguments[0]} tr`)].slice(1).map(
          (row) => [...row.querySelectorAll("td")].map((cell) => cell.textContent));
        """,
        table,
    )


@pytest.fixture(autouse=True)
def _fresh_browser(browser):
    """No test finds another's page."""
    yield
    prefer_colors(browser, "light")
    browser.get("about:blank")
    console_errors(browser)


def test_the_page_shows_the_state(browser):
    """Attainment, queue, prefills and blocking time are there, in words and numbers."""
    with answering(sample_state()) as server:
        open_page(browser, server)
        numbers = text_of(browser, "#numbers").split("\n")
        assert dict(zip(numbers[::2], numbers[1::2], strict=True)) == {
            "waiting": "2",
            "prefills running": "1",
            "prefills suspended": "1",
            "suspended hold": "48 MB",
            "decoding": "5",
            "rounds a second": "12.5",
            "blocking, median": "4.2 ms",
            "blocking, 99 %": "9.1 ms",
            "preemptions": "55",
            "resumes": "54",
            "prefills ended": "700",
            "prediction off by": "8.3 %",
        }
        chat, documents = rows_of(browser, "classes")
        assert chat == ["chat", "500 ms", "95.0 %", NONE, "580", "600", "1", "4", "0"]
        assert documents[:3] == ["documents", "20 s", "100.0 %"]
        suspended, running = rows_of(browser, "prefills")
        assert suspended[:5] == [
            "❚❚ 7", "long-prompt", "documents", "suspended 250 ms", "2.0 s of 5.0 s"
        ]  # fmt: skip
        assert running[0] == "▶ 8"
        assert running[1] == f"{HOSTILE_ID} and 1 more"
        assert [row[0] for row in rows_of(browser, "waiting")] == ["w-1", "w-2"]
        assert rows_of(browser, "events")[0][:2] == ["1,234", "900"]
        assert console_errors(browser) == []


def test_request_ids_are_never_markup(browser):
    """An id that is HTML stays text: callers choose their request ids."""
    with answering(sample_state()) as server:
        open_page(browser, server)
        assert browser.find_elements(By.TAG_NAME, "img") == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_timeline_is_drawn_in_both_colour_schemes(browser, scheme):
    """The canvas holds both classes' colours, as the scheme defines them."""
    prefer_colors(browser, scheme)
    with answering(sample_state()) as server:
        open_page(browser, server)
        for name in ("--class-0", "--class-1"):
            assert wait_for(browser, lambda name=name: count_pixels(browser, name)) > 100
        background = browser.execute_script(
            "return getComputedStyle(document.body).backgroundColor"
        )
        channels = [int(number) for number in re.findall(r"\d+", background)[:3]]
        assert (sum(channels) > 600) == (scheme == "light")


def count_pixels(browser, name):
    """Count the timeline's pixels of exactly this colour variable."""
    return browser.execute_script(
        """
        const wanted = getComputedStyle(document.documentElement).getPropertyValue(arguments[0]);
        const [r, g, b] = [1, 3, 5].map((i) => parseInt(wanted.trim().slice(i, i + 2), 16));
        const canvas = document.getElementById("timeline");
        const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        let n = 0;
        for (let i = 0; i < data.length; i += 4) {
          n += data[i] === r && data[i + 1] === g && data[i + 2] === b;
        }
        return n;
        """,
        name,
    )


def test_the_timeline_keeps_what_later_answers_no_longer_hold(browser):
    """Slices of an earlier answer stay in view, although each answer brings only the newest."""
    first = sample_state(1000.0)
    later = sample_state(1003.0, slices=[], rounds=[], decodes=[])
    with answering(first, later) as server:
        open_page(browser, server)
        wait_for(browser, lambda: server.num_asked >= 2)
        wait_for(browser, lambda: count_pixels(browser, "--class-1") > 100)


def test_recent_attainment_is_of_what_finished_since(browser):
    """Of ten first tokens between two answers three were in time: 30 %."""
    before = sample_state(1000.0)
    chat, documents = before.classes
    chat = type(chat)("chat", 500.0, 620, 0, 590, 554, 4, 0)
    with answering(before, sample_state(1005.0, classes=[chat, documents])) as server:
        open_page(browser, server)
        wait_for(browser, lambda: rows_of(browser, "classes")[0][3] == "30.0 %")


def test_the_page_asks_about_once_a_second_and_not_while_paused(browser):
    """A watched server answers one question a second; a paused page asks none."""
    with answering(sample_state()) as server:
        open_page(browser, server)
        wait_for(browser, lambda: server.num_asked >= 3)
        asked_ms = browser.execute_script(
            "return performance.getEntriesByType('resource').map((entry) => entry.startTime)"
        )
        assert all(later - earlier > 900.0 for earlier, later in pairwise(asked_ms))
        browser.find_element(By.ID, "pause").click()
        num_asked = server.num_asked
        browser.execute_async_script("setTimeout(arguments[0], 2500)")
        assert server.num_asked <= num_asked + 1  # one may have been on its way
        browser.find_element(By.ID, "pause").click()
        wait_for(browser, lambda: server.num_asked > num_asked + 1)


def test_a_protected_server_is_asked_with_the_key_that_is_entered(browser):
    """Without a key the page says that one is wanted, with a wrong one that it is wrong."""
    with answering(sample_state()) as server:
        server.api_key = "open sesame"
        browser.get(server.url + "/flowprefill")
        wait_for(browser, lambda: "wants an API key" in text_of(browser, "#problem"))
        enter_key(browser, "wrong")
        wait_for(browser, lambda: "refuses this API key" in text_of(browser, "#problem"))
        enter_key(browser, "open sesame")
        wait_for(browser, lambda: "policy" in text_of(browser, "#server"))
        assert text_of(browser, "#problem") == ""
        assert server.keys[0] is None
        assert server.keys[-1] == "Bearer open sesame"
        assert browser.execute_script("return localStorage.length") == 0


def enter_key(browser, key):
    """Type a key and use it."""
    field = browser.find_element(By.ID, "key")
    field.clear()
    field.send_keys(key)
    field.submit()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((503, {"error": "the scheduler process has ended"}), "HTTP 503: the scheduler process"),
        ((500, b"not JSON"), "HTTP 500: no JSON"),
        (sample_state(schema_version=2), "knows version 1 of the state, the server sends 2"),
    ],
    ids=["scheduler gone", "not JSON", "another version"],
)
def test_a_problem_is_said_plainly_and_goes_when_it_is_over(browser, answer, words):
    """The page says what is wrong, shows that its numbers are old, and recovers by itself."""
    with answering(sample_state(), answer) as server:
        open_page(browser, server)
        wait_for(browser, lambda: words in text_of(browser, "#problem"))
        assert "stale" in browser.find_element(By.TAG_NAME, "body").get_attribute("class")
        server.answers.append(sample_state())
        wait_for(browser, lambda: text_of(browser, "#problem") == "")


def test_a_server_that_stops_is_missed(browser):
    """When nobody answers any more, the page says so and keeps the last numbers."""
    with answering(sample_state()) as server:
        open_page(browser, server)
    wait_for(browser, lambda: "cannot be reached" in text_of(browser, "#problem"))
    assert rows_of(browser, "prefills")


def test_the_page_fetches_nothing_from_elsewhere():
    """No address of another host is in the page, nor anything that would load a file."""
    assert re.findall(r"https?://", PAGE) == []
    loading = re.findall(r"<(?:script|img|iframe)[^>]+src|<link[^>]+>|@import|url\(", PAGE)
    assert loading == ['<link rel="icon" href="data:,">']


def test_an_empty_server_is_shown_too(browser):
    """Before the first request there is a page without errors."""
    empty = json.loads(json.dumps({"classes": [], "waiting": [], "prefills": [], "slices": []}))
    state = sample_state(**empty, rounds=[], decodes=[], num_waiting=0, prediction=None)
    with answering(state) as server:
        open_page(browser, server)
        assert rows_of(browser, "prefills") == [["none"]]
        assert console_errors(browser) == []
