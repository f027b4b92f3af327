"""A Keras optimizer whose parameters and state are on the servers: what `Optimizer.apply` does under a server strategy.

The worker clips and unscales its gradients and pushes them; weight decay, the update rule, moving averages and the count of
updates happen on the server; fresh parameters come back. Keras's own variables are copies: those of the model are fresh
after every step, those of the optimizer when somebody asks (`fetch_state`).
"""

import numpy as np
import tensorflow as tf
from absl import logging

from tfdist.errors import TfdistError
from tfdist.parameter_server import rule_library, rules
from tfdist.parameter_server.client import NOT_FINITE, Tensor
from tfdist.strategies import hosting, server_bridge, state


class ServerOptimizer:
    """The counterpart of one built Keras optimizer.

    Args:
      strategy: the strategy, for client, group and options.
      optimizer: a built `keras.optimizers.Optimizer`.
      statistics: `tf.Variable`s that replicas write, moving statistics, kept with the parameters.
      name: str, the same on all workers.
    """

    def __init__(self, strategy, optimizer, statistics, name):
        self._strategy = strategy
        self._optimizer = optimizer
        self._core = hosting.core_of(optimizer)
        self.variables = list(optimizer._trainable_variables)
        # Workers that are in step make theirs equal by themselves, see `state.reconcile`.
        shares = strategy.world_size > 1 and not strategy.is_in_step
        self._statistics = [v for v in statistics if shares and state.rule_of(v) == "mean"]
        self._rule, reason = hosting.rule_or_reason(optimizer, self.variables, strategy.is_in_step)
        if reason and strategy.is_chief:
            logging.warning("%s is hosted as itself by parameter server 0: %s.", type(optimizer).__name__, reason)
        self._clips = self._rule is not None or not strategy.is_in_step
        self._mirrored = hosting.scalars_of(optimizer) if self._rule is None else []
        self._generation = 0
        self._epoch = None  # of the client's connections, when the parameters were fetched
        self.is_paused = False
        self._positions = {id(v): i for i, v in enumerate(self.variables)}
        self._values = [*self.variables, *self._statistics]
        tensors = [self._tensor(v) for v in self.variables]
        tensors += [Tensor(v.name, tuple(v.shape), v.dtype.name, rules.Rule("add")) for v in self._statistics]
        if self._mirrored:
            tensors.append(Tensor(hosting.MIRROR, (len(self._mirrored),), "float64", rules.Rule("add")))
        hosts = {"may_split": False, "servers": 1} if self._rule is None else {}
        options = hosting.options(strategy.options, optimizer, self._rule, self.variables, clips=self._clips)
        strategy.agree("optimizer", self._description(optimizer, tensors))
        self.store = strategy.client.add_store(name, tensors, options, **hosts)

    def _tensor(self, variable):
        decays = bool(self._core.weight_decay) and self._core._use_weight_decay(variable)
        return Tensor(hosting.path_of(variable), tuple(variable.shape), hosting.dtype_of(variable), self._rule, decays)

    def _description(self, optimizer, tensors):
        """What must be the same on all workers; only the tails of names are."""
        values = {
            "class": type(optimizer).__name__,
            "the update rule": repr(self._rule),
            "number of tensors": len(tensors),
        }
        for i, tensor in enumerate(tensors):
            values[f"tensor {i}"] = f"{tensor.name.rsplit('/')[-1]} {tensor.shape} {tensor.dtype}"
        return values

    # State

    def begin(self):
        """Makes the chief's parameters and optimizer state those of the servers, and of all workers."""
        strategy = self._strategy
        self.flush()
        self._generation += 1
        iterations = int(strategy.share_bytes(str(int(self._core._iterations.numpy())).encode()))
        if strategy.is_chief:
            self._write(iterations)
        strategy.barrier("the servers have the chief's parameters")
        self.store.begin(self._generation, iterations)
        self.fetch_parameters()
        self._core._iterations.assign(iterations)
        self.resume()
        strategy.barrier("all workers have them")

    def _write(self, iterations):
        while True:  # again, if a server was lost before all was written
            epoch = self._strategy.client.epoch
            self.store.write(0, [*[_array(v) for v in self._values], *self._mirror()])
            self._write_state()
            self.store.begin(self._generation, iterations, scalars=self._scalars(iterations), tell=True)
            if epoch == self._strategy.client.epoch:
                return

    def join(self):
        """Takes part with what the servers have, as a worker does that is started again: no other worker waits for it."""
        self._generation = self.store.join()
        self.fetch_parameters()
        self.fetch_state()
        self.resume()

    def pause(self):
        """Waits until this worker's pushes are applied; nobody waits for further ones."""
        client = self._strategy.client
        self.flush()
        while True:
            epoch = client.epoch
            if epoch != self._epoch:  # a server that was lost is to hear of the last pushes before nobody asks for them
                self.fetch_parameters()
            self.store.set_active(False)
            if epoch == client.epoch:
                break
        self.is_paused = True

    def flush(self):
        """Waits until the servers have applied everything that this worker has pushed."""
        self.store.flush(self._sent())

    def _sent(self):
        """What the servers sent last, in case that one of them is lost and another one takes its place."""
        if not self._strategy.client.recovers:
            return None
        return [np.asarray(_array(v), order="C") for v in self._values] + self._mirror()

    def resign(self):
        """Tells the servers not to count on this worker any more; never fails."""
        try:
            self.store.set_active(False)
        except TfdistError as error:
            logging.debug("resign: %s", error)

    def resume(self):
        """Tells the servers to count on this worker's pushes."""
        self.store.set_active(True)
        self.is_paused = False

    def fetch_parameters(self):
        """Makes the model's variables those of the servers."""
        arrays = [np.empty(tuple(v.shape), _dtype(v)) for v in self._values]
        mirror = [np.empty(len(self._mirrored))] if self._mirrored else []
        self._epoch = self._strategy.client.epoch
        updates = self.store.read(0, [*arrays, *mirror], self._sent())
        for variable, array in zip(self._values, arrays):
            variable.assign(array)
        self._core._iterations.assign(updates)
        for variable, value in zip(self._mirrored, mirror[0] if mirror else ()):
            variable.assign(value)

    def fetch_state(self):
        """Makes the optimizer's variables those of the servers."""
        if self._rule is None:
            hosting.fetch(self.store, self._optimizer)
            return
        for slot, variables in self._slots():
            arrays = [np.empty(tuple(v.shape), _dtype(v)) for v in variables]
            self.store.read(slot, [*arrays, *[None] * len(self._statistics)])
            for variable, array in zip(variables, arrays):
                variable.assign(array)
        product = rules.scalar_variable(self._optimizer)
        if product is not None:
            product.assign(self.store.scalars()[0])

    def _write_state(self):
        if self._rule is None:
            hosting.send(self.store, self._optimizer)
            return
        for slot, variables in self._slots():
            self.store.write(slot, [*[_array(v) for v in variables], *[None] * len(self._statistics)])

    def _slots(self):
        """Yields the number of each array beside the parameters, and the optimizer's variables it belongs to."""
        slots = rules.slot_variables(self._optimizer, self.variables)
        for number in range(len(self._rule.slot_names)):
            yield number + 1, [slots[i][number] for i in range(len(self.variables))]
        if self._optimizer.use_ema:
            yield len(self._rule.slot_names) + 1, self._optimizer._model_variables_moving_average

    def _scalars(self, iterations):
        product = None if self._rule is None else rules.scalar_variable(self._optimizer)
        return () if product is None else (float(product.numpy()), float(product.numpy()), float(iterations))

    def _mirror(self):
        return [np.array([float(v.numpy()) for v in self._mirrored])] if self._mirrored else []

    # Steps

    def reads_by_row(self, variable):
        """Returns the position of a variable among the store's tensors, or None if the servers do not keep it."""
        return self._positions.get(id(variable))

    def apply(self, step, gradients, variables):
        """Pushes gradients, and makes the variables the fresh parameters; in a graph or eagerly.

        Args:
          step: the current `ReplicaStep`, or None.
          gradients: list of tensors, `tf.IndexedSlices` or None.
          variables: the Keras variables they belong to.
        """
        gradients, variables = self._core._filter_empty_gradients(gradients, variables)  # Keras warns of them
        gradients, weight, is_sum = self._prepared(step, gradients)
        message = server_bridge.Message(self._strategy, self.store)
        for gradient, variable in zip(gradients, variables):
            gradient, position = _fitting(gradient, variable), self._positions[id(variable)]
            if isinstance(gradient, tf.IndexedSlices):
                is_read_by_row = step is not None and id(variable) in step.read_by_row
                message.add_rows(position, self._summed(gradient), _value(variable), is_whole=not is_read_by_row)
            else:
                message.add_dense(position, gradient, _value(variable))
        self._add_statistics(step, message)
        if self._mirrored:
            position = len(self._values)
            known = tf.stack([tf.cast(_value(variable), tf.float64) for variable in self._mirrored])
            message.add_dense(position, tf.zeros([len(self._mirrored)], tf.float64), known)
        not_finite = NOT_FINITE["pass"] if hosting.scales_loss(self._optimizer) else self._strategy.not_finite
        fresh, updates = message.exchange(self._core.learning_rate, weight, is_sum, not_finite)
        for position, value in fresh.items():
            if position < len(self._values):
                self._values[position].assign(value)
        if self._mirrored:
            for i, variable in enumerate(self._mirrored):
                variable.assign(tf.cast(fresh[len(self._values)][i], variable.dtype))
        else:
            self._core._iterations.assign(tf.cast(updates, self._core._iterations.dtype))

    def _prepared(self, step, gradients):
        """What Keras does to gradients before the update rule, but for what needs those of all workers."""
        optimizer, weight, is_sum = self._optimizer, 1, False
        if self._strategy.is_in_step and step is not None:
            op, factor = step.gradient_rule()
            is_sum = op == "sum"
            if is_sum and step.may_be_empty:
                gradients = [state.mask(step.has_rows(), gradient) for gradient in gradients]
            if not is_sum and not step.has_equal_shares():
                weight = step.weight()
            gradients = [state.scaled(gradient, factor) for gradient in gradients]
        elif self._strategy.mode == "sync" and step is not None:
            weight = step.weight()
        scale = optimizer.dynamic_scale if hosting.scales_loss(optimizer) else self._core.loss_scale_factor
        if scale is not None:
            gradients = [
                state.scaled(gradient, 1 / tf.cast(tf.convert_to_tensor(scale), gradient.dtype))
                for gradient in gradients
            ]
        return (self._core._clip_gradients(gradients) if self._clips else gradients), weight, is_sum

    def _summed(self, gradient):
        """Sums rows of equal index, where only their sum counts, so that each row travels once."""
        lazy = self._strategy.options.is_lazy and self._rule is not None
        if not lazy and not (self._rule is not None and rule_library.is_linear_in_gradient(self._rule)):
            return gradient
        indices, positions = tf.unique(gradient.indices)
        values = tf.math.unsorted_segment_sum(gradient.values, positions, tf.size(indices))
        return tf.IndexedSlices(values, indices, gradient.dense_shape)

    def _add_statistics(self, step, message):
        """Moving statistics go along as what this step has added to them, averaged over the workers."""
        if step is None:
            return
        for i, variable in enumerate(self._statistics):
            if id(variable) in step.written:
                old = step.written[id(variable)][1]
                share = 1 if self._strategy.mode == "sync" else self._strategy.world_size
                delta = (variable.read_value() - old) / tf.cast(share, variable.dtype)
                sent = variable if self._strategy.prefetch else old
                message.add_dense(len(self.variables) + i, delta, sent)


def _fitting(gradient, variable):
    """A gradient may be of another type than its variable, and Keras casts it; servers know the variable's only."""
    if isinstance(gradient, tf.IndexedSlices):
        values = tf.cast(gradient.values, variable.dtype)
        return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
    gradient = tf.cast(gradient, variable.dtype)
    return gradient if gradient.shape == variable.shape else tf.ensure_shape(gradient, variable.shape)


def _value(variable):
    return variable if isinstance(variable, tf.Variable) else variable.value


def _dtype(variable):
    return variable.dtype if isinstance(variable.dtype, str) else variable.dtype.as_numpy_dtype


def _array(variable):
    return np.asarray(variable.numpy())
