"""When the boundaries of one simulated forward pass come.

All layers of a model are alike, so that a pass is one layer's boundaries over and over again, and
the next boundary after a moment is arithmetic, however many layers there are.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Self


@dataclass(frozen=True, slots=True)
class ForwardTimes:
    """Boundaries of a forward pass, in seconds of its own running time.

    Attributes:
        layer_ends_s: Boundaries within a layer, ascending; the last is the layer's length.
        num_layers: Layers.
        lead_s: Seconds before the first layer, without a boundary.
        num_in_flight: Operators that are launched before a pass looks for events; it stops at the
            end of the last of them.
    """

    layer_ends_s: Sequence[float]
    num_layers: int = 1
    lead_s: float = 0.0
    num_in_flight: int = 1

    @classmethod
    def of_layer(
        cls,
        pieces_s: Sequence[float],
        num_layers: int = 1,
        lead_s: float = 0.0,
        num_in_flight: int = 1,
    ) -> Self:
        """Return the times of a pass whose layers have pieces of these lengths."""
        return cls(list(accumulate(pieces_s)), num_layers, lead_s, num_in_flight)

    @property
    def num_boundaries(self) -> int:
        """Boundaries, the end included."""
        return len(self.layer_ends_s) * self.num_layers

    @property
    def total_s(self) -> float:
        """Length of the pass."""
        return self.lead_s + self.layer_ends_s[-1] * self.num_layers

    def end_s(self, index: int) -> float:
        """Return when a boundary comes; index -1 is the beginning."""
        if index < 0:
            return 0.0
        layer, within = divmod(index, len(self.layer_ends_s))
        return self.lead_s + layer * self.layer_ends_s[-1] + self.layer_ends_s[within]

    def stop_after(self, time_s: float, first: int) -> int:
        """Return the boundary at which a pass stops for an event.

        Args:
            time_s: When the event comes, in running time.
            first: No earlier boundary: at least one operator runs.
        """
        last = self.num_boundaries - 1
        layer_s, per_layer = self.layer_ends_s[-1], len(self.layer_ends_s)
        since_lead_s = time_s - self.lead_s
        if since_lead_s <= 0.0:
            index = 0
        elif since_lead_s >= layer_s * self.num_layers:
            return last
        else:
            layer = int(since_lead_s / layer_s)
            index = layer * per_layer + bisect_left(
                self.layer_ends_s, since_lead_s - layer * layer_s
            )
        return min(max(index + self.num_in_flight - 1, first), last)
