"""One store on a server: the shards of one optimizer's tensors, declared by the workers and updated natively."""

import contextlib
import copy
import ctypes

from tfdist.comm.library import DTYPES
from tfdist.errors import ConfigurationError, MismatchError
from tfdist.parameter_server import library
from tfdist.parameter_server.rule_library import native
from tfdist.parameter_server.rules import Rule

_MODES = {"async": library.ASYNCHRONOUS, "bounded": library.BOUNDED, "sync": library.SYNCHRONOUS}
_ALIGNMENT = 64
_STALENESS_AT_MOST = 4097


class Store:
    """Makes the native store from a declaration.

    Args:
      name: str.
      declaration: dict of JSON: "shards" (name, dtype, item_bytes, elements, row_elements, decays, rule or None) and
        "options", see `tfdist.parameter_server.client.Options`.
      server: the native server.
      num_workers: int.
      rank: the worker that declares it.
    """

    def __init__(self, name, declaration, server, num_workers, rank):
        self.name = name
        self.server = server
        self._num_workers = num_workers
        self._declaration = declaration
        self._declared_by = rank
        self._hosted = None
        shards, options = declaration["shards"], declaration["options"]
        self.window_bytes = sum(-(-s["elements"] * s["item_bytes"] // _ALIGNMENT) * _ALIGNMENT for s in shards)
        self.num_bytes = sum(s["elements"] * s["item_bytes"] for s in shards)
        if options["hosted"]:
            from tfdist.parameter_server.hosted import HostedOptimizer

            self._hosted = HostedOptimizer(copy.deepcopy(options["hosted"]), shards)  # Keras empties configurations
        self._options = self._native_options(options)
        array = (library.Shard * max(1, len(shards)))(*map(_native_shard, shards))
        self.number = library.core().tfdist_server_add_store(server, self._options, array, len(shards))
        if self.number < 0:
            raise ConfigurationError(
                f"A store of {self.num_bytes} bytes was expected to be possible. Received: code {-self.number} of the "
                "native core. Is there memory enough for parameters and optimizer state? Use more servers."
            )
        if self._hosted:
            self._hosted.attach(self.array)

    def agree(self, declaration, rank):
        """Raises MismatchError where another worker's declaration differs from the first."""
        if declaration == self._declaration:
            return
        text = _first_difference(self._declaration, declaration)
        raise MismatchError(
            f"All workers were expected to train the same model. Received: rank {self._declared_by} and rank {rank} differ "
            f"in {text}. Build and compile the model alike on every worker."
        )

    def join(self, rank, client):
        """Takes a client's word for a worker from here on, and no other's."""
        library.core().tfdist_server_join(self.server, self.number, rank, client)

    @property
    def num_shards(self):
        return len(self._declaration["shards"])

    def description(self):
        """Returns what a server that is started again needs to make this store anew, for JSON."""
        num_variables = self._hosted.num_variables if self._hosted else 0
        counts = {"num_shards": self.num_shards, "num_variables": num_variables}
        return {"name": self.name, "declaration": self._declaration, "declared_by": self._declared_by, **counts}

    def mark(self):
        """Returns what differs whenever the store has changed."""
        core = library.core()
        block = ctypes.create_string_buffer(core.tfdist_server_save(self.server, self.number, -1, None, 0))
        core.tfdist_server_save(self.server, self.number, -1, block, len(block))
        return block.raw

    @contextlib.contextmanager
    def host_held(self):
        """While it lasts a hosted optimizer applies nothing, so that it and its parameters stay of one piece."""
        if self._hosted:
            library.core().tfdist_server_hold_host(self.server, self.number, 1)
        try:
            yield
        finally:
            if self._hosted:
                library.core().tfdist_server_hold_host(self.server, self.number, 0)

    def variables(self):
        """Yields the bytes of a hosted optimizer's variables, each with one byte before."""
        for index in range(self._hosted.num_variables if self._hosted else 0):
            yield b"\0" + self._hosted.read(index, 0, None)  # no block is empty

    def load_variables(self, blocks):
        """Makes the hosted optimizer what it was, when the parameters are there."""
        for index, block in enumerate(blocks):
            self._hosted.write(index, 0, block[1:])
        if self._hosted:
            self._hosted.load_parameters()
            self._hosted.resume()

    def resume(self, offer_seconds, *, newest_of):
        """Begins to serve after a loading; `newest_of`: the server's incarnation, where what was
        loaded is newer than what any worker has; else 0."""
        core = library.core()
        if newest_of:
            core.tfdist_server_supersede(self.server, self.number, newest_of)
        core.tfdist_server_await_offers(self.server, self.number, offer_seconds)

    def array(self, shard, slot=0):
        """Returns the address of an array of a shard, or None."""
        return library.core().tfdist_server_array(self.server, self.number, shard, slot)

    def answer(self, header, value, rank, client):
        """Answers a request of a worker's client about this store, with a header and bytes."""
        core, operation = library.core(), header["op"]
        if operation == "begin":
            core.tfdist_server_begin_generation(self.server, self.number, header["generation"], header["updates"])
            self._set_scalars(header["scalars"])
            if self._hosted:
                self._hosted.load_parameters()
            return {}, b""
        if operation == "generation":
            return {"generation": core.tfdist_server_generation(self.server, self.number)}, b""
        if operation == "active":
            core.tfdist_server_set_active(self.server, self.number, rank, client, bool(header["active"]))
            return {}, b""
        if operation == "scalars":
            return {"scalars": self._scalars(0)[:4]}, b""
        if operation == "read variable":
            return {}, self._hosted.read(header["index"], header["begin"], header["count"])
        if operation == "write variable":
            self._hosted.write(header["index"], header["begin"], value)
            return {}, b""
        if operation == "summary":
            return self.summary(), b""
        raise ValueError("unknown")

    def summary(self):
        """Returns the updates, and what every worker did, for JSON."""
        updates = library.core().tfdist_server_updates(self.server, self.number)
        return {"updates": updates, "workers": {str(rank): self._record(rank) for rank in range(self._num_workers)}}

    def sequence(self, rank):
        """Returns the number of a worker's last push that counted."""
        return self._native_record(rank)[0].sequence

    def _record(self, rank):
        record, counts = self._native_record(rank)
        names = ("pushes", "dropped", "bytes_received", "bytes_sent", "waited_seconds", "seconds")
        staleness = {str(i): counts[i] for i in range(record.num_staleness) if counts[i]}
        return {**{name: getattr(record, name) for name in names}, "staleness": staleness}

    def _native_record(self, rank):
        record, counts = library.WorkerRecord(), (ctypes.c_int64 * _STALENESS_AT_MOST)()
        core = library.core()
        core.tfdist_server_record(self.server, self.number, rank, record, counts, _STALENESS_AT_MOST)
        return record, counts

    def _scalars(self, shard):
        return library.core().tfdist_server_scalars(self.server, self.number, shard)

    def _set_scalars(self, values):
        for shard in range(len(self._declaration["shards"])):
            for i, value in enumerate(values or ()):
                self._scalars(shard)[i] = value

    def _native_options(self, options):
        weights = (ctypes.c_double * len(options["step_weights"]))(*options["step_weights"])
        self._kept = weights  # ctypes keeps no reference
        return library.StoreOptions(
            mode=_MODES[options["mode"]],
            num_workers=self._num_workers,
            staleness_bound=options["staleness_bound"],
            backup_workers=options["backup_workers"],
            is_lazy=options["is_lazy"],
            num_step_weights=len(weights),
            step_weights=weights,
            recovers=options["recovers"],
            weight_decay=options["weight_decay"],
            average_momentum=options["average_momentum"],
            average_overwrites=options["average_overwrites"],
            compensation=options["compensation"],
            compensation_decay=options["compensation_decay"],
            host=self._hosted.callback if self._hosted else library.HOST(),
        )


def _native_shard(shard):
    rule = shard["rule"]
    return library.Shard(
        name=shard["name"].encode(),
        dtype=DTYPES[shard["dtype"]],
        decays=shard["decays"],
        is_hosted=rule is None,
        elements=shard["elements"],
        row_elements=shard["row_elements"],
        rule=native(Rule(rule["kind"], tuple(rule["parameters"]), tuple(rule["flags"])) if rule else Rule("add")),
    )


def _first_difference(one, other):
    for key in one["options"]:
        if one["options"][key] != other["options"].get(key):
            return f"{key}: {one['options'][key]!r} and {other['options'].get(key)!r}"
    if len(one["shards"]) != len(other["shards"]):
        return f"the number of tensors: {len(one['shards'])} and {len(other['shards'])}"
    for mine, theirs in zip(one["shards"], other["shards"]):
        for key in mine:
            if mine[key] != theirs.get(key):
                return f"{key} of tensor {mine['name']!r}: {mine[key]!r} and {theirs.get(key)!r}"
    return "their declaration"
