"""What a job is doing, as numbers: pure Python, shown by callbacks and commands."""
