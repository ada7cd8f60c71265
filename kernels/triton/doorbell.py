"""A flag through which the host stops a kernel that is running.

The flag lies in pinned host memory, which the device reads over the bus: a kernel launched long
ago sees at its next tile what the host wrote a microsecond ago. Nothing has to be queued behind
the kernel for that, and no stream is needed.
"""

import torch


class Doorbell:
    """One flag, for all kernels of a device that run one after the other.

    Args:
        device: Of the kernels; the flag is pinned unless it is a CPU.

    Attributes:
        flag: int32 ``[1]`` on the host, for a kernel's argument: 0, or 1 once it has rung.
    """

    def __init__(self, device: torch.device) -> None:
        self.flag = torch.zeros(1, dtype=torch.int32, pin_memory=device.type != "cpu")
        self._host = self.flag.numpy()  # a write through numpy costs a tenth of one through torch

    @property
    def is_rung(self) -> bool:
        """Tell whether kernels stop at their next tile."""
        return bool(self._host[0])

    def ring(self) -> None:
        """Make the running kernel, and any that follows, stop before its next tile."""
        self._host[0] = 1

    def clear(self) -> None:
        """Let kernels run again. Only while none runs: it would not know whether it stopped."""
        self._host[0] = 0
