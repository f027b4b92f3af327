"""The tensors of one optimizer as a worker sees them: declared on all servers, pushed, pulled, read and written."""

import ctypes
import dataclasses
import json
import os
import zlib

import numpy as np

from tfdist import errors
from tfdist.comm import library as comm_library
from tfdist.parameter_server import library, sharding

_ALIGNMENT = 64
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


class ClientStore:
    """The tensors of one optimizer, kept by the servers; see `Client.add_store`."""

    def __init__(self, client, name, tensors, options, may_split, num_servers, *, replica=None, replica_of=None):
        self.name = name
        self.tensors = list(tensors)
        self._client = client
        self._replica = replica
        self._active = None
        self._windows = {}  # by server: (descriptor, description)
        shapes, items = [t.shape for t in self.tensors], [t.item_bytes for t in self.tensors]
        self.parts = sharding.place(shapes, items, num_servers, may_split=may_split)
        count, step = len(client.addresses), int(replica_of is not None)
        shards = [[] for _ in client.addresses]
        native_parts = [[] for _ in self.tensors]
        for i, (tensor, parts) in enumerate(zip(self.tensors, self.parts)):
            for part in parts:
                server = (part.server + step) % count
                native_parts[i].append((server, len(shards[server]), part.begin, part.elements))
                shards[server].append(_shard(tensor, part))
        self.servers = [server for server, kept in enumerate(shards) if kept]
        self._texts = {}
        for server in self.servers:
            declaration = {"shards": shards[server], "options": dataclasses.asdict(options)}
            if replica:
                declaration["partner"] = {"server": (server + 1) % count, "store": replica.name}
            elif replica_of:
                declaration["partner"] = {"server": (server - 1) % count, "store": replica_of}
            self._texts[server] = zlib.compress(json.dumps(declaration).encode())
        self._sizes = [
            sum(-(-s["elements"] * s["item_bytes"] // _ALIGNMENT) * _ALIGNMENT for s in kept) for kept in shards
        ]
        try:
            self.id = client.declare(self, lambda: self._declare(native_parts))
            self.is_shared = all(server in self._windows for server in self.servers)
        finally:  # both sides have mapped them
            if not client.recovers:
                self.close_windows()
        if self.id < 0:
            raise errors.TransportError(
                f"Memory for {sum(self._sizes) / _MEGABYTE:.0f} MiB of gradients was expected. Received: none of the kernel. Use "
                "a smaller model, or more memory."
            )

    def _declare(self, native_parts):
        count = len(self._client.addresses)
        numbers, sequence, num_workers = [0] * count, 0, 0
        self.close_windows()
        for server in self.servers:
            answer = self._client.ask(server, {"op": "declare", "store": self.name}, self._texts[server])
            numbers[server], sequence = answer["number"], max(sequence, answer["sequence"])
            num_workers = answer["num_workers"] if self._client.recovers else 0
            window = self._client.window(self._sizes[server])
            if window:
                self._windows[server] = window
                header = {"op": "window", "store": self.name, "window": window[1]}
                if not self._client.ask(server, header)["shared"]:
                    os.close(self._windows.pop(server)[0])
        arrays = [(library.Part * len(parts))(*(library.Part(*part) for part in parts)) for parts in native_parts]
        tensors = [
            library.Tensor(t.name.encode(), comm_library.DTYPES[t.dtype], len(a), sharding.row_elements(t.shape), a)
            for t, a in zip(self.tensors, arrays)
        ]
        windows = [self._windows[server][0] if server in self._windows else -1 for server in range(count)]
        return library.ClientStore(
            (library.Tensor * len(tensors))(*tensors),
            len(tensors),
            ints(numbers),
            ints(windows),
            (ctypes.c_int64 * count)(*self._sizes),
            sequence,
            num_workers,
        )

    def declare_again(self, server, control):
        """Declares this store to a server that has been started again; returns its number there."""
        if server not in self.servers:
            return 0
        number = control.ask({"op": "declare", "store": self.name}, self._texts[server])["number"]
        if server in self._windows:
            header = {"op": "window", "store": self.name, "window": self._windows[server][1]}
            if not control.ask(header)["shared"]:
                raise errors.TransportError(
                    f"Parameter server {server} was expected to map this worker's memory again."
                )
        if self._active is not None:
            control.ask({"op": "active", "store": self.name, "active": self._active})
        return number

    def close_windows(self):
        """Closes the files of the shared memory; what is mapped stays."""
        for descriptor, _ in self._windows.values():
            os.close(descriptor)
        self._windows = {}

    def begin(self, generation, updates, *, scalars=(), tell=False):
        """The parameters are new ones, which have seen `updates`; `tell` the servers on the worker that has written them."""
        if tell:
            header = {"op": "begin", "store": self.name, "generation": generation, "updates": updates}
            for server in self.servers:
                self._client.ask(server, {**header, "scalars": list(scalars)})
        if self._replica:
            self._replica.begin(generation, updates, scalars=scalars, tell=tell)
        library.core().tfdist_client_begin_generation(self._client.native, self.id, generation, updates)

    def join(self):
        """Takes part with the parameters that the servers have, as a worker that is started again does; returns the generation."""
        generation = self._client.ask(self.servers[0], {"op": "generation", "store": self.name})["generation"]
        self.begin(generation, 0)
        self.read(0, [np.empty(t.shape, t.dtype) for t in self.tensors])  # tells how many updates they have seen
        return generation

    def write(self, slot, arrays):
        """Sets array `slot` (0: parameters, then the optimizer's) of the tensors; None leaves one as it is."""
        arrays = [None if a is None else np.asarray(a, order="C") for a in arrays]  # ascontiguousarray: no scalars
        self._transfer(True, slot, arrays)
        if self._replica:
            self._replica.write(slot, arrays)

    def read(self, slot, arrays, current=None):
        """Fills the contiguous `arrays` (None leaves one out) with array `slot`; returns how many updates they have seen.

        `current`: see `exchange`.
        """
        return self._transfer(False, slot, arrays, current).updates

    def _transfer(self, writes, slot, arrays, current=None):
        spans, known = self._spans(arrays), None if current is None else self._spans(current)
        result = library.Result()
        arguments = (self._client.native, self.id, writes, slot, spans, known, len(spans), result)
        return self._checked(library.core().tfdist_client_transfer(*arguments), result)

    def _spans(self, arrays):
        spans = (comm_library.Span * len(self.tensors))()
        for span, array, tensor in zip(spans, arrays, self.tensors):
            if array is not None:
                self._check(array, tensor)
                span.data, span.elements = array.ctypes.data, array.size
        return spans

    def _check(self, array, tensor, shape=None):
        shape = tuple(tensor.shape) if shape is None else shape
        if array.shape != shape or array.dtype.name != tensor.dtype or not array.flags.c_contiguous:
            raise errors.ConfigurationError(
                f"A contiguous array of shape {shape} and type {tensor.dtype} was expected for {tensor.name}. "
                f"Received: shape={array.shape}, type={array.dtype.name}, contiguous={array.flags.c_contiguous}. Convert it."
            )

    def exchange(self, gradients, fresh, *, learning_rate, weight=1.0, is_sum=False, prefetch=False, is_pushed=True,
                 not_finite="raise", is_synchronous=False, current=None):  # fmt: skip
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
          current: list of arrays, the parameters that this worker was sent last: a server that has lost them takes them.

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
            data = known = None if target is None else target.ctypes.data
            if current is not None and current[i] is not None:
                self._check(current[i], tensor)
                known = current[i].ctypes.data
            if isinstance(gradient, tuple):
                indices, values = np.ascontiguousarray(gradient[0], np.int64), np.asarray(gradient[1], order="C")
                self._check(values, tensor, (len(indices), *tensor.shape[1:]))
                rows.append((indices, values, library.ExchangeRows(
                    i, 0, indices.ctypes.data, values.ctypes.data, len(indices), known, data)))  # fmt: skip
            else:
                source = data if gradient is None else gradient.ctypes.data
                dense.append(library.ExchangeDense(i, 0, source, known, data))
        call = library.Exchange(
            (library.ExchangeDense * len(dense))(*dense), (library.ExchangeRows * len(rows))(*(r[2] for r in rows)),
            len(dense), len(rows), learning_rate, weight, is_sum, is_pushed, prefetch, is_synchronous,
            NOT_FINITE[not_finite], current is not None,
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

    def flush(self, current=None):
        """Waits until the servers have applied everything that this worker has pushed. `current`: see `exchange`."""
        known, result = None if current is None else self._spans(current), library.Result()
        arguments = (self._client.native, self.id, known, len(self.tensors), result)
        return self._checked(library.core().tfdist_client_flush(*arguments), result)

    def set_active(self, is_active):
        """Says whether the others should count on this worker's pushes."""
        self._active = bool(is_active)
        for server in self.servers:
            self._client.ask(server, {"op": "active", "store": self.name, "active": bool(is_active)})
        if self._replica:
            self._replica.set_active(is_active)

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
        if self._replica:
            self._replica.write_variable(self._replica.servers[self.servers.index(server)], index, array)

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


def ints(values):
    """Returns a C array of int32."""
    return (ctypes.c_int32 * len(values))(*values)
