"""The ways of making a prefill preemptible that ``bench gpu`` compares."""

from dataclasses import dataclass

from bench.gpu.llama import QUERY_TILE_MULTIPLE

_LAYER_STARTS = (".input_layernorm",)
_HALF_LAYER_STARTS = (".input_layernorm", ".post_attention_layernorm")


@dataclass(frozen=True, slots=True)
class Cut:
    """One way of making a prefill preemptible.

    Attributes:
        name: For tables and pictures.
        starts: Boundaries lie before operators whose names end so; empty text: before all.
        run_ahead: Operators in flight at most; None: the host launches as far as it comes.
        max_operator_ms: Longer operators are cut; None: they stay whole.
        tiled: Which operators may be cut: attention, and what treats rows alike.
        query_multiple: Attention tiles are multiples of so many queries.
        has_doorbell: Linear layers are cut by the doorbell instead of row tiles.
        is_quick: Also measured by a quick run.
    """

    name: str
    starts: tuple[str, ...] = ("",)
    run_ahead: int | None = 3
    max_operator_ms: float | None = None
    tiled: tuple[str, ...] = ("attention", "rows")
    query_multiple: int = QUERY_TILE_MULTIPLE
    has_doorbell: bool = False
    is_quick: bool = True


WHOLE = Cut("whole", starts=(), run_ahead=None)
CUTS = (
    WHOLE,
    Cut("layer, waiting at each", _LAYER_STARTS, run_ahead=1),
    Cut("half layer, waiting at each", _HALF_LAYER_STARTS, run_ahead=1),
    Cut("operator, no bound", run_ahead=None, is_quick=False),
    *(Cut(f"operator, k={k}", run_ahead=k, is_quick=k <= 3) for k in (1, 2, 3, 5, 8)),
    Cut("tiles of 2 ms, k=3", max_operator_ms=2.0),
    Cut("tiles of 1 ms, k=3", max_operator_ms=1.0),
    Cut("tiles of 1 ms, k=2", run_ahead=2, max_operator_ms=1.0),
    # What the tiles cost, in parts; and attention in tiles of 256 blocks, which fill an H200.
    Cut("attention tiles of 1 ms, k=3", max_operator_ms=1.0, tiled=("attention",)),
    Cut("row tiles of 1 ms, k=3", max_operator_ms=1.0, tiled=("rows",)),
    Cut("tiles of 1 ms, queries by 1024, k=3", max_operator_ms=1.0, query_multiple=1024),
    Cut("doorbell above 1 ms, k=2", run_ahead=2, max_operator_ms=1.0, has_doorbell=True),
)
QUICK_CUTS = tuple(cut for cut in CUTS if cut.is_quick)
