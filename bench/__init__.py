"""Measurement of TTFT and SLO attainment over HTTP: workloads, replay, metrics, report.

A library; ``python -m bench compare|replay|urgent|blocking|gpu|generate`` is its thin command line.
Servers under test run as processes of their own and are only ever spoken to over HTTP, so every
system is measured by the same client. What it deliberately does not do yet: search for goodput,
or start peers other than SGLang.
"""
