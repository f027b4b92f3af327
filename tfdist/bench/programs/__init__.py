"""What the ranks of a benchmark run, by path: in an interpreter that need not know tfdist (see `serve.py`)."""
