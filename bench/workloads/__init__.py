"""Workloads: requests read from a trace or generated, then scaled to the machine at hand."""
