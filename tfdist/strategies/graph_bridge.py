"""The one way from TensorFlow, eager or inside a tf.function, into the engine.

A collective is a `start` (hands over and returns) per bucket and one `wait`. Every wait stands behind all starts traced
before it, so with however few threads no rank can block in a wait while a start that a peer needs is left undone.
A large tensor is reduced in its own memory where nobody else needs that.
"""

import dataclasses
import hashlib
import weakref

import tensorflow as tf

from tfdist.collectives import choose
from tfdist.comm import library, prepared
from tfdist.comm.buckets import plan_buckets
from tfdist.comm.failures import translated
from tfdist.comm.group import channel_number
from tfdist.comm.tensorflow_library import operations
from tfdist.errors import ConfigurationError

_NO_STEP = -1
# By graph: the tickets of its starts, and how often each call site was traced.
_starts = weakref.WeakKeyDictionary()
_occurrences = weakref.WeakKeyDictionary()
_HALVES = (tf.float16, tf.bfloat16)


def all_reduce(
    tensors,
    op="sum",
    *,
    group,
    weight=None,
    step=None,
    name="all_reduce",
    names=None,
    keep_rows=False,
    wire_dtype=None,
    settings=None,
):
    """Reduces a list of tensors over all ranks, in buckets.

    Args:
      tensors: list of tf.Tensor or tf.IndexedSlices, of equal shapes on all ranks (IndexedSlices: any number of rows).
      op: "sum", "mean", "min", "max" or "product"; IndexedSlices: "sum" or "mean".
      group: `tfdist.comm.Group`.
      weight: None, or a scalar w_i >= 0 of this rank. The result is then sum_i(w_i t_i) / sum_i(w_i), `op` must be
        "mean", and a rank of weight 0 contributes nothing whatever it holds (zeros if all weights are 0).
      step: None, or an integer scalar that must be equal on all ranks.
      name: str, shown in errors.
      names: None, or one str per tensor, shown in errors.
      keep_rows: True hands on the rows of all ranks' IndexedSlices one by one. False lets rows of equal index be summed,
        densely, where that is less to send; the tensor they stand for is the same.
      wire_dtype: None, or "bfloat16" or "float16", what float32 travels as; summed in float32.
      settings: `Settings`; None for the defaults.

    Returns:
      A list like `tensors`. Sum, mean and the weighted mean have gradients.

    Raises:
      ConfigurationError: a dtype or op that cannot be reduced.
      tf.errors.OpError, when run: ranks disagree, a peer is gone or late; `comm.failures.from_tensorflow` translates.
    """
    tensors = [t if isinstance(t, tf.IndexedSlices) else tf.convert_to_tensor(t) for t in tensors]
    _check(tensors, op, weight)
    if group.world_size == 1 or not tensors:
        return tensors
    names = names or [f"tensor {i}" for i in range(len(tensors))]
    result = list(tensors)
    scaling = _scaling(op, weight, group, step, name)
    dense = [i for i, t in enumerate(tensors) if not isinstance(t, tf.IndexedSlices)]
    if dense:
        options = dict(op=op, group=group, scaling=scaling, step=step, name=name, names=[names[i] for i in dense])
        options.update(settings=settings or Settings(), wire_dtype=wire_dtype)
        for i, reduced in zip(dense, _differentiable_all_reduce([tensors[i] for i in dense], **options)):
            result[i] = reduced
    for i, t in enumerate(tensors):
        if isinstance(t, tf.IndexedSlices):
            result[i] = _all_reduce_slices(t, group, scaling, step, f"{name}: {names[i]}", keep_rows)
    return result


def broadcast(tensor, root=0, *, group, name="broadcast"):
    """Returns rank `root`'s tensor on every rank; shape and dtype (any of fixed size) must agree.

    The gradient is the sum over all ranks on `root`, zero elsewhere.
    """
    tensor = tf.convert_to_tensor(tensor)
    if group.world_size == 1:
        return tensor
    plan = group.plan("broadcast", (("root", root),))

    @tf.custom_gradient
    def differentiable(value):
        def gradient(upstream):
            summed = all_reduce([upstream], group=group, name=f"gradient of {name}")[0]
            return summed if group.rank == root else tf.zeros_like(summed)

        description = _describe(f"{name} from rank {root}", [value], ["a tensor"])
        ticket, held = _start([value], "byte", "sum", group, plan, description)
        return _wait([ticket], held, [1], "byte", group)[0], gradient

    return differentiable(tensor)


def all_gather(tensor, *, group, name="all_gather"):
    """Returns the tensors of all ranks one after another on axis 0; their numbers of rows may differ.

    The gradient is this rank's rows of the sum over all ranks.
    """
    tensor = tf.convert_to_tensor(tensor)
    if tensor.shape.rank == 0:
        raise ConfigurationError(
            "tensor is expected to have at least one dimension. Received: a scalar. Pass tensor[None]."
        )
    if group.world_size == 1:
        return tensor

    @tf.custom_gradient
    def differentiable(value):
        ends = _row_ends(value, group, name)

        def gradient(upstream):
            summed = all_reduce([upstream], group=group, name=f"gradient of {name}")[0]
            return summed[ends[group.rank] : ends[group.rank + 1]]

        return _gather_rows(value, ends, group, name), gradient

    return differentiable(tensor)


def _check(tensors, op, weight):
    if op not in library.REDUCTIONS:
        raise ConfigurationError(
            f"op is expected to be one of {', '.join(library.REDUCTIONS)}. Received: op={op!r}. Pick one of them."
        )
    if weight is not None and op != "mean":
        raise ConfigurationError(
            f"op is expected to be 'mean' where weight= is given. Received: op={op!r}. Pass op='mean'."
        )
    for tensor in tensors:
        if tensor.dtype.name not in library.DTYPES or (weight is not None and not tensor.dtype.is_floating):
            known = ", ".join(n for n in library.DTYPES if n != "byte" and (weight is None or "float" in n))
            raise ConfigurationError(
                f"a tensor is expected to be of a dtype that can be reduced ({known}). "
                f"Received: dtype={tensor.dtype.name}. Cast it first."
            )


@dataclasses.dataclass(frozen=True)
class Settings:
    """How the tensors of an all-reduce travel; equal on all ranks.

    Args:
      algorithm: None, or the name of an all-reduce for every size; None chooses by size.
      bucket_bytes: None, or int > 0, the bytes of tensors that travel together; None leaves it to the group's cost model.
    """

    algorithm: str | None = None
    bucket_bytes: int | None = None

    def __post_init__(self):
        if self.algorithm is not None:
            choose.check(self.algorithm)
        if self.bucket_bytes is not None and not self.bucket_bytes > 0:
            raise ConfigurationError(
                f"bucket_bytes is expected to be > 0. Received: bucket_bytes={self.bucket_bytes}. "
                "Leave it out to have it measured."
            )


def check_wire_dtype(wire_dtype):
    """Raises ConfigurationError unless float32 can travel as `wire_dtype`."""
    prepared.wire_number(wire_dtype, "float32")


@dataclasses.dataclass(frozen=True)
class _Scaling:
    """A reduction is sum_i(scale_i t_i) / divisor; both are scalars, the divisor is equal on all ranks."""

    scale: object
    divisor: object
    is_weighted: bool = False


def _scaling(op, weight, group, step, name):
    """Exchanges the weights: where they are equal nothing needs to be multiplied, and the mean is the plain one."""
    if weight is None:
        return _Scaling(1.0, float(group.world_size) if op == "mean" else 1.0)
    own = tf.reshape(tf.cast(weight, tf.float64), [1])
    bounds = tf.range(group.world_size + 1, dtype=tf.int64) * own.dtype.size
    started = _start_gather(own, group, f"{name}, weights", bounds, step)
    weights = _gathered(started, group.world_size, own, group)
    total = tf.reduce_sum(weights)
    equal = tf.reduce_all(tf.equal(weights, weights[0])) & (total > 0)
    one = tf.constant(1.0, tf.float64)
    divisor = tf.where(equal, one * group.world_size, tf.where(total > 0, total, one))
    return _Scaling(tf.where(equal, one, own[0]), divisor, is_weighted=True)


def _differentiable_all_reduce(tensors, **options):
    op, scaling = options["op"], options["scaling"]

    @tf.custom_gradient
    def differentiable(*values):
        def gradient(*upstream):
            if op not in ("sum", "mean"):
                raise ConfigurationError(
                    f"an all-reduce has a gradient for op 'sum' and 'mean'. Received: op={op!r}. Use one of these."
                )
            summed = all_reduce(list(upstream), group=options["group"], name=f"gradient of {options['name']}")
            return [gradient * tf.cast(scaling.scale / scaling.divisor, gradient.dtype) for gradient in summed]

        return _all_reduce_dense(list(values), **options), gradient

    reduced = differentiable(*tensors)
    return [tf.ensure_shape(r, t.shape) if t.shape.rank is not None else r for r, t in zip(reduced, tensors)]


def _all_reduce_dense(tensors, op, group, scaling, step, name, names, wire_dtype, settings):
    # Weighted halves travel as float32: n_i * g_i would overflow float16 and be too coarse in bfloat16.
    widened = [tf.cast(t, tf.float32) if scaling.is_weighted and t.dtype in _HALVES else t for t in tensors]
    sizes = [None if t.shape.num_elements() is None else t.shape.num_elements() * t.dtype.size for t in widened]
    buckets = plan_buckets(sizes, [t.dtype.name for t in widened], settings.bucket_bytes or group.bucket_bytes)
    reduced = [None] * len(tensors)
    by_dtype = {}
    for bucket in buckets:
        members = [widened[i] for i in bucket.indices]
        known = [sizes[i] for i in bucket.indices]
        plan = group.all_reduce_plan(None if None in known else sum(known), settings.algorithm)
        by = f" by {settings.algorithm}" if settings.algorithm else ""
        description = _describe(f"{name} ({op}){by}", members, [names[i] for i in bucket.indices])
        options = dict(scaling=scaling, step=step, wire_dtype=wire_dtype if bucket.dtype == "float32" else None)
        ticket, held = _start(members, bucket.dtype, op, group, plan, description, **options)
        by_dtype.setdefault(bucket.dtype, []).append((ticket, held, bucket.indices))
    for dtype, started in by_dtype.items():
        counts = [len(held) for _, held, _ in started]
        everything = [tensor for _, held, _ in started for tensor in held]
        results = _wait([ticket for ticket, _, _ in started], everything, counts, dtype, group)
        for i, result in zip([i for _, _, indices in started for i in indices], results):
            reduced[i] = tf.cast(result, tensors[i].dtype)
    return reduced


def _all_reduce_slices(slices, group, scaling, step, name, keep_rows):
    """Gathers the touched rows of all ranks, or sums them densely where that is less to send; IndexedSlices either way."""
    values = slices.values * tf.cast(scaling.scale / scaling.divisor, slices.values.dtype)
    if scaling.is_weighted:  # a rank of weight 0 contributes nothing, not even NaN
        values = tf.where(tf.equal(scaling.scale, 0), tf.zeros_like(values), values)
    ends = _row_ends(values, group, f"{name}, values")
    shape = None if slices.dense_shape is None else tf.get_static_value(slices.dense_shape)

    def gather():
        return (
            _gather_rows(values, ends, group, f"{name}, values"),
            _gather_rows(slices.indices, ends, group, f"{name}, indices"),
        )

    def sum_densely():
        dense = tf.math.unsorted_segment_sum(values, slices.indices, int(shape[0]))
        whole = (_Scaling(1.0, 1.0), step, f"{name}, dense", ["values"], None, Settings())
        summed = _all_reduce_dense([dense], "sum", group, *whole)[0]
        return summed, tf.range(int(shape[0]), dtype=slices.indices.dtype)

    if keep_rows or shape is None:
        return tf.IndexedSlices(*gather(), slices.dense_shape)
    with tf.control_dependencies(_tickets_before()):  # waits inside the branches see only the branches' own starts
        rows, indices = tf.cond(ends[-1] >= 2 * int(shape[0]), sum_densely, gather)
    return tf.IndexedSlices(rows, indices, slices.dense_shape)


def _row_ends(value, group, name):
    """Exchanges the numbers of rows; returns where each rank's rows begin in the whole, and its end."""
    own = tf.cast(tf.shape(value)[0], tf.int64)
    bounds = tf.range(group.world_size + 1, dtype=tf.int64) * own.dtype.size
    description = f"{name} of rows {value.dtype.name}{_dims(value.shape[1:])}: how many"
    started = _start_gather(own[None], group, description, bounds)
    rows = _gathered(started, group.world_size, own[None], group)
    return tf.concat([[tf.constant(0, tf.int64)], tf.cumsum(rows)], axis=0)


def _gather_rows(value, ends, group, name):
    row_bytes = tf.reduce_prod(tf.shape(value, out_type=tf.int64)[1:]) * value.dtype.size
    description = f"{name} of rows {value.dtype.name}{_dims(value.shape[1:])}"
    started = _start_gather(value, group, description, ends * row_bytes)
    gathered = _gathered(started, ends[-1], value, group)
    return tf.ensure_shape(gathered, [None, *value.shape[1:]])


def _gathered(ticket, rows, like, group):
    with tf.control_dependencies(_tickets_before()):
        return _call(
            operations().tfdist_wait_rows,
            ticket=ticket,
            rows=tf.cast(rows, tf.int64),
            like=like,
            group=group.id,
            item_bytes=like.dtype.size,
        )


def _describe(name, tensors, names):
    return f"{name} of [" + "; ".join(f"{n} {t.dtype.name}{_dims(t.shape)}" for n, t in zip(names, tensors)) + "]"


def _start_gather(tensor, group, description, offsets, step=None):
    """Starts the gathering of rows whose parts lie at the byte `offsets`; returns its ticket."""
    plan = group.plan("all_gather")
    return _start([tensor], "byte", "sum", group, plan, description, step=step, offsets=offsets)[0]


def _start(
    tensors, dtype, op, group, plan, description, *, scaling=None, step=None, wire_dtype=None, offsets=None
):  # fmt: skip
    """Starts a collective on a bucket; returns its ticket, and what the wait takes in the tensors' stead."""
    scaling = scaling or _Scaling(1.0, 1.0)
    holds = offsets is None
    ticket, *held = _call(
        operations().tfdist_start,
        tensors=tensors,
        H=[tensor.dtype for tensor in tensors] if holds else [],
        holds=int(holds),
        scale=tf.cast(scaling.scale, tf.float64),
        divisor=tf.cast(scaling.divisor, tf.float64),
        step=tf.cast(_NO_STEP if step is None else step, tf.int64),
        offsets=tf.constant([], tf.int64) if holds else offsets,
        group=group.id,
        plan=plan,
        dtype=library.DTYPES[dtype],
        wire_dtype=prepared.wire_number(wire_dtype, dtype),
        reduce=library.REDUCTIONS[op],
        channel=_channel(description, group),
        input_chunk=group.rank,
        description=description,
    )
    held = _with_shapes(held[0] if held else [], tensors)
    if not tf.executing_eagerly():
        _starts.setdefault(ticket.graph, []).append(ticket)
    return ticket, held


def _wait(tickets, held, counts, dtype, group):
    with tf.control_dependencies(_tickets_before()):
        results = _call(
            operations().tfdist_wait,
            tickets=tickets,
            held=held,
            group=group.id,
            dtype=library.DTYPES[dtype],
            counts=counts,
        )
    return _with_shapes(results, held)


def _with_shapes(results, like):
    results = list(results) if isinstance(results, (list, tuple)) else [results]
    for result, original in zip(results, like):
        if not tf.executing_eagerly():
            result.set_shape(original.shape)
    return results


def _tickets_before():
    if tf.executing_eagerly():
        return []
    return list(_starts.get(tf.compat.v1.get_default_graph(), ()))


def _call(operation, **arguments):
    """Calls an operation; where it runs at once, its failure comes as an exception of tfdist."""
    if not tf.executing_eagerly():
        return operation(**arguments)
    with translated():
        return operation(**arguments)


def _channel(description, group):
    """Names this call alike on all ranks, however often either of them has traced it; a signed 64-bit number."""
    if tf.executing_eagerly():
        number = group.program_channel()
    else:
        seen = _occurrences.setdefault(tf.compat.v1.get_default_graph(), {})
        key = hashlib.sha256(description.encode()).hexdigest()
        seen[key] = seen.get(key, -1) + 1
        number = channel_number(f"graph {description} #{seen[key]}")
    return number - (1 << 64) if number >= 1 << 63 else number


def _dims(shape):
    return "?" if shape.rank is None else "[" + ",".join("?" if d is None else str(d) for d in shape) + "]"
