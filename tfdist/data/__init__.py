"""Which rows of the data a worker sees, and in which order."""
