"""Who takes part in a job, who this process is, and how the processes find each other."""
