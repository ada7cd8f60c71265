"""Built-in generator: requests with the class statistics of the QwenTrace window.

The FlowPrefill authors replay minutes 0-2 of QwenTrace (alibaba-edu/qwen-bailian-usagetraces-anon,
trace A): 327 requests in 119.08 s. Lengths here are drawn from a piecewise linear inverse CDF
through quantiles of that window, as printed by the authors' notebook.

What is real: class shares, the quantiles, the mean rate. What is not: classes and lengths are
drawn independently of each other and of time, arrivals are Poisson, and no prompt shares a
prefix. Between quantiles nothing is known, which puts the mean of a class up to 5 % off the
window's. So results must say "built-in generator", never QwenTrace.
"""

from dataclasses import dataclass

import numpy as np

from bench.workloads.request import TraceRequest

NATIVE_RATE_PER_S = 327 / 119.08

_PROBABILITIES = (0.0, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95, 0.99, 1.0)


@dataclass(frozen=True, slots=True)
class ClassStatistics:
    """One class of the window.

    Attributes:
        num_requests: How many of the window's 327 requests are of this class.
        input_quantiles: Prompt tokens at ``_PROBABILITIES``; the last is the maximum.
        output_quantiles: Generated tokens at the same probabilities.
    """

    num_requests: int
    input_quantiles: tuple[int, ...]
    output_quantiles: tuple[int, ...]


CLASSES = {
    "text": ClassStatistics(
        226,
        (16, 72, 128, 744, 878, 1118, 1404, 3256, 4613),
        (5, 75, 119, 276, 440, 682, 819, 1237, 1982),
    ),
    "image": ClassStatistics(
        24,
        (350, 351, 354, 372, 386, 394, 400, 808, 929),
        (47, 49, 53, 70, 88, 178, 200, 209, 212),
    ),
    "search": ClassStatistics(
        66,
        (241, 2152, 3045, 4378, 6481, 8066, 10819, 15127, 16744),
        (128, 206, 254, 350, 447, 659, 960, 1384, 1488),
    ),
    "file": ClassStatistics(
        11,
        (111, 475, 793, 3210, 6681, 9116, 9918, 10560, 10720),
        (288, 370, 552, 701, 764, 919, 948, 972, 978),
    ),
}


def generate_requests(num_requests: int, seed: int) -> list[TraceRequest]:
    """Draw requests at the window's native rate; the first arrives at 0.

    The same seed gives the same requests, and a shorter workload is the head of a longer one.
    """
    gap_rng, class_rng, input_rng, output_rng = np.random.default_rng(seed).spawn(4)
    gaps_s = gap_rng.exponential(1 / NATIVE_RATE_PER_S, num_requests)
    arrivals_s = np.cumsum(gaps_s) - gaps_s[:1].sum()
    names = tuple(CLASSES)
    shares = np.array([statistics.num_requests for statistics in CLASSES.values()], dtype=float)
    drawn = class_rng.choice(len(names), num_requests, p=shares / shares.sum())
    input_u, output_u = input_rng.random(num_requests), output_rng.random(num_requests)
    return [
        TraceRequest(
            arrival_s=float(arrivals_s[i]),
            slo_class=names[drawn[i]],
            num_input_tokens=_inverse_cdf(input_u[i], CLASSES[names[drawn[i]]].input_quantiles),
            num_output_tokens=_inverse_cdf(output_u[i], CLASSES[names[drawn[i]]].output_quantiles),
        )
        for i in range(num_requests)
    ]


def _inverse_cdf(probability: float, quantiles: tuple[int, ...]) -> int:
    return round(float(np.interp(probability, _PROBABILITIES, quantiles)))
