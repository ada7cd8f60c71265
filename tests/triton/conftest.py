"""Where the kernels run: on the GPU if there is one, else in Triton's interpreter.

The interpreter runs one program after the other, on numpy. It shows what a kernel computes and in
which order tiles are handed out; it shows neither what programs do to one another nor what the
compiler makes of them. ``tests/gpu`` has a GPU show that.
"""

import pytest
import torch
from interpreter import IS_INTERPRETED


@pytest.fixture(scope="session")
def device():
    """Return the device of all tensors."""
    return torch.device("cpu" if IS_INTERPRETED else "cuda")


@pytest.fixture(scope="session", autouse=True)
def _bfloat16_in_the_interpreter():
    """Widen bfloat16 before a dot: Triton 3.6's interpreter multiplies the bit patterns."""
    if not IS_INTERPRETED:
        yield
        return
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder

    create_dot = InterpreterBuilder.create_dot

    def create_widened_dot(self, a, b, *args):
        a, b = (
            self.create_fp_ext(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x
            for x in (a, b)
        )
        return create_dot(self, a, b, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpreterBuilder, "create_dot", create_widened_dot)
        yield


@pytest.fixture(scope="session")
def steps():
    """Return the roundings between two neighbours that a stored result may be off by, by dtype.

    The interpreter cuts bfloat16 where hardware rounds.
    """
    half_step = {torch.float32: 2**-24, torch.float16: 2**-11, torch.bfloat16: 2**-8}
    if IS_INTERPRETED:
        half_step[torch.bfloat16] *= 2
    return half_step
