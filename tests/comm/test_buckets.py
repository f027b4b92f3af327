"""Buckets: every tensor once, in order, one dtype each, closed when full."""

import pytest

from tfdist.comm.buckets import Bucket, plan_buckets


@pytest.mark.parametrize(
    ("sizes", "dtypes", "limit", "expected"),
    [
        ([], [], 10, []),
        ([4], ["a"], 10, [(0,)]),
        ([4, 4, 4, 4], ["a"] * 4, 10, [(0, 1, 2), (3,)]),
        ([20, 4], ["a", "a"], 10, [(0,), (1,)]),
        ([4, 4, 4], ["a", "b", "a"], 10, [(1,), (0, 2)]),
        ([4, None, 4], ["a", "a", "a"], 10, [(1,), (0, 2)]),
    ],
)
def test_plan(sizes, dtypes, limit, expected):
    buckets = plan_buckets(sizes, dtypes, limit)
    assert [bucket.indices for bucket in buckets] == expected
    assert all(isinstance(b, Bucket) and {dtypes[i] for i in b.indices} == {b.dtype} for b in buckets)
