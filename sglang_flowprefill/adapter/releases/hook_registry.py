"""Hooks for a release of SGLang that has no registry of its own.

The same words as SGLang's later registry: BEFORE, AFTER and AROUND a function, or REPLACE a class.
A hook takes effect when it is registered, once for each pair of target and hook, on the
attribute that the dotted path names: code that imported a function earlier keeps the original.
"""

import functools
import inspect
import pkgutil
from collections.abc import Callable
from enum import Enum
from typing import Any


class HookType(Enum):
    """What a hook does to its target."""

    BEFORE = "before"
    AFTER = "after"
    AROUND = "around"
    REPLACE = "replace"


class HookRegistry:
    """The hooks of this process."""

    _registered: set[tuple[str, Any]] = set()  # noqa: RUF012 (one per process, like upstream's)

    @classmethod
    def register(cls, target: str, hook: Any, hook_type: HookType) -> None:
        """Put a hook on a dotted path.

        Args:
            target: Such as ``sglang.srt.server_args.ServerArgs.add_cli_args``.
            hook: BEFORE is called with the target's arguments, AFTER with its result and those,
                AROUND with the original and those; REPLACE takes the target's place.
            hook_type: Which of these.
        """
        if (target, hook) in cls._registered:
            return
        owner_path, _, name = target.rpartition(".")
        owner = pkgutil.resolve_name(owner_path)
        if hook_type is HookType.REPLACE:
            setattr(owner, name, hook)
        else:
            setattr(owner, name, _hooked(inspect.getattr_static(owner, name), hook, hook_type))
        cls._registered.add((target, hook))


def _hooked(original: Any, hook: Callable[..., Any], hook_type: HookType) -> Any:
    """Wrap a function; a static or class method stays one."""
    if isinstance(original, staticmethod | classmethod):
        return type(original)(_hooked(original.__func__, hook, hook_type))

    @functools.wraps(original)
    def hooked(*args: Any, **kwargs: Any) -> Any:
        if hook_type is HookType.AROUND:
            return hook(original, *args, **kwargs)
        if hook_type is HookType.BEFORE:
            hook(*args, **kwargs)
            return original(*args, **kwargs)
        result = original(*args, **kwargs)
        hook(result, *args, **kwargs)
        return result

    return hooked
