"""What the strategies of one replica per process share: the `tf.distribute` face without the algorithm.

Variables are plain `tf.Variable`s, equal on all workers; a replica function runs once per process, in the process
itself. A strategy adds how gradients travel (`AbstractReplicaStrategy.reduce_gradients`).
"""

import abc
import contextlib
import itertools
import threading
import weakref

import tensorflow as tf

from tfdist.data import reusable, shares
from tfdist.strategies import devices, elastic, initial_value, state, tensorflow_seed
from tfdist.strategies import rows as batch_rows
from tfdist.strategies import step as replica_step
from tfdist.strategies.keras_steps import describe, finish
from tfdist.strategies.replica_context import WeightedReplicaContext
from tfdist.testing import faults


class AbstractReplicaStrategy(tf.distribute.Strategy, abc.ABC):
    """A strategy with one replica per process.

    `wire_dtype` is what float32 gradients travel as, a str; None for float32.

    Args:
      group: the `tfdist.comm.Group` whose ranks train together; None for a single worker.
      seed: int or None, the seed of everything that must be drawn alike on all workers (order of the data).
    """

    wire_dtype = None
    is_in_step = True  # every worker takes every step, and replicas are equal after each
    uses_servers = False  # `Optimizer.apply` goes to parameter servers

    def __init__(self, group, seed=None):
        self.worker_group = group
        self.rank = group.rank if group else 0
        self.world_size = group.world_size if group else 1
        self.elastic = elastic.of(group)
        self.seed = seed
        self.num_fit_calls = 0
        super().__init__(ReplicaExtended(self))

    @abc.abstractmethod
    def all_reduce(self, tensors, op="sum", **options):
        """Combines `tensors` over all workers; see `graph_bridge.all_reduce`, also for the options."""

    @abc.abstractmethod
    def broadcast(self, tensor, root=0, name=""):
        """Returns rank `root`'s `tensor` on every worker."""

    @abc.abstractmethod
    def all_gather(self, tensor, name=""):
        """Returns the tensors of all workers, concatenated along the first axis in the order of ranks."""

    @property
    def num_gradients_of_update(self):
        """How many workers' gradients make an update: `num_replicas_in_sync`."""
        return self.world_size

    @property
    def is_chief(self):
        """Whether this worker is the one that writes files and shows progress."""
        if self.elastic is not None:
            return self.elastic.is_chief
        return self.rank == 0

    @property
    def acts_alone(self):
        """Whether what this worker does now concerns no other one."""
        return self.world_size == 1 or (self.elastic is not None and self.elastic.is_passing)

    @property
    def share_of_data(self):
        """`(index, count)`: this worker's place among those that divide the data now."""
        return (self.rank, self.world_size) if self.elastic is None else self.elastic.share_of_data

    def run(self, fn, args=(), kwargs=None, options=None):
        """Runs `fn` on this worker's share of the data; see `tf.distribute.Strategy.run`."""
        with self.extended.called_function(fn):
            return super().run(fn, args=args, kwargs=kwargs, options=options)

    def agree(self, label, values):
        """Raises `MismatchError` on every worker unless `values` (a dict) is the same on all; also a barrier."""
        if not self.acts_alone:
            self.worker_group.agree(label, values)

    def is_common(self, value):
        """Returns whether `value` (anything with a `repr`) is the same on all workers; also a barrier."""
        if self.acts_alone:
            return True
        told = self.worker_group.all_gather_bytes(repr(value).encode())
        return len({text for text in told if text}) == 1  # an empty slot says nothing

    def share_bytes(self, value, root=0, name=None):
        """Returns rank `root`'s `value` (bytes) on every worker; with a `name` on those too that come later."""
        if self.acts_alone:
            return value
        if self.elastic is not None and self.elastic.is_joining and name:
            return self.elastic.recall(name)
        while True:  # `root` may be lost on the way: then all see nothing, and the senior member stands in
            group = self.worker_group
            source = root if root in group.members else group.chief
            told = group.all_gather_bytes(b"=" + value if self.rank == source else b"")
            if any(told):
                value = next(text for text in told if text)[1:]
                if self.is_chief and self.elastic is not None and name:
                    self.elastic.keep(name, value)
                return value


class ReplicaExtended(tf.compat.v1.distribute.StrategyExtended):
    """`strategy.extended` of the strategies of one replica per process."""

    def __init__(self, strategy):
        super().__init__(strategy)
        self._rank = strategy.rank
        self._world_size = strategy.world_size
        self._device = devices.choose(strategy.rank, strategy.world_size)
        self._local = threading.local()
        self._created = itertools.count()
        self._written = {}

    # Replica functions

    def called_function(self, fn):
        """Remembers the function given to `run`, which TensorFlow wraps before it reaches the replica call."""
        return _Called(self._local, fn)

    def _call_for_each_replica(self, fn, args, kwargs):
        strategy = self._container_strategy()
        kwargs = kwargs or {}
        if self._world_size == 1 and not strategy.uses_servers:
            with tf.distribute.ReplicaContext(strategy, 0):
                return fn(*args, **kwargs)
        original = getattr(self._local, "function", None) or fn
        if self._world_size == 1 or not strategy.is_in_step:
            kind, model, sums_loss = describe(original)
            if self._world_size == 1 or kind in (replica_step.TRAIN, replica_step.FUNCTION):
                step = replica_step.ReplicaStep(strategy, kind, model, 1, sums_loss, is_alone=True)
                with tf.distribute.ReplicaContext(strategy, 0), step, tensorflow_seed.FoldedSeed(self._rank):
                    return fn(*args, **kwargs)
        known = shares.current()
        # Where all weigh the same a weight of 1 does.
        rows = 1 if known is shares.Shares.EQUAL else batch_rows.count_rows(args, kwargs)
        kind, model, sums_loss = describe(original)
        step = replica_step.ReplicaStep(strategy, kind, model, rows, sums_loss, known)
        if step.is_keras and step.may_be_empty:
            args, kwargs = batch_rows.pad_empty((args, kwargs))
        with WeightedReplicaContext(strategy, self._rank), step, tensorflow_seed.FoldedSeed(self._rank):
            if kind != replica_step.PREDICT:
                self._expect_writes(step)
            with self._after_data(args, kwargs, rows):
                return finish(step, fn(*args, **kwargs))

    @contextlib.contextmanager
    def _after_data(self, args, kwargs, rows):
        """Notes the number of rows. Operations made in this context run only once the data has come.

        At the end of the data TensorFlow has begun the next step already: a counter that does not depend on the data would
        be raised or not, by chance, and another way on every worker. All of them wait for *one* operation which waits
        for the data: what waits for an input pipeline itself is handed to the thread pool piece by piece.
        """
        if not tf.compat.v1.executing_eagerly_outside_functions():  # a session of TensorFlow 1 nests no functions
            with tf.control_dependencies(_a_tensor(args, kwargs)):
                yield
        elif tf.executing_eagerly():
            self.rows_variable().assign(rows)
            yield
        else:
            with tf.control_dependencies(_a_tensor(args, kwargs)):
                noted = self.rows_variable().assign(rows, read_value=False)
            with tf.control_dependencies([noted]):
                yield

    def rows_variable(self):
        """The row count of this thread's latest call, for functions nested in the replica function."""
        if not hasattr(self._local, "rows"):
            with tf.init_scope(), tf.device("/device:CPU:0"), self.alone():
                self._local.rows = tf.Variable(0, dtype=tf.int64, trainable=False, name="rows")
        return self._local.rows

    # Variables

    def _create_variable(self, next_creator, **kwargs):
        kwargs.pop("colocate_with", None)
        faults.reach("variables")
        step = replica_step.current()
        is_alone = getattr(self._local, "is_alone", False) or (step is not None and step.is_alone)
        if not self._container_strategy().acts_alone and not is_alone:
            strategy = self._container_strategy()
            kwargs["initial_value"] = initial_value.from_chief(strategy, kwargs)
        variable = next_creator(**kwargs)
        if self._world_size > 1 or self._container_strategy().uses_servers:
            variable._tfdist_creation_index = next(self._created)
            if state.rule_of(variable):
                reference = weakref.ref(variable)
                state.watch(variable, lambda: _note_write(reference))
        return variable

    @contextlib.contextmanager
    def alone(self):
        """Variables made in this context keep their own initial values: not all workers make them."""
        outer = getattr(self._local, "is_alone", False)
        self._local.is_alone = True
        try:
            yield
        finally:
            self._local.is_alone = outer

    def creation_index(self, variable):
        """Returns the position of `variable` in the order of creation, the same on all workers."""
        return getattr(variable, "_tfdist_creation_index", -1)

    def remember_written(self, variable, nested):
        """Records that replica functions write `variable`; `nested`: from inside a nested function."""
        known = self._written.get(id(variable))
        self._written[id(variable)] = (weakref.ref(variable), nested or bool(known and known[1]))

    def _expect_writes(self, step):
        """A function traced earlier writes without passing our eyes: expect what was ever written from inside one.

        Nothing more: which variables of earlier models are still alive is up to the garbage collector of each worker.
        """
        for key, (reference, nested) in list(self._written.items()):
            variable = reference()
            if variable is None:
                del self._written[key]
            elif nested:
                step.expect_write(variable)

    # Communication

    def _use_merge_call(self):
        return False

    def _replica_ctx_all_reduce(self, reduce_op, value, options=None):
        step = replica_step.current()
        if self._world_size == 1 or (step and (step.optimizer_depth or step.is_alone)):
            return value
        flat = tf.nest.flatten(value)
        op = _name_of(reduce_op)
        if step and step.is_keras and op == "sum" and step.may_be_empty:
            flat = [state.mask(step.has_rows(), tensor) for tensor in flat]
        return tf.nest.pack_sequence_as(value, self._container_strategy().all_reduce(flat, op, name="all_reduce"))

    def _replica_ctx_update(self, var, fn, args=(), kwargs=None, group=True):
        return self._update(var, fn, args, kwargs or {}, group)

    def _is_alone(self):
        """Whether what is combined now is of this worker only: asynchronous workers are not at the same place."""
        step = replica_step.current()
        return self._world_size == 1 or (step.is_alone if step else not self._container_strategy().is_in_step)

    def _reduce_to(self, reduce_op, value, destinations, options):
        if self._is_alone():
            return value
        flat = [_as_tensor(leaf) for leaf in tf.nest.flatten(value)]
        reduced = self._container_strategy().all_reduce(flat, _name_of(reduce_op), name="reduce")
        return tf.nest.pack_sequence_as(value, reduced)

    def _batch_reduce_to(self, reduce_op, value_destination_pairs, options):
        values = [value for value, _ in value_destination_pairs]
        return self._reduce_to(reduce_op, values, None, options)

    def _gather_to_implementation(self, value, destinations, axis, options):
        if self._is_alone():
            return value
        value = tf.convert_to_tensor(value)
        axis = axis + value.shape.rank if axis < 0 else axis
        order = [axis, *(i for i in range(value.shape.rank) if i != axis)]
        gathered = self._container_strategy().all_gather(tf.transpose(value, order), name="gather")
        return tf.transpose(gathered, [order.index(i) for i in range(value.shape.rank)])

    def _broadcast_to(self, tensor, destinations):
        return tensor

    def _update(self, var, fn, args, kwargs, group):
        result = fn(var, *args, **kwargs)
        return result if group else tf.nest.map_structure(self._local_results, result)

    def _update_non_slot(self, colocate_with, fn, args, kwargs, group):
        result = fn(*args, **kwargs)
        return result if group else tf.nest.map_structure(self._local_results, result)

    # Data

    def _experimental_distribute_dataset(self, dataset, options):
        from tfdist.strategies import keras_trainer

        strategy, call = self._container_strategy(), keras_trainer.current_call()
        deals = not strategy.is_in_step and (call is None or call.deals_next())
        trains = call is None or call.take_training_data()
        if call is not None and call.is_late and not trains:
            with strategy.elastic.passing():  # the others have seen to it that their data are alike
                return self._distribute(dataset, call, deals, trains)
        distributed = self._distribute(dataset, call, deals, trains)
        if call is not None and trains:
            call.training_data = distributed
        return distributed

    def _distribute(self, dataset, call, deals, trains):
        from tfdist.data import one_shot, recut, sharding, uneven
        from tfdist.strategies import keras_trainer

        strategy = self._container_strategy()
        is_one_shot = keras_trainer.take_one_shot()
        if isinstance(dataset, recut.Recutting):
            return dataset
        if trains and not strategy.is_in_step:
            distributed = sharding.deal(strategy, dataset, deals=deals, look_first=call is not None)
        elif call and strategy.elastic and not is_one_shot and sharding.divides_batches(strategy, dataset):
            return recut.Recutting(strategy, dataset)
        else:
            distributed = sharding.distribute(strategy, dataset)
        if is_one_shot:
            return one_shot.OneShot(distributed)
        if call is None:
            return distributed
        if isinstance(distributed, uneven.InStep):
            return distributed.as_trainer_wants()
        is_known = shares.promised(distributed) is not shares.Shares.UNKNOWN
        return shares.Promising(distributed) if is_known else distributed

    def _distribute_datasets_from_function(self, dataset_fn, options):
        from tfdist.data import sharding

        context = tf.distribute.InputContext(self._world_size, self._rank, self._world_size)
        dataset = dataset_fn(context)
        strategy = self._container_strategy()
        return sharding.keep_in_step(strategy, dataset) if strategy.is_in_step else dataset

    def _make_dataset_iterator(self, dataset):
        return reusable.ReusableIterator(self._experimental_distribute_dataset(dataset, None))

    def _make_input_fn_iterator(self, input_fn, replication_mode=None):
        return reusable.ReusableIterator(self._distribute_datasets_from_function(input_fn, None))

    def _experimental_distribute_values_from_function(self, value_fn):
        context = tf.distribute.experimental.ValueContext(self._rank, self._world_size)
        return value_fn(context)

    def _experimental_make_numpy_dataset(self, numpy_input, session):
        return tf.data.Dataset.from_tensor_slices(numpy_input)

    # Facts

    @property
    def _num_replicas_in_sync(self):
        step = replica_step.current()
        if step is not None and step.strategy is self._container_strategy():
            return step.answer_replica_count()
        return self._container_strategy().num_gradients_of_update

    def _get_local_replica_id(self, replica_id_in_sync_group):
        return 0

    def _get_replica_id_in_sync_group(self, replica_id):
        return self._rank

    def _in_multi_worker_mode(self):
        return False

    def value_container(self, value):
        return value

    def read_var(self, v):
        return v.read_value() if hasattr(v, "read_value") else v

    def non_slot_devices(self, var_list):
        return (self._device,)

    @property
    def worker_devices(self):
        return (self._device,)

    @property
    def parameter_devices(self):
        return (self._device,)

    @property
    def experimental_between_graph(self):
        return True

    @property
    def experimental_should_init(self):
        return True

    @property
    def should_checkpoint(self):
        return self._rank == 0

    @property
    def should_save_summary(self):
        return self._rank == 0

    @property
    def _global_batch_size(self):
        return True


def _a_tensor(args, kwargs):
    leaves = tf.nest.flatten((args, kwargs), expand_composites=True)
    return [leaf for leaf in leaves if isinstance(leaf, tf.Tensor)][:1]


class _Called:
    """The context of `ReplicaExtended.called_function`; a class because it is entered at every eager step."""

    def __init__(self, local, fn):
        self._local = local
        self._fn = fn

    def __enter__(self):
        self._outer = getattr(self._local, "function", None)
        self._local.function = self._fn

    def __exit__(self, *exc_info):
        self._local.function = self._outer


def _note_write(reference):
    step = replica_step.current()
    variable = reference()
    if step is not None and variable is not None:
        step.note_write(variable)


def _name_of(reduce_op):
    return reduce_op.value.lower() if isinstance(reduce_op, tf.distribute.ReduceOp) else str(reduce_op).lower()


def _as_tensor(value):
    return value if isinstance(value, (tf.Tensor, tf.IndexedSlices)) else tf.convert_to_tensor(value)
