"""What is written is read, and every byte that has changed is found."""

import os

import ml_dtypes
import numpy as np
import pytest

from tfdist import checkpoint
from tfdist.checkpoint import disk, folder
from tfdist.errors import ConfigurationError, CorruptCheckpointError

TENSORS = {
    "f32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "transposed": np.arange(6.0).reshape(2, 3).T,
    "scalar": np.array(7, np.int64),
    "nothing": np.zeros((3, 0, 2), np.float16),
    "flags": np.array([True, False]),
    "bfloat16": np.arange(5).astype(ml_dtypes.bfloat16),
    "seeds": np.array([2**32 - 1, 5], np.uint32),
    "big-endian": np.arange(3, dtype=">i4"),
    "complex": np.array([1 + 2j]),
}
VALUES = {"epoch": 3, "nested": {"seed": 2**64 - 1, "text": "Grüße"}, "none": None}


def write_three(directory):
    return [checkpoint.write(directory, {"n": np.full(100, i)}, {"i": i}) for i in range(3)]


def flip(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x10
    path.write_bytes(data)


def test_everything_comes_back(tmp_path):
    path = checkpoint.write(tmp_path / "made" / "here", TENSORS, VALUES)
    found = checkpoint.load(path)
    assert found.path == path and found.values == VALUES
    assert list(found.tensors) == list(TENSORS)
    for name, array in TENSORS.items():
        assert np.array_equal(found.tensors[name], array) and found.tensors[name].shape == array.shape, name
        assert found.tensors[name].dtype.name == array.dtype.name, name
    assert checkpoint.verify(path)["f32"] == ((2, 3), "float32")


def test_every_flipped_byte_is_found(tmp_path):
    path = tmp_path / "checkpoint-00000001.tfdist"
    checkpoint.write(tmp_path, TENSORS, VALUES)
    whole = path.read_bytes()
    for offset in range(len(whole)):
        flip(path, offset)
        with pytest.raises(CorruptCheckpointError, match="whole checkpoint was expected in .*1.tfdist. Received"):
            checkpoint.verify(path)
        path.write_bytes(whole)
    checkpoint.verify(path)


def test_every_cut_and_addition_is_found(tmp_path):
    path = tmp_path / "checkpoint-00000001.tfdist"
    checkpoint.write(tmp_path, {"a": np.arange(9)}, VALUES)
    whole = path.read_bytes()
    cut = [whole[:size] for size in range(len(whole))]
    for changed in [
        *cut,
        *(whole[:size] + b"\0" + whole[size:] for size in range(len(whole) + 1)),
        whole + whole[-24:],
    ]:
        path.write_bytes(changed)
        with pytest.raises(CorruptCheckpointError):
            checkpoint.load(path)


def test_the_one_before_a_damaged_one_is_read(tmp_path, caplog):
    paths = write_three(tmp_path)
    flip(tmp_path / os.path.basename(paths[2]), 50)
    assert checkpoint.load(tmp_path).values == {"i": 1}
    assert "tensor 'n' does not have its checksum. Restore the file from a copy, or delete it." in caplog.text
    assert checkpoint.latest(tmp_path) == paths[2]
    with pytest.raises(CorruptCheckpointError, match="Received: tensor 'n' does not have its checksum"):
        checkpoint.load(paths[2])


def test_all_damaged(tmp_path):
    for path in write_three(tmp_path):
        os.truncate(path, 30)
    with pytest.raises(CorruptCheckpointError, match="Received: 3 of 3 are damaged. Restore the directory from a copy"):
        checkpoint.load(tmp_path)


def test_none_at_all(tmp_path):
    assert checkpoint.latest(tmp_path) is None and checkpoint.latest(tmp_path / "missing") is None
    with pytest.raises(ConfigurationError, match="A checkpoint was expected in .* Received: none"):
        checkpoint.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        checkpoint.verify(tmp_path / "missing")


def test_a_later_format_is_not_taken_for_damage(tmp_path, monkeypatch):
    monkeypatch.setattr("tfdist.checkpoint.encoding.FORMAT", 2)
    path = checkpoint.write(tmp_path, TENSORS)
    monkeypatch.undo()
    with pytest.raises(ConfigurationError, match="format 1 was expected. Received: format=2"):
        checkpoint.load(path)


NOT_NUMBERS = [np.array([object()]), np.array(["text"]), np.zeros(2, [("a", "i4")]), np.zeros(2, "V3")]


@pytest.mark.parametrize("array", NOT_NUMBERS)
def test_what_is_not_numbers_is_refused_and_leaves_nothing(tmp_path, array):
    with pytest.raises(ConfigurationError, match="Arrays of numbers are expected .* Received: 'it' of dtype="):
        checkpoint.write(tmp_path, {"it": array})
    assert os.listdir(tmp_path) == []


def test_a_manifest_that_names_objects_is_not_obeyed(tmp_path, monkeypatch):
    """With a checksum that fits: nothing is unpickled, whatever a file says."""
    monkeypatch.setattr("tfdist.checkpoint.encoding._is_known", lambda dtype: True)
    monkeypatch.setattr("tfdist.checkpoint.encoding._bytes_of", lambda array: np.zeros(8, np.uint8))
    path = checkpoint.write(tmp_path, {"it": np.array([object()])})
    monkeypatch.undo()
    with pytest.raises(CorruptCheckpointError, match="tensor 'it' of dtype=object"):
        checkpoint.load(path)


def test_keep(tmp_path):
    with pytest.raises(ConfigurationError, match="keep is expected to be at least 1. Received: keep=0"):
        checkpoint.write(tmp_path, TENSORS, keep=0)
    for i in range(5):
        checkpoint.write(tmp_path, TENSORS, {"i": i}, keep=2)
    (tmp_path / "notes.txt").write_text("of the user")
    assert folder.numbers(tmp_path) == [4, 5]
    checkpoint.write(tmp_path, TENSORS, keep=1)
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-00000006.tfdist", "notes.txt"]


def test_a_full_disk_leaves_the_one_before(tmp_path, monkeypatch):
    write_three(tmp_path)

    def full(descriptor, data, original=disk.write):
        original(descriptor, data[:3])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk, "write", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.write(tmp_path, TENSORS)
    assert len(os.listdir(tmp_path)) == 3 and checkpoint.load(tmp_path).values == {"i": 2}


def test_two_writers_never_share_a_number(tmp_path):
    """One has begun and sleeps (a worker that was excluded); what it finishes later is older than what was written since."""
    number, descriptor = folder.reserve(tmp_path)
    checkpoint.write(tmp_path, TENSORS, {"by": "the other"})
    os.close(descriptor)
    assert folder.numbers(tmp_path) == [number + 1]
    assert folder.partial_numbers(tmp_path) == []  # taken for one left behind
    with pytest.raises(FileNotFoundError):
        disk.rename(folder.partial_path_of(tmp_path, number), folder.path_of(tmp_path, number))


def test_a_number_that_was_used_up_meanwhile_is_left_alone(tmp_path, monkeypatch):
    paths = write_three(tmp_path)
    monkeypatch.setattr(folder, "numbers", lambda directory: [1, 2])  # as it was when this writer looked
    number, descriptor = folder.reserve(tmp_path)
    os.close(descriptor)
    assert number == 4 and checkpoint.load(paths[2]).values == {"i": 2}
    assert folder.partial_numbers(tmp_path) == [4]
