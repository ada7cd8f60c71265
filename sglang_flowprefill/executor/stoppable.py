"""Work that the device itself can stop, on a word from the host, and go on with later.

The counterpart of tiles. A tiled operator is cut on the host, into launches that each fill the
device and end it together; here one launch stays whole unless somebody comes. The price: while it
runs the host must watch it, for whatever it launched behind would read an unfinished result.
``Checkpoint.run`` is that watch. Nothing here knows how the device is told.
"""

from typing import Protocol


class StoppableWork(Protocol):
    """One operator call: launched, stopped and launched again until it is complete."""

    @property
    def is_complete(self) -> bool:
        """Tell whether nothing is left. Asked only when the device is idle."""

    def launch(self) -> None:
        """Launch what is left; return at once."""

    def ring(self) -> None:
        """Make what is launched stop soon, also if it has not begun yet."""

    def clear(self) -> None:
        """Take ``ring`` back. Called only when the device is idle."""
