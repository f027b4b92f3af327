"""Asynchronous SGD: every worker at its own pace."""

from tfdist.strategies.parameter_server import check_counts, compensation
from tfdist.strategies.server_strategy import AbstractServerStrategy


class AsyncSGDStrategy(AbstractServerStrategy):
    """Trains one model on several workers, none of which waits for another.

    Choose it where workers are unlike, or their speed is uneven: a slow worker costs only its own share. With step size eta,

        theta <- theta - eta * w(tau) * g_i(theta at tau updates ago)

    for each gradient g_i as it arrives; tau, its staleness, is about the number of workers. Every Keras optimizer works in
    place of plain SGD, with one state for all workers, on a parameter server.

    It is `ParameterServerStrategy(mode="async")`, or "bounded" with a `staleness_bound`: see there for the other arguments
    and the cost. `num_replicas_in_sync` is 1: `fit(batch_size=)` is the batch of one update, and with m workers m gradients
    are under way at any time, so a learning rate that is right for one process may have to be lowered for many workers
    (or `staleness_weighting="inverse"` does so).

    Args:
      staleness_bound: None, or an int: a worker more than so many steps ahead of the slowest waits (Ho et al. 2013).
      staleness_weighting: "none", "inverse" (a step is divided by its staleness, Zhang et al. 2016) or "exponential".
      delay_compensation: lambda0 of Zheng et al. 2017, e.g. 2.0; 0 for none.

    Example:

    ```python
    strategy = tfdist.AsyncSGDStrategy()
    with strategy.scope():
        model = keras.Sequential([keras.layers.Dense(10)])
        model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, batch_size=64)
    ```

    References: Dean et al., "Large scale distributed deep networks", NIPS 2012; Recht et al., "Hogwild!", NIPS 2011.
    """

    def __init__(self, staleness_bound=None, staleness_weighting="none", delay_compensation=0.0, *, num_servers=None,
                 compensation_kind="adaptive", prefetch=None, sparse_updates="keras", not_finite="raise",
                 server_replicas=1, group=None, seed=None, timeout=None, tls=None):  # fmt: skip
        mode = "async" if staleness_bound is None else "bounded"
        check_counts(mode, staleness_bound, 0, num_servers)
        super().__init__(
            mode,
            num_servers=num_servers,
            server_replicas=server_replicas,
            staleness_bound=staleness_bound or 0,
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
