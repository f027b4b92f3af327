"""Groups of ranks and their collectives, without TensorFlow. README.md tells how the layers fit."""

from tfdist.comm.default import default_group, is_formed, reset_default_group
from tfdist.comm.group import Group

__all__ = ["Group", "default_group", "is_formed", "reset_default_group"]
