"""One small file for each thing that starts processes.

Each has one function: it gets the environment variables and returns the `Cluster`, or None where something else
started this process. Those that start parameter servers have a second one, which returns the `ServerPlace`. To add one, write its file and give it its place in `ENVIRONMENTS`: the first that applies wins.
"""

from tfdist.cluster.environments.mpi import from_mpi
from tfdist.cluster.environments.slurm import from_slurm
from tfdist.cluster.environments.tf_config import from_tf_config, server_from_tf_config
from tfdist.cluster.environments.tfdist_run import from_tfdist_run, server_from_tfdist_run
from tfdist.cluster.environments.torchrun import from_torchrun

ENVIRONMENTS = (from_tfdist_run, from_tf_config, from_slurm, from_mpi, from_torchrun)
SERVER_ENVIRONMENTS = (server_from_tfdist_run, server_from_tf_config)

__all__ = ["ENVIRONMENTS", "SERVER_ENVIRONMENTS"]
