"""A worker's side of the parameter servers: connections to all of them, and stores of tensors that they keep together.

Thread safe. Every call that waits does so at most for the time-out.
"""

import ctypes
import dataclasses
import os
import secrets
import threading

import numpy as np

from tfdist import errors
from tfdist.comm.shared_memory import NONCE_BYTES, host_identity
from tfdist.parameter_server import library
from tfdist.parameter_server import recovery as recovering
from tfdist.parameter_server.client_store import NOT_FINITE, ClientStore, ints
from tfdist.parameter_server.control import Control
from tfdist.parameter_server.dial import dial

_HEAD_BYTES, _NONCE_OFFSET = 4096, 16
_REPLICA = " (replica)"


__all__ = ["NOT_FINITE", "Client", "Options", "Tensor", "check_replicas"]


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
      recovers: bool, whether a lost worker is no failure for the others in mode "sync".
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
    recovers: bool = False
    hosted: dict | None = None


class Client:
    """Connects to the servers of a job.

    Args:
      addresses: list of "host:port", the servers in order.
      rank: int, this worker.
      secret: bytes, the job's secret.
      timeout: float seconds that an answer may take.
      transport: "auto", "shm" or "tcp".
      recovery: a `Recovery`: calls wait for a server that is lost to come back; False: they fail; None: as TFDIST_RECOVER
        says.
      replicas: 1 or 2, how many servers keep each part.

    Raises:
      RendezvousError: a server cannot be reached.
      AuthenticationError: a server does not know the secret.
    """

    def __init__(self, addresses, rank, secret, *, timeout=600.0, transport="auto", recovery=None, replicas=1):
        check_replicas(replicas, len(addresses))
        self.addresses = list(addresses)
        self.rank = rank
        self._secret = secret
        self._shares = transport != "tcp"
        self._stores = []
        self._stores_lock = threading.Lock()  # guards _stores, and the change to other connections
        self._controls = []
        self._closed = False
        self._mirror = None
        given = recovery
        recovery = recovering.chosen(given)
        sockets = []
        try:
            for server in range(len(self.addresses)):
                control, pair = self._connect(server, self.addresses[server])
                self._controls.append(control)
                sockets += pair
        except BaseException:
            self._close_controls()
            _close_all(sockets)
            raise
        names = (ctypes.c_char_p * len(addresses))(*(address.encode() for address in self.addresses))
        self._native = library.core().tfdist_client_create(rank, len(addresses), names, ints(sockets), float(timeout))
        self.id = library.core().tfdist_client_id(self._native)
        self._reconnector = None
        if recovery:
            arguments = (recovery, len(self.addresses), self._reconnect, self._is_lost, lambda: list(self._controls))
            self._reconnector = recovering.Reconnector(*arguments)
            if library.core().tfdist_client_recover(self._native, recovery.seconds, self._reconnector.wake):
                raise errors.TransportError(
                    f"A pipe could not be opened on rank {rank}: too many files are open. See `ulimit -n`."
                )
            self._reconnector.start()
        if replicas == 2:
            self._add_mirror(addresses, timeout, transport, recovery or False)

    def _add_mirror(self, addresses, timeout, transport, recovery):
        try:
            options = {"timeout": timeout, "transport": transport, "recovery": recovery}
            self._mirror = Client(addresses, self.rank, self._secret, **options)
        except BaseException:
            self.close()
            raise
        library.core().tfdist_client_set_mirror(self._native, self._mirror.native)

    @property
    def native(self):
        """The native client."""
        if self._closed:
            raise errors.TransportError("The client of the parameter servers is closed. Make a new strategy.")
        return self._native

    @property
    def recovers(self):
        """Whether calls wait for a lost server to come back."""
        return self._reconnector is not None

    @property
    def epoch(self):
        """How often servers were lost and connected with again."""
        return self._reconnector.epoch() if self._reconnector else 0

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
        options = dataclasses.replace(options, recovers=options.recovers or self.recovers)
        num_servers = servers or len(self.addresses)
        if self._mirror is None:
            return ClientStore(self, name, tensors, options, may_split, num_servers)
        copied = dataclasses.replace(options, mode="async") if options.mode == "bounded" else options
        arguments = (copied, may_split, num_servers)
        replica = ClientStore(self._mirror, name + _REPLICA, tensors, *arguments, replica_of=name)
        return ClientStore(self, name, tensors, options, may_split, num_servers, replica=replica)

    def ask(self, server, header, value=b""):
        """Sends a control request to a server; returns its answer, a dict, "value" being the bytes that came with it."""
        while True:
            epoch = self._reconnector.epoch(server) if self._reconnector else 0
            try:
                if self._closed:
                    raise errors.ServerLostError(
                        _closed_text(server, self.addresses[server], header, self.rank), server
                    )
                return self._controls[server].ask(header, value)
            except errors.ServerLostError:
                if self._closed or not (self._reconnector and self._reconnector.await_newer(server, epoch)):
                    raise

    def close(self):
        """Closes all connections; the servers take this as leaving."""
        if self._closed:
            return
        self._closed = True
        library.core().tfdist_client_close(self._native)
        self._close_controls()
        if self._reconnector:
            self._reconnector.close()
        if self._mirror:
            library.core().tfdist_client_set_mirror(self._native, None)
            self._mirror.close()
        library.core().tfdist_client_release(self._native)
        for store in self._stores:
            store.close_windows()

    def _close_controls(self):
        for control in self._controls:
            control.close()

    def _connect(self, server, address):
        """Returns a control connection and two sockets for the native core."""
        token = secrets.randbits(62)
        arguments = (address, server)
        control = Control(dial(*arguments, ["control", self.rank, token], self._secret), server, address, self.rank)
        sockets = []
        try:
            for _ in range(2):
                sockets.append(dial(*arguments, ["data", self.rank, token], self._secret).detach())
        except BaseException:
            control.close()
            _close_all(sockets)
            raise
        return control, sockets

    def _is_lost(self, server):
        return bool(library.core().tfdist_client_is_lost(self._native, server))

    def _reconnect(self, server, address):
        """Connects with a server that has been started again, which knows what its snapshot knew."""
        address = address or self.addresses[server]
        control, sockets = self._connect(server, address)
        try:
            numbers = []
            while True:
                stores = list(self._stores)
                numbers += [store.declare_again(server, control) for store in stores[len(numbers) :]]
                with self._stores_lock:
                    if self._closed:
                        raise errors.TransportError("The client of the parameter servers is closed.")
                    if len(self._stores) == len(numbers):
                        self._take(server, address, control, sockets, numbers)
                        return
        except BaseException:
            control.close()
            _close_all(sockets)
            raise

    def _take(self, server, address, control, sockets, numbers):
        self.addresses[server] = address
        old, self._controls[server] = self._controls[server], control
        old.close()
        arguments = (ints(sockets), ints(numbers), len(numbers))
        library.core().tfdist_client_reconnect(self._native, server, *arguments)
        self._reconnector.advance(server)

    def declare(self, store, declare):
        """Declares a store by `declare()`, again if a server is lost meanwhile, and keeps it; returns what that returns."""
        while True:
            epoch = self.epoch
            described = declare()
            with self._stores_lock:
                if epoch == self.epoch:
                    number = library.core().tfdist_client_add_store(self.native, ctypes.byref(described))
                    if number >= 0:
                        self._stores.append(store)
                    return number

    def window(self, num_bytes):
        """Returns `(descriptor, description)` of memory that a server of this host can map too, or None."""
        if not (self._shares and num_bytes and hasattr(os, "memfd_create")):
            return None
        descriptor = os.memfd_create("tfdist", os.MFD_CLOEXEC)
        nonce = secrets.token_bytes(NONCE_BYTES)
        os.ftruncate(descriptor, _HEAD_BYTES + num_bytes)
        os.pwrite(descriptor, nonce, _NONCE_OFFSET)
        return descriptor, {
            "host": host_identity(),
            "pid": os.getpid(),
            "descriptor": descriptor,
            "nonce": nonce.hex(),
        }


def check_replicas(replicas, num_servers):
    """Raises ConfigurationError where so many copies cannot be kept."""
    if replicas not in (1, 2) or replicas > num_servers:
        raise errors.ConfigurationError(
            "server_replicas is expected to be 1, or 2 with at least two parameter servers. "
            f"Received: server_replicas={replicas!r}, {num_servers} servers. Start more servers, or lower it."
        )


def _close_all(descriptors):
    for descriptor in descriptors:
        os.close(descriptor)


def _closed_text(server, address, header, rank):
    return (
        f"Parameter server {server} at {address} was expected to answer {header['op']!r} on rank {rank}. Received: the "
        "client is closed. Make a new strategy."
    )
