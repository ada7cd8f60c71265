"""What ``doctor`` says of a running server."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from sglang_flowprefill.checks import Status
from sglang_flowprefill.checks.server import check_server

STATE = {"policy": "s-edf", "num_rounds": 5, "num_prefills": 3, "num_preemptions": 1}


@pytest.fixture
def server():
    """A server that answers with what the test sets, and keeps the headers that it saw."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.headers = self.headers
            self.send_response(self.server.status)
            self.end_headers()
            self.wfile.write(self.server.body)

        def log_message(self, *_):
            """Print nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        http.status, http.body = 200, b""
        http.url = f"http://127.0.0.1:{http.server_port}"
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield http
        http.shutdown()


@pytest.mark.parametrize(
    ("states", "status", "text"),
    [
        ([{"flowprefill": STATE}], Status.OK, "policy s-edf, 5 rounds, 3 prefills, 1 preemptions"),
        ([{}], Status.FAIL, "stock SGLang server"),
        ([{"flowprefill": STATE}, {}], Status.FAIL, "stock SGLang server"),
        ([], Status.FAIL, "stock SGLang server"),
    ],
)
def test_flowprefill_is_told_from_stock(server, states, status, text):
    """Only a server all of whose schedulers are ours passes."""
    server.body = json.dumps({"internal_states": states}).encode()
    finding = check_server(f"{server.url}/")
    assert finding.status is status
    assert text in finding.found


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}", b'{"internal_states": 1}'])
def test_something_else_on_the_port_is_no_sglang(server, body):
    """Whatever it answers."""
    server.body = body
    assert "no SGLang server" in check_server(server.url).found


def test_the_key_is_sent_and_asked_for(server):
    """As a bearer token; without the right one the advice says which flag."""
    server.status = 401
    finding = check_server(server.url, "secret")
    assert server.headers["authorization"] == "Bearer secret"
    assert "--api-key" in finding.advice
    assert "401" in finding.found


def test_nobody_there_and_no_address_fail(server):
    """Both are said plainly."""
    server.server_close()
    assert "no answer" in check_server(server.url).found
    assert "no address" in check_server("localhost:30000").found
