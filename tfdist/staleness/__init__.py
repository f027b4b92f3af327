"""What to do about stale gradients: weigh them, correct them, or wait. NumPy only; README.md says how to add one."""

from tfdist.staleness.compensation import DelayCompensation
from tfdist.staleness.waiting import WAITING, AbstractWaiting, Asynchronous, Bounded, Synchronous, Verdict
from tfdist.staleness.weighting import WEIGHTINGS, table, weight

__all__ = [
    "WAITING",
    "WEIGHTINGS",
    "AbstractWaiting",
    "Asynchronous",
    "Bounded",
    "DelayCompensation",
    "Synchronous",
    "Verdict",
    "table",
    "weight",
]
