"""A worker's side of the parameter servers: connections to all of them, and stores of tensors that they keep together.

Thread safe. Every call that waits does so at most for the time-out.
"""

import ctypes
import dataclasses
import json
import os
import secrets
import socket
import threading
import time
import zlib

import numpy as np

from tfdist import errors
from tfdist.cluster.address import parse_address
from tfdist.cluster.frames import FrameError, encode, receive_frame, send_all, shut_down
from tfdist.cluster.handshake import secure
from tfdist.comm import library as comm_library
from tfdist.comm.shared_memory import NONCE_BYTES, host_identity
from tfdist.parameter_server import library, sharding

_HEAD_BYTES, _NONCE_OFFSET, _ALIGNMENT = 4096, 16, 64
_REPLY_SECONDS = 60.0
_MEGABYTE = 1 << 20
_CHUNK_BYTES = 1 << 19
_ERRORS = {
    comm_library.TIMEOUT: errors.CollectiveTimeoutError,
    comm_library.LOST: errors.WorkerLostError,
    comm_library.MISMATCH: errors.MismatchError,
    comm_library.CLOSED: errors.TransportError,
    comm_library.INVALID: errors.ConfigurationError,
    library.STALE: errors.StaleUpdateError,
    library.NOT_FINITE: errors.NonFiniteGradientError,
    library.SERVER_LOST: errors.ServerLostError,
}
NOT_FINITE = {"raise": 0, "skip": 1, "pass": 2}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor that servers keep.

    Args:
      name: str, for messages.
      shape: tuple of int.
      dtype: str, such as "float32".
      rule: the `tfdist.parameter_server.rules.Rule` that updates it; None where the optimizer is hosted.
      decays: bool, whether weight decay applies.
    """

    name: str
    shape: tuple
    dtype: str
    rule: object = None
    decays: bool = False

    @property
    def item_bytes(self):
        return 2 if self.dtype == "bfloat16" else np.dtype(self.dtype).itemsize


@dataclasses.dataclass(frozen=True)
class Options:
    """How a store is updated, the same on all workers.

    Args:
      mode: "async", "bounded" or "sync".
      staleness_bound: int, how many steps a worker may be ahead of the slowest; mode "bounded".
      backup_workers: int, how many gradients need not come; mode "sync".
      step_weights: tuple of floats by staleness, what the learning rate is multiplied by.
      compensation, compensation_decay: lambda0 and m of delay compensation; 0 for none, m < 0 for the constant kind.
      weight_decay: float.
      average_momentum, average_overwrites: of the moving average of the parameters; < 0 for none, 0 for never.
      is_lazy: bool, whether sparse updates move touched rows only.
      hosted: None, or how to make the Keras optimizer that is hosted as itself.
    """

    mode: str = "async"
    staleness_bound: int = 0
    backup_workers: int = 0
    step_weights: tuple = (1.0,)
    compensation: float = 0.0
    compensation_decay: float = -1.0
    weight_decay: float = 0.0
    average_momentum: float = -1.0
    average_overwrites: int = 0
    is_lazy: bool = False
    hosted: dict | None = None


class Client:
    """Connects to the servers of a job.

    Args:
      addresses: list of "host:port", the servers in order.
      rank: int, this worker.
      secret: bytes, the job's secret.
      timeout: float seconds that an answer may take.
      transport: "auto", "shm" or "tcp".

    Raises:
      RendezvousError: a server cannot be reached.
      AuthenticationError: a server does not know the secret.
    """

    def __init__(self, addresses, rank, secret, *, timeout=600.0, transport="auto"):
        self.addresses = list(addresses)
        self.rank = rank
        self._shares = transport != "tcp"
        token = secrets.randbits(62)
        self._lock = threading.Lock()  # one control request at a time
        self._controls = []
        self._closed = False
        sockets = []
        try:
            for server, address in enumerate(self.addresses):
                self._controls.append(_dial(address, server, ["control", rank, token], secret))
                for _ in range(2):
                    sockets.append(_dial(address, server, ["data", rank, token], secret).detach())
        except BaseException:
            self._close_controls()
            for descriptor in sockets:
                os.close(descriptor)
            raise
        names = (ctypes.c_char_p * len(addresses))(*(address.encode() for address in self.addresses))
        descriptors = (ctypes.c_int32 * len(sockets))(*sockets)
        self._native = library.core().tfdist_client_create(rank, len(addresses), names, descriptors, float(timeout))
        self.id = library.core().tfdist_client_id(self._native)

    @property
    def native(self):
        """The native client."""
        if self._closed:
            raise errors.TransportError("The client of the parameter servers is closed. Make a new strategy.")
        return self._native

    def add_store(self, name, tensors, options, *, may_split=True, servers=None):
        """Declares the tensors of an optimizer on all servers; every worker declares the same ones.

        Args:
          name: str, the same on all workers.
          tensors: list of `Tensor`.
          options: an `Options`.
          may_split: bool; False keeps every tensor on one server.
          servers: int, use only the first so many; None for all.

        Returns:
          A `ClientStore`.

        Raises:
          MismatchError: another worker declared something else.
        """
        return ClientStore(self, name, tensors, options, may_split, servers or len(self.addresses))

    def ask(self, server, header, value=b""):
        """Sends a control request to a server; returns its answer, a dict, "value" being the bytes that came with it."""
        with self._lock:
            try:
                send_all(self._controls[server], encode(header, value), time.monotonic() + _REPLY_SECONDS)
                answer, received = receive_frame(self._controls[server], time.monotonic() + _REPLY_SECONDS)
            except (OSError, FrameError, IndexError) as error:
                for control in self._controls[server : server + 1]:
                    shut_down(control)  # its answer would be taken for the next one's
                raise errors.ServerLostError(
                    f"Parameter server {server} at {self.addresses[server]} was expected to answer {header['op']!r} on "
                    f"rank {self.rank}. Received: {error}. See its output for why it ended.",
                    server,
                ) from error
        if "error" in answer:
            raise getattr(errors, answer["error"], errors.TransportError)(answer["text"])
        return {**answer, "value": received}

    def close(self):
        """Closes all connections; the servers take this as leaving."""
        if self._closed:
            return
        self._closed = True
        library.core().tfdist_client_close(self._native)
        library.core().tfdist_client_release(self._native)
        self._close_controls()

    def _close_controls(self):
        for control in self._controls:
            shut_down(control)
        self._controls = []

    def share(self, server, store_name, num_bytes):
        """Returns a window that the server maps too, a file descriptor; -1 where it cannot."""
        if not (self._shares and num_bytes and hasattr(os, "memfd_create")):
            return -1
        descriptor = os.memfd_create("tfdist", os.MFD_CLOEXEC)
        nonce = secrets.token_bytes(NONCE_BYTES)
        os.ftruncate(descriptor, _HEAD_BYTES + num_bytes)
        os.pwrite(descriptor, nonce, _NONCE_OFFSET)
        window = {"host": host_identity(), "pid": os.getpid(), "descriptor": descriptor, "nonce": nonce.hex()}
        is_shared = False
        try:
            is_shared = self.ask(server, {"op": "window", "store": store_name, "window": window})["shared"]
        finally:
            if not is_shared:
                os.close(descriptor)
        return descriptor if is_shared else -1


class ClientStore:
    """The tensors of one optimizer, kept by the servers; see `Client.add_store`."""

    def __init__(self, client, name, tensors, options, may_split, num_servers):
        self.name = name
        self.tensors = list(tensors)
        self._client = client
        shapes, items = [t.shape for t in self.tensors], [t.item_bytes for t in self.tensors]
        self.parts = sharding.place(shapes, items, num_servers, may_split=may_split)
        shards = [[] for _ in client.addresses]
        native_parts = [[] for _ in self.tensors]
        for i, (tensor, parts) in enumerate(zip(self.tensors, self.parts)):
            for part in parts:
                native_parts[i].append((part.server, len(shards[part.server]), part.begin, part.elements))
                shards[part.server].append(_shard(tensor, part))
        self.servers = [server for server, kept in enumerate(shards) if kept]
        windows = [-1] * len(shards)
        try:
            self.id = self._declare(shards, options, windows, native_parts)
            self.is_shared = all(windows[server] >= 0 for server in self.servers)
        finally:  # both sides have mapped them
            for descriptor in windows:
                if descriptor >= 0:
                    os.close(descriptor)

    def _declare(self, shards, options, windows, native_parts):
        numbers, sizes, sequence = [0] * len(shards), [0] * len(shards), 0
        for server in self.servers:
            declaration = {"shards": shards[server], "options": dataclasses.asdict(options)}
            text = zlib.compress(json.dumps(declaration).encode())
            answer = self._client.ask(server, {"op": "declare", "store": self.name}, text)
            numbers[server], sequence = answer["number"], max(sequence, answer["sequence"])
            sizes[server] = sum(-(-s["elements"] * s["item_bytes"] // _ALIGNMENT) * _ALIGNMENT for s in shards[server])
            windows[server] = self._client.share(server, self.name, sizes[server])
        return self._add(numbers, windows, sizes, sequence, native_parts)

    def _add(self, numbers, windows, sizes, sequence, native_parts):
        arrays = [(library.Part * len(parts))(*(library.Part(*part) for part in parts)) for parts in native_parts]
        tensors = [
            library.Tensor(t.name.encode(), comm_library.DTYPES[t.dtype], len(a), sharding.row_elements(t.shape), a)
            for t, a in zip(self.tensors, arrays)
        ]
        described = library.ClientStore(
            (library.Tensor * len(tensors))(*tensors),
            len(tensors),
            (ctypes.c_int32 * len(numbers))(*numbers),
            (ctypes.c_int32 * len(windows))(*windows),
            (ctypes.c_int64 * len(sizes))(*sizes),
            sequence,
        )
        number = library.core().tfdist_client_add_store(self._client.native, ctypes.byref(described))
        if number < 0:
            raise errors.TransportError(
                f"Memory for {sum(sizes) / _MEGABYTE:.0f} MiB of gradients was expected. Received: none of the kernel. Use "
                "a smaller model, or more memory."
            )
        return number

    def begin(self, generation, updates, *, scalars=(), tell=False):
        """The parameters are new ones, which have seen `updates`; `tell` the servers on the worker that has written them."""
        if tell:
            header = {"op": "begin", "store": self.name, "generation": generation, "updates": updates}
            for server in self.servers:
                self._client.ask(server, {**header, "scalars": list(scalars)})
        library.core().tfdist_client_begin_generation(self._client.native, self.id, generation, updates)

    def write(self, slot, arrays):
        """Sets array `slot` (0: parameters, then the optimizer's) of the tensors; None leaves one as it is."""
        arrays = [None if a is None else np.asarray(a, order="C") for a in arrays]  # ascontiguousarray: no scalars
        self._transfer(True, slot, arrays)

    def read(self, slot, arrays):
        """Fills the contiguous `arrays` (None leaves one out) with array `slot`; returns how many updates they have seen."""
        return self._transfer(False, slot, arrays).updates

    def _transfer(self, writes, slot, arrays):
        spans = (comm_library.Span * len(self.tensors))()
        for span, array, tensor in zip(spans, arrays, self.tensors):
            if array is not None:
                self._check(array, tensor)
                span.data, span.elements = array.ctypes.data, array.size
        result = library.Result()
        arguments = (self._client.native, self.id, writes, slot, spans, len(spans), result)
        return self._checked(library.core().tfdist_client_transfer(*arguments), result)

    def _check(self, array, tensor, shape=None):
        shape = tuple(tensor.shape) if shape is None else shape
        if array.shape != shape or array.dtype.name != tensor.dtype or not array.flags.c_contiguous:
            raise errors.ConfigurationError(
                f"A contiguous array of shape {shape} and type {tensor.dtype} was expected for {tensor.name}. "
                f"Received: shape={array.shape}, type={array.dtype.name}, contiguous={array.flags.c_contiguous}. Convert it."
            )

    def exchange(self, gradients, fresh, *, learning_rate, weight=1.0, is_sum=False, prefetch=False, is_pushed=True,
                 not_finite="raise", is_synchronous=False):  # fmt: skip
        """Pushes gradients and pulls parameters, as the strategies do inside of TensorFlow's graphs.

        Args:
          gradients: list of contiguous arrays, or `(indices, values)` of rows; None: nothing of this tensor.
          fresh: list of contiguous arrays that receive the parameters; may be the gradients' own.
          learning_rate: float.
          weight: float, of this worker in the mean; mode "sync".
          is_sum: bool; gradients of several workers are added, not averaged; mode "sync".
          prefetch: bool; take the answer to the push before, this one's with the next call.
          is_pushed: bool; False only pulls.
          not_finite: "raise", "skip" or "pass".
          is_synchronous: bool; others wait for this worker even if it has no gradient.

        Returns:
          A `library.Result`.
        """
        dense, rows = [], []
        for i, (gradient, target) in enumerate(zip(gradients, fresh)):
            if gradient is None and target is None:
                continue
            tensor = self.tensors[i]
            for array in (target, None if isinstance(gradient, tuple) else gradient):
                if array is not None:
                    self._check(array, tensor)
            data = None if target is None else target.ctypes.data
            if isinstance(gradient, tuple):
                indices, values = np.ascontiguousarray(gradient[0], np.int64), np.asarray(gradient[1], order="C")
                self._check(values, tensor, (len(indices), *tensor.shape[1:]))
                rows.append((indices, values, library.ExchangeRows(
                    i, 0, indices.ctypes.data, values.ctypes.data, len(indices), data, data)))  # fmt: skip
            else:
                source = data if gradient is None else gradient.ctypes.data
                dense.append(library.ExchangeDense(i, 0, source, data, data))
        call = library.Exchange(
            (library.ExchangeDense * len(dense))(*dense), (library.ExchangeRows * len(rows))(*(r[2] for r in rows)),
            len(dense), len(rows), learning_rate, weight, is_sum, is_pushed, prefetch, is_synchronous,
            NOT_FINITE[not_finite],
        )  # fmt: skip
        result = library.Result()
        code = library.core().tfdist_client_exchange(self._client.native, self.id, ctypes.byref(call), result)
        return self._checked(code, result)

    def pull_rows(self, tensor, indices):
        """Returns the rows `indices` (1-D, int64) of a tensor as they are now."""
        described = self.tensors[tensor]
        rows = np.empty((len(indices), *described.shape[1:]), described.dtype)
        indices, result = np.ascontiguousarray(indices, np.int64), library.Result()
        arguments = (self.id, tensor, indices.ctypes.data, len(indices), rows.ctypes.data, result)
        self._checked(library.core().tfdist_client_pull_rows(self._client.native, *arguments), result)
        return rows

    def flush(self):
        """Waits until the servers have applied everything that this worker has pushed."""
        result = library.Result()
        return self._checked(library.core().tfdist_client_flush(self._client.native, self.id, result), result)

    def set_active(self, is_active):
        """Says whether the others should count on this worker's pushes."""
        for server in self.servers:
            self._client.ask(server, {"op": "active", "store": self.name, "active": bool(is_active)})

    def summaries(self):
        """Returns what each server that keeps a part of this store has counted."""
        return [self._client.ask(server, {"op": "summary", "store": self.name}) for server in self.servers]

    def scalars(self):
        """Returns the rule's state besides the slots, four floats."""
        return self._client.ask(self.servers[0], {"op": "scalars", "store": self.name})["scalars"]

    def read_variable(self, server, index, array):
        """Fills a contiguous array with a variable of the optimizer that a server hosts."""
        data = array.reshape(-1).view(np.uint8)
        for begin in range(0, data.size, _CHUNK_BYTES):
            header = {"op": "read variable", "store": self.name, "index": index, "begin": begin, "count": _CHUNK_BYTES}
            value = self._client.ask(server, header)["value"]
            data[begin : begin + len(value)] = np.frombuffer(value, np.uint8)

    def write_variable(self, server, index, array):
        """Sets a variable of the optimizer that a server hosts."""
        data = np.ascontiguousarray(array).tobytes()
        for begin in range(0, len(data), _CHUNK_BYTES):
            header = {"op": "write variable", "store": self.name, "index": index, "begin": begin}
            self._client.ask(server, header, data[begin : begin + _CHUNK_BYTES])

    def _checked(self, code, result):
        if code != comm_library.OK:
            text = result.text.decode(errors="replace")
            where = (result.server,) if code == library.SERVER_LOST else ()
            raise _ERRORS[code](text, *where)
        return result


def _shard(tensor, part):
    rule = tensor.rule
    return {
        "name": tensor.name,
        "shape": list(tensor.shape),
        "dtype": tensor.dtype,
        "item_bytes": tensor.item_bytes,
        "begin": part.begin,
        "elements": part.elements,
        "row_elements": sharding.row_elements(tensor.shape),
        "decays": bool(tensor.decays),
        "rule": None
        if rule is None
        else {"kind": rule.kind, "parameters": list(rule.parameters), "flags": list(rule.flags)},
    }


def _dial(address, server, identity, secret):
    host, port = parse_address(address)
    try:
        connection = socket.create_connection((host, port), timeout=30.0)
    except OSError as error:
        raise errors.RendezvousError(
            f"Parameter server {server} was expected to answer at {address} to rank {identity[1]}. Received: {error}. "
            "See whether it runs (`tfdist run --servers`, `python -m tfdist.parameter_server`), and whether a firewall is between."
        ) from error
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError:
        connection.close()
        raise
    return secure(connection, secret, initiator=True, identity=json.dumps(identity).encode())[0]
