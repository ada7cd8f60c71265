"""Measurement of TTFT and SLO attainment over HTTP: workloads, replay, goodput search, report.

A library; ``python -m bench COMMAND`` is its thin command line. Servers under test, peers among
them, run as processes of their own and are only ever spoken to over HTTP, so every system is
measured by the same client.
"""
