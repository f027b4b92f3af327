"""Which rows of the data a worker sees, and in which order."""

__all__ = ["dynamic_shards"]


def __getattr__(name):
    if name == "dynamic_shards":  # on first use: the demo data need no TensorFlow
        from tfdist.data.dealing import dynamic_shards

        return dynamic_shards
    raise AttributeError(f"module 'tfdist.data' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
