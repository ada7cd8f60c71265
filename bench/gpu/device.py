"""The device of ``bench gpu``."""

from typing import Final

import torch

GPU: Final = torch.device("cuda")
