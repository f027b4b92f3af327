"""Segments of shared memory between the ranks of one host: made, opened by the peers, and forgotten.

A segment is an anonymous file (`memfd_create`): it has no name, so nothing stays behind whoever is killed and when. A
peer opens it through `/proc/<pid>/fd`, which works exactly where both run under one kernel and as one user, and checks
a nonce in it; whether ranks share memory is thus decided by trying, not by names or numbers.
"""

import contextlib
import os
import secrets

from tfdist.comm import library

NONCE_BYTES = 16
_NONCE_OFFSET = 16


def create(rank, world_size):
    """Returns the descriptor of a new segment and its nonce; the descriptor is -1 where the platform has none."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    return library.core().tfdist_segment_create(rank, world_size, nonce), nonce


class Segments:
    """This rank's segment and those of the peers on its host.

    Args:
      rank: int.
      world_size: int.
      wanted: bool; False makes none.
    """

    def __init__(self, rank, world_size, *, wanted=True):
        self.descriptors = [-1] * world_size
        self._rank = rank
        self._host = host_identity()
        self._identities = [""] * world_size
        self._nonce = b""
        if wanted:
            self.descriptors[rank], self._nonce = create(rank, world_size)

    def address(self):
        """Returns what a peer needs to open this rank's segment, for JSON."""
        return {
            "host": self._host,
            "pid": os.getpid(),
            "descriptor": self.descriptors[self._rank],
            "nonce": self._nonce.hex(),
        }

    def open(self, peer, address):
        """Opens a peer's segment where it can be had; `address` is what its `address()` gave."""
        self._identities[peer] = address["host"]
        if peer != self._rank and self.descriptors[self._rank] >= 0:
            self.descriptors[peer] = open_shared(address, self._host)

    def opened(self):
        """Returns the ranks whose segments this rank has, its own included."""
        return [rank for rank, descriptor in enumerate(self.descriptors) if descriptor >= 0]

    def hosts(self):
        """Returns the ranks of each host, a tuple of tuples in the order of their first ranks."""
        hosts = {}
        for rank, identity in enumerate(self._identities):
            hosts.setdefault(identity or rank, []).append(rank)
        return tuple(map(tuple, hosts.values()))

    def shared_everywhere(self, opened):
        """Returns whether the ranks of every host with several share memory; `opened` as for `keep_common`."""
        return all(_share(host, opened) for host in self.hosts() if len(host) > 1)

    def close(self):
        """Closes what is open; mappings stay."""
        close_all(self.descriptors)

    def keep_common(self, opened):
        """Keeps the segments of this rank's host if all of its ranks could open all of them, else none.

        Args:
          opened: what `opened()` gave on every rank.
        """
        (host,) = (host for host in self.hosts() if self._rank in host)
        is_common = len(host) > 1 and _share(host, opened)
        for rank, descriptor in enumerate(self.descriptors):
            if not (is_common and rank in host):
                close_all([descriptor])
                self.descriptors[rank] = -1


def _share(host, opened):
    return all(set(host) <= set(opened[rank]) for rank in host)


def host_identity():
    """Returns what only processes of one host have in common: the kernel's boot and the network they live in, or ""."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {os.stat('/proc/self/ns/net').st_ino}"
    except OSError:
        return ""


def open_shared(address, own_host):
    """Returns a descriptor of a peer's segment, or -1 where this process cannot share memory with it."""
    if address["descriptor"] < 0 or not address["host"] or address["host"] != own_host:
        return -1
    try:
        descriptor = os.open(f"/proc/{address['pid']}/fd/{address['descriptor']}", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return -1
    if os.pread(descriptor, NONCE_BYTES, _NONCE_OFFSET) == bytes.fromhex(address["nonce"]):
        return descriptor
    os.close(descriptor)
    return -1


def close_all(descriptors):
    """Closes the descriptors that are not negative."""
    for descriptor in descriptors:
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(descriptor)
