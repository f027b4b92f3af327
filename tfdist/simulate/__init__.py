"""Distributed training in virtual time: who waits for whom, what staleness does. NumPy only; see README.md."""

from tfdist.simulate.network import Network
from tfdist.simulate.server import Rule, Server
from tfdist.simulate.tasks import AbstractTask, NoTask, TeacherTask
from tfdist.simulate.training import Result, train

__all__ = ["AbstractTask", "Network", "NoTask", "Result", "Rule", "Server", "TeacherTask", "train"]
