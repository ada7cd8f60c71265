"""Whether kernels are interpreted here, and how many examples that is worth."""

import os

from hypothesis import HealthCheck, settings

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# On a GPU many an example compiles the kernel anew.
odd_sizes = settings(
    max_examples=40 if IS_INTERPRETED else 12,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
