"""Micro-benchmark of the CPU kernels against the rates that this machine reaches."""
