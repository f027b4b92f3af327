"""Faults at chosen moments of a job, to see how a script of yours, or tfdist itself, lives through them."""

from tfdist.testing.fault import PHASES
from tfdist.testing.injector import FaultInjector

__all__ = ["PHASES", "FaultInjector"]
