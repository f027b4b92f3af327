"""`fit` with parameter servers: the chief's state goes up, all come to the end of an epoch together, and the state comes back."""

import keras
import numpy as np
import tensorflow as tf

from tfdist.strategies import hosting, server_bridge, state
from tfdist.strategies import step as replica_step


def servers_of(model):
    """Returns the model's strategy if parameter servers belong to it, else None."""
    strategy = model.distribute_strategy
    return strategy if getattr(strategy, "uses_servers", False) else None


class Logs(keras.callbacks.Callback):
    """Gives a worker that had no batch in an epoch the logs of the others; comes before every callback that reads them."""

    def on_epoch_end(self, epoch, logs=None):
        from tfdist.strategies import keras_trainer

        if all(name.startswith("val_") for name in logs):
            logs.update(keras_trainer.current_call().epoch_logs)


class Training(keras.callbacks.Callback):
    """Begins training on the servers; comes after every callback that restores something.

    Args:
      strategy: the strategy.
    """

    def __init__(self, strategy):
        super().__init__()
        self._strategy = strategy
        self._joining = None
        self._has_begun_epoch = False

    def on_train_begin(self, logs=None):
        from tfdist.strategies import keras_joining

        optimizer = self.model.optimizer
        if not optimizer.built:
            optimizer.build(self.model.trainable_variables)
        if self._strategy.elastic is not None:
            self._joining = keras_joining.Joining(self._strategy, self.model)
            if self._strategy.elastic.is_joining:
                self._joining.join()
                return
        known = self._strategy.known_optimizers(optimizer)
        for part in known:
            part.begin()
        if not known:
            statistics = [v.value for v in self.model.non_trainable_variables]
            for part in hosting.parts_of(optimizer):
                self._strategy.optimizer_of(part, statistics)
                statistics = []

    def on_epoch_begin(self, epoch, logs=None):
        is_late, self._has_begun_epoch = self._has_begun_epoch, True
        if self._joining is not None and self._joining.begin_epoch():
            return
        for optimizer in self._strategy.optimizers():
            optimizer.resume()
        self._strategy.barrier("an epoch begins")
        if self._joining is not None:
            self._joining.admit(epoch, is_late)

    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = _any(self._strategy, self.model.stop_training)


def end_of_fit(strategy, model):
    """Brings the optimizer's state back; returns when every worker's updates are applied."""
    for known in strategy.known_optimizers(model.optimizer):
        known.fetch_state()
    strategy.barrier("fit ends")


def abandon(strategy):
    """Nobody shall wait for this worker any longer: it has failed."""
    for optimizer in strategy.optimizers():
        optimizer.resign()


def get_metrics_result(original, model):
    """Stands in for `Model.get_metrics_result`, which `fit` calls when the last batch of an epoch is done."""
    from tfdist.strategies import keras_trainer

    strategy, call = servers_of(model), keras_trainer.current_call()
    is_end_of_epoch = strategy is not None and call is not None and call.is_fit and replica_step.current() is None
    if not is_end_of_epoch or not tf.executing_eagerly():
        return original(model)
    _end_epoch(strategy, model)
    call.epoch_logs = original(model)
    return call.epoch_logs


def _end_epoch(strategy, model):
    strategy.leave_epoch()
    for optimizer in strategy.optimizers():
        optimizer.pause()
    if not strategy.is_in_step:
        _combine_metrics(strategy, model)
        model.stop_training = _any(strategy, model.stop_training)
    strategy.barrier("an epoch ends")
    for optimizer in strategy.optimizers():
        optimizer.fetch_parameters()
    for part, known in zip(hosting.parts_of(model.optimizer), strategy.known_optimizers(model.optimizer)):
        if getattr(part, "use_ema", False):
            known.fetch_state()  # the moving average, which Keras may put in place of the parameters
    strategy.barrier("all have the parameters")


def _combine_metrics(strategy, model):
    """Adds up what each worker's metrics have counted in this epoch."""
    variables = [v.value for v in model.metrics_variables]
    variables = [v for v in variables if state.rule_of(v) in ("sum", "batch")]
    values = [np.ravel(v.numpy()).astype(np.float64) for v in variables]
    total = strategy.total(np.concatenate(values) if values else np.zeros(0))
    begin = 0
    for variable, value in zip(variables, values):
        part = total[begin : begin + value.size].reshape(variable.shape)
        variable.assign(tf.cast(part, variable.dtype))
        begin += value.size


def _any(strategy, flag):
    return bool(strategy.total(np.array([float(flag)]))[0])


def embedding(original, layer, inputs):
    """Stands in for `Embedding.call`: in a step, the rows that it reads come from the servers.

    The local table is not touched by that, and may be old; it is made fresh when an epoch ends.
    """
    outputs = original(layer, inputs)
    table = _known_table(layer, inputs)
    if table is None:
        return outputs
    strategy, store, position = table
    indices, positions = tf.unique(tf.reshape(tf.cast(inputs, tf.int64), [-1]))
    variable = layer.embeddings
    dtype = tf.as_dtype(variable.dtype)
    rows = server_bridge.pull_rows(strategy, store, position, indices, tuple(variable.shape), dtype)
    fresh = tf.reshape(tf.gather(rows, positions), tf.shape(outputs))
    return _instead(outputs, tf.cast(fresh, outputs.dtype))


def _known_table(layer, inputs):
    step = replica_step.current()
    is_plain = type(layer) is keras.layers.Embedding and not layer.lora_enabled
    if step is None or not step.strategy.uses_servers or step.kind not in (replica_step.TRAIN, replica_step.FUNCTION):
        return None
    if not is_plain or getattr(layer, "quantization_mode", None) or not isinstance(inputs, tf.Tensor):
        return None
    for optimizer in step.strategy.optimizers():
        position = optimizer.reads_by_row(layer.embeddings)
        if position is not None:
            step.read_by_row.add(id(layer.embeddings))
            return step.strategy, optimizer.store, position
    return None


@tf.custom_gradient
def _instead(old, fresh):
    """Returns `fresh`; its gradient is that of `old`."""
    return tf.identity(fresh), lambda upstream: (upstream, None)


def fetch_for_saving(strategy, model):
    """Makes the model's and the optimizer's variables the global ones, where a `fit` is going on.

    Between two epochs the parameters are fresh, and so is a moving average; a callback may have swapped them by intent.
    """
    if not _in_fit():
        return
    for known in strategy.known_optimizers(getattr(model, "optimizer", None)):
        if not known.is_paused:
            known.flush()
            known.fetch_parameters()
        if not (known.is_paused and getattr(model.optimizer, "use_ema", False)):
            known.fetch_state()


def _in_fit():
    from tfdist.strategies import keras_trainer

    call = keras_trainer.current_call()
    return call is not None and call.is_fit
