"""Loads SGLang once, its own import-time warnings aside (ours stay errors)."""

import os
import warnings

from sglang_flowprefill.cpu.defaults import cpu_environment, is_cpu_only

if is_cpu_only():
    for name, value in cpu_environment().items():
        os.environ.setdefault(name, value)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import sglang.srt.entrypoints.http_server
    import sglang.srt.managers.scheduler  # noqa: F401
