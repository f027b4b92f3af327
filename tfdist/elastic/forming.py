"""The first members of a job meet; who comes later, or again, is alone until the others take it in."""

import dataclasses
import json
import os
import time

from absl import logging

from tfdist.cluster import variables
from tfdist.cluster.store import StoreClient
from tfdist.collectives import Topology
from tfdist.comm import mesh, shared_memory, tuning
from tfdist.comm.group import Group
from tfdist.comm.group_options import Slots
from tfdist.comm.plans import Choice
from tfdist.elastic.agreement import deaths
from tfdist.elastic.membership import FORMED, Membership
from tfdist.errors import AuthenticationError, RendezvousError

_SETTINGS = "elastic/settings"
_SETTINGS_SECONDS = 60.0
_NOTICE_SECONDS = 2.0


class _Again(RendezvousError):
    """Somebody died before the group had formed: its members try again, with who takes that place."""


def form(cluster, *, timeout, rendezvous_timeout, algorithm, environ=os.environ):
    """Returns the group of an elastic job and its `Membership`, for the first members; a group of one for a joiner.

    Args:
      cluster: a `Cluster` whose store outlives every worker; its world_size counts slots.
      timeout: float seconds that a wait of the group may last.
      rendezvous_timeout: float seconds for the first members to meet.
      algorithm: the name of an all-reduce, or None.
      environ: a mapping of environment variables.

    Raises:
      RendezvousError: somebody did not come in time.
    """
    settings = {
        "min_workers": variables.min_workers(environ),
        "heartbeat": variables.heartbeat_seconds(environ),
        "transport": variables.transport(environ),
        "sockets_per_peer": variables.sockets_per_peer(environ),
    }
    incarnation = variables.incarnation(environ)
    initial = variables.initial_workers(environ, cluster.world_size)
    with StoreClient(cluster.store_address, cluster.secret) as store:
        if incarnation and (cluster.rank >= initial or store.try_get(FORMED) is not None):
            return _alone(store, cluster, timeout, incarnation, settings)
        formed, generation = _meet(store, cluster, initial, rendezvous_timeout, settings)
        died = deaths(store)
        members = {slot: died.get(slot, -1) + 1 for slot in range(initial)}
        options = dict(timeout=timeout, segments=formed.segments, topology=formed.topology, generation=generation)
        try:
            group = Group(cluster.rank, initial, formed.sockets, **options,
                          slots=Slots(tuple(members), cluster.world_size))  # fmt: skip
        finally:
            shared_memory.close_all(formed.segments)
        membership = Membership(group, cluster, members, generation, settings)
        membership.watch()
        group.algorithm = algorithm
        tuning.tune(group, variables.plan(environ))
        if group.rank == group.chief:
            values = {"choice": group.choice.to_dict(), "algorithm": algorithm, "hosts": group.topology.hosts,
                      "shared": group.topology.shared}  # fmt: skip
            store.set(_SETTINGS, json.dumps(values).encode())
    return group, membership


def _meet(store, cluster, initial, timeout, settings):
    """Connects the first members; begins again when one of them has died and comes anew."""
    place = dataclasses.replace(cluster, world_size=initial, local_rank=0, local_world_size=1)
    while True:
        generation = _deaths(store)

        def check(generation=generation):
            if _deaths(store) != generation:
                raise _Again(f"a worker died before the group of {initial} had formed")

        try:
            formed = mesh.connect(
                place, timeout=timeout, generation=generation, transport=settings["transport"],
                sockets_per_peer=settings["sockets_per_peer"], check=check,
            )  # fmt: skip
        except (RendezvousError, AuthenticationError) as error:  # the latter where one dies in a handshake
            if not _has_changed(store, generation):
                raise
            if store.try_get(FORMED) is not None:
                raise RendezvousError(f"rank {cluster.rank} missed the others, which go on without it") from error
            logging.warning("tfdist: %s; trying again", error)
            continue
        store.claim(FORMED, str(generation).encode())
        return formed, generation


def _has_changed(store, generation):
    """Returns whether somebody has died; the launcher may be a moment later than the broken connection."""
    deadline = time.monotonic() + _NOTICE_SECONDS
    while _deaths(store) == generation and time.monotonic() < deadline:
        time.sleep(0.05)
    return _deaths(store) != generation


def _deaths(store):
    return sum(incarnation + 1 for incarnation in deaths(store).values())


def _alone(store, cluster, timeout, incarnation, settings):
    given = json.loads(store.get(_SETTINGS, timeout=_SETTINGS_SECONDS))
    topology = Topology(given["hosts"], shared=given["shared"])
    slots = Slots((cluster.rank,), cluster.world_size)
    group = Group(0, 1, timeout=timeout, topology=Topology(((0,),)), slots=slots)
    group.remember(topology, Choice.from_dict(given["choice"]), given["algorithm"])
    return group, Membership(group, cluster, {cluster.rank: incarnation}, 0, settings)
