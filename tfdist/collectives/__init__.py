"""Collective algorithms as plans: pure Python, no I/O. Each file is one idea; README.md says how to add one."""

from tfdist.collectives.cost import Cost, Traffic
from tfdist.collectives.plan import Kind, PlanError, Step, interpret
from tfdist.collectives.registry import ALGORITHMS, ALL_REDUCE, Algorithm
from tfdist.collectives.topology import Topology

__all__ = [
    "ALGORITHMS",
    "ALL_REDUCE",
    "Algorithm",
    "Cost",
    "Kind",
    "PlanError",
    "Step",
    "Topology",
    "Traffic",
    "interpret",
]
