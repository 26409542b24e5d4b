"""Where the academy's state is kept: SQL and Redis, and nothing else."""
