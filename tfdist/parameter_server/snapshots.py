"""Files with the state of a server: written beside the old one and renamed, checked block by block when they are read.

    snapshot = magic | (u64 length | u32 CRC-32 | bytes) of each block | the same of an empty block

Integers are big-endian. A file that was cut off, or of which a byte has changed, is passed over for the one before. What has
been written outlives the process; it is not forced to the disk, as a server is started again on its own host.
"""

import os
import re
import shutil
import struct
import zlib

from absl import logging

_MAGIC = b"tfdistS1"
_BLOCK = struct.Struct(">QI")
_NAME = re.compile(r"snapshot-(\d{9})")


class Snapshots:
    """The snapshots in one folder, of one server.

    Args:
      folder: path, made where it is missing, readable by this user only.
      keep: int >= 1, how many of them stay.
    """

    def __init__(self, folder, keep=2):
        self.folder = folder
        self._keep = keep
        os.makedirs(folder, mode=0o700, exist_ok=True)

    def write(self, blocks):
        """Writes a snapshot: an iterable of bytes-like objects, none of them empty."""
        numbers = self._numbers()
        number = numbers[-1] + 1 if numbers else 0
        partial = self._path(number) + ".partial"
        with open(partial, "wb") as file:
            file.write(_MAGIC)
            for block in blocks:
                file.write(_BLOCK.pack(len(block), zlib.crc32(block)))
                file.write(block)
            file.write(_BLOCK.pack(0, 0))
        os.replace(partial, self._path(number))
        for old in numbers[: 1 - self._keep or None]:
            os.unlink(self._path(old))

    def newest(self):
        """Returns the blocks of the newest snapshot that is whole, a list of bytes; None where there is none."""
        for number in reversed(self._numbers()):
            try:
                return _read(self._path(number))
            except (OSError, ValueError) as error:
                logging.warning("snapshot %s is passed over: %s", self._path(number), error)
        return None

    def clear(self):
        """Removes the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, number):
        return os.path.join(self.folder, f"snapshot-{number:09}")

    def _numbers(self):
        return sorted(int(found[1]) for found in map(_NAME.fullmatch, os.listdir(self.folder)) if found)


def _read(path):
    with open(path, "rb") as file:
        left = os.fstat(file.fileno()).st_size
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ValueError("it does not begin as a snapshot")
        blocks = []
        while True:
            head = file.read(_BLOCK.size)
            if len(head) < _BLOCK.size:
                raise ValueError("it is cut off")
            length, check = _BLOCK.unpack(head)
            if length == 0:
                return blocks
            block = file.read(length) if length <= left else b""
            if len(block) < length or zlib.crc32(block) != check:
                raise ValueError(f"block {len(blocks)} is not what was written")
            blocks.append(block)
