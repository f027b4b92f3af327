"""Keeps a group going while its members come and go.

A thread waits for the group's connections to fail; then the members that are left agree (`agreement.py`), connect anew
(`comm/mesh.py`), and the native core does again what was under way (`native/elastic`): inside the pending waits, which
notice nothing but the time. Another thread looks out for workers that want to join; they are let in between two
steps, when all members call `admit` at the same place of the program.
"""

import contextlib
import ctypes
import dataclasses
import json
import threading
import time

from absl import logging

from tfdist.cluster.lives import EXCLUDED, JOINED, OVER
from tfdist.cluster.store import StoreClient
from tfdist.cluster.store.client import StoreTimeoutError
from tfdist.comm import library, mesh, shared_memory
from tfdist.elastic.agreement import Agreement, Decision, Report, dead_members
from tfdist.errors import AuthenticationError, RendezvousError, TfdistError

JOINS, FORMED = "elastic/joins", "elastic/formed"
_JOIN_FLAG = 0
_CONNECT_SECONDS = 5.0
_AGREE_SECONDS = 60.0
_REPORT_BYTES = 1 << 20
_LONG_SECONDS = 3600.0
_ASK_AGAIN_SECONDS = 10
_ADMISSION_SECONDS = 30.0  # members come to the same place one after the other


class Membership:
    """The members of a group, and how they change.

    Args:
      group: an elastic `tfdist.comm.Group`.
      cluster: the `Cluster` of this worker; its store outlives every worker.
      members: dict of slot -> incarnation, in the order of seniority.
      generation: int, the present one.
      settings: dict of `min_workers` (int), `heartbeat` (float seconds), `transport` and `sockets_per_peer`.
    """

    def __init__(self, group, cluster, members, generation, settings):
        self.group, self.members, self.generation = group, dict(members), generation
        self.incarnation = members[group.rank]
        self.is_excluded = False
        self.history = {generation: tuple(members)}  # generation -> its members
        self._cluster, self._settings = cluster, settings
        self._lock = threading.RLock()  # one change of the members at a time
        self._is_closed = False
        self._num_joins = 0  # requests that were read
        self._waiting = {}  # slot -> (incarnation, place) of those who wait for their place
        self._native = library.core().tfdist_group_find(group.id)  # outlives the group's Python object
        self._threads = []
        self._watching_store = None

    @property
    def is_joining(self):
        """Whether this worker has come again and is not a member yet."""
        return self.incarnation > 0 and self.generation == 0

    def watch(self):
        """Starts the threads."""
        for body in (self._watch, self._look_out):
            thread = threading.Thread(target=body, name="tfdist-membership", daemon=True)
            thread.start()
            self._threads.append(thread)

    def close(self):
        """Ends the threads; to be called when the group was closed."""
        self._is_closed = True
        if self._watching_store is not None:
            self._watching_store.close()
        for thread in self._threads:
            thread.join(timeout=5.0)
        if not any(thread.is_alive() for thread in self._threads):
            library.core().tfdist_group_release(self._native)

    def leave(self, well):
        """Nobody needs to be waited for, or started again, once a worker's program has ended `well`."""
        self._is_closed = True
        if well and not self.is_joining and not self.is_excluded:
            with contextlib.suppress(TfdistError, OSError), self.store() as store:
                store.set(OVER, b"")

    def failure(self):
        """Returns `(code, slot, text)` of what has befallen the group's present connections."""
        peer, text = ctypes.c_int32(-1), ctypes.create_string_buffer(1 << 14)
        code = library.core().tfdist_group_error(self._native, ctypes.byref(peer), text, 1 << 14)
        return code, peer.value, text.value.decode(errors="replace")

    def admit(self, place=0):
        """Takes in the workers that wait, if any; to be called by all members at the same place, with nothing under way.

        Args:
          place: int; only those who wait at the same one.

        Returns:
          The tuple of the slots that are new.
        """
        agreed = library.core().tfdist_group_flag(self._native, _JOIN_FLAG)
        if agreed <= self._num_joins and not self._waiting:
            return ()
        with self._lock, self.store() as store:
            for number in range(self._num_joins + 1, agreed + 1):
                slot, incarnation, where = json.loads(store.get(f"elastic/join/{number}"))
                self._waiting[slot] = (incarnation, where)
            self._num_joins = max(agreed, self._num_joins)
            self._waiting = {s: w for s, w in self._waiting.items() if s not in self.members and w[1] >= place}
            joiners = [[slot, w[0]] for slot, w in self._waiting.items() if w[1] == place]
            if not joiners:
                return ()
            self._waiting = {}  # who is not taken in now asks again
            return self._change(store, (), joiners)

    def join(self, place=0, check=lambda store: None):
        """Asks to be taken in, waits until that has happened, and connects; the group has been one of this worker alone.

        Args:
          place: int, see `admit`.
          check: called with a store now and then; may raise.

        Raises:
          RendezvousError: the job is over.
        """
        while True:
            with self.store() as store:
                number = store.add(JOINS, 1)
                store.set(f"elastic/join/{number}", json.dumps([self.group.rank, self.incarnation, place]).encode())
                generation = self._await_admission(store, check)
                if generation is None:
                    continue
                decision = Decision.from_bytes(store.get(f"elastic/{generation - 1}/decision"))
                with self._lock:
                    self._num_joins = decision.num_joins
                    if not self._enter(store, decision, generation, starts_anew=True):
                        self._change(store, dead_members(store, self.members), [], starts_anew=True)
                self.watch()
                store.set(f"{JOINED}{self.group.rank}", str(self.incarnation).encode())
                return

    def _await_admission(self, store, check):
        """Returns the generation in which this worker takes part, or None where it should ask again."""
        key = f"elastic/admitted/{self.group.rank}/{self.incarnation}"
        for _ in range(_ASK_AGAIN_SECONDS):
            try:
                return int(store.get(key, timeout=1.0))
            except StoreTimeoutError:
                check(store)
                if store.try_get(OVER) is not None:
                    raise RendezvousError(f"rank {self.group.rank} came back too late: the job is over.") from None
        return None

    def store(self):
        """Returns a new connection to the job's store."""
        return StoreClient(self._cluster.store_address, self._cluster.secret)

    def _watch(self):
        while not self._is_closed:
            code = library.core().tfdist_group_await_failure(self._native, _LONG_SECONDS)
            with self._lock:
                code, slot, _ = self.failure()
                if self._is_closed or (code not in (library.OK, library.LOST)):
                    return
                if code == library.LOST and not self._recover(slot):
                    return

    def _recover(self, slot):
        begin = time.monotonic()
        try:
            with self.store() as store:
                self._change(store, [slot], [])
        except (TfdistError, TimeoutError, OSError, ValueError) as error:
            self._give_up(f"rank {slot} was lost, and the others could not agree on how to go on: {error}")
        if self.is_excluded or self.failure()[0] not in (library.OK, library.LOST):
            return False
        logging.warning(
            "tfdist: rank %d was lost; rank %d goes on with %s after %.0f ms",
            slot, self.group.rank, _ranks(self.members), 1e3 * (time.monotonic() - begin),
        )  # fmt: skip
        return True

    def _change(self, store, lost, joiners, starts_anew=False):
        """Agrees on the next generation and connects it, as often as it takes; returns the slots that are new.

        Once somebody was to join, all count collectives from 0, though it may take further generations to connect.
        """
        lost, joined = set(lost) - {self.group.rank}, ()
        while True:
            patience = _ADMISSION_SECONDS if joiners else self._settings["heartbeat"]
            agreement = Agreement(
                store, self.group.rank, self.members, self.generation, min_workers=self._settings["min_workers"],
                patience=patience, timeout=_AGREE_SECONDS,
            )  # fmt: skip
            report = Report.of(self._native_report(), lost, joiners, self._num_joins)
            if starts_anew:
                report.committed.clear()
            decision = agreement.agree(report)
            for slot in self.members.keys() - decision.members.keys():  # if it has stopped, the launcher ends it
                store.set(f"{EXCLUDED}{slot}", str(self.members[slot]).encode())
            if decision.error:
                self._give_up(decision.error, below_minimum=True)
                return ()
            if self.group.rank not in decision.members:
                self.is_excluded = True
                self._give_up(
                    f"rank {self.group.rank} was silent for too long: {_ranks(decision.members)} go on without it"
                )
                return ()
            for slot in decision.joined:
                key = f"elastic/admitted/{slot}/{decision.members[slot]}"
                store.set(key, str(self.generation + 1).encode())
            joined += decision.joined
            starts_anew = starts_anew or bool(decision.joined)
            is_connected = self._enter(store, decision, self.generation + 1, starts_anew)
            if is_connected and (decision.is_common or not joiners):
                return joined
            lost = set() if is_connected else dead_members(store, decision.members)
            if decision.is_common:
                joiners = []  # else others were not at this place yet, but in the middle of a loss: they will come

    def _enter(self, store, decision, generation, starts_anew):
        """Makes a decision come true; returns whether that has worked, so that there is no need for another one."""
        try:
            self._connect(store, decision, generation, starts_anew)
        except (RendezvousError, AuthenticationError) as error:  # the latter where one dies in a handshake
            logging.warning("tfdist: %s", error)
            self.members, self.generation = decision.members, generation
            return False
        return True

    def _connect(self, store, decision, generation, starts_anew):
        members = tuple(decision.members)
        place = dataclasses.replace(
            self._cluster,
            rank=members.index(self.group.rank),
            world_size=len(members),
            local_rank=0,
            local_world_size=1,
        )

        def check():
            dead = dead_members(store, decision.members)
            if dead:
                raise RendezvousError(f"{_ranks(dead)} died while generation {generation} formed")

        formed = mesh.connect(
            place, timeout=_CONNECT_SECONDS, generation=generation, transport=self._settings["transport"],
            sockets_per_peer=self._settings["sockets_per_peer"], check=check,
        )  # fmt: skip
        self.history[generation] = members  # first: once the group is formed anew, who waited in it asks for them
        try:
            for index, number in decision.flags.items():
                library.core().tfdist_group_learn_flag(self._native, index, number)
            self.group.reform(formed, members, generation, decision.counts, starts_anew=starts_anew)
        finally:
            shared_memory.close_all(formed.segments)
        self.members, self.generation = decision.members, generation

    def _native_report(self):
        text = ctypes.create_string_buffer(_REPORT_BYTES)
        length = library.core().tfdist_group_report(self._native, text, _REPORT_BYTES)
        if length > _REPORT_BYTES:
            raise ValueError(f"the report of open collectives is expected to fit into 1 MiB. Received: {length} bytes")
        return text.raw[:length].decode()

    def _give_up(self, text, below_minimum=False):
        code = library.BELOW_MINIMUM if below_minimum else library.LOST
        library.core().tfdist_group_give_up(self._native, code, -1, text.encode())

    def _look_out(self):
        """Tells the group, by a flag that every commit carries, how many have asked to join."""
        try:
            self._watching_store = self.store()
            number = self._num_joins + 1
            while not self._is_closed:
                try:
                    self._watching_store.get(f"elastic/join/{number}", timeout=_LONG_SECONDS)
                except StoreTimeoutError:
                    continue
                library.core().tfdist_group_set_flag(self._native, _JOIN_FLAG, number)
                number += 1
        except (TfdistError, OSError):
            pass  # the job ends; or nobody can join any more


def _ranks(slots):
    return "rank " + ", ".join(map(str, slots))
