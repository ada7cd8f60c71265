"""Stand-in for Triton in an environment without GPU packages.

Its presence means that the environment was set up for the CPU, so SGLang's CPU engine is the
default here: commands that know nothing of us, such as ``python -m sglang.benchmark.serving``,
start without the user exporting a variable. An explicit setting wins.

SGLang imports this before any other GPU package: the one early moment in releases that have no
platform plugins, so the stand-ins for those packages are put in place here as well.
"""

import os
import sys

from sglang_flowprefill.cpu.platform import activate
from sglang_flowprefill.cpu.stand_in import become_triton

os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")
become_triton(sys.modules[__name__])
activate()
