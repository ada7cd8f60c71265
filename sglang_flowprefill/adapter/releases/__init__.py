"""Where supported releases of SGLang differ, one module for each that does.

The adapter speaks the newest release's language. An older release's module gives its own parts
those names: it subclasses, wraps or renames, and it never copies an upstream body. Nothing else
in the adapter asks for a version. Two kinds of modules, since not every process loads a scheduler:

* ``startup_*``: settings, hooks and how this package gets loaded;
* ``scheduling_*``: the scheduler, its requests and what a forward pass keeps in globals.
"""

import importlib.metadata
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from sglang_flowprefill.errors import UnsupportedSGLangError


@dataclass(frozen=True, slots=True)
class Release:
    """One supported release.

    Attributes:
        version: Of the distribution ``sglang``.
        startup: Module of this package with its start-up names.
        scheduling: Module with its scheduler's names.
        lacks: What works with newer releases only, for the documentation.
    """

    version: str
    startup: str
    scheduling: str
    lacks: tuple[str, ...] = ()


_LACKS_WORKERS = "`--tokenizer-worker-num` above 1, which is refused"
_LACKS_0_5_10 = (
    (
        "a plugin system: SGLang's own launch commands need the patch set, "
        "`python -m sglang_flowprefill.launch_server` does not"
    ),
    (
        "answers of our own to refused requests: admission `reject` and a limit of waiting ones "
        "are refused at start-up"
    ),
    "`--enable-attn-tp-input-scattered`, which is refused",
    _LACKS_WORKERS,
    "a packed LM head on the CPU",
    "tiles of FlashInfer's attention",
    "`SGLANG_FLOWPREFILL=kernels`",
    "suspended requests in load reports and under `SGLANG_REQ_RUNNING_TIMEOUT`",
    "SGLang's watchdog, which sees no batch and never acts",
)

RELEASES = (
    Release("0.5.10.post1", "startup_0_5_10", "scheduling_0_5_10", _LACKS_0_5_10),
    Release("0.5.22", "startup_0_5_23", "scheduling_0_5_22", (_LACKS_WORKERS,)),
    Release("0.5.23", "startup_0_5_23", "scheduling_0_5_23"),
)
"""Oldest first."""


def installed_version() -> str:
    """Return the installed SGLang's version, without a local part such as ``+cpu``."""
    return importlib.metadata.version("sglang").partition("+")[0]


def installed_release() -> Release:
    """Return the release that is installed.

    Raises:
        UnsupportedSGLangError: It is not one that this package was made for.
    """
    found = installed_version()
    for release in RELEASES:
        if release.version == found:
            return release
    supported = [release.version for release in RELEASES]
    raise UnsupportedSGLangError(
        f"SGLang {found} is installed; this release of sglang-flowprefill runs with "
        f"{', '.join(supported[:-1])} and {supported[-1]}: pip install sglang=={supported[-1]}"
    )


def startup() -> Any:
    """Return the module with the installed release's start-up names."""
    return import_module(f"{__name__}.{installed_release().startup}")


def scheduling() -> Any:
    """Return the module with the installed release's scheduler names; loads the scheduler."""
    return import_module(f"{__name__}.{installed_release().scheduling}")
