"""The bytes of a checkpoint file.

    "TFDISTCK"                          8 bytes
    the tensors, one behind the other   raw, little-endian, C order
    the manifest                        JSON: {"format": 1, "tensors": [{"name", "dtype", "shape", "crc32"}], "values": {...}}
    the end                             24 bytes: length of the manifest (uint64), its CRC-32 (uint32), 0 (uint32), "TFDISTCK"

Every byte is covered: by a CRC-32, by the sum of all lengths, or by being known. Nothing is unpickled.
"""

import json
import math
import struct
import zlib

import numpy as np

from tfdist.errors import ConfigurationError

FORMAT = 1
MAGIC = b"TFDISTCK"
END = struct.Struct("<QII8s")
_KINDS = "biufcV"  # V: bfloat16 and float8 of ml_dtypes; void types with fields have no name to be found by
_MAX_DIMENSIONS = 64


class DamagedError(ValueError):
    """The bytes are not those of a checkpoint that was written whole; the text says where."""


def encoded(tensors, values):
    """Yields the pieces of a checkpoint file, bytes-like, in order.

    Args:
      tensors: dict of str to NumPy array.
      values: dict fit for JSON.

    Raises:
      ConfigurationError: an array is of a type that has no fixed bytes, such as object.
    """
    yield MAGIC
    entries = []
    for name, array in tensors.items():
        array = np.asarray(array)
        if not _is_known(array.dtype):
            raise ConfigurationError(
                f"Arrays of numbers are expected in a checkpoint. Received: {name!r} of dtype={array.dtype}. Put what else "
                "there is into `values`."
            )
        data = _bytes_of(array)
        entry = {"name": name, "dtype": array.dtype.name, "shape": list(array.shape), "crc32": zlib.crc32(data)}
        entries.append(entry)
        yield data
    manifest = json.dumps({"format": FORMAT, "tensors": entries, "values": values}).encode()
    yield manifest
    yield END.pack(len(manifest), zlib.crc32(manifest), 0, MAGIC)


def read_manifest(file, num_bytes):
    """Returns the manifest of an open checkpoint file, verified.

    Args:
      file: opened for reading, buffered.
      num_bytes: int, the size of the file.

    Raises:
      DamagedError: it is damaged, or not a checkpoint.
      ConfigurationError: it was written by a later version.
    """
    if num_bytes < len(MAGIC) + END.size or _read(file, 0, len(MAGIC)) != MAGIC:
        raise DamagedError("no checkpoint: its first bytes are others, or too few")
    length, checksum, zero, magic = END.unpack(_read(file, num_bytes - END.size, END.size))
    begin = num_bytes - END.size - length
    if magic != MAGIC or zero or begin < len(MAGIC):
        raise DamagedError("a file that was cut off, or whose last bytes have changed")
    text = _read(file, begin, length)
    if zlib.crc32(text) != checksum:
        raise DamagedError("a manifest that does not have its checksum")
    return _checked(json.loads(text), begin - len(MAGIC))


def _checked(manifest, num_bytes):
    if manifest["format"] != FORMAT:
        raise ConfigurationError(
            f"A checkpoint of format {FORMAT} was expected. Received: format={manifest['format']}. "
            "Read it with the version of tfdist that has written it, or a later one."
        )
    try:
        told = sum(_size_of(entry) for entry in manifest["tensors"])
    except (AttributeError, KeyError, TypeError) as error:
        raise DamagedError(f"a manifest that is none: {error!r}") from error
    if told != num_bytes:
        raise DamagedError(f"{num_bytes} bytes of tensors, where the manifest tells of {told}")
    return manifest


def read_tensors(file, manifest):
    """Yields `(name, array)` of an open checkpoint file, verified one by one.

    Raises:
      DamagedError: a tensor does not have its checksum.
    """
    file.seek(len(MAGIC))
    for entry in manifest["tensors"]:
        array = np.empty(entry["shape"], _dtype_of(entry))
        data = array.reshape(-1).view(np.uint8)
        if file.readinto(data) != data.nbytes or zlib.crc32(data) != entry["crc32"]:
            raise DamagedError(f"tensor {entry['name']!r} does not have its checksum")
        yield entry["name"], array


def _read(file, begin, count):
    file.seek(begin)
    return file.read(count)


def _is_known(dtype):
    """Whether a type of array has fixed bytes, and a name that it is found by."""
    try:
        return dtype.kind in _KINDS and _of_name(dtype.name) == dtype.newbyteorder("=")
    except (TypeError, AttributeError):
        return False


def _of_name(name):
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, name))


def _little(dtype):
    return dtype.newbyteorder("<") if dtype.kind in "iufc" else dtype


def _bytes_of(array):
    array = np.ascontiguousarray(array)
    return array.astype(_little(array.dtype), copy=False).reshape(-1).view(np.uint8)


def _dtype_of(entry):
    dtype = _of_name(entry["dtype"])
    if dtype.kind not in _KINDS:
        raise DamagedError(f"tensor {entry['name']!r} of dtype={dtype}")
    return _little(dtype)


def _size_of(entry):
    shape = entry["shape"]
    if len(shape) > _MAX_DIMENSIONS or any(size < 0 for size in shape):
        raise DamagedError(f"a shape that is none, {shape}")
    return math.prod(shape) * _dtype_of(entry).itemsize
