"""The parameter-server architecture with every knob."""

from tfdist.errors import ConfigurationError
from tfdist.staleness.compensation import DelayCompensation
from tfdist.strategies.server_strategy import AbstractServerStrategy


class ParameterServerStrategy(AbstractServerStrategy):
    """Trains one model on several workers, its parameters and the optimizer's state kept by servers.

    `AsyncSGDStrategy` and `SyncSGDStrategy` are short forms of it. Choose it over `RingAllReduceStrategy` where workers are
    unlike or noisy (asynchronous modes), or where embeddings are large (they travel as touched rows). With m workers and
    step size eta, g_i the gradient of worker i,

        mode "async"     theta <- theta - eta * w(tau) * g_i(theta at tau updates ago), each worker at its own pace
        mode "bounded"   the same, but a worker more than `staleness_bound` steps ahead of the slowest waits
        mode "sync"      theta <- theta - eta / N * sum_i n_i g_i over the first m - backup_workers gradients

    The optimizer runs on the server, with one state for all. A step moves S bytes of gradients to the servers and S bytes of
    parameters back, per worker, spread evenly over the servers.

    In the asynchronous modes `num_replicas_in_sync` is 1: `fit(batch_size=)` is the batch of *one* worker's update, and
    workers take batches from the common data whenever they are free.

    Args:
      mode: "async", "bounded" or "sync".
      num_servers: int; default: those that `tfdist run --servers` started, else one that the chief starts.
      server_replicas: 2 to keep each part on two servers, so that the loss of one loses nothing; workers push twice.
      staleness_bound: int >= 0, for mode "bounded".
      backup_workers: int >= 0, for mode "sync": so many gradients of each step are not waited for.
      staleness_weighting: "none", "inverse" or "exponential": w(tau), see `tfdist.staleness.weighting`.
      delay_compensation: float >= 0, lambda0 of the correction lambda g g (theta - theta_then); costs one copy of the
        model per worker on the servers. 0 for none.
      compensation_kind: "constant" or "adaptive" (lambda0 divided by the root of a mean square of the gradient).
      prefetch: 1 to compute the next gradient while the answer to the last push is under way, which makes every gradient one
        round staler (about 2 m - 1 updates, not m - 1); 0 to wait for it. Default: 1 in
        the asynchronous modes with workers on several hosts, else 0.
      sparse_updates: "keras": rows without a gradient move as Keras moves them; "lazy": only touched rows and their moments do.
      not_finite: "raise" a NonFiniteGradientError at a NaN or infinity, or "skip" that gradient.
      group: a `tfdist.comm.Group`; default: the group of this process, formed from its environment.
      seed: int, the seed for the order of the data; default: from rank 0's Python random state.
      timeout: seconds to wait for servers and workers; default: the group's.
      tls: see `RingAllReduceStrategy`.

    Raises:
      ConfigurationError: an argument makes no sense, or Keras runs on another backend than TensorFlow.
      RendezvousError: the group did not form, or a server does not answer.

    References: Li et al., "Scaling distributed machine learning with the parameter server", OSDI 2014; Ho et al., "More
    effective distributed ML via a stale synchronous parallel parameter server", NIPS 2013 ("bounded"); Chen et al.,
    "Revisiting distributed synchronous SGD", 2016 (`backup_workers`); Zheng et al., "Asynchronous stochastic gradient descent
    with delay compensation", ICML 2017 (`delay_compensation`).
    """

    def __init__(self, mode="async", num_servers=None, *, staleness_bound=None, backup_workers=0, staleness_weighting="none",
                 delay_compensation=0.0, compensation_kind="adaptive", prefetch=None, sparse_updates="keras",
                 not_finite="raise", server_replicas=1, group=None, seed=None, timeout=None, tls=None):  # fmt: skip
        check_counts(mode, staleness_bound, backup_workers, num_servers)
        super().__init__(
            mode,
            num_servers=num_servers,
            server_replicas=server_replicas,
            staleness_bound=staleness_bound or 0,
            backup_workers=backup_workers,
            staleness_weighting=staleness_weighting,
            compensation=compensation(delay_compensation, compensation_kind),
            prefetch=prefetch,
            sparse_updates=sparse_updates,
            not_finite=not_finite,
            group=group,
            seed=seed,
            timeout=timeout,
            tls=tls,
        )


def compensation(lambda0, kind="adaptive"):
    """Returns the `DelayCompensation` of lambda0, or None for 0."""
    return DelayCompensation(lambda0, kind) if lambda0 else None


def check_counts(mode, staleness_bound, backup_workers, num_servers):
    """Raises ConfigurationError where a number does not go with the mode."""
    if (mode == "bounded") != (staleness_bound is not None):
        raise ConfigurationError(
            "staleness_bound is expected with mode 'bounded', and only there. "
            f"Received: mode={mode!r}, staleness_bound={staleness_bound!r}. Give both, or neither."
        )
    counts = {
        "staleness_bound": staleness_bound or 0,
        "backup_workers": backup_workers,
        "num_servers": num_servers or 1,
    }
    for name, value in counts.items():
        least = 1 if name == "num_servers" else 0
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigurationError(
                f"{name} is expected to be an integer >= {least}. Received: {name}={value!r}. Correct it."
            )
    if backup_workers and mode != "sync":
        raise ConfigurationError(
            f"backup_workers is expected with mode 'sync' only. Received: backup_workers={backup_workers}, mode={mode!r}. "
            "Asynchronous modes wait for nobody."
        )
