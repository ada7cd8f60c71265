"""The picture of a profile: measured prefills over the fit, and how far off each is.

Needs matplotlib, which the extra ``bench`` brings.
"""

from collections.abc import Sequence
from pathlib import Path

from sglang_flowprefill.errors import ProfileError
from sglang_flowprefill.executor import PrefillShape, ProfileSample, fit_prefill_cost

try:
    import matplotlib as mpl
    from matplotlib.figure import Figure
except ImportError as error:
    raise ProfileError("a picture needs matplotlib: pip install sglang-flowprefill[bench]") from (
        error
    )

_KINDS = {
    "one prompt": lambda shape: shape.num_requests == 1 and not shape.num_cached_tokens,
    "after a cached prefix": lambda shape: bool(shape.num_cached_tokens),
    "several prompts": lambda shape: shape.num_requests > 1,
}


def draw_profile(samples: Sequence[ProfileSample], path: Path) -> None:
    """Write the picture as PNG.

    Raises:
        ProfileError: The file cannot be written.
    """
    cost = fit_prefill_cost(samples)
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    fit_axis, off_axis = figure.subplots(1, 2)
    lengths = sorted({s.shape.num_uncached_tokens for s in samples if s.shape.num_requests == 1})
    line = [ProfileSample(PrefillShape(n), 0.0).predicted_s(cost) * 1e3 for n in lengths]
    fit_axis.plot(lengths, line, color="grey", label="fit, one prompt")
    for (kind, is_of), colour in zip(_KINDS.items(), mpl.color_sequences["tab10"], strict=False):
        group = [s for s in samples if is_of(s.shape)]
        tokens = [s.shape.num_uncached_tokens * s.shape.num_requests for s in group]
        fit_axis.plot(tokens, [s.duration_s * 1e3 for s in group], "o", color=colour, label=kind)
        off = [100 * (s.predicted_s(cost) / s.duration_s - 1) for s in group]
        off_axis.plot(tokens, off, "o", color=colour)
    fit_axis.set(xlabel="tokens computed", ylabel="ms", xscale="log", yscale="log", title="fit")
    fit_axis.legend(frameon=False, fontsize="small")
    off_axis.axhline(0.0, color="grey", linewidth=1)
    off_axis.set(xlabel="tokens computed", ylabel="fitted / measured - 1, %", xscale="log")
    off_axis.set_title("residuals")
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise ProfileError(f"cannot write {path}: {error}") from error
