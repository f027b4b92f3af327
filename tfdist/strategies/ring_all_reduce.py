"""The ring between the devices of one process, for `tf.distribute.MirroredStrategy`."""

import tensorflow as tf

from tfdist.collectives import ALGORITHMS, interpret


class RingAllReduce(tf.distribute.CrossDeviceOps):
    """Reduces gradients around a ring of the devices of one process.

    Hand it to `MirroredStrategy` where one process drives several accelerators; with one process per accelerator use
    `RingAllReduceStrategy`. The tensors of each device are packed per dtype and cut into P chunks, one per device;
    chunks are summed while they travel around the ring, then the sums travel around once more. Each device sends and
    receives 2 (P - 1) / P S bytes, P devices, S bytes of gradients, and none is a bottleneck. The plan is the
    one that the workers of `RingAllReduceStrategy` follow. All devices end with the same bits.

    `tf.IndexedSlices` are concatenated. Anything but an all-reduce among equal devices is left to
    `tf.distribute.ReductionToOneDevice`.

    Example:

    ```python
    strategy = tf.distribute.MirroredStrategy(cross_device_ops=tfdist.RingAllReduce())
    ```

    Reference: Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations", 2009.
    """

    def __init__(self):
        super().__init__()
        self._elsewhere = tf.distribute.ReductionToOneDevice()

    def reduce_implementation(self, reduce_op, per_replica_value, destinations, options):
        return self.batch_reduce_implementation(reduce_op, [(per_replica_value, destinations)], options)[0]

    def batch_reduce_implementation(self, reduce_op, value_destination_pairs, options):
        results = [None] * len(value_destination_pairs)
        dense = {}
        for i, (value, destinations) in enumerate(value_destination_pairs):
            devices = _devices(value)
            if devices is None or devices != _devices(destinations):
                results[i] = self._elsewhere.reduce(reduce_op, value, destinations, options)
            elif isinstance(value.values[0], tf.IndexedSlices):
                results[i] = _mirrored(value, _concatenate_slices(value.values, devices, reduce_op))
            else:
                dense.setdefault((devices, value.values[0].dtype), []).append(i)
        for (devices, _), indices in dense.items():
            values = [value_destination_pairs[i][0] for i in indices]
            reduced = _all_reduce([value.values for value in values], devices, reduce_op)
            for i, value, tensors in zip(indices, values, reduced):
                results[i] = _mirrored(value, tensors)
        return results

    def _gather_implementation(self, per_replica_value, destinations, axis, options):
        devices = _devices(per_replica_value)
        if devices is None or devices != _devices(destinations):
            return self._elsewhere._gather(per_replica_value, destinations, axis, options)
        values, num_devices = per_replica_value.values, len(devices)
        chunks = [_ChunksOfDevice([None] * num_devices, device) for device in devices]
        for own, (rank, value) in zip(chunks, enumerate(values)):
            own[rank] = value
        interpret(_plans("all_gather", num_devices), chunks, reduce=None)
        gathered = []
        for own in chunks:
            with tf.device(own.device):
                gathered.append(tf.concat(list(own), axis))
        return _mirrored(per_replica_value, gathered)


class _ChunksOfDevice(list):
    """The chunks that a device holds; whatever is put in is copied to the device."""

    def __init__(self, chunks, device):
        super().__init__(chunks)
        self.device = device

    def __setitem__(self, index, value):
        with tf.device(self.device):
            super().__setitem__(index, tf.identity(value))


def _all_reduce(tensors, devices, reduce_op):
    """Reduces lists of tensors, one list per value and one tensor per device, all of one dtype."""
    num_devices = len(devices)
    chunks = []
    for rank, device in enumerate(devices):
        with tf.device(device):
            packed = tf.concat([tf.reshape(value[rank], [-1]) for value in tensors], axis=0)
            ends = [tf.size(packed, tf.int64) * i // num_devices for i in range(num_devices + 1)]
            parts = [packed[ends[i] : ends[i + 1]] for i in range(num_devices)]
        chunks.append(_ChunksOfDevice(parts, device))
    interpret(_plans("all_reduce", num_devices), chunks, reduce=_add)
    unpacked = []
    for rank, own in enumerate(chunks):
        with tf.device(own.device):
            packed = tf.concat(list(own), axis=0)
            if reduce_op == tf.distribute.ReduceOp.MEAN:
                packed = packed / tf.cast(num_devices, packed.dtype)
            unpacked.append(_unpack(packed, [value[rank] for value in tensors]))
    return list(zip(*unpacked))


def _add(own, received):
    with tf.device(own.device):
        return own + received


def _unpack(packed, like):
    sizes = [tf.size(tensor) for tensor in like]
    parts = tf.split(packed, sizes, num=len(sizes))
    return [tf.ensure_shape(tf.reshape(part, tf.shape(tensor)), tensor.shape) for part, tensor in zip(parts, like)]


def _concatenate_slices(slices, devices, reduce_op):
    gathered = []
    for device in devices:
        with tf.device(device):
            values = tf.concat([part.values for part in slices], axis=0)
            if reduce_op == tf.distribute.ReduceOp.MEAN:
                values = values / tf.cast(len(devices), values.dtype)
            indices = tf.concat([part.indices for part in slices], axis=0)
            gathered.append(tf.IndexedSlices(values, indices, slices[0].dense_shape))
    return gathered


def _plans(collective, num_devices):
    steps = ALGORITHMS[collective].steps
    return [list(steps(rank, num_devices)) for rank in range(num_devices)]


def _devices(value):
    """Returns the devices of a distributed value in order, or None for anything else."""
    values = getattr(value, "values", None) if isinstance(value, tf.distribute.DistributedValues) else None
    if not values or not all(part.device for part in values):
        return None
    return tuple(part.device for part in values)


def _mirrored(like, tensors):
    """Returns `tensors`, one per device, as the kind of value that TensorFlow's own operations return."""
    kind = type(tf.distribute.ReductionToOneDevice().broadcast(tf.constant(0.0), like))
    return kind(tuple(tensors))
