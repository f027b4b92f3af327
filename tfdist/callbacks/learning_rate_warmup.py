"""Large batches need a large learning rate, and time to get used to it."""

import keras

from tfdist.errors import ConfigurationError


def scale_at(epoch, warmup_epochs, target):
    """Returns the factor of the learning rate after `epoch` epochs (a float): from 1 to `target`, linearly."""
    if epoch >= warmup_epochs:
        return float(target)
    return 1.0 + (target - 1.0) * epoch / warmup_epochs


class LearningRateWarmup(keras.callbacks.Callback):
    """Raises the learning rate with every batch from its base to k times the base.

    Goyal et al. train with k times the batch size at k times the learning rate (linear scaling) and reach it
    gradually:

        eta(t) = eta_0 (1 + (k - 1) t / T)    for t < T,    k eta_0 from then on

    t in epochs, counted by batches; T = `warmup_epochs`. After the warm-up other callbacks may change the learning rate.

    Args:
      warmup_epochs: float > 0, epochs until the full learning rate; 5 in the paper.
      target: float, the factor k; default: the number of workers.
      base_learning_rate: float, eta_0; default: the optimizer's when training begins at epoch 0.

    Raises:
      ConfigurationError: if `warmup_epochs` is not positive, or the optimizer follows a schedule.

    Reference: Goyal et al., "Accurate, large minibatch SGD: training ImageNet in 1 hour", 2017, sections 2.1 and 2.2.
    """

    def __init__(self, warmup_epochs=5.0, *, target=None, base_learning_rate=None):
        super().__init__()
        if not warmup_epochs > 0:
            raise ConfigurationError(
                f"warmup_epochs must be positive. Received: warmup_epochs={warmup_epochs}. Leave the callback out instead."
            )
        self.warmup_epochs = warmup_epochs
        self.target = target
        self.base_learning_rate = base_learning_rate
        self._steps = None
        self._is_over = False

    def on_train_begin(self, logs=None):
        optimizer = self.model.optimizer
        learning_rate = getattr(optimizer, "_learning_rate", optimizer.learning_rate)
        if callable(learning_rate) and not isinstance(learning_rate, keras.Variable):
            raise ConfigurationError(
                "LearningRateWarmup needs a learning rate that can be set. "
                f"Received: learning_rate={type(learning_rate).__name__}. Let the schedule itself warm up."
            )
        if self.target is None:
            self.target = self.model.distribute_strategy.num_replicas_in_sync
        self._base = self.base_learning_rate or float(keras.ops.convert_to_numpy(optimizer.learning_rate))
        self._steps = (self.params or {}).get("steps")
        self._is_over = False

    def on_epoch_begin(self, epoch, logs=None):
        if epoch and self.base_learning_rate is None and not hasattr(self, "_epoch"):
            self._is_over = epoch >= self.warmup_epochs  # a restored run: the optimizer's rate is the raised one
        self._epoch = epoch
        self._batches = 0

    def on_train_batch_begin(self, batch, logs=None):
        if self._is_over:
            return
        epoch = self._epoch + (batch / self._steps if self._steps else 0.0)
        self.model.optimizer.learning_rate = self._base * scale_at(epoch, self.warmup_epochs, self.target)
        self._is_over = epoch >= self.warmup_epochs

    def on_train_batch_end(self, batch, logs=None):
        self._batches = batch + 1

    def on_epoch_end(self, epoch, logs=None):
        self._steps = self._steps or self._batches
