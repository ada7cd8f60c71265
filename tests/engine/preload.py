"""What every engine child needs in memory, imported once: SGLang and its models, ten seconds.

The multiprocessing forkserver imports this module and forks each child from itself. One thread for
torch: OpenMP's threads do not survive a fork, and models this small gain nothing from two. No
torch.compile: SGLang compiles one rotary embedding, which takes twenty seconds and is no operator.
"""

import gc
import os
import warnings

from sglang_flowprefill.cpu.defaults import cpu_environment

os.environ.update(cpu_environment(), OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
os.environ["TORCHDYNAMO_DISABLE"] = "1"

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import sglang.srt.managers.scheduler
    import sglang.srt.models.registry  # noqa: F401
    import transformers  # noqa: F401

gc.collect()
gc.freeze()  # a million imported objects that no collection in a child need look at again
