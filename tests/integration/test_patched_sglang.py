"""A patched copy of the installed SGLang, with plugins forbidden: it serves, and goes back."""

import os
import shutil

import httpx
import pytest

from sglang_flowprefill import patching
from sglang_flowprefill.patching.inspection import hash_of
from tests.integration.serving import generate_body, run_python, serving, tokens

pytestmark = pytest.mark.server

FORBID_PLUGINS = {"SGLANG_PLUGINS": "somebody-else"}
LOADED = """
import os
from sglang.srt import plugins
print(plugins.__file__)
for switch in ("", "0", "1", "kernels"):
    os.environ["SGLANG_FLOWPREFILL"] = switch
    for group in (plugins.GENERAL_PLUGINS_GROUP, plugins.PLATFORM_PLUGINS_GROUP):
        print(repr(switch), *plugins.load_plugins_by_group(group))
"""
TEXT = "word " * 20
BODIES = {
    "/generate": generate_body(tokens(20, seed=5)),
    "/v1/completions": {"model": "default", "prompt": TEXT, "max_tokens": 1},
    "/v1/chat/completions": {
        "model": "default",
        "messages": [{"role": "user", "content": TEXT}],
        "max_tokens": 1,
    },
}
# SGLang's CPU environment lacks a package that this route asks for: it is judged, not served.
RESPONSES = {"/v1/responses": {"model": "default", "input": TEXT, "max_output_tokens": 1}}


def link_or_copy(source, target):
    """Share a file where the file system can: patching replaces files and never writes to them."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def snapshot(root):
    """Take down every name, and of files inode, mode, times and a hash of the content."""
    found = {}
    for path in root.rglob("*"):
        status = path.stat()
        traits = (status.st_ino, status.st_mtime_ns, hash_of(path)) if path.is_file() else ()
        found[str(path)] = (status.st_mode, *traits)
    return found


@pytest.fixture(scope="module")
def patched(tmp_path_factory):
    """A copy of the installed SGLang, patched for the tests of this module, then reverted."""
    installed = patching.find_installation()
    root = tmp_path_factory.mktemp("site-packages")
    for name in ("sglang", f"sglang-{installed.version}.dist-info"):
        shutil.copytree(installed.root / name, root / name, copy_function=link_or_copy)
    before = snapshot(root)
    copy = patching.find_installation(root)
    patch_set = patching.patch_set_for(copy.version)
    assert patching.apply(copy, patch_set)
    yield {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1", **FORBID_PLUGINS}
    assert patching.revert(copy, patch_set)
    assert snapshot(root) == before
    state = patching.status_of(installed, patch_set).inspection.state
    assert state is patching.TreeState.CLEAN, "the environment's own SGLang was touched"


@pytest.fixture(scope="module")
def patched_server(patched, tmp_path_factory, slo_config):
    """FlowPrefill on the patched SGLang."""
    folder = tmp_path_factory.mktemp("patched")
    flags = ["--flowprefill-slo-config", str(slo_config)]
    with serving("flowprefill", folder, *flags, **patched) as running:
        yield running


def test_patched_but_not_enabled_loads_nothing(patched):
    """The switch is the same as with entry points; on, both of ours are loaded."""
    result = run_python(LOADED, **patched, SGLANG_FLOWPREFILL="", SGLANG_USE_CPU_ENGINE="1")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-9:] == [
        f"{patched['PYTHONPATH']}/sglang/srt/plugins/__init__.py",
        *["''"] * 2,
        *["'0'"] * 2,
        *["'1' flowprefill"] * 2,
        *["'kernels' flowprefill"] * 2,
    ]


def test_forbidden_plugins_without_the_patch_stop_the_launcher():
    """Not a stock server: the message names both ways out."""
    code = "from sglang_flowprefill.launch_server import main; main([])"
    result = run_python(code, **FORBID_PLUGINS)
    assert result.returncode == 1
    assert "SGLANG_PLUGINS" in result.stderr
    assert "sglang_flowprefill patch" in result.stderr


@pytest.mark.parametrize("path", BODIES)
def test_fields_of_the_request_itself_are_served(patched_server, path):
    """The class beside the prompt is the one that the request is counted under."""
    before = patched_server.wait_until_idle()["attainment"].get("document", {"num_finished": 0})
    body = BODIES[path] | {"slo_class": "document", "ttft_slo_ms": 30000, "tpot_slo_ms": 900.5}
    response = patched_server.post(path, body)
    assert response.status_code == 200, response.text
    after = patched_server.wait_until_idle()["attainment"]["document"]
    assert after["num_finished"] == before["num_finished"] + 1
    patched_server.require_healthy()


@pytest.mark.parametrize("path", BODIES | RESPONSES)
@pytest.mark.parametrize("field", [{"ttft_slo_ms": "soon"}, {"slo_class": "vip"}])
def test_bad_fields_of_the_request_itself_are_bad_requests(patched_server, path, field):
    """Also when the answer would be a stream."""
    body = (BODIES | RESPONSES)[path] | field | {"stream": True}
    response = patched_server.post(path, body)
    assert response.status_code == 400
    assert next(iter(field)) in response.text


def test_impossible_milliseconds_beside_the_prompt_are_missed(patched_server):
    """They reach the scheduler as they are: nothing is ready within one millisecond."""
    before = patched_server.wait_until_idle()["attainment"].get("default", {"num_attained": 0})
    patched_server.generate(tokens(300, seed=8), ttft_slo_ms=1)
    after = patched_server.wait_until_idle()["attainment"]["default"]
    assert after["num_attained"] == before["num_attained"]


def test_fields_are_in_the_published_schema(patched_server):
    """Clients that are generated from it have them."""
    schemas = httpx.get(patched_server.url + "/openapi.json").json()["components"]["schemas"]
    requests = ("GenerateReqInput", "CompletionRequest", "ChatCompletionRequest")
    for name in (*requests, "ResponsesRequest"):
        assert {"ttft_slo_ms", "tpot_slo_ms", "slo_class"} <= set(schemas[name]["properties"])
