"""The state of a store as blocks of bytes: its declaration, what it has counted, each shard, and a hosted optimizer's variables.

Each shard is saved under its own lock, while pushes go on: with its parameters and optimizer state goes the number of each
worker's last push that is in it. So a push that is sent again is applied where it is missing, and nowhere else.
"""

import json
import struct

import numpy as np

from tfdist.parameter_server import library

_SAVED_STORE = struct.Struct("=QQQq")
_SAVED_WORKER = struct.Struct("=QQqqqqdQQQ")


def save(store):
    """Yields the blocks of a `Store`; how many, the first one tells."""
    yield json.dumps(store.description()).encode()
    yield _saved(store, -1)
    with store.host_held():
        for shard in range(store.num_shards):
            yield _saved(store, shard)
        yield from store.variables()


def split(blocks):
    """Yields `(description, blocks)` of each store in a list of blocks."""
    blocks = list(blocks)
    while blocks:
        description = json.loads(blocks[0])
        count = 2 + description["num_shards"] + description["num_variables"]
        yield description, blocks[1:count]
        blocks = blocks[count:]


def load(store, blocks):
    """Makes a new `Store` what was saved. Raises ValueError where the blocks are those of another one."""
    shards, variables = blocks[1 : 1 + store.num_shards], blocks[1 + store.num_shards :]
    for shard, block in [(-1, blocks[0]), *enumerate(shards)]:
        if library.core().tfdist_server_load(store.server, store.number, shard, block, len(block)) != 0:
            raise ValueError(f"shard {shard} of store {store.name!r} is of another store")
    store.load_variables(variables)


def pushes(block):
    """Returns how many pushes a store has seen, of the block that tells what it has counted: `(generation, pushes)`."""
    _, generation, num_workers, _ = _SAVED_STORE.unpack_from(block)
    offsets = range(_SAVED_STORE.size, _SAVED_STORE.size + num_workers * _SAVED_WORKER.size, _SAVED_WORKER.size)
    return generation, sum(_SAVED_WORKER.unpack_from(block, offset)[1] for offset in offsets)


def _saved(store, shard):
    core = library.core()
    size = core.tfdist_server_save(store.server, store.number, shard, None, 0)
    while True:
        block = np.empty(size, np.uint8)
        size = core.tfdist_server_save(store.server, store.number, shard, block.ctypes.data, block.size)
        if size <= block.size:
            return memoryview(block[:size])
