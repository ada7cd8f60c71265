"""What ``doctor`` says of packages, plugin, device and kernels."""

from importlib.metadata import PackageNotFoundError
from subprocess import CalledProcessError

import pytest

from sglang_flowprefill.checks import Status, installation

INSTALLED = {"sglang": "0.5.23", "torch": "2.14.1", "transformers": "5.19.0"}
WANTED = ["torch==2.14.1", "transformers==5.19.0", "flashinfer_python[cu13]==0.7.2"]


@pytest.fixture
def install(monkeypatch):
    """Pretend that these packages are installed and that SGLang asks for those above."""

    def pretend(packages):
        def version(name):
            if name in packages:
                return packages[name]
            raise PackageNotFoundError(name)

        monkeypatch.setattr(installation, "version", version)
        monkeypatch.setattr(installation, "requires", lambda _: WANTED)

    return pretend


@pytest.mark.parametrize(
    ("version", "status"),
    [("0.5.23", Status.OK), ("0.5.23+cpu", Status.OK), ("0.5.9", Status.FAIL)],
)
def test_only_supported_releases_of_sglang_will_do(install, version, status):
    """A local build tag does not matter; another release fails, with the one to install."""
    install(INSTALLED | {"sglang": version})
    finding = installation.check_sglang_version(("0.5.23",))
    assert finding.status is status
    assert version in finding.found
    assert ("pip install sglang==0.5.23" in finding.advice) == (status is Status.FAIL)


def test_no_sglang_at_all_fails(install):
    """It is not taken for an old one."""
    install({})
    assert "not installed" in installation.check_sglang_version(("0.5.23",)).found


@pytest.mark.parametrize(
    ("packages", "status", "advice"),
    [
        (INSTALLED, Status.OK, ""),
        (INSTALLED | {"torch": "2.13.0+cpu"}, Status.OK, ""),
        (INSTALLED | {"torch": "2.9.0"}, Status.WARN, "torch==2.14.1"),
        (INSTALLED | {"flashinfer-python": "0.7.0"}, Status.WARN, "flashinfer-python==0.7.2"),
        ({"sglang": "0.5.23"}, Status.FAIL, "install torch"),
    ],
)
def test_packages_are_those_that_sglang_asks_for_or_that_were_tested(
    install, packages, status, advice
):
    """Others are a warning that names the version wanted; without torch nothing works."""
    install(packages)
    finding = installation.check_packages({"torch": "2.13.0"})
    assert finding.status is status
    assert advice in finding.advice


@pytest.mark.parametrize(
    ("environment", "status", "text"),
    [
        ({}, Status.OK, "installed, off"),
        ({"SGLANG_FLOWPREFILL": "1"}, Status.OK, "installed and on"),
        ({"SGLANG_FLOWPREFILL": "1", "SGLANG_PLUGINS": "a,flowprefill"}, Status.OK, "on"),
        ({"SGLANG_FLOWPREFILL": "1", "SGLANG_PLUGINS": "a"}, Status.FAIL, "SGLANG_PLUGINS is 'a'"),
        ({"SGLANG_FLOWPREFILL": "kernels"}, Status.WARN, "our CPU kernels"),
        ({"SGLANG_FLOWPREFILL": "2"}, Status.FAIL, "switches nothing on"),
    ],
)
def test_the_plugin_is_on_off_or_kept_out(environment, status, text):
    """Off is fine, since the launcher switches it on; what would silently be stock fails."""
    finding = installation.check_plugin(environment)
    assert finding.status is status
    assert text in finding.found


def test_a_missing_entry_point_is_named(monkeypatch):
    """Without it SGLang never hears of us."""
    monkeypatch.setattr(installation, "entry_points", lambda **_: [])
    finding = installation.check_plugin({})
    assert finding.status is Status.FAIL
    assert "sglang.srt.plugins, sglang.srt.platforms" in finding.found


@pytest.mark.parametrize(
    ("cpu_only", "has_cuda", "status"),
    [
        (True, False, Status.OK),
        (True, True, Status.OK),
        (False, False, Status.FAIL),
        (False, True, Status.WARN),
    ],
)
def test_the_device_is_told_with_what_is_known_of_it(monkeypatch, cpu_only, has_cuda, status):
    """A GPU is a warning, since SGLang with FlowPrefill was not measured on one."""
    cuda = "torch.cuda"
    monkeypatch.setattr(installation, "is_cpu_only", lambda: cpu_only)
    monkeypatch.setattr(f"{cuda}.is_available", lambda: has_cuda)
    monkeypatch.setattr(f"{cuda}.get_device_name", lambda: "A GPU")
    monkeypatch.setattr(f"{cuda}.device_count", lambda: 1)
    finding = installation.check_device()
    assert finding.status is status
    assert ("=0 chooses the GPU" in finding.found) == (cpu_only and has_cuda)


@pytest.mark.parametrize("error", [FileNotFoundError("no g++"), CalledProcessError(1, "g++")])
def test_kernels_that_cannot_be_built_are_a_warning(monkeypatch, error):
    """Plain torch code runs; the reason is given."""
    monkeypatch.setattr(installation, "is_cpu_only", lambda: True)

    def load():
        raise error

    finding = installation.check_kernels(load)
    assert finding.status is Status.WARN
    assert "g++" in finding.found
    assert installation.check_kernels(lambda: "avx2-1").found == "compiled: avx2-1"


def test_a_gpu_needs_no_cpu_kernels(monkeypatch):
    """Nothing is built there."""
    monkeypatch.setattr(installation, "is_cpu_only", lambda: False)
    assert installation.check_kernels(lambda: pytest.fail("built")).status is Status.OK
