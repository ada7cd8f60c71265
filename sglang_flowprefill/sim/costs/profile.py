"""The start-up profile of a server, from its cache, as a cost model."""

import json
from pathlib import Path

from sglang_flowprefill.errors import PlanError
from sglang_flowprefill.sim.costs.table import DecodeTable, TableCost


def read_profile_cost(path: Path, decode: DecodeTable | None = None) -> TableCost:
    """Read what a server has measured at its start (``profile`` says where it is kept).

    Args:
        path: The file.
        decode: Steps, which no profile has.

    Raises:
        PlanError: The file is missing or no profile.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        key, samples = (
            stored["key"],
            [
                (
                    int(sample["shape"]["num_uncached_tokens"]),
                    int(sample["shape"]["num_cached_tokens"]),
                    float(sample["duration_s"]),
                )
                for sample in stored["samples"]
                if sample["shape"]["num_requests"] == 1
            ],
        )
        if len({n for n, p, _ in samples if not p}) < 3:
            raise PlanError(f"{path}: a profile needs three lengths of prompts at least")
        device = f"{key['device']}, {key.get('cpu', key['machine'])}"
    except OSError as error:
        raise PlanError(f"{path}: cannot read the profile: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise PlanError(f"{path}: not a server's profile: {error!r}") from error
    return TableCost(samples, decode, f"a server's own profile, measured on {device}")
