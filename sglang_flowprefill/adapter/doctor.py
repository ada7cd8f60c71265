"""The checks of ``python -m sglang_flowprefill doctor`` that need SGLang itself.

Each runs on what the one before found out, cheapest first; what cannot be checked because of an
earlier failure says so. Nothing is loaded but code: the model is built without its weights.
"""

import contextlib
import io
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from sglang_flowprefill.adapter import compat, releases
from sglang_flowprefill.adapter.flags import config_of
from sglang_flowprefill.adapter.launch import require_flowprefill_scheduler
from sglang_flowprefill.adapter.serving.profile import (
    StoredProfile,
    is_usable,
    machine_key,
    profile_folder,
    read_profile,
)
from sglang_flowprefill.adapter.unsupported import refused_families, refused_settings
from sglang_flowprefill.checks import Finding, fail, ok, warn
from sglang_flowprefill.errors import ProfileError, UnsupportedSGLangError
from sglang_flowprefill.executor import fit_prefill_cost

_STOCK = "or serve without FlowPrefill: python -m sglang.launch_server"


def check_symbols(rows: tuple[compat.UpstreamSymbol, ...] = compat.EVERY_ROW) -> Finding:
    """Compare every symbol of the installed SGLang that is touched with what is expected."""
    due = compat.rows_of(rows, releases.installed_version())
    try:
        problems = [problem for row in due if (problem := compat.mismatch(row))]
    except Exception as error:  # noqa: BLE001 (an import of SGLang may fail in any way)
        found = f"SGLang cannot be imported: {type(error).__name__}: {error}"
        return fail("symbols", found, "python -m sglang.launch_server --help shows the same")
    if problems:
        return fail(
            "symbols",
            "\n".join([f"{len(problems)} of {len(due)} differ:", *problems]),
            f"pip install --force-reinstall sglang=={compat.SUPPORTED_VERSIONS[-1]}, unmodified",
        )
    return ok("symbols", f"all {len(due)} symbols of SGLang are as expected")


def check_scheduler() -> Finding:
    """Load the plugins as a scheduler process does, and see whose scheduler would run."""
    try:
        require_flowprefill_scheduler()
    except SystemExit as refusal:
        return fail("scheduler", _reason(refusal), "the message says what is in the way")
    except Exception as error:  # noqa: BLE001 (another plugin may fail in any way)
        found = f"it cannot be loaded: {type(error).__name__}: {error}"
        return fail("scheduler", found, "SGLANG_PLUGINS=flowprefill leaves other plugins out")
    return ok("scheduler", "SGLang would run FlowPrefill's scheduler")


def check_flags(arguments: Sequence[str], *, has_model: bool = True) -> tuple[Finding, Any]:
    """Parse a server's command line.

    Args:
        arguments: Complete, as the launcher would pass them on.
        has_model: False: the model's path stands for none, and is not looked at.

    Returns:
        What was found, and SGLang's ``ServerArgs``, resolved if there is a model, or None if the
        server would not start.
    """
    releases.startup().load_plugins()
    from sglang.srt.server_args import prepare_server_args  # noqa: PLC0415 (after hooks)

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            settings = prepare_server_args(list(arguments))
            refused = refused_settings(settings, is_strict=config_of(settings).strict)
            if refused:
                return fail("flags", "\n".join(refused), f"drop these flags, {_STOCK}"), None
            if has_model:
                releases.startup().resolve(settings)
    except SystemExit as refusal:
        problem = _reason(refusal, said.getvalue())
        return fail("flags", problem, "see docs/reference/settings.md, and --help"), None
    except Exception as error:  # noqa: BLE001 (SGLang's own checks raise what they like)
        return fail("flags", f"SGLang refuses them: {error}", "see SGLang's documentation"), None
    return ok("flags", _settings_line(settings)), settings


def check_model(settings: Any) -> Finding:
    """Build the model without its weights and see what of it may be suspended.

    Args:
        settings: SGLang's resolved ``ServerArgs`` for one rank: all ranks have the same modules.
    """
    try:
        from sglang_flowprefill.adapter.model.bare_model import bare_model, model_config  # noqa: PLC0415
        from sglang_flowprefill.adapter.model.coverage import Coverage  # noqa: PLC0415

        config = model_config(settings)
        refused = refused_families(config)
        if refused:
            found = f"{config.model_path} is {' and '.join(refused)}"
            return fail("model", found, f"choose a text model, {_STOCK}")
        num_layers = int(config.num_hidden_layers)
        granularity = config_of(settings).granularity
        coverage = Coverage(bare_model(settings, config), num_layers, granularity)
        coverage.require_boundaries(len(coverage.hooked), "found in the model")
        coverage.require_parameters()
    except UnsupportedSGLangError as refusal:
        return fail("model", str(refusal), f"choose another model, {_STOCK}")
    except Exception as error:  # noqa: BLE001 (models raise what they like)
        return warn(
            "model",
            f"cannot tell without its weights: {type(error).__name__}: {error}",
            "the server counts boundaries itself when it starts",
        )
    return ok("model", _coverage_line(config, coverage, num_layers))


def check_predictor(settings: Any, kernels: str | None) -> Finding:
    """Look for measured prefill costs of this model on this machine.

    Args:
        settings: SGLang's resolved ``ServerArgs``.
        kernels: Name of the compiled CPU kernels' build; None: plain torch code, or a GPU.
    """
    folder = profile_folder(config_of(settings).profile_cache_dir)
    unreadable, stored = _stored_profiles(folder)
    wanted = {
        **machine_key(),
        "model": str(settings.model_path),
        "kernels": kernels or "torch",
        "num_ranks": str(settings.tp_size),
    }
    fitting = [path for path, profile in stored.items() if wanted.items() <= profile.key.items()]
    broken = f"; unreadable: {', '.join(unreadable)}" if unreadable else ""
    if not fitting:
        found = f"none of {len(stored)} profiles in {folder} is of this model and machine{broken}"
        advice = "the first start measures it, or now: python -m sglang_flowprefill profile"
        return warn("predictor", found, advice)
    newest = max(fitting, key=lambda path: path.stat().st_mtime)
    if not is_usable(stored[newest]):
        return warn("predictor", f"{newest} is out of date", "the next start measures it again")
    text = _profile_line(newest, stored[newest]) + broken
    return (
        warn("predictor", text, "delete the unreadable ones") if broken else ok("predictor", text)
    )


def findings(
    arguments: Sequence[str], kernels: str | None, *, has_model: bool
) -> Iterator[Finding]:
    """Run all checks of this module in turn.

    Args:
        arguments: The server's command line, complete.
        kernels: As in ``check_predictor``.
        has_model: As in ``check_flags``.
    """
    yield check_symbols()
    yield check_scheduler()
    finding, settings = check_flags(arguments, has_model=has_model)
    yield finding
    if settings is None or not has_model:
        reason = "no model is named" if settings is not None else "the server would not start"
        for name in ("model", "predictor"):
            yield warn(name, f"not checked: {reason}", "give the flags that the server will have")
        return
    of_one_rank = settings
    if settings.tp_size > 1:
        _, of_one_rank = check_flags([*arguments, "--tp-size", "1"])
    yield check_model(of_one_rank)
    yield check_predictor(settings, kernels)


def _reason(refusal: SystemExit, printed: str = "") -> str:
    """Return what an exit says: its own message, or the last line that argparse printed."""
    if isinstance(refusal.code, str):
        return refusal.code.removeprefix("flowprefill: error: ")
    lines = [line for line in printed.splitlines() if line.strip()]
    return lines[-1].rpartition("error: ")[2] if lines else f"exit status {refusal.code}"


def _settings_line(settings: Any) -> str:
    config = config_of(settings)
    return (
        f"accepted: {settings.model_path} on {settings.device}, attention "
        f"{settings.attention_backend}, tp {settings.tp_size}; policy {config.policy}, "
        f"granularity {config.granularity}"
    )


def _coverage_line(config: Any, coverage: Any, num_layers: int) -> str:
    kinds = ", ".join(f"{count} {kind}" for kind, count in coverage.kinds.items())
    outside = ", ".join(sorted(coverage.uncovered)) or "nothing"
    (architecture,) = config.hf_config.architectures[:1]
    return (
        f"{architecture}: {len(coverage.hooked)} boundaries in {num_layers} layers "
        f"({len(coverage.hooked) / num_layers:.1f} a layer; operators: {kinds}); outside: {outside}"
    )


def _stored_profiles(folder: Path) -> tuple[list[str], dict[Path, StoredProfile]]:
    unreadable, stored = [], {}
    for path in sorted(folder.glob("prefill-*.json")):
        try:
            stored[path] = read_profile(path)
        except ProfileError:
            unreadable.append(path.name)
    return unreadable, stored


def _profile_line(path: Path, profile: StoredProfile) -> str:
    cost = fit_prefill_cost(profile.samples)
    error = median(abs(s.predicted_s(cost) / s.duration_s - 1) for s in profile.samples)
    age_days = (time.time() - path.stat().st_mtime) / 86400
    return (
        f"{path.name}, {age_days:.1f} days old, {len(profile.samples)} kinds of prefills, "
        f"fit within {error:.0%} (median)"
    )
