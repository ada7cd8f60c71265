"""The installed release's hook registry: SGLang's own, or ours where it has none."""

from sglang_flowprefill.adapter import releases

HookRegistry = releases.startup().HookRegistry
HookType = releases.startup().HookType
