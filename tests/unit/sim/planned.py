"""Deployments and workloads for tests of the planner: small, and of one's own numbers."""

from sglang_flowprefill.core import PrefillCost, Slo
from sglang_flowprefill.sim.costs import FittedCost
from sglang_flowprefill.sim.deployment import ServerSettings, Worker, find_system
from sglang_flowprefill.sim.device import operator_shares
from sglang_flowprefill.sim.gpus import find_gpu
from sglang_flowprefill.sim.shapes import KNOWN_SHAPES
from sglang_flowprefill.sim.study.serving import Deployment
from sglang_flowprefill.sim.workload import TracedRequest, Workload

SHAPE = KNOWN_SHAPES["llama-3.1-8b"]
COST = FittedCost(PrefillCost(0.005, 8e-5, 4e-9, 0.01), "numbers of a test", 0.005, 1e-5, 1e-8)
WORKER = Worker(
    "a test's GPU",
    COST,
    operator_shares(SHAPE, find_gpu("h200"), 1),
    SHAPE.num_layers,
    num_kv_tokens=400_000,
    bytes_per_token=SHAPE.held_bytes_per_token,
    kv_bytes_per_token=SHAPE.kv_bytes_per_token,
)
SLOS = {"chat": Slo(0.25, "chat"), "document": Slo(4.0, "document")}


def deployment(system="flowprefill", **changes):
    """Return one instance of a system."""
    settings = ServerSettings(**changes.pop("settings", {}))
    return Deployment(WORKER, find_system(system), settings=settings, **changes)


def workload(num_requests=200, rate_per_s=2.0, **changes):
    """Return chats, every fifth request a document, evenly spaced."""
    requests = [
        TracedRequest(
            index / rate_per_s,
            "document" if index % 5 == 0 else "chat",
            12_000 if index % 5 == 0 else 300 + 37 * (index % 11),
            40 + index % 7,
        )
        for index in range(num_requests)
    ]
    return Workload(requests, SLOS, "a test's workload", **changes)
