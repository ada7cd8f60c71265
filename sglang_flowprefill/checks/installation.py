"""Is everything installed, does the plugin come into play, what does the machine compute on?"""

import os
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, entry_points, requires, version
from subprocess import SubprocessError

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from sglang_flowprefill.checks.finding import Finding, fail, ok, warn
from sglang_flowprefill.cpu.defaults import CPU_ENGINE_VARIABLE, is_cpu_only
from sglang_flowprefill.enablement import (
    ENABLE_VARIABLE,
    PLUGIN_NAME,
    is_enabled,
    is_kernels_only,
    is_plugin_allowed,
)
from sglang_flowprefill.patching import is_installed_patched

_ENTRY_POINT_GROUPS = ("sglang.srt.plugins", "sglang.srt.platforms")
_NEIGHBOURS = ("torch", "transformers", "flashinfer-python", "sglang-kernel", "triton")
"""Packages whose versions decide whether SGLang itself works."""


def check_sglang_version(supported: tuple[str, ...]) -> Finding:
    """Compare the installed SGLang with the releases that this one was made for."""
    remedy = f"pip install sglang=={supported[-1]}"
    found = installed_version("sglang")
    if found is None:
        return fail("sglang", "not installed", remedy)
    if found.partition("+")[0] not in supported:
        return fail("sglang", found, f"supported: {', '.join(supported)}; {remedy}")
    return ok("sglang", found)


def check_packages(tested: Mapping[str, str]) -> Finding:
    """Compare SGLang's neighbours with what SGLang asks for and with what we have tested.

    Args:
        tested: Versions that this project is tested with on a CPU, by package.
    """
    wanted = _wanted_by_sglang()
    texts, odd = [], []
    for name in _NEIGHBOURS:
        found = installed_version(name)
        if found is None:
            continue
        texts.append(f"{name} {found}")
        is_tested = found.partition("+")[0] == tested.get(name)
        if name in wanted and not is_tested and not wanted[name].specifier.contains(found):
            odd.append(f"{name}{wanted[name].specifier}")
    if installed_version("torch") is None:
        return fail("packages", ", ".join(texts) or "no torch", "install torch: see requirements/")
    if odd:
        return warn("packages", ", ".join(texts), f"SGLang asks for {', '.join(odd)}")
    return ok("packages", ", ".join(texts))


def check_plugin(environment: Mapping[str, str] = os.environ) -> Finding:
    """Tell whether SGLang will load the plugin here, and whether it is switched on."""
    missing = [g for g in _ENTRY_POINT_GROUPS if not entry_points(group=g, name=PLUGIN_NAME)]
    if missing:
        return fail(
            "plugin",
            f"no entry point {PLUGIN_NAME} in {', '.join(missing)}",
            "pip install --force-reinstall --no-deps sglang-flowprefill, in SGLang's environment",
        )
    allowed = environment.get("SGLANG_PLUGINS", "")
    if not is_plugin_allowed(allowed) and not is_installed_patched():
        return fail(
            "plugin",
            f"installed, but SGLANG_PLUGINS is {allowed!r}",
            f"add {PLUGIN_NAME} to SGLANG_PLUGINS, or unset it",
        )
    return _switch(environment)


def check_device() -> Finding:
    """Tell what SGLang will compute on, and whether that has been tried."""
    import torch  # noqa: PLC0415 (seconds; other checks do without)

    has_cuda = torch.cuda.is_available()
    if is_cpu_only():
        note = f"; {CPU_ENGINE_VARIABLE}=0 chooses the GPU that is here" if has_cuda else ""
        cores = len(os.sched_getaffinity(0))
        return ok("device", f"cpu, {cores} cores, {torch.get_num_threads()} threads{note}")
    if not has_cuda:
        return fail(
            "device",
            f"a GPU driver is loaded, but torch {torch.__version__} finds no GPU",
            f"repair the driver or torch's build, or {CPU_ENGINE_VARIABLE}=1 for the CPU",
        )
    return warn(
        "device",
        f"{torch.cuda.get_device_name()} ({torch.cuda.device_count()} visible)",
        "SGLang with FlowPrefill has not been measured on a GPU: try it before relying on it",
    )


def check_kernels(load: Callable[[], str]) -> Finding:
    """Tell which CPU kernels run; builds them if they have not been, as a first start would.

    Args:
        load: Returns the name of the build that was loaded; raises ``OSError`` or
            ``SubprocessError`` where there is none.
    """
    if not is_cpu_only():
        return ok("kernels", "not needed: the CPU kernels run on the CPU engine only")
    try:
        return ok("kernels", f"compiled: {load()}")
    except (OSError, SubprocessError) as error:
        return warn(
            "kernels",
            f"plain torch code, which is slower: {error}",
            "install g++; docs/reference/cpu-kernels.md lists the processors",
        )


def installed_version(package: str) -> str | None:
    """Return the version of an installed package, None if it is missing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _switch(environment: Mapping[str, str]) -> Finding:
    value = environment.get(ENABLE_VARIABLE, "")
    if is_enabled(environment):
        return ok("plugin", f"installed and on ({ENABLE_VARIABLE}={value}) for every SGLang start")
    if is_kernels_only(environment):
        return warn(
            "plugin",
            f"{ENABLE_VARIABLE}={value}: our CPU kernels under SGLang's own scheduler",
            f"for FlowPrefill: the launcher, or {ENABLE_VARIABLE}=1",
        )
    if value.strip().lower() not in {"", "0", "false", "no", "off"}:
        return fail(
            "plugin",
            f"{ENABLE_VARIABLE} is {value!r}, which switches nothing on",
            f"{ENABLE_VARIABLE}=1, or unset it and use python -m sglang_flowprefill.launch_server",
        )
    return ok(
        "plugin",
        "installed, off: python -m sglang.launch_server is stock here",
        "python -m sglang_flowprefill.launch_server switches it on by itself",
    )


def _wanted_by_sglang() -> dict[str, Requirement]:
    """Return SGLang's own requirements that apply here, by canonical name."""
    try:
        texts = requires("sglang") or []
    except PackageNotFoundError:
        return {}
    found = map(Requirement, texts)
    return {
        canonicalize_name(r.name): r
        for r in found
        if r.marker is None or r.marker.evaluate({"extra": ""})
    }
