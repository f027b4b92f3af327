"""Parameter servers: processes that keep the parameters and the optimizer's state, and update them for all workers."""
