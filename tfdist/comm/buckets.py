"""Which tensors travel together: a fixed order, equal on every rank, cut where a bucket is full."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Bucket:
    """Tensors that travel as one.

    Args:
      indices: positions in the list that was planned.
      dtype: str, of all of them.
    """

    indices: tuple
    dtype: str


def plan_buckets(sizes_bytes, dtypes, bucket_bytes):
    """Cuts a list of tensors into buckets, in order, separately for each dtype.

    A bucket is closed by the tensor that fills it, so that a large tensor does not wait for the next one.

    Args:
      sizes_bytes: list of int, None where it is unknown before the run: such a tensor travels alone.
      dtypes: list of str, one per tensor.
      bucket_bytes: int > 0.

    Returns:
      A list of `Bucket`, in the order in which their last tensors come.
    """
    open_buckets, fill, buckets = {}, {}, []
    for index, (size, dtype) in enumerate(zip(sizes_bytes, dtypes)):
        if size is None:
            buckets.append(Bucket((index,), dtype))
            continue
        open_buckets.setdefault(dtype, []).append(index)
        fill[dtype] = fill.get(dtype, 0) + size
        if fill[dtype] >= bucket_bytes:
            buckets.append(Bucket(tuple(open_buckets.pop(dtype)), dtype))
            fill[dtype] = 0
    buckets.extend(Bucket(tuple(indices), dtype) for dtype, indices in open_buckets.items())
    return sorted(buckets, key=lambda bucket: bucket.indices[-1])
