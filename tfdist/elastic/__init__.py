"""Workers may be lost, and come, while a job goes on."""
