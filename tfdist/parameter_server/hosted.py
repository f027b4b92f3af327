"""A Keras optimizer hosted as itself: whatever has no native rule is applied by Keras, in the server's process.

TensorFlow is imported when the first such optimizer arrives, and only then. The parameters stay in the memory of the native
core; Keras's variables are copies that are written back after every update.
"""

import ctypes
import importlib
import os
import sys
import threading

import numpy as np

from tfdist.errors import ConfigurationError
from tfdist.parameter_server import library

MIRROR = "mirror of the optimizer's scalars"


class HostedOptimizer:
    """Applies gradients by a Keras optimizer.

    Args:
      description: dict of JSON: "optimizer" as `keras.optimizers.serialize` gives it, and "path", where user classes may
        be imported from.
      shards: the declared shards, whole tensors in the order of the optimizer's variables; last the mirror of its scalars.

    Raises:
      ConfigurationError: the optimizer cannot be made here.
    """

    def __init__(self, description, shards):
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        sys.path.extend(entry for entry in description["path"] if entry not in sys.path and os.path.isdir(entry))
        import keras

        keras.config.set_floatx(description["floatx"])
        self._lock = threading.Lock()
        self._shards = shards
        self.optimizer = _make(keras, description["optimizer"])
        self._trained = [s for s in shards if s["name"] != MIRROR and s["rule"] is None]
        self._variables = []
        self._is_resumed = False
        shared = zip(self._trained, description["constraints"], description["overwritten"])
        for shard, constraint, is_overwritten in shared:
            variable = keras.Variable(
                np.zeros(shard["shape"]), dtype=shard["dtype"], name=shard["name"].replace("/", "_")
            )
            variable.constraint = constraint and keras.constraints.deserialize(constraint)
            variable.overwrite_with_gradient = is_overwritten
            self._variables.append(variable)
        fixed = [v for v, shard in zip(self._variables, self._trained) if not shard["decays"]]
        decaying = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        if fixed and decaying.weight_decay:
            decaying.exclude_from_weight_decay(var_list=fixed)
        self.optimizer.build(self._variables)
        self._scales = isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer)
        self.callback = library.HOST(self._apply)

    def resume(self):
        """The parameters may be newer than these variables when the first gradient comes: workers offer what they have."""
        self._is_resumed = True

    def attach(self, array):
        """Takes `array(shard)`, which gives the address of a shard's parameters."""
        self._array = array

    @property
    def num_variables(self):
        return len(state_of(self.optimizer))

    def read(self, index, begin, count):
        """Returns `count` bytes of one of the optimizer's variables; None for all."""
        with self._lock:
            data = np.asarray(state_of(self.optimizer)[index].numpy()).tobytes()
            return data[begin:] if count is None else data[begin : begin + count]

    def write(self, index, begin, value):
        """Sets bytes of one of the optimizer's variables."""
        with self._lock:
            variable = state_of(self.optimizer)[index]
            array = np.array(variable.numpy(), order="C")
            data = bytearray(array.tobytes())
            data[begin : begin + len(value)] = value
            variable.assign(np.frombuffer(bytes(data), array.dtype).reshape(array.shape))

    def mirrored(self):
        """Returns the optimizer's scalars that workers follow, float64 in the order of `scalars_of`."""
        return np.array([float(variable.numpy()) for variable in scalars_of(self.optimizer)], np.float64)

    def load_parameters(self):
        """Takes the parameters that a worker has written."""
        with self._lock:
            for index, variable in self._indexed():
                variable.assign(self._memory(index))
            self._tell_scalars()

    def _indexed(self):
        indices = [i for i, s in enumerate(self._shards) if s["name"] != MIRROR and s["rule"] is None]
        return list(zip(indices, self._variables))

    def _apply(self, context, gradients, num_gradients, learning_rate, text, capacity):
        try:
            with self._lock:
                self._update([gradients[i] for i in range(num_gradients)], learning_rate)
            return 0
        except Exception as error:  # nothing may escape into the native core; the worker is told
            message = f"{type(self.optimizer).__name__} failed: {type(error).__name__}: {error}".encode()[
                : capacity - 1
            ]
            ctypes.memmove(text, message + b"\0", len(message) + 1)
            return 5

    def _update(self, gradients, learning_rate):
        import tensorflow as tf

        given = {gradient.shard: gradient for gradient in gradients}
        scale = float(self.optimizer.dynamic_scale.numpy()) if self._scales else 1.0
        self.optimizer.learning_rate = learning_rate
        if self._is_resumed:
            self._is_resumed = False
            for index, variable in self._indexed():
                variable.assign(self._memory(index))
            self._take_scalars()
        pairs = []
        for index, variable in self._indexed():
            if index in given:
                pairs.append((self._gradient(tf, given[index], index, variable, scale), variable))
        self.optimizer.apply(*zip(*pairs))
        for index, variable in self._indexed():
            self._memory(index)[...] = variable.numpy()
        self._tell_scalars()

    def _gradient(self, tf, gradient, index, variable, scale):
        shape, dtype = tuple(variable.shape), variable.dtype
        if not gradient.rows:
            values = tf.constant(memory(gradient.values, shape, dtype).copy())
            return values * tf.cast(scale, values.dtype) if scale != 1 else values
        rows = memory(gradient.rows, (gradient.num_rows,), "int64").copy()
        values = tf.constant(memory(gradient.values, (gradient.num_rows, *shape[1:]), dtype).copy())
        values = values * tf.cast(scale, values.dtype) if scale != 1 else values
        return tf.IndexedSlices(values, tf.constant(rows), tf.constant(shape, tf.int64))

    def _memory(self, index):
        shard = self._shards[index]
        return memory(self._array(index), shard["shape"], shard["dtype"])

    def _take_scalars(self):
        """A worker may have offered newer ones than those of the snapshot."""
        for index, shard in enumerate(self._shards):
            if shard["name"] == MIRROR:
                for variable, value in zip(scalars_of(self.optimizer), self._memory(index).tolist()):
                    variable.assign(np.asarray(value).astype(variable.dtype))

    def _tell_scalars(self):
        for index, shard in enumerate(self._shards):
            if shard["name"] == MIRROR:
                self._memory(index)[...] = self.mirrored()


def scalars_of(optimizer):
    """Returns the scalar variables of a Keras optimizer but for its learning rate: iterations, the loss scale..."""
    return [variable for variable in state_of(optimizer) if tuple(variable.shape) == ()]


def state_of(optimizer):
    """Returns the variables of a Keras optimizer but for its learning rate, which comes with every push."""
    return [variable for variable in optimizer.variables if not variable.name.endswith("learning_rate")]


def memory(pointer, shape, dtype):
    """Returns the memory at `pointer` as an array; it is neither copied nor kept alive."""
    if dtype == "bfloat16":
        import ml_dtypes

        dtype = ml_dtypes.bfloat16
    dtype = np.dtype(dtype)
    count = int(np.prod(shape, dtype=np.int64))
    buffer = (ctypes.c_char * (count * dtype.itemsize)).from_address(pointer)
    return np.frombuffer(buffer, dtype, count).reshape(shape)


def _make(keras, serialized):
    """User classes are imported from their module; nothing is unpickled."""
    module, name = serialized.get("module") or "", serialized["class_name"]
    custom = {}
    for part in _parts(serialized):
        if (part.get("module") or "").split(".")[0] != "keras":
            custom.update(_import(part))
    try:
        return keras.saving.deserialize_keras_object(serialized, custom_objects=custom)
    except Exception as error:  # whatever a user's class raises
        raise ConfigurationError(
            f"The optimizer {module}.{name} was expected to be made anew from its configuration. Received: "
            f"{type(error).__name__}: {error}. Give it get_config() and from_config()."
        ) from error


def _parts(value):
    if isinstance(value, dict):
        if "class_name" in value and "config" in value:
            yield value
        for inner in value.values():
            yield from _parts(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _parts(inner)


def _import(part):
    module, name = part.get("module") or "", part["class_name"]
    try:
        if module == "__main__" or not module:
            raise ImportError("it is defined in the script itself")
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(
            f"The optimizer {name} runs on the parameter server, which imports its class. Received: module {module!r}: {error}. "
            "Put the class into a module of its own that can be imported there."
        ) from error
    return {name: found, part.get("registered_name") or name: found}
