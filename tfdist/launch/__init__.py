"""Starts the workers of a job and looks after them: `tfdist run`, and `local.run` for notebooks."""
