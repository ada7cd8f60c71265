"""``python -m bench gpu``: blocking time, its cost and the kernels' rates on a real GPU.

No server: the executor's own cursor, checkpoint, run-ahead and tiles around a prefill of
Llama-3.1-8B's shape with random weights. Needs torch, triton, greenlet, numpy, rich and matplotlib
only, so that it runs on a bare machine (``python -m bench.gpu`` is the same without the rest of
``bench``). What it does not measure is the server around it: HTTP, scheduling rounds, KV paging.
"""
