"""Errors that the bench raises on purpose; the command line prints them without a traceback.

BenchError
├── TraceFileError   a trace file cannot be read as a workload
├── UsageError       options contradict each other or name something unknown
└── ServerError      a server under test did not start, died, or answered nonsense
"""


class BenchError(Exception):
    """Base of all errors of the bench."""


class TraceFileError(BenchError):
    """A trace file is malformed."""


class UsageError(BenchError):
    """Options contradict each other or name something unknown."""


class ServerError(BenchError):
    """A server under test cannot be measured."""
