"""Divides this host's cores and accelerators between its workers."""

import glob
import os


def available_cores():
    """Returns the sorted list of the cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def core_quota(path="/sys/fs/cgroup/cpu.max"):
    """Returns how many cores' worth of time the container may use, a float, or None without a limit."""
    try:
        with open(path, encoding="ascii") as file:
            quota, period = file.read().split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # no such file, or "max"
        return None


def divide_cores(cores, num_workers):
    """Deals cores to workers in consecutive, equally long runs; what is left over goes to the first.

    Args:
      cores: list of int.
      num_workers: int >= 1.

    Returns:
      One list of cores per worker; all empty where there are fewer cores than workers (then nobody is pinned).
    """
    if len(cores) < num_workers:
        return [[] for _ in range(num_workers)]
    share, rest = divmod(len(cores), num_workers)
    bounds = [index * share + min(index, rest) for index in range(num_workers + 1)]
    return [cores[begin:end] for begin, end in zip(bounds, bounds[1:])]


def thread_variables(num_cores, num_workers, quota=None):
    """Returns the variables that keep `num_workers` workers from starting more threads than there are cores.

    TensorFlow's inter-op pool keeps two threads at least: one of them may wait for a collective.
    """
    usable = num_cores if quota is None else min(num_cores, quota)
    share = max(1, int(usable) // num_workers)
    return {
        "OMP_NUM_THREADS": str(share),
        "TF_NUM_INTRAOP_THREADS": str(share),
        "TF_NUM_INTEROP_THREADS": str(max(2, share)),
    }


def num_gpus():
    """Returns the number of NVIDIA GPUs that the driver shows, without loading a library."""
    return len(glob.glob("/proc/driver/nvidia/gpus/*")) or len(glob.glob("/dev/nvidia[0-9]*"))


def gpu_variables(local_rank, gpus):
    """Returns the variables that give each worker a GPU of its own; workers share where there are too few."""
    if gpus == 0:
        return {}
    variables = {"TF_FORCE_GPU_ALLOW_GROWTH": "true"}
    if gpus > 1:
        variables["CUDA_VISIBLE_DEVICES"] = str(local_rank % gpus)
    return variables
