"""The batches of arrays, dealt on lease: what a lost worker held goes on at another's, through TensorFlow's pipeline."""

import numpy as np
import pytest
import tensorflow as tf

from tests.data.lease_job import Job, together
from tfdist.data import dealer, dealing, leased_epoch, permutation, pipeline

SIZES = [0, 1, 3, 4, 5, 12, 397]  # rows, in batches of 4


@pytest.fixture(params=["ahead", "one core"])
def cores(request, monkeypatch):
    monkeypatch.setattr(pipeline, "has_one_core", lambda: request.param == "one core")
    return request.param


@pytest.fixture
def job(monkeypatch):
    monkeypatch.setattr(leased_epoch, "_WRITING_FRACTION", float("inf"))
    one = Job(2)
    yield one
    one.close()


def batches(num_rows, own, **options):
    arrays = {"x": np.arange(num_rows), "y": (tf.range(num_rows) * 2, None)}
    return dealing.dealt_batches(arrays, num_rows=num_rows, batch_size=4, shuffle=True, seed=[5], dealer=own, **options)


def rows_of(dataset):
    return [batch["x"].numpy().tolist() for batch in dataset]


@pytest.mark.parametrize("num_rows", SIZES)
def test_two_workers_share_every_epoch(job, cores, num_rows):
    datasets = [batches(num_rows, job.dealer(rank)) for rank in range(2)]
    assert datasets[0].element_spec == batches(num_rows, dealer.Dealer(1)).element_spec
    for epoch in range(2):
        received = together(*[lambda own=own: rows_of(own) for own in datasets])
        order = permutation.epoch_order(num_rows, 4, True, [5, epoch])
        expected = sorted(order[start : start + 4].tolist() for start in range(0, num_rows, 4))
        assert sorted(sum(received, [])) == expected


@pytest.mark.parametrize("num_taken", [1, 2, 3, 9, 30])
def test_a_lost_worker_leaves_only_the_batch_in_training_to_be_seen_twice(job, cores, num_taken):
    num_rows = 397
    mine, theirs = [batches(num_rows, job.dealer(rank), look_first=True) for rank in range(2)]
    for dataset in (mine, theirs):
        assert len(rows_of(dataset)) == 1  # Keras looks at a batch, which counts for nothing
    iterator = iter(theirs)
    seen = [next(iterator)["x"].numpy().tolist() for _ in range(num_taken)]
    job.lose(1)
    received = rows_of(mine)
    assert [batch for batch in received if batch in seen] == seen[-1:]
    assert sorted(sum(received + seen[:-1], [])) == list(range(num_rows))


def test_a_dataset_says_what_is_left_out(job, cores, caplog):
    plain = tf.data.Dataset.from_tensor_slices({"x": np.arange(200)}).batch(4)
    dealers = [job.dealer(rank) for rank in range(2)]
    mine, theirs = [dealing.dealt(plain, own) for own in dealers]
    seen = next(iter(theirs))["x"].numpy().tolist()
    job.lose(1)
    received = sum(rows_of(mine), [])
    assert not set(seen) & set(received) and len(set(received)) == len(received) >= 180
    dealers[0].leave()
    assert caplog.text.count("rank 1 was lost. What it had not trained on of the batches") == 1
