"""Kernels for the CPU engine."""
