"""A group of ranks and its collectives on NumPy arrays."""

import contextlib
import ctypes
import hashlib
import itertools
import json
import threading
import time

import numpy as np

from tfdist.comm import group_options, library
from tfdist.comm.failures import raise_failure
from tfdist.comm.plans import Plans
from tfdist.comm.prepared import PreparedAllReduce, bytes_of, in_place, reducible, text, wire_number
from tfdist.errors import ConfigurationError, MismatchError

DEFAULT_TIMEOUT_SECONDS = 600.0
# Waits return to Python this often, so that Ctrl-C is served.
_SIGNAL_SECONDS = 1.0


def channel_number(name):
    """Returns the 64-bit number of a channel: operations of equal channels pair up in the order they start."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


class Group:
    """Ranks that know each other: connected sockets, one native thread, and the collectives.

    All ranks call the same collectives in the same order. Every collective blocks until this rank has its result, at
    most `timeout` seconds. Several threads may use a group (see `program_channel`); TensorFlow's graphs use it beside.
    After the first failure the group is unusable, and every later call reports that failure.

    Args:
      rank: int in [0, world_size).
      world_size: int >= 1.
      sockets: one list of connected, authenticated stream sockets per peer, None at `rank`; the group takes them over.
      timeout: float seconds > 0 that any wait may last.
      segments: None, or one descriptor per rank of shared memory (`comm.shared_memory`), -1 where a rank's memory is
        not shared; the caller closes them.
      generation: int, of the membership; frames of another one are refused.
      topology: the `Topology`, equal on all ranks; None: one host of all ranks, which share memory where `segments` do.
      slots: None, or `Slots` of a group whose members may change (`tfdist.elastic`). Then `rank` and `world_size`, like
        everything above, are those of the present members, while the group's own `rank` and `world_size` speak of slots.

    Raises:
      ConfigurationError: an argument is out of range, or the native library does not load.
    """

    def __init__(
        self,
        rank,
        world_size,
        sockets=(),
        *,
        timeout=DEFAULT_TIMEOUT_SECONDS,
        segments=None,
        generation=0,
        topology=None,
        slots=None,
    ):
        if not 0 <= rank < world_size:
            raise ConfigurationError(
                f"rank is expected to be in [0, world_size). Received: rank={rank}, world_size={world_size}. "
                "Check the variables that describe the cluster with `tfdist doctor`."
            )
        self.rank = rank if slots is None else slots.members[rank]
        self.world_size = world_size if slots is None else slots.count
        self.members = tuple(range(world_size)) if slots is None else slots.members
        self.id = 0
        self.native = None
        self.timeout = timeout
        self._first_thread = None
        self._kept = []  # arrays that a failed operation may still be sending
        topology = group_options.checked(topology, world_size, segments)
        options = group_options.make(rank, world_size, sockets, segments, generation, timeout, slots)
        if self.world_size > 1:
            self.native = library.core().tfdist_group_create(ctypes.byref(options))
            if self.native is None:
                raise group_options.refused(rank, world_size, segments)
            self.id = library.core().tfdist_group_id(self.native)
        num_sockets = max([len(peer) for peer in sockets if peer is not None], default=1)
        self._plans = Plans(self.native, rank, topology, num_sockets, self.members, self.world_size)
        self.is_elastic = slots is not None and self.native is not None
        if self.is_elastic:
            library.core().tfdist_group_set_commit_plan(self.native, self.all_reduce_plan(32, "recursive_doubling"))

    def reform(self, formed, members, generation, counts=(), *, starts_anew=False):
        """Goes on with other members: what all of the old ones have stays, every other open collective is done again.

        Args:
          formed: the `comm.mesh.Mesh` of the new members; its segments are the caller's to close.
          members: tuple of slots, this group's rank among them.
          generation: int, the new one.
          counts: dict of channel -> how many of its collectives some old member has committed.
          starts_anew: nothing is open, and new members count collectives from 0 with us.

        Raises:
          ConfigurationError: the native core refuses.
        """
        core, members = library.core(), tuple(members)
        rank, world_size = members.index(self.rank), len(members)
        slots = group_options.Slots(members, self.world_size)
        options = group_options.make(
            rank, world_size, formed.sockets, formed.segments, generation, self._timeout, slots
        )
        with self._plans.lock:
            if core.tfdist_group_prepare(self.native, ctypes.byref(options)) != library.OK:
                raise group_options.refused(rank, world_size, formed.segments)
            native = self.native
            self._plans.reload(
                rank, formed.topology, members, lambda *table: core.tfdist_group_load_next_plan(native, *table)
            )
            channels = (ctypes.c_uint64 * len(counts))(*counts)
            values = (ctypes.c_int64 * len(counts))(*(dict(counts).values()))
            code = core.tfdist_group_reform(native, channels, values, len(counts), int(starts_anew))
        if code != library.OK:
            raise ConfigurationError(
                "collectives were expected not to be under way where a worker joins. Received: some."
            )
        self.members = members

    @property
    def committed_generation(self):
        """The generation in which the last finished collective was done: equal on all members at one place of the program."""
        return library.core().tfdist_group_committed_generation(self.native) if self.is_elastic else 0

    @property
    def step_generation(self):
        """The generation in which the last gradients were reduced; see `committed_generation`."""
        return library.core().tfdist_group_step_generation(self.native) if self.is_elastic else 0

    @property
    def chief(self):
        """The slot of the senior member."""
        return self.members[0]

    @property
    def timeout(self):
        """Seconds that any wait may last, a float > 0; may be changed."""
        return self._timeout

    @timeout.setter
    def timeout(self, seconds):
        if not seconds > 0:
            raise ConfigurationError(
                f"timeout is expected to be > 0 seconds. Received: timeout={seconds}. Pass e.g. 600."
            )
        self._timeout = float(seconds)
        self.first_wait_seconds = min(self._timeout / 2, _SIGNAL_SECONDS)
        if self.native is not None:
            library.core().tfdist_group_set_timeout(self.native, self._timeout)

    @property
    def topology(self):
        """Which ranks share a host (`tfdist.collectives.Topology`)."""
        return self._plans.topology

    def remember(self, topology, choice, algorithm):
        """Takes over what the members of a job chose when it began, so that equal collectives run equal plans."""
        self._plans.topology, self._plans.choice, self._plans.algorithm = topology, choice, algorithm

    @property
    def rates(self):
        """How fast the machines are (`tfdist.collectives.rates.Rates`): ordinary unless measured (`comm.tuning`)."""
        return self.choice.rates

    @property
    def choice(self):
        """Which all-reduce from which size on (`comm.plans.Choice`); to be set alike on all ranks, or by none."""
        return self._plans.choice

    @choice.setter
    def choice(self, value):
        self._plans.choice = value

    @property
    def algorithm(self):
        """The all-reduce algorithm for every size, or None: the fastest for each; to be set alike on all ranks."""
        return self._plans.algorithm

    @algorithm.setter
    def algorithm(self, name):
        self._plans.algorithm = name

    @property
    def bucket_bytes(self):
        """How large a bucket of gradients should be: its fixed cost is then at most a tenth of its time."""
        return self._plans.bucket_bytes

    def all_reduce(self, array, op="sum", *, name="all_reduce", wire_dtype=None, algorithm=None):
        """Reduces `array` element by element over all ranks; every rank gets the same bits.

        Costs at best 2 (P-1)/P of the array's bytes sent per rank (Patarasuk & Yuan 2009); see `tfdist/collectives`.
        "min" and "max" order the zeros by sign and hand on NaNs as one. Where several ranks hold a NaN, which of them a
        sum or product ends as (its payload) may differ between ranks.

        Args:
          array: of equal shape on all ranks; float32, float64, bfloat16, float16, int32 or int64.
          op: "sum", "mean" (integers truncate toward zero), "min", "max" or "product".
          name: shown in errors, must be equal on all ranks.
          wire_dtype: None, or "bfloat16" or "float16": float32 then travels as that, which halves the bytes sent. It is
            added in float32; each send rounds to nearest (a relative error of at most 2^-8, or 2^-11 and no more than
            65504), on the sender too, so all ranks still get the same bits. In a ring a partial sum is rounded at each
            of its P - 1 hops, and the sum once before it is handed out: within P 2^-8 of the exact one for terms of
            one sign.
          algorithm: None, or a name of `tfdist.collectives.ALL_REDUCE`, equal on all ranks; it wins over `algorithm` of
            the group and over the choice by size.

        Returns:
          A new array of the same shape and dtype.

        Raises:
          ConfigurationError: unsupported dtype, op, wire_dtype or algorithm.
          MismatchError: ranks disagree; WorkerLostError: a peer is gone; CollectiveTimeoutError: somebody is late.
        """
        result = np.array(array, order="C", copy=True)
        self.prepare_all_reduce(result, op, name=name, wire_dtype=wire_dtype, algorithm=algorithm)()
        return result

    def prepare_all_reduce(self, array, op="sum", *, name="all_reduce", wire_dtype=None, algorithm=None):
        """Sets up an all-reduce of one array, to be run many times, as MPI_Allreduce_init (MPI 4.0, section 6.13) does.

        Use it where the same array is reduced again and again: a call then costs little more than the core's work.

        Args:
          array: C-contiguous and writable; each call reduces in place what it holds then.
          op, name, wire_dtype, algorithm: as for `all_reduce`.

        Returns:
          A `PreparedAllReduce`: call it without arguments, in the same order among collectives on all ranks, and from
          one thread at a time. It keeps the array alive.

        Raises:
          ConfigurationError: as for `all_reduce`, or the array cannot be changed in place. Calls raise the rest.
        """
        work = in_place(array)
        dtype = reducible(work.dtype, op)
        wire, num_bytes = wire_number(wire_dtype, dtype), work.nbytes
        chosen = self.algorithm_for(num_bytes if wire == 0 else num_bytes // 2, algorithm)
        if self.world_size == 1:
            return PreparedAllReduce(self, work, None)
        operation = library.Operation(
            plan=self._plans.all_reduce(chosen, work.nbytes),
            dtype=library.DTYPES[dtype],
            wire_dtype=wire,
            reduce=library.REDUCTIONS[op],
            scale=1.0,
            channel=self.program_channel(),
            step=-1,
            description=f"{name} ({op}) of {text(array)} by {chosen}".encode(),
            work=work.ctypes.data,
            elements=work.size,
        )
        return PreparedAllReduce(self, work, operation)

    def algorithm_for(self, num_bytes, algorithm=None):
        """Returns the name of the all-reduce algorithm for an array; arguments as for `all_reduce_plan`."""
        return self._plans.name(num_bytes, algorithm)

    def all_reduce_plan(self, num_bytes, algorithm=None):
        """Returns the native number of the plan for an all-reduce; equal arguments pair up on all ranks.

        Args:
          num_bytes: int, what travels of the whole array; None where it is unknown: then as for 1 MiB.
          algorithm: as for `all_reduce`.
        """
        return self._plans.all_reduce(self.algorithm_for(num_bytes, algorithm), num_bytes)

    def broadcast(self, array, root=0, *, name="broadcast"):
        """Returns `root`'s array on every rank; shape and dtype (any of fixed size) must agree. Costs its bytes once."""
        self._check_root(root)
        result = np.array(array, order="C", copy=True)
        work, dtype = bytes_of(result)
        self._run(
            "broadcast", work, dtype, "sum", f"{name} from rank {root} of {text(result)}", options=(("root", root),)
        )
        return result

    def all_gather(self, array, *, name="all_gather"):
        """Returns the arrays of all ranks, one after another along axis 0.

        Args:
          array: at least one-dimensional, of any dtype of fixed size; the first dimension may differ between ranks.
          name: shown in errors, must be equal on all ranks.

        Returns:
          A new array of shape [sum of first dimensions, ...]. Rows of a worker that was lost meanwhile are zeros.
        """
        return self._gather(array, name)[0]

    def _gather(self, array, name):
        """Returns what all_gather does, and the rows in it at which the ranks' end, after a 0."""
        array = np.asarray(array)
        if array.ndim == 0:
            raise ConfigurationError(
                "array is expected to have at least one dimension. Received: a scalar. Pass array[None]."
            )
        description = f"{name} of rows {array.dtype.name}{list(array.shape[1:])}"
        rows = np.zeros(self.world_size, np.int64)
        rows[self.rank] = array.shape[0]
        self._run("all_gather", rows, "int64", "sum", f"{description}: how many")
        ends = np.concatenate([[0], np.cumsum(rows)])
        allocate = np.zeros if self.is_elastic else np.empty  # nobody fills the rows of a rank that is lost by now
        result = allocate((int(ends[-1]), *array.shape[1:]), array.dtype)
        result[ends[self.rank] : ends[self.rank + 1]] = array
        work, dtype = bytes_of(result)
        offsets = ends * (work.size // max(int(ends[-1]), 1))
        self._run("all_gather", work, dtype, "sum", description, offsets=offsets)
        return result, ends

    def reduce_scatter(self, array, op="sum", *, name="reduce_scatter"):
        """Reduces over all ranks and keeps this rank's share of the rows.

        Args:
          array: of equal shape on all ranks, at least one-dimensional. Rank r keeps the rows [n r / P, n (r+1) / P).
          op: as in `all_reduce`.
          name: shown in errors, must be equal on all ranks.

        Returns:
          A new array: this rank's rows, reduced. Costs (P-1)/P of the array's bytes sent per rank.
        """
        result = np.array(array, order="C", copy=True, ndmin=1)
        dtype = reducible(result.dtype, op)
        ends = np.array([result.shape[0] * r // self.world_size for r in range(self.world_size + 1)], np.int64)
        row = int(np.prod(result.shape[1:], dtype=np.int64))
        self._run(
            "reduce_scatter", result.reshape(-1), dtype, op, f"{name} ({op}) of {text(result)}", offsets=ends * row
        )
        return result[ends[self.rank] : ends[self.rank + 1]].copy()

    def all_to_all(self, array, *, name="all_to_all"):
        """Sends the j-th of P equal parts of `array` (along axis 0) to rank j; returns what the ranks had for this one.

        Args:
          array: of equal shape on all ranks; its first dimension must be divisible by world_size.
          name: shown in errors, must be equal on all ranks.

        Returns:
          A new array of the same shape: part r came from rank r. Costs (P-1)/P of the array's bytes sent per rank.
        """
        array = np.asarray(array)
        if array.ndim == 0 or array.shape[0] % self.world_size:
            raise ConfigurationError(
                f"array's first dimension is expected to be divisible by world_size={self.world_size}. "
                f"Received: shape={list(array.shape)}. Pad it."
            )
        both = np.concatenate([array, np.empty_like(array)])
        work, dtype = bytes_of(both)
        self._run("all_to_all", work, dtype, "sum", f"{name} of {text(array)}")
        return both[array.shape[0] :].copy()

    def barrier(self, *, name="barrier", timeout=None):
        """Returns when every rank has called it; `timeout` seconds replace the group's."""
        self._run("barrier", np.zeros(2, np.uint8), "byte", "sum", name, timeout=timeout)

    def all_gather_bytes(self, data, *, name="all_gather_bytes"):
        """Returns the bytes of every rank, a list in rank order; lengths may differ. An empty slot, or a lost one, has b""."""
        marked = np.frombuffer(b"\1" + data, np.uint8)  # nobody's bytes read as zeros
        whole, ends = self._gather(marked, name)
        parts = [whole[begin:end].tobytes() for begin, end in itertools.pairwise(ends)]
        return [part[1:] if part[:1] == b"\1" else b"" for part in parts]

    def agree(self, what, values):
        """Checks that all ranks pass equal values.

        Args:
          what: str, named in the error.
          values: dict of str to anything JSON can hold.

        Raises:
          MismatchError: they differ; names the first differing key, a rank, and both values.
        """
        mine = json.loads(json.dumps(values))
        told = enumerate(self.all_gather_bytes(json.dumps(mine).encode(), name=f"agree on {what}"))
        everyone = {rank: json.loads(text) for rank, text in told if text}  # an empty slot says nothing
        first, expected = next(iter(everyone.items()))
        for rank, theirs in everyone.items():
            for key in [*expected, *theirs]:
                if expected.get(key) != theirs.get(key):
                    raise MismatchError(
                        f"{what} was expected to be equal on all ranks. Received: {key}={expected.get(key)} on rank {first}, "
                        f"{key}={theirs.get(key)} on rank {rank}. Run the same script with the same data and arguments everywhere."
                    )

    def close(self, failure=None):
        """Leaves the group. Peers that still wait for this rank get an error that says so.

        Args:
          failure: str or None; why this rank fails, told to the peers. None leaves in good order.
        """
        if self.native is not None:
            library.core().tfdist_group_close(self.native, None if failure is None else failure.encode())

    def watch(self, seconds):
        """For so long peers must show that they live, as while a collective waits for them (TFDIST_HEARTBEAT_SECONDS)."""
        if self.native is not None:
            library.core().tfdist_group_watch(self.native, seconds)

    def raise_error(self, code):
        """Raises what a native code other than OK stands for, with the group's first failure as the text."""
        raise_failure(self.native, code, self.rank)

    def program_channel(self):
        """Returns the channel of what this thread does in program order, outside of graphs.

        Its operations pair up one after the other with those of the same thread on the other ranks (the one that used
        the group first, or else the one of the same name), so that ranks whose programs differ are told so at once.
        """
        thread = threading.current_thread()
        if self._first_thread is None:
            self._first_thread = thread.ident
        return channel_number("program" if thread.ident == self._first_thread else f"program of thread {thread.name}")

    def plan(self, collective, options=()):
        """Returns the native number of this rank's plan, loading it at the first use; an all-reduce is then a ring."""
        return self._plans.other(collective, options)

    def _run(self, collective, work, dtype, op, description, *, options=(), offsets=None, timeout=None):
        """Runs a collective in place on the one-dimensional array `work`."""
        if self.world_size == 1:
            if collective == "all_to_all":
                work[work.size // 2 :] = work[: work.size // 2]
            return
        operation = library.Operation(
            plan=self.plan(collective, options),
            dtype=library.DTYPES[dtype],
            reduce=library.REDUCTIONS[op],
            scale=1.0,
            channel=self.program_channel(),
            step=-1,
            description=description.encode(),
            work=work.ctypes.data,
            elements=work.size,
        )
        if offsets is not None:
            table = np.ascontiguousarray(offsets, np.int64)
            operation.chunk_offsets = table.ctypes.data_as(ctypes.POINTER(ctypes.c_int64))
        self.run_native(operation, work, self._timeout if timeout is None else timeout)

    def run_native(self, operation, work, timeout):
        """Runs a native operation on its own work buffer, which the array `work` keeps alive."""
        first_wait = min(timeout / 2, _SIGNAL_SECONDS)
        ticket = library.core().tfdist_run(self.native, ctypes.byref(operation), first_wait)
        if ticket != library.OK:
            self.resume(ticket, work, timeout - first_wait)

    def resume(self, ticket, work, timeout):
        """Waits on for what `tfdist_run` has not finished, or raises what it says.

        Args:
          ticket: what it returned, not OK.
          work: the array on which the operation works.
          timeout: float seconds.
        """
        try:
            if ticket < 0:
                self.raise_error(-ticket)
            self._wait(ticket, time.monotonic() + timeout)
        except BaseException:  # a failed or interrupted operation may still use the memory
            self._kept.append(work)
            raise

    def _wait(self, ticket, deadline):
        core = library.core()
        while True:
            left = deadline - time.monotonic()
            last = left <= _SIGNAL_SECONDS
            code = core.tfdist_wait(self.native, ticket, max(left, 0.0) if last else _SIGNAL_SECONDS, last)
            if code == library.OK:
                core.tfdist_finish(self.native, ticket, None, 0)
                return
            if code != library.TIMEOUT or last:
                self.raise_error(code)

    def _check_root(self, root):
        if not 0 <= root < self.world_size:
            raise ConfigurationError(
                f"root is expected to be in [0, {self.world_size}). Received: root={root}. Pass an existing rank."
            )

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _):
        self.close(None if error is None else f"rank {self.rank} failed: {kind.__name__}: {error}")

    def __del__(self):
        if getattr(self, "native", None) is not None:
            with contextlib.suppress(Exception):  # the interpreter may be half gone
                library.core().tfdist_group_close(self.native, None)
                library.core().tfdist_group_release(self.native)
            self.native = None
