"""Kernels, one per file, each with a plain torch version. None imports sglang."""
