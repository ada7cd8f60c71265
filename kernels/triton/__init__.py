"""Triton kernels for GPUs. Need Triton when a module is imported, a GPU when one is called.

Each file holds one kernel with its launcher and, as ``reference``, the same in plain torch.
With ``TRITON_INTERPRET=1`` they run on CPU tensors, which is how they are tested without a GPU.
"""
