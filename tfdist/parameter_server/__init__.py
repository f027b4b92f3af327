"""Parameter servers: processes that hold the parameters and update them with what the workers push."""
